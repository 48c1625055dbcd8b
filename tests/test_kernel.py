"""A notebook: the same cell in a new kernel finds the task that the old one started."""

from __future__ import annotations

import os
import queue
import signal
import time
from pathlib import Path

import pytest

PATIENCE = 60.0

CELL = """
import os, time
import fsbroker

class Setting:
    def __init__(self, factor):
        self.factor = factor

OFFSET = 1000

def helper(x):
    return x + OFFSET

def slow(x, setting, marks={marks!r}, opened={opened!r}):
    with open(marks, "a") as file:
        file.write("x")
    while not os.path.exists(opened):
        time.sleep(0.02)
    return helper(x) * setting.factor

exe = fsbroker.ClusterExecutor({spool!r}, max_workers=1, idle_timeout=5)
future = exe.submit(slow, 23, Setting(2))
print("key", future.key.hex())
"""


class Kernel:
    """A real ipykernel process, spoken to as a notebook does."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(startup_timeout=PATIENCE)

    @property
    def pid(self) -> int:
        return self.manager.provisioner.pid

    def run(self, cell: str) -> str:
        """Execute a cell; what it printed."""
        sent = self.client.execute(cell)
        printed, end = [], time.monotonic() + PATIENCE
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=end - time.monotonic())
            except queue.Empty:
                pytest.fail("the kernel does not answer")
            if message["parent_header"].get("msg_id") != sent:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                printed.append(content["text"])
            elif message["msg_type"] == "error":
                pytest.fail("\n".join(content["traceback"]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return "".join(printed)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernels():
    started: list[Kernel] = []

    def start() -> Kernel:
        started.append(Kernel())
        return started[-1]

    yield start
    for kernel in started:
        kernel.close()


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)


@pytest.mark.kernel
def test_a_cell_in_a_new_kernel_attaches_to_the_running_task(tmp_path, kernels):
    marks, opened = tmp_path / "marks", tmp_path / "opened"
    cell = CELL.format(marks=str(marks), opened=str(opened), spool=str(tmp_path / "spool"))
    first = kernels()
    key = first.run(cell)
    until(marks.exists, "the task's begin")
    first.kill()

    second = kernels()
    second.run("unrelated = 1")  # cells are numbered: the same text gets another file name
    assert second.run(cell) == key
    assert second.run("print(future.done())") == "False\n"
    opened.touch()
    assert second.run("print(future.result(30))") == "2046\n"
    assert marks.read_text() == "x"

    # Run again in the same kernel, and with a changed helper.
    assert second.run(cell + "print(future.result(30))") == key + "2046\n"
    changed = cell.replace("return x + OFFSET", "return x - OFFSET")
    assert second.run(changed + "print(future.result(30))").splitlines()[1] == str(-977 * 2)
    assert marks.read_text() == "xx"


@pytest.mark.kernel
def test_interrupting_a_cell_that_waits_harms_nothing(tmp_path, kernels):
    marks, opened = tmp_path / "marks", tmp_path / "opened"
    cell = CELL.format(marks=str(marks), opened=str(opened), spool=str(tmp_path / "spool"))
    kernel = kernels()
    kernel.run(cell)
    until(marks.exists, "the task's begin")
    waiting = (
        "import signal, threading\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    future.result(30)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    assert kernel.run(waiting) == "interrupted\n"
    Path(opened).touch()
    assert kernel.run("print(future.result(30))") == "2046\n"
    assert marks.read_text() == "x"

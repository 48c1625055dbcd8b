"""The listings of executorlib's talk and paper, with one line changed, on any of the executors.

    python -m tests.testbed.listings SlurmJobExecutor NAME...

runs some of them (in a queue job, say) and prints their results as JSON. Completed is what
the talk leaves out: bodies, ranges and an existing directory.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import cloudpickle

import fsbroker

Executor = Any
"""The class in the changed line."""


def sums(executor: Executor) -> Any:
    with executor() as exe:
        future_lst = []
        for i in range(1, 5):
            future_lst.append(exe.submit(sum, [i, i]))  # noqa: PERF401 - as in the talk

        # check status
        print([f.done() for f in future_lst], file=sys.stderr)

        # wait for computations to complete
        return [f.result() for f in future_lst]


def calc_mpi(i):
    from mpi4py import MPI

    size = MPI.COMM_WORLD.Get_size()
    rank = MPI.COMM_WORLD.Get_rank()
    return i, size, rank, os.getcwd(), os.environ["OMP_NUM_THREADS"]


def mpi(executor: Executor) -> Any:
    """Each rank's result, and with it the directory and the number of threads."""
    with executor() as exe:
        fs = exe.submit(
            calc_mpi,
            3,
            resource_dict={
                "cores": 2,
                "threads_per_core": 1,
                "cwd": os.path.abspath("a/b/c"),
            },
        )
        return fs.result()


def gpu_of_rank():
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), os.environ["CUDA_VISIBLE_DEVICES"]


def gpus(executor: Executor) -> Any:
    with executor() as exe:
        fs = exe.submit(gpu_of_rank, resource_dict={"cores": 2, "gpus_per_core": 1})
        return fs.result()


def calc_add(a, b):
    return a + b


def chain(executor: Executor) -> Any:
    with executor() as exe:
        future = 0
        for i in range(1, 4):
            future = exe.submit(calc_add, i, future)
        return future.result()


def cached(executor: Executor) -> Any:
    """The sum, of two runs of the same lines."""
    found = []
    for _ in range(2):
        with executor(cache_directory="./cache") as exe:
            future = 0
            for i in range(1, 4):
                future = exe.submit(calc_add, i, future)
            found.append(future.result())
    return found


def table(executor: Executor) -> Any:
    """The rows of the cache's table, by their outputs, in the talk's columns."""
    import pandas as pd

    with executor(cache_directory="./sums") as exe:
        for i in range(1, 4):
            exe.submit(sum, [i, i])
    frame = pd.DataFrame(fsbroker.get_cache_data(cache_directory="./sums"))
    assert (frame["runtime"] >= 0).all()
    frame["function"] = [getattr(function, "__name__", function) for function in frame["function"]]
    shown = frame.sort_values("output")[["function", "input_args", "input_kwargs", "output"]]
    return json.loads(shown.to_json(orient="values"))


def init_function():
    return {"j": 4, "k": 3, "l": 2}


def calc_with_preload(i, j, k):
    return i + j + k


def preload(executor: Executor) -> Any:
    with executor(
        max_workers=2,
        resource_dict={"cores": 1},
        init_function=init_function,
        block_allocation=True,
    ) as exe:
        fs = exe.submit(calc_with_preload, 2, j=5)
        return fs.result()


def task_one(number, until=None):
    """A fast one, or one that takes as long as a file is not there."""
    import time

    end = time.monotonic() + 100
    while until and not os.path.exists(until):
        assert time.monotonic() < end
        time.sleep(0.05)
    return number


def task_two(batch):
    return list(batch)


def streaming(executor: Executor) -> Any:
    """Batches of those that finish first. The slow ones, submitted first, end only after that."""
    gate = os.path.abspath("first batch")
    with executor(max_workers=4) as exe:
        task_one_lst = []
        for i in range(4):
            task_one_lst.append(exe.submit(task_one, i, gate if i < 2 else None))  # noqa: PERF401

        task_two_lst = []
        for f in exe.batched(task_one_lst, n=2):
            task_two_lst.append(exe.submit(task_two, f))  # noqa: PERF401
        first = task_two_lst[0].result()
        open(gate, "w").close()
        found = [first, task_two_lst[1].result()]
    os.unlink(gate)
    return found


def drawn(executor: Executor) -> Any:
    """Whether the drawing has the functions and what goes in; nothing runs."""
    with executor(plot_dependency_graph=True, plot_dependency_graph_filename="graph.svg") as exe:
        future = 0
        for i in range(1, 4):
            future = exe.submit(calc_add, i, future)
    with open("graph.svg") as file:
        text = file.read()
    return [text.count(">calc_add<"), text.count(">a<"), text.count(">b<")]


def exported(executor: Executor) -> Any:
    """The nodes, by type and value, and the edges, by what they lead from and to."""
    with executor(export_workflow_filename="flow.json") as exe:
        future = 0
        for i in range(1, 4):
            future = exe.submit(calc_add, i, future)
    with open("flow.json") as file:
        flow = json.load(file)
    named = {one["id"]: str(one.get("value", one["type"])) for one in flow["nodes"]}
    named = {key: name.rpartition(".")[2] for key, name in named.items()}
    edges = [(named[one["source"]], named[one["target"]]) for one in flow["edges"]]
    return [sorted(named.values()), sorted(map(list, edges))]


INNER = {"FluxClusterExecutor": "FluxJobExecutor", "SlurmClusterExecutor": "SlurmJobExecutor"}


def calc_nested(face):
    from fsbroker import executorlib

    with getattr(executorlib, face)() as exe:
        fs = exe.submit(sum, [1, 1])
        return fs.result()


def nested(executor: Executor) -> Any:
    """In Flux, in an instance of its own; elsewhere on the cores of the task."""
    name = executor.__name__
    nesting = {"flux_executor_nesting": True} if name == "FluxJobExecutor" else {}
    with executor(**nesting) as exe:
        future = exe.submit(calc_nested, INNER.get(name, name))
        return future.result()


CHAIN = [
    ["0", "1", "2", "3", "calc_add", "calc_add", "calc_add", "output"],
    [
        *([str(i), "calc_add"] for i in range(4)),
        *(["calc_add", "calc_add"] for _ in range(2)),
        ["calc_add", "output"],
    ],
]
EXPECTED: dict[str, Any] = {
    "sums": [2, 4, 6, 8],
    "chain": 6,
    "cached": [6, 6],
    "table": [["sum", [[i, i]], {}, 2 * i] for i in (1, 2, 3)],
    "preload": 10,
    "streaming": [[2, 3], [0, 1]],
    "exported": CHAIN,
    "drawn": [3, 3, 3],
    "nested": 2,
}
"""What they give; `mpi` and `gpus` tell of the machine, too."""

LISTINGS = {
    one.__name__: one
    for one in (
        *(sums, mpi, gpus, chain, cached, table, preload, streaming),
        *(drawn, exported, nested),
    )
}


def main() -> None:
    face, *names = sys.argv[1:]
    # Not by name: the nodes' Python has this module, but a user's script is none.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    executor = getattr(fsbroker, face)
    print(json.dumps({name: LISTINGS[name](executor) for name in names}))


if __name__ == "__main__":
    main()

"""A script for `test_secrets.py`: tasks with a secret, and one that looks who could read it.

python private.py SPOOL DIRECTORY SECRET CORES OPTIONS
"""

import json
import os
import subprocess
import sys
import time

import numpy as np

from fsbroker import ClusterExecutor, program


def hold(secret, array):
    """Runs, with the secret in its arguments, its environment and its output."""
    os.environ["TOLD"] = secret
    print(secret, flush=True)
    return [secret, array * 2]


def fail(secret):
    raise ValueError(secret)


def run_program(secret, _):
    time.sleep(0.2)
    return program.run(["cat"], stdin=secret).stdout


def look(secret, directories):
    """Command lines that hold the secret, and what others may read or write, at this moment."""
    return command_lines(secret), sorted(exposed(directories))


def command_lines(secret):
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().decode(errors="replace")
        except OSError:
            continue
        if secret in line and __file__ not in line:
            found.append(line)
    return found


def exposed(directories):
    for top in directories:
        command = ["find", top, "-perm", "/077", "-not", "-type", "l", "-printf", "%m %y %p\n"]
        yield from subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.splitlines()


def main():
    spool, directory, secret, cores, options = sys.argv[1:]
    private = [spool, os.environ["TMPDIR"]]
    given = {"error_log_file": f"{directory}/errors"}
    with ClusterExecutor(spool, max_workers=2, resource_dict=given, **json.loads(options)) as exe:
        ranks = {"cores": int(cores)}
        arrays = [np.arange(n * 100_000.0) for n in (1, 4)]
        held = [exe.submit(hold, secret, array, resource_dict=ranks) for array in arrays]
        failed = exe.submit(fail, secret)
        ran = exe.submit(run_program, secret, held[0])
        seen = exe.submit(look, secret, private, resource_dict={"cache": "off", **ranks})
        assert str(held[1].result(60)).count(secret) == int(cores)
        assert ran.result(60) == secret
        assert isinstance(failed.exception(60), ValueError)
        found = seen.result(60) if ranks["cores"] == 1 else max(seen.result(60))
    print(json.dumps([*found, sorted(exposed([*private, directory]))]))


if __name__ == "__main__":
    main()

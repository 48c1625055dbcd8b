"""Many seeds, or one with its trace.

python -m tests.sim --seeds 100000 --jobs 2
python -m tests.sim --seed 4711 --trace
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable

from tests.sim.breaks import BREAKS
from tests.sim.world import Scenario, SeedFailed, World

LONGEST = 20
"""Seconds of processor time for a seed: one that makes no file calls any more never ends."""


class TooLong(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise TooLong


def failure_of(seed: int, scenario: Scenario | None = None) -> tuple[int, str]:
    """Run a seed; what went wrong, or nothing."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        World(seed, scenario).run()
    except SeedFailed as failure:
        return seed, str(failure)
    except TooLong as error:
        where = traceback.extract_tb(error.__traceback__)[-2]
        return seed, f"seed {seed}: no end, at {where.filename.rpartition('/')[2]}:{where.lineno}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return seed, f"seed {seed}: {error!r} at {where.filename.rpartition('/')[2]}:{where.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return seed, ""


def run_many(seeds: Iterable[int], jobs: int, most: int) -> int:
    failed = 0
    # Actors that are never resumed keep a world in memory now and then: new processes, therefore.
    with multiprocessing.Pool(jobs, maxtasksperchild=100) as pool:
        for _, text in pool.imap_unordered(failure_of, seeds, chunksize=50):
            if text:
                failed += 1
                print(text, flush=True)
                if failed >= most:
                    pool.terminate()
                    break
    return failed


def catch(name: str) -> int:
    """Run a broken protocol until it is caught; then the whole one on the same seeds."""
    broken = next(one for one in BREAKS if one.name == name)
    make = broken.scenario or (lambda: None)
    caught = None
    for seed in range(broken.seeds):
        with broken.applied():
            text = failure_of(seed, make())[1]
        if text:
            caught = seed
            print(f"caught: {text}")
            break
    if caught is None:
        print(f"not caught in {broken.seeds} seeds: {name}")
        return 1
    failed = [text for seed in range(caught + 1) if (text := failure_of(seed, make())[1])]
    print("\n".join(failed) or f"{caught + 1} seeds pass when nothing is broken")
    return bool(failed)


def show(seed: int) -> int:
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    world = World(seed, trace=True)
    print(world.scenario)
    try:
        world.run()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return 1
    finally:
        assert world.trace is not None
        sys.stdout.write("\n".join(world.trace) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--most", type=int, default=20, help="failures after which to stop")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--break", dest="broken", help="leave out a rule (tests/sim/breaks.py)")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The code under test may iterate over sets of strings: the same way in each process.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    if options.seed is not None:
        return show(options.seed)
    if options.broken:
        return catch(options.broken)
    begin = time.perf_counter()
    failed = run_many(
        range(options.start, options.start + options.seeds), options.jobs, options.most
    )
    print(f"{options.seeds} seeds in {time.perf_counter() - begin:.0f} s, {failed} failed")
    if failed:
        print("replay one: python -m tests.sim --seed N")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.fuzz TARGET --minutes N``; see `tests/fuzz/__init__.py`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile

from tests.fuzz import engine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", help="try this file alone, and tell what it does")
    parser.add_argument("--keep", default=".", help="directory for findings")
    parser.add_argument("--random", action="store_true", help="without atheris")
    wanted = parser.parse_args()
    guided = engine.guided_is_possible() and not wanted.random and not wanted.input
    with instrumented() if guided else contextlib.nullcontext():
        from tests.fuzz.targets import Place
    os.makedirs(wanted.keep, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=engine.in_memory()) as directory:
        found = Place(directory).targets()
        if wanted.target not in found:
            parser.error(f"no target {wanted.target!r}; there are {', '.join(found)}")
        target = found[wanted.target]
        run = engine.Run(wanted.target, target, wanted.keep)
        if wanted.input:
            with open(wanted.input, "rb") as file:
                finding = engine.tried(target.read, file.read())
            print(finding.trace if finding else "nothing")
            return finding is not None
        (run.guided if guided else run.at_random)(wanted.minutes * 60, wanted.seed)
    run.report()
    return bool(run.findings)


def instrumented() -> contextlib.AbstractContextManager[None]:
    import atheris

    return atheris.instrument_imports(include=["fsbroker"])


if __name__ == "__main__":
    sys.exit(main())

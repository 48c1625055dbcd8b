"""One measurement: ``python -m tests.benchmarks.sample MODULE.FUNCTION '{"argument": value}'``.

The last line of its output is the result, as JSON.
"""

from __future__ import annotations

import json
import sys


def main():
    from tests.benchmarks import storage, tasks

    module, _, function = sys.argv[1].partition(".")
    measure = getattr({"tasks": tasks, "storage": storage}[module], function)
    print(json.dumps(measure(**json.loads(sys.argv[2]))), flush=True)


if __name__ == "__main__":
    main()

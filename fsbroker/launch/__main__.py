"""``python -m fsbroker.launch``: how an agent that ends has its successor submitted.

One step of what a client's thread does, with the settings that its own job was submitted
with. Of two agents that end at the same moment one writes the intent, and the other sees it.
"""

from __future__ import annotations

import argparse
import sys

from fsbroker.errors import FsbrokerError, MissingProgram, ResourceError
from fsbroker.launch.queue import QueueLauncher
from fsbroker.spool.spool import open_spool


def main(arguments: list[str] | None = None) -> int:
    """Submit what the open work needs; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fsbroker.launch", description=__doc__)
    parser.add_argument("--spool", required=True)
    parser.add_argument("settings", help="digest of the settings to submit with")
    options = parser.parse_args(arguments)
    spool = open_spool(options.spool)
    launcher = QueueLauncher.of_settings(spool, options.settings)
    try:
        launcher.step()
    except (MissingProgram, ResourceError) as error:
        # What a login node has and may do, a compute node need not.
        if not launcher.may_submit:
            launcher.log.cannot_submit(str(error))
        print(f"fsbroker launch: {error}", file=sys.stderr)
        return 1
    except FsbrokerError as error:
        print(f"fsbroker launch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

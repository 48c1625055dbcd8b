"""A soak in the kernel with NFS: four mounts of one export, two of each version."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.soak.__main__ import MOUNTS, soak
from tests.soak.site import Site


class NfsSite(Site):
    name = "NFS (v4.2 and v3, two clients each)"


def main() -> int:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    paths = [Path(os.environ[mount]) / "spool" for mount in MOUNTS]
    folder = Path(os.environ["TMPDIR"]) / "soak"
    # The status would hide the report, which tells itself what is wrong.
    print("well" if soak(NfsSite(folder, paths, seed), seconds) else "NOT WELL")
    return 0


if __name__ == "__main__":
    sys.exit(main())

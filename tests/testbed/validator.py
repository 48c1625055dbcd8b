"""A real validator of RO-Crates.

`roc-validator` and the linters want different versions of one package, so it lies in a virtual
environment of its own: ``rocrate`` inside of this one, where ``./run test`` puts it, or what
FSBROKER_ROCRATE_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

SCRIPT = os.path.join(os.path.dirname(__file__), "validate_crate.py")


def python() -> str:
    default = os.path.join(sys.prefix, "rocrate", "bin", "python")
    return os.environ.get("FSBROKER_ROCRATE_PYTHON", default)


def missing() -> str | None:
    if not os.path.exists(python()):
        return f"no interpreter with roc-validator: {python()}"
    done = subprocess.run(
        [python(), "-c", "import rocrate, rocrate_validator"], capture_output=True, check=False
    )
    return f"{python()} has no rocrate and roc-validator" if done.returncode else None


def validate(path: os.PathLike[str] | str, profile: str, severity: str = "REQUIRED") -> Any:
    """What the validator says: ``{"passed": ..., "issues": [...]}``."""
    done = subprocess.run(
        [python(), SCRIPT, str(path), profile, severity],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)

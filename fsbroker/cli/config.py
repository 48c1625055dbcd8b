"""The settings that an executor made here would have, and where each comes from.

Files, variables and keys are described in docs/configuration.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fsbroker import cli, config
from fsbroker.cli.output import print_json, print_table

WIDEST = 60
"""Characters of a value in the table; a template has thousands. JSON has all of them."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fsbroker config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["show"], help="print all settings")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    settings = config.load().settings
    if options.json:
        print_json({one.key: {"value": one.value, "origin": one.origin} for one in settings})
    else:
        rows = [(one.key, _short(one.value), one.origin) for one in settings]
        print_table(("setting", "value", "origin"), rows)
    return cli.OK


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."

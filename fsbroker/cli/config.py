"""Settings, and the key that files are signed with.

    show    the settings that an executor made here would have, and where each comes from
    keygen  make the private key that `sign` means, unless there is one; print the public one

Files, variables and keys are described in docs/configuration.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from fsbroker import cli, config
from fsbroker.cli.output import print_json, print_table
from fsbroker.spool.signatures import generate, key_path
from fsbroker.spool.trust import name_of

WIDEST = 60
"""Characters of a value in the table; a template has thousands. JSON has all of them."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fsbroker config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["keygen", "show"])
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    return _keygen(options.json) if options.action == "keygen" else _show(options.json)


def _show(as_json: bool) -> int:
    settings = config.load().settings
    if as_json:
        print_json({one.key: {"value": one.value, "origin": one.origin} for one in settings})
    else:
        rows = [(one.key, _short(one.value), one.origin) for one in settings]
        print_table(("setting", "value", "origin"), rows)
    return cli.OK


def _keygen(as_json: bool) -> int:
    path = key_path(config.load_own().sign)
    public = generate(path)
    if as_json:
        print_json({"private": path, "public": public})
        return cli.OK
    print(f"private: {path} (for you alone; `sign: true` in {config.user_file()} uses it)")
    print(f"public:  {public}")
    print(f"         for others: keys: {{{name_of(os.getuid())}: {public!r}}}")
    return cli.OK


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."

"""Calling commands as a shell would, in this process."""

import json

from fsbroker import cli


class Shell:
    """Calls commands on one spool."""

    def __init__(self, spool, capsys) -> None:
        self.spool = str(spool)
        self._capsys = capsys
        self.err = ""

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and stdout; stderr is in ``err``."""
        self._capsys.readouterr()
        try:
            code = cli.main([words[0], "--spool", self.spool, *words[1:]])
        except SystemExit as exit_:
            code = exit_.code
        out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code, out

    def json(self, *words: str):
        code, out = self.run(words[0], "--json", *words[1:])
        return code, json.loads(out)

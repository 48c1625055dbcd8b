"""The line from an agent to the client that started it: stdin.

    client --{"cores": 4, "workers": 2}--> agent
           --(end of file)--------------->

The client may change what the agent uses while it runs. A *private* spool belongs to one
client alone, and nobody else will ever read it: when that client ends, in whichever way, its
agents do, and the spool is removed. Launchers pass stdin on to other nodes, and its end too.
"""

from __future__ import annotations

import os
from contextlib import suppress

from fsbroker.needs import Allowance

CHUNK = 4096


class Leash:
    """The agent's end.

    Attributes:
        cut: the client is gone, or has let go.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._parent = os.getppid()
        self._text = b""
        self.cut = False
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> list[Allowance]:
        """What the client allows from now on, as far as it has said so since the last call."""
        with suppress(BlockingIOError):
            while data := os.read(self._descriptor, CHUNK):
                self._text += data
            self.cut = True
        *lines, self._text = self._text.split(b"\n")
        return [Allowance.parse(line) for line in lines]

    def is_let_go(self) -> bool:
        """A child that the client forked may hold the line open: who the parent is, tells too."""
        return self.cut or os.getppid() != self._parent

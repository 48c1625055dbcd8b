"""Work of one process, part by part, while others are struck; and its end, judged."""

from __future__ import annotations

from fsbroker.spool.spool import open_spool
from tests.faults import clients
from tests.faults.audit import check
from tests.faults.processes import DEADLINE

COUNT = 5
LEFT = ("claims", "tmp")
"""What holds leftovers of killed processes: harmless, but not nothing."""


def prefix_of(number):
    return f"p{number}n"


class Batches:
    """Tasks that were submitted in one process, each batch under its own prefix."""

    def __init__(self, executor, processes):
        self._executor = executor
        self._processes = processes
        self._expected = []
        self.names = set()

    def submit(self, prefix, count=COUNT):
        journal = self._processes.journal
        futures = clients.submit(self._executor, journal, prefix, count)
        self.expect(futures, clients.values(prefix, count))

    def expect(self, futures, values):
        self._expected += zip(futures, values, strict=True)
        self.names |= {value[0] for value in values}
        self._executor._loop.flush(DEADLINE)

    def finish(self, *, exact=False):
        """A clean agent ends it all; how often tasks ran again."""
        self._processes.ends(self._processes.agent())
        for future, value in self._expected:
            assert future.result(DEADLINE) == value
        spool = open_spool(self._processes.spool)
        again = check(spool, self._processes.journal, self.names, exact=exact)
        assert not [name for name in spool.files.names(spool.area.tasks) if name.endswith(".h5")]
        left = {name: len(spool.files.names(f"{spool.area.path}/{name}")) for name in LEFT}
        print(f"{len(self.names)} tasks, {again} ran again; left over for gc: {left}")

"""Rows of agents that have died are taken from them, for anybody to claim.

That an agent is dead is told by its queue job, its process, or its silence. None of these
is sure, so its stream is sealed first: whatever it does later, it publishes no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.session.holdings import Holdings
from fsbroker.spool import presence, streams
from fsbroker.spool.layout import Presence
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Kind, State, fitting, ranges_of


class Recovery:
    """One agent's judgement of the others.

    Args:
        described: what this agent's presence file says.
        lease: seconds of silence after which another agent is taken for dead.
        jobs: what is known of queue jobs that have ended.
    """

    def __init__(
        self, holdings: Holdings, described: Mapping[str, Any], lease: float, jobs: QueueJobs
    ) -> None:
        self._holdings = holdings
        self._files, self._area, _ = holdings.spool
        self._described = described
        self._observer = presence.Observer(self._files, self._area, lease)
        self._jobs = jobs

    def recover(self, *, prompt: bool) -> bool:
        """As `AgentSession.recover`.

        Args:
            prompt: this agent's own beat succeeded.
        """
        me = self._holdings.agent
        present = [one for one in presence.listing(self._files, self._area) if one.agent != me]
        self._holdings.alone = not present
        dead = self._judge(present, prompt)
        for agent, (charge, why) in dead.items():
            self._recover_from(agent, charge, why)
        return bool(dead)

    # -- who is dead ---------------------------------------------------------------------

    def _judge(self, present: list[Presence], prompt: bool) -> dict[str, tuple[str, str]]:
        """Who is dead: the evidence, "dead" or "silent", and what to say of it."""
        processes = self._observer.dead_processes(present)
        told = self._told_of_jobs(present)
        # Whether its job is to blame or the task, only the scheduler knows: it is waited for.
        dead = {agent: evidence for agent, evidence in told.items() if evidence is not None}
        dead |= {agent: self._ended(agent) for agent in processes if agent not in told}
        absent = self._absent_owners(present)
        for agent in self._observer.poll(present, absent, prompt):
            dead.setdefault(agent, ("silent", "silent"))
        for agent in absent - dead.keys():
            if streams.is_sealed(self._files, self._area, agent):
                # Its results were purged: it will publish no others.
                dead[agent] = ("silent", "its result file is gone")
        return dead

    def _ended(self, agent: str) -> tuple[str, str]:
        """What the end of its process is evidence of: a client has run nothing."""
        return ("silent", "it has ended") if self._is_client(agent) else ("dead", "dead")

    def _is_client(self, agent: str) -> bool:
        described = self._observer.described(agent) or {}
        return bool(described.get("place") == presence.CLIENT)

    def _told_of_jobs(self, present: Iterable[Presence]) -> dict[str, tuple[str, str] | None]:
        """Agents of queue jobs that are known: if these are over, the evidence and its text."""
        told = [(one.agent, self._observer.described(one.agent) or {}) for one in present]
        job_of = {agent: str(described["job"]) for agent, described in told if described.get("job")}
        if not job_of:
            return {}
        known = self._jobs.evidence(set(job_of.values()))
        found = {agent: known[job] for agent, job in job_of.items() if job in known}
        for agent, described in told:
            if self._comes_after(described):
                found[agent] = ("silent", f"its job {described['job']} was requeued")
        return found

    def _comes_after(self, described: Mapping[str, Any]) -> bool:
        """The same queue job has begun anew with this agent: that one was of a lost node."""
        if described.get("job") != self._described.get("job"):
            return False
        return int(described.get("restart", 0)) < int(self._described.get("restart", 0))

    def _absent_owners(self, present: Iterable[Presence]) -> set[str]:
        """Agents that hold rows in a log that this agent has read, and are not listed."""
        return self._owners() - {one.agent for one in present}

    def others_hold_rows(self) -> bool:
        """Rows are held by agents that may be dead: somebody must stay and find out.

        What a client has put off is nothing to stay for, as long as that is heard of.
        """
        heard = (self._is_client(agent) and self._observer.hears(agent) for agent in self._owners())
        return not all(heard)

    def _owners(self) -> set[str]:
        """Other agents that hold rows, by the logs that this agent has read."""
        read = (live for live in self._holdings.live if "log" in live.__dict__)
        owners: set[str] = set()
        return owners.union(*map(self._owners_in, read)) - {self._holdings.agent}

    def _owners_in(self, live: LiveFile) -> set[str]:
        fold = live.log.fold
        if State.CLAIMED not in fold.state:
            return set()
        try:
            ended = self._holdings.results.ended(live.stem, live.file.keys)
        except FileNotFoundError:
            return set()  # retired meanwhile
        return {
            fold.agents[fold.owner[row]]
            for row, state in enumerate(fold.state)
            if state == State.CLAIMED and not ended[row]
        }

    # -- what it held --------------------------------------------------------------------

    def _recover_from(self, agent: str, evidence: str, told: str) -> None:
        """Seal, read the stream to the seal, reopen rows without outcome, remove the presence.

        In this order: whoever finds the presence of a dead agent does it all again.
        """
        streams.seal(self._files, self._area, agent, by=self._holdings.agent)
        self._holdings.live.poll(afresh=True)
        self._holdings.results.poll(deep=True)
        described = self._observer.described(agent) or {}
        reason = f"agent {agent} on {described.get('host', 'an unknown host')}: {told}"
        for live in self._holdings.live:
            with self._holdings.reading(live):
                live.log.refresh()
                self._reopen(live, f"{agent} {evidence} {reason}")
        presence.remove(self._files, self._area, agent)

    def _reopen(self, live: LiveFile, about: str) -> None:
        agent = about.partition(" ")[0]
        while True:
            ended = self._holdings.results.ended(live.stem, live.file.keys)
            rows = [row for row in live.log.fold.owned_by(agent) if not ended[row]]
            if not rows:
                return
            part = fitting(ranges_of(rows), about)
            live.log.append(Kind.RECOVER, self._holdings.agent, part, about)
            live.log.refresh()

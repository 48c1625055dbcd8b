"""The budgets, section by section: which samples each takes, and the rows that they give."""

from __future__ import annotations

import statistics
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.benchmarks import trace
from tests.benchmarks.peers import PEERS
from tests.benchmarks.runner import Failed, Runner, Sample
from tests.benchmarks.table import Row

LINGER = 3.0
"""Seconds after the last lone task in which what an agent tidies up is still counted."""
ONE_FILE = 4096
"""Pending tasks that claims among many are compared with: one task file."""


@dataclass
class Plan:
    """How much to measure. The defaults are the budgets' own numbers but for ``pending``."""

    workers: int = 2
    repeats: int = 5
    tasks: int = 20_000
    lone: int = 100
    links: int = 100
    megabytes: int = 64
    cached: int = 10_000
    pending: int = 100_000
    seconds: float = 1.0
    peers: tuple[str, ...] = tuple(PEERS)


@dataclass
class Benchmark:
    """Runs the sections.

    Attributes:
        profiles: title -> CPU microseconds by thread, one dictionary for each repetition.
    """

    runner: Runner
    plan: Plan
    profiles: dict = field(default_factory=dict)

    # -- tasks ---------------------------------------------------------------------------

    def throughput(self):
        """Each task its own submit; files and CPU time are those of the same runs."""
        plan = self.plan
        results = self._with_peers("tasks.throughput", "tasks", plan.tasks, least=20)
        yield from self._compared(
            "no-op tasks, a submit each",
            results,
            ("per_second", "/s"),
            {"process_pool": {"limit": 5.0, "of_ratio": True, "at_least": True}},
        )
        ours = results["fsbroker"]
        self._keep_profile(f"throughput, {plan.tasks} tasks", ours)
        yield self._row(
            f"files made for {plan.tasks:,} tasks",
            ours,
            "inodes",
            limit=1000,
            note="inodes that the tasks added to the spool, directories and records included",
        )

    def executions(self):
        """The second, untimed run: each function ran once, told by what it left behind."""
        samples = {
            name: self._sample("tasks.executions", name, tasks=self.plan.tasks)
            for name in ("fsbroker", "process_pool")
            if name in self.plan.peers
        }
        results = self.runner.in_turns(samples, 1)
        rows = [
            self._row(
                f"executions of {PEERS[name].title} for {self.plan.tasks:,} tasks",
                result,
                "executions",
                limit=self.plan.tasks,
                at_least=True,
            )
            for name, result in results.items()
        ]
        yield from rows

    def round_trip(self):
        results = self._with_peers("tasks.round_trip", "tasks", self.plan.lone, least=10)
        self._keep_profile("lone task", results["fsbroker"])
        budget = {"limit": 0.004}
        yield from self._compared(
            "round trip of a lone task", results, ("median", "ms"), {"process_pool": budget}
        )

    def chain(self):
        results = self._with_peers("tasks.chain", "links", self.plan.links, least=5)
        budget = {"limit": 0.001}
        yield from self._compared(
            "link of a dependency chain", results, ("per_link", "ms"), {"process_pool": budget}
        )

    def shortest_task(self):
        """Slow pools are left out: their throughput says it."""
        samples = {
            name: self._sample("tasks.shortest_task", name, seconds=self.plan.seconds)
            for name in self._names()
            if PEERS[name].share > 0.01
        }
        results = self.runner.in_turns(samples, max(1, self.plan.repeats // 2))
        yield from self._compared("METG: shortest task, half busy", results, ("metg", "us"), {})

    # -- the file system -----------------------------------------------------------------

    def system_calls(self):
        plan = self.plan
        reason = trace.missing()
        if reason is not None:
            yield Row("metadata calls for a lone task", limit=40, trouble=reason)
            yield Row("metadata calls for a task under load", limit=1, trouble=reason)
            return
        lone = self._sample("tasks.round_trip", "fsbroker", tasks=plan.lone, pause=0.05)
        load = self._sample("tasks.throughput", "fsbroker", tasks=plan.tasks)
        yield self._traced("metadata calls for a lone task", lone, plan.lone, 40)
        yield self._traced("metadata calls for a task under load", load, plan.tasks, 1)

    def _traced(self, what, sample, tasks, limit):
        try:
            counts = self.runner.traced(sample, FSBROKER_BENCHMARK_LINGER=str(LINGER))
        except Failed as error:
            return Row(what, limit=limit, trouble=str(error))
        working, tidying = counts.get("begin", Counter()), counts.get("end", Counter())
        number = working["metadata"] / tasks
        kinds = ", ".join(
            f"{name} {count / tasks:.3g}"
            for name, count in working.most_common()
            if name not in ("metadata", "data", "fsync")
        )
        note = f"{kinds}; besides fsync {working['fsync'] / tasks:.3g}"
        if "quiet" in counts:
            after = tidying["metadata"] / tasks
            note += f"; {after:.3g} more in the {LINGER:g} s after (tidying up)"
        return Row(what, "", [number], limit=limit, note=note)

    def arrays(self):
        size = self.plan.megabytes
        for durable, title in ((True, "with fsync"), (False, "without fsync")):
            options = {"megabytes": size, "durable": durable}
            samples = {
                "fsbroker": self._sample("storage.array", "fsbroker", **options),
                "file": Sample("storage.array_file", options),
            }
            results = self.runner.in_turns(samples, self.plan.repeats)
            yield self._pair(
                f"{size} MB array in and out, {title}",
                results["fsbroker"],
                ("seconds", "ms"),
                results["file"],
                f"numpy.save + load, {title}",
                limit=3.0,
                of_ratio=True,
            )

    def cached(self):
        """A new session, in a new process, makes the calls of an older one again."""
        calls = {"workers": self.plan.workers, "tasks": self.plan.cached}
        first, again = [], []
        for number in range(self.plan.repeats):
            with self._attempt(f"cached calls ({number + 1})"), self.runner.directory() as path:
                sample = Sample("storage.calls", calls, path)
                first.append(self.runner.run(sample))
                again.append(self.runner.run(sample))
        what = f"{self.plan.cached:,} cached calls, new session"
        yield self._pair(what, again, ("seconds", "ms"), first, "first time", limit=1.0)

    @contextmanager
    def _attempt(self, what):
        """A failure ends this one repetition: what is lacking shows in the table."""
        self.runner.say(what)
        try:
            yield
        except Failed as error:
            self.runner.say(f"failed: {error}")

    # -- many pending tasks --------------------------------------------------------------

    def pending(self):
        """Each number of pending tasks in a spool of its own."""
        plan = self.plan
        client, agent, few = [], [], []
        samples = {
            kind: Sample("storage.future_objects", {"kind": kind, "tasks": plan.pending})
            for kind in ("fsbroker", "plain")
        }
        futures = self.runner.in_turns(samples, 1)
        for number in range(max(1, plan.repeats // 2)):
            with self._attempt(f"pending tasks ({number + 1})"):
                filled, looked = self._pending_once(plan.pending)
                client.append(filled)
                agent.append(looked)
                few.append(self._pending_once(min(ONE_FILE, plan.pending))[1])
        yield from self._pending_rows(client, agent, few, futures)

    def _pending_once(self, tasks):
        with self.runner.directory() as path:
            client = self.runner.run(Sample("storage.pending_client", {"tasks": tasks}, path))
            agent = self.runner.run(Sample("storage.pending_agent", {"tasks": tasks}, path))
        return client, agent

    def _pending_rows(self, client, agent, few, futures):
        many = f"{self.plan.pending:,} pending"
        own, plain = (
            result[0]["bytes"] if isinstance(result, list) and result else 0.0
            for result in (futures["fsbroker"], futures["plain"])
        )
        beyond = [{"bytes": one["bytes"] - own} for one in client]
        yield self._row(
            f"{many}: client, a task, without Future",
            beyond,
            "bytes",
            "bytes",
            limit=600,
            note=f"a Future with its key {own:.0f} B; the standard library's {plain:.0f} B",
        )
        working = statistics.median(one["bytes_working"] for one in agent) if agent else 0
        yield self._row(
            f"{many}: agent, a task",
            agent,
            "bytes",
            "bytes",
            limit=200,
            note=f"after a look at every file; {working:.0f} B while it works through them",
        )
        yield self._pair(
            f"{many}: a claim",
            agent,
            ("claim", "us"),
            few,
            f"of {ONE_FILE:,} pending",
            limit=1.5,
            of_ratio=True,
        )

    # -- starts --------------------------------------------------------------------------

    def starts(self):
        samples = {
            "fsbroker": Sample("storage.start_import", {"module": "fsbroker"}),
            "public": Sample("storage.start_import", {"module": "fsbroker.executor"}),
        }
        if PEERS["executorlib_block"].is_installed():
            samples["executorlib"] = Sample("storage.start_import", {"module": "executorlib"})
        results = self.runner.in_turns(samples, max(3, self.plan.repeats))
        peer = results.get("executorlib", [])
        unit = ("seconds", "ms")
        name = "import executorlib"
        yield self._pair("import fsbroker", results["fsbroker"], unit, peer, name, limit=0.06)
        yield self._pair("import fsbroker.executor", results["public"], unit, peer, name)
        samples = {"agent": Sample("storage.start_agent", {})}
        claim = self.runner.in_turns(samples, max(3, self.plan.repeats))["agent"]
        yield self._row("agent: process start to presence", claim, "presence", "ms", limit=0.4)
        yield self._row("agent: process start to first claim", claim, "claim", "ms", limit=0.4)
        yield self._row("agent: process start to first value", claim, "value", "ms")

    # -- rows from results ---------------------------------------------------------------

    def _names(self):
        return [name for name in PEERS if name in self.plan.peers and PEERS[name].is_installed()]

    def _sample(self, function, peer, **arguments):
        return Sample(function, {"peer": peer, "workers": self.plan.workers, **arguments})

    def _with_peers(self, function, argument, count, least):
        """Results of all peers, each with its share of the tasks."""
        samples = {
            name: self._sample(
                function, name, **{argument: min(count, max(least, int(count * PEERS[name].share)))}
            )
            for name in self._names()
        }
        return self.runner.in_turns(samples, self.plan.repeats)

    def _compared(self, what, results, number, budgets):
        """A row for each peer; the budget stands in the row of the peer that it names."""
        ours = results["fsbroker"]
        for name, theirs in results.items():
            if name != "fsbroker":
                budget = budgets.get(name, {})
                yield self._pair(what, ours, number, theirs, PEERS[name].title, **budget)
        for name in self.plan.peers:
            if not PEERS[name].is_installed():
                yield Row(what, peer=PEERS[name].title, trouble="not installed")

    def _pair(self, what, ours, number, theirs, peer, **budget):
        """fsbroker beside a peer; a peer that failed is named with its error."""
        name, unit = number
        if isinstance(theirs, Failed):
            failed = f"{peer}: failed ({theirs})"[:60]
            return self._row(what, ours, name, unit, **budget, peer=failed)
        row = self._row(what, ours, name, unit, **budget, peer=peer if theirs else "")
        row.theirs.extend(one[name] for one in theirs)
        return row

    def _row(self, what, results, name, unit="", **rest):
        if isinstance(results, Failed):
            return Row(what, unit, **rest, trouble=str(results))
        if not results:
            return Row(what, unit, **rest, trouble="no repetition succeeded")
        return Row(what, unit, [one[name] for one in results], **rest)

    def _keep_profile(self, title, results):
        if not isinstance(results, Failed):
            self.profiles[title] = [one["cpu_us"] for one in results]


SECTIONS = {
    "throughput": Benchmark.throughput,
    "executions": Benchmark.executions,
    "round-trip": Benchmark.round_trip,
    "chain": Benchmark.chain,
    "metg": Benchmark.shortest_task,
    "calls": Benchmark.system_calls,
    "arrays": Benchmark.arrays,
    "cached": Benchmark.cached,
    "pending": Benchmark.pending,
    "starts": Benchmark.starts,
}

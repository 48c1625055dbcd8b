"""The agent: claims rows, has workers run them, publishes what they return.

    spool --claim--> units --feed--> workers --report--> outcomes --publish--> spool

One thread, one selector. Each turn does first what keeps workers busy, then what makes
results known: reports of workers are read, free workers fed, then everything that has
ended is published as one result file, while the workers run on. So under load results
gather while the file before them is being written; a lone result leaves at once.

Here is only what happens in which order. Where it is done, each module importing from those
below it only:

    hearing     what workers report
    losses      workers that are gone: which row is charged, where the others go
    appetite    how much to claim
    stopping    rows over their time limit, requests to cancel
    feeding     claimed rows, until a worker has them
    leaving     what the agent does last
    outcomes    what has ended, until it is published
    debts       rows that are to be given back
    pace        how long functions take
    rhythm      what is done every so often
    news        how the agent hears that there may be work
    trouble     file calls that fail
    ending      whether and why the agent ends
    plan        what the agent was started with
"""

from __future__ import annotations

import selectors
import signal
from functools import partial
from typing import Any

from fsbroker.agent import scratch
from fsbroker.agent.crew import Crew, Member
from fsbroker.agent.failures import TIME_IS_OVER
from fsbroker.agent.leash import Leash
from fsbroker.agent.loop.appetite import Appetite
from fsbroker.agent.loop.debts import Debts
from fsbroker.agent.loop.ending import ALONE, DONE, GONE, IDLE, TOLD, Ending
from fsbroker.agent.loop.feeding import Feeder
from fsbroker.agent.loop.hearing import Hearing
from fsbroker.agent.loop.leaving import Leaving
from fsbroker.agent.loop.losses import JUDGE_AFTER, Judge
from fsbroker.agent.loop.news import News
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.loop.pace import Pace
from fsbroker.agent.loop.plan import Plan
from fsbroker.agent.loop.rhythm import LOOK_AFTER_EVERY, Rhythm
from fsbroker.agent.loop.stopping import Stopper
from fsbroker.agent.loop.trouble import Trouble
from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.session import AgentSession
from fsbroker.agent.slots import Slots
from fsbroker.agent.walltime import Walltime
from fsbroker.errors import FormatTooNew, SpoolError
from fsbroker.spool.presence import describe
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import Sealed


class Agent:
    """An agent of one area."""

    def __init__(self, spool: Spool, plan: Plan, environment: str, origin: dict[str, Any]) -> None:
        self._plan = plan
        slots = Slots(plan.allocation.nodes)
        described = describe(place=plan.place, cores=slots.cores, **origin)
        jobs = self._jobs = QueueJobs(spool, plan.job)
        session = self.session = AgentSession(
            spool,
            environment,
            origin,
            described,
            plan.lease,
            jobs=jobs,
            only=plan.only,
        )
        self._selector = selectors.DefaultSelector()
        self._walltime = Walltime(plan.allocation, plan.margin)
        self._leash = Leash() if plan.leashed else None
        scratch.sweep()
        self._scratch = scratch.make()
        settings = partial(plan.settings, spool, self._scratch)
        crew = self._crew = Crew(slots, settings, self._selector, plan.first_worker)
        crew.limit = plan.workers
        pace = Pace()
        ending = self._ending = Ending()
        self._trouble = Trouble(spool, session)
        debts = self._debts = Debts(session.holdings)
        outcomes = self._outcomes = Outcomes(session)
        feeder = self._feeder = Feeder(session, crew, pace, outcomes, debts)
        self._appetite = Appetite(session, crew, pace, feeder, plan.queue)
        self._stopper = Stopper(session, crew, feeder, outcomes)
        self._judge = Judge(crew, feeder, outcomes, debts, ending)
        self._judge.after = JUDGE_AFTER if plan.allocation.kind else 0.0
        self._hearing = Hearing(crew, pace, outcomes, feeder, self._judge)
        self._leaving = Leaving(session, crew, outcomes, jobs, ending)
        self._rhythm = Rhythm(plan.idle_timeout)
        self._news = News(spool, session.live, plan.watch)

    # -- life ----------------------------------------------------------------------------

    def run(self) -> int:
        """Work until there is nothing left to do; the exit code."""
        self._selector.register(self._news, selectors.EVENT_READ, self._news)
        if self._leash is not None:
            self._selector.register(self._leash, selectors.EVENT_READ, self._leash)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        try:
            self._work()
        except Sealed:
            return 3
        except FormatTooNew as error:
            self._refuse(error)
            raise
        except (OSError, SpoolError):
            self._leaving.give_up()
            raise
        finally:
            self._news.watch.stop()
            self._walltime.close()
            self._crew.close()
            scratch.remove(self._scratch)
        return 0

    def _work(self) -> None:
        while not (self._trouble.tried(self.session.join) or self._ending.has_come()):
            pass
        self._news.wake()  # of what is there already nobody will tell
        self._jobs.compare()
        if self._walltime.ask():
            self._selector.register(self._walltime, selectors.EVENT_READ, self._walltime)
        while not self._ending.has_come():
            self._trouble.tried(self._turn)
        self._wind_up()
        if (newer := self.session.live.newer()) is not None:
            raise newer

    def _told_to_end(self, *_: object) -> None:
        self._ending.come(TOLD)
        self._news.wake()

    def _wind_up(self) -> None:
        self._leaving.wind_up(self._walltime)

    def _refuse(self, error: FormatTooNew) -> None:
        """Leave in order, so that nobody is charged for what this version cannot read."""
        if not self._ending.has_come():
            self._ending.newer = error
            self._ending.come(str(error))
            self._wind_up()

    # -- one turn ------------------------------------------------------------------------

    def _turn(self) -> None:
        self._debts.pay()
        events = self._selector.select(self._patience())
        told = False
        for key, _ in events:
            told |= key.data is self._news
            self._attend(key.data)
        self._feeder.feed()
        if self._results_are_due():
            self._publish()
        self._judge.judge()
        self._watch_the_clock()
        if not self._ending.has_come():
            self._find_work(told=told)
            self._look_after()

    def _patience(self) -> float:
        """Seconds until something has to be done that nobody will tell of."""
        if not self._outcomes.is_empty():
            return max(0.0, self._outcomes.gathering.until_due())
        hungry = self._feeder.is_hungry()
        delay = self._judge.until_due(self._news.watch.delay if hungry else LOOK_AFTER_EVERY)
        return min(delay, self._rhythm.look.seconds, self._walltime.next_change())

    def _attend(self, source: Any) -> None:
        """There is something to read."""
        if isinstance(source, Member):
            self._hearing.hear(source)
        elif isinstance(source, Leash):
            self._heed(source)
        elif isinstance(source, Walltime):
            self._selector.unregister(source)
            source.hear()
        else:
            source.attend()  # a relay: what it tells of workers is heard in the next turn

    def _heed(self, leash: Leash) -> None:
        """The client changes what we may use, or is gone."""
        for allowed in leash.read():
            self._crew.allow(allowed)
        if leash.cut:
            self._selector.unregister(leash)
            self._check_leash()

    def _check_leash(self) -> None:
        if self._plan.private and self._leash and self._leash.is_let_go():
            self._ending.come(ALONE)

    def _results_are_due(self) -> bool:
        """Nothing more is coming soon, or it was waited for long enough."""
        if self._outcomes.is_empty():
            return False
        return not self._crew.busy() or self._outcomes.gathering.is_due()

    def _publish(self) -> None:
        self._outcomes.publish()
        self._rhythm.beat.done()

    def _watch_the_clock(self) -> None:
        """Near the end of the job: give back what has not started, and at last everything."""
        if self._walltime.until_margin() > 0:
            return
        self._feeder.give_back(TIME_IS_OVER)
        idle = not self._crew.busy() and self._outcomes.is_empty()
        if idle or self._walltime.until_last_moment() <= 0:
            self._ending.come(TIME_IS_OVER)

    # -- work ----------------------------------------------------------------------------

    def _find_work(self, *, told: bool) -> None:
        """Claim, while there is room for more than what is held."""
        if not self._feeder.has_room() or self._walltime.until_margin() <= 0:
            return
        self._news.look_if_due(told=told, hungry=self._feeder.is_hungry())
        claimed = self._claim(thorough=False)
        if not claimed and self._feeder.is_hungry() and not self._crew.busy():
            claimed = self.session.resolve() and self._claim(thorough=True)
        if claimed:
            self._rhythm.note_work()
            self._news.watch.reset()
        elif self._feeder.is_hungry():
            self._news.watch.waited()

    def _claim(self, *, thorough: bool) -> bool:
        time_left = self._walltime.for_a_task()
        claim = self.session.claim(self._appetite.want, thorough=thorough, time_left=time_left)
        if claim is None:
            return False
        self._feeder.take(claim)
        self._feeder.feed()
        return True

    # -- now and then --------------------------------------------------------------------

    def _look_after(self) -> None:
        """Beat, other agents, requests, time limits, tidying; and the end when idle."""
        if self._rhythm.beat.is_due():
            self.session.beat()
            self._rhythm.beat.done()
        if not self._rhythm.look.is_due():
            return
        self._rhythm.look.done()
        self._check_leash()
        if self._walltime.has_no_answer():
            self._selector.unregister(self._walltime)
            self._walltime.close()
        if self._walltime.is_orphan():
            self._ending.come(GONE)
            return
        self._stopper.enforce_limits()
        self._stopper.heed_requests()
        found = self.session.recover()
        busy = self._crew.busy()
        if not busy and self._outcomes.is_empty() and self.session.prospects.only_is_over():
            self._ending.come(DONE)
        elif busy or len(self._feeder):
            self._go_on()
        else:
            self._look_around(found=found)

    def _go_on(self) -> None:
        """There is work: see to what others need of an agent all the same."""
        self._rhythm.note_work()
        if not self.session.resolve() and self._rhythm.tidy.is_due():
            self._tidy()

    def _look_around(self, *, found: bool) -> None:
        """There is no work: look everywhere for some; the end when there was none for long."""
        found |= self._tidy()
        found |= self.session.resolve(thorough=True)
        found |= self._claim(thorough=True)
        if found:
            self._rhythm.note_work()
            return
        self._rhythm.note_rest()
        if self._rhythm.idle.is_due() and not self.session.recovery.others_hold_rows():
            self._ending.come(IDLE)

    def _tidy(self) -> bool:
        self._rhythm.tidy.done()
        return self.session.tidy()

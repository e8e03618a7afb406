"""Claiming jobs, and the heartbeats that keep the claims: two permanent children of the supervisor.

The claimer fills the room there is, of each type and in all, and starts each job as a temporary child of the
supervisor: so a job outlives a crash of its claimer, and draining waits for it. It is woken by the index (LISTEN), by a
job that ends here, and in any case after ``jobs.poll_s``. While the supervisor drains, nothing is claimed.

What was claimed and is not known of here, because the answer was lost or came when the claimer was ending, is given
back: after ``jobs.poll_s`` at the latest, and at the daemon's end.

The heartbeat beats for all claims of the daemon in one call, thirty times before they would be stale, and as soon as
something changes in the index: a job that was cancelled is cut at once. A daemon that was paused for long beats first
thing when it goes on, and learns which of its claims are gone.
"""

from __future__ import annotations

import structlog
import trio

from actors.actor import Actor
from actors.jobs.handler import JobContext, JobServices
from actors.jobs.registry import Registry
from actors.jobs.runner import JobObserver, JobRunner, unobserved
from actors.jobs.runs import JobRun, JobRuns
from actors.supervisor import Draining, Supervisor
from storage.errors import IndexUnavailable
from storage.job_rows import JOBS_CHANNEL

log = structlog.get_logger("jobs")

CLAIMED_AT_ONCE = 32
"""Claims of one call."""
EMPTY_PAUSE_S = 0.05
"""After a claim that found nothing: every daemon hears of every job, and one of them has it."""
BEATS_PER_CLAIM = 30
BEAT_PAUSE_S = 1.0
"""Between two beats, however much happens in the index."""


class Claimer(Actor[None]):
    """Claim what there is room for."""

    def __init__(
        self, services: JobServices, supervisor: Supervisor, registry: Registry, runs: JobRuns, worker: str,
        observe: JobObserver = unobserved,
    ) -> None:  # fmt: skip
        super().__init__("claimer", mailbox_size=0)
        self._services = services
        self._supervisor = supervisor
        self._registry = registry
        self._runs = runs
        self._worker = worker
        self._observe = observe
        self._looked_at = trio.current_time()

    async def run(self) -> None:
        """Claim for ever."""
        with self._runs.waking(on_room=self.wake, on_news=self.wake):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                while True:
                    try:
                        await self._give_back_unheard()
                        await self._claim()
                    except IndexUnavailable as error:
                        log.warning("no jobs claimed", error=str(error))
                    await self.rest(self._services.settings.poll_s * (0.5 + self._services.environment.jitter()))

    async def handle(self, message: None) -> None:
        """The claimer takes no messages."""

    async def _claim(self) -> None:
        while not self._supervisor.draining:
            room, most = self._runs.room(), min(self._runs.free(), CLAIMED_AT_ONCE)
            if not room or most <= 0:
                return
            claimed = await self._services.index.claim_jobs(room, most, self._worker, self._services.environment.now())
            started = [JobRun(JobContext(self._services, job)) for job in claimed]
            for run in started:  # all are held before the first can fail
                self._runs.add(run)
            for run in started:
                await self._start(run)
            if not claimed:
                await trio.sleep(EMPTY_PAUSE_S)
            if len(claimed) < most:
                return

    async def _give_back_unheard(self) -> None:
        services = self._services
        if trio.current_time() - self._looked_at >= services.settings.poll_s:
            await self._runs.give_back_unheard(services.index, self._worker, services.environment)
            self._looked_at = trio.current_time()

    async def _start(self, run: JobRun) -> None:
        try:
            await self._supervisor.start(JobRunner(run, self._runs, self._registry, self._observe))
        except Draining:
            await self._services.index.return_jobs([run.claim], self._services.environment.now())
            self._runs.remove(run)

    async def _listen(self) -> None:
        """Wake who waits for news; while that is not possible, polling has to do."""
        while True:
            try:
                async with self._services.index.listen(JOBS_CHANNEL) as news:
                    self._runs.news()  # what came before
                    async for _ in news:
                        self._runs.news()
            except IndexUnavailable as error:
                log.warning("not listening for jobs", error=str(error))
            await trio.sleep(self._services.settings.poll_s)


class ClaimHeartbeat(Actor[None]):
    """Keep the claims of what runs."""

    def __init__(self, services: JobServices, runs: JobRuns) -> None:
        super().__init__("claim heartbeat", mailbox_size=0)
        self._services = services
        self._runs = runs

    async def run(self) -> None:
        """Beat for ever."""
        with self._runs.waking(on_news=self.wake):
            while True:
                await self.rest(self._services.settings.stale_s / BEATS_PER_CLAIM)
                await self._beat()

    async def handle(self, message: None) -> None:
        """The heartbeat takes no messages."""

    async def _beat(self) -> None:
        beats = self._runs.beats()
        if not beats:
            return
        try:
            gone = await self._services.index.beat_claims(beats, self._services.environment.now())
        except IndexUnavailable as error:  # many more tries before the claims are stale
            log.warning("claims not renewed", error=str(error), jobs=len(beats))
        else:
            if gone:
                log.warning("claims are gone", jobs=sorted(claim.job for claim in gone))
            self._runs.lose(gone)
        await trio.sleep(min(BEAT_PAUSE_S, self._services.settings.stale_s / BEATS_PER_CLAIM))

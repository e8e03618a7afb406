"""The jobs one daemon holds claims of: room for more, what to beat for, and what to give back when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import structlog
import trio

from actors.jobs.handler import JobContext
from storage.environment import Environment
from storage.index import Index
from storage.job_rows import Claim, JobProgress

log = structlog.get_logger("jobs")


class JobRun:
    """A claimed job in this daemon."""

    def __init__(self, context: JobContext) -> None:
        self.context = context
        self.scope = trio.CancelScope()
        self.lost = False
        """Whether its claim is gone: what it does no longer counts."""

    @property
    def claim(self) -> Claim:
        """What gives the right to work on it."""
        return self.context.job.claim

    def lose(self) -> None:
        """Take note that the claim is gone, and cut the handler."""
        self.lost = True
        self.scope.cancel()


class JobRuns:
    """The jobs of a daemon that run; those left over when it ends go back."""

    def __init__(self, limits: Mapping[str, int], at_once: int) -> None:
        self._limits = dict(limits)
        self._at_once = at_once
        self._runs: dict[Claim, JobRun] = {}
        self._left: set[Claim] = set()
        """Claims of ended attempts whose end is not recorded: theirs to keep until they are stale."""
        self._on_room: set[Callable[[], None]] = set()
        self._on_news: set[Callable[[], None]] = set()
        self.claimed = 0
        """Claims since the daemon began."""

    def __len__(self) -> int:
        return len(self._runs)

    def room(self) -> dict[str, int]:
        """Give how many more of each type may run; types without room are left out."""
        running = Counter(run.context.job.type for run in self._runs.values())
        free = {type_: limit - running[type_] for type_, limit in self._limits.items()}
        return {type_: count for type_, count in free.items() if count > 0}

    def free(self) -> int:
        """Give how many more may run in all."""
        return self._at_once - len(self._runs)

    def add(self, run: JobRun) -> None:
        """Hold a claim."""
        self._runs[run.claim] = run
        self.claimed += 1

    def remove(self, run: JobRun) -> None:
        """Hold a claim no more: its job has ended, or it is gone."""
        self._runs.pop(run.claim, None)
        for wake in self._on_room:
            wake()

    def leave(self, run: JobRun) -> None:
        """Hold a claim no more although nothing is recorded: its job is recovered when the claim is stale."""
        self._left.add(run.claim)
        self.remove(run)

    async def give_back_unheard(self, index: Index, worker: str, environment: Environment) -> int:
        """Give back what the index says this daemon has claimed, and nobody here knows of: an answer was lost.

        Not to be called while a claim is on its way. Gives how many held.
        """
        known = set(self._runs)  # some of them may end meanwhile
        claimed = await index.claims_of(worker)
        self._left &= claimed
        unheard = sorted(claimed - known - self._left - self._runs.keys(), key=lambda claim: claim.job)
        if not unheard:
            return 0
        count = await index.return_jobs(unheard, environment.now())
        log.warning("gave back jobs whose claims were not heard of", jobs=[claim.job for claim in unheard])
        return count

    def beats(self) -> dict[Claim, JobProgress | None]:
        """Give all claims, with how far their jobs are."""
        return {claim: run.context.latest for claim, run in self._runs.items()}

    def lose(self, claims: Iterable[Claim]) -> None:
        """Cut the jobs whose claims are gone."""
        for claim in claims:
            if claim in self._runs:
                self._runs[claim].lose()

    @contextmanager
    def waking(
        self, on_room: Callable[[], None] | None = None, on_news: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """For a block, call one function when a job has ended here, the other when one changed in the index."""
        listeners = [(self._on_room, on_room), (self._on_news, on_news)]
        for known, wake in listeners:
            if wake is not None:
                known.add(wake)
        try:
            yield
        finally:
            for known, wake in listeners:
                if wake is not None:
                    known.discard(wake)

    def news(self) -> None:
        """Tell that jobs may have come, or been cancelled."""
        for wake in self._on_news:
            wake()

    async def give_back(self, index: Index, environment: Environment) -> int:
        """Give back the claims of what does not run any more; the attempts do not count. Gives how many held."""
        claims = list(self._runs)
        if not claims:
            return 0
        count = await index.return_jobs(claims, environment.now())
        self._runs.clear()
        log.info("jobs given back", count=count)
        return count

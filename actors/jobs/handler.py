"""What a handler of a job is given, and what it may raise.

A handler is idempotent: an attempt may be cut anywhere, and the next one, perhaps in another daemon, begins again or
goes on from what :meth:`JobContext.keep_state` kept. It may be cancelled at any checkpoint — its claim was lost, or the
daemon drains. It holds no connection while bytes move, keeps bounded memory, and gives counts. Errors that another
attempt may mend, ``StoreUnavailable`` and ``IndexUnavailable`` among them, just propagate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from actors.fetch.assemble import FetchServices
from actors.jobs.settings import JobSettings
from actors.push.context import Timings
from storage.environment import Environment
from storage.index import Index
from storage.job_rows import DEPLOYMENT, ClaimedJob, JobProgress
from storage.object_store import ObjectStore
from storage.rows import Repository
from wire.limits import Limits


class JobObsolete(Exception):
    """There is nothing left to do: its repository is gone, say. The job is done with ``{"obsolete": true}``."""


class JobRefused(Exception):
    """It cannot be done, and another attempt would not help: the job has failed for good."""


class ClaimLost(Exception):
    """The job is another's by now, or cancelled."""


@dataclass(frozen=True, slots=True)
class JobServices:
    """What every handler of a daemon works with."""

    index: Index
    store: ObjectStore
    environment: Environment
    spool_dir: Path
    limits: Limits
    fetch: FetchServices
    settings: JobSettings = field(default_factory=JobSettings)


class JobContext:
    """One attempt at one job."""

    def __init__(self, services: JobServices, job: ClaimedJob) -> None:
        self.services = services
        self.job = job
        self._timings = Timings()
        self.latest: JobProgress | None = None
        """How far the job is, as it last said."""

    async def progress(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Say how far the job is: cheap, sent with the next heartbeat; and a moment to be cancelled at."""
        self.latest = JobProgress(stage, done, total)
        await trio.lowlevel.checkpoint()

    async def keep_state(self, state: Mapping[str, object]) -> None:
        """Keep, durably, what a later attempt can go on from; it finds it in ``job.state``.

        Raises:
            ClaimLost: the job is another's by now, or cancelled.
            IndexUnavailable: it may or may not be kept.
        """
        services = self.services
        if not await services.index.keep_state(self.job.claim, state, services.environment.now()):
            raise ClaimLost

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the time of a block: of ``object_refs`` as ``object_refs_ms`` of the result."""
        return self._timings.measure(name)

    async def repository(self) -> Repository:
        """Give the job's repository as it is now.

        Raises:
            JobObsolete: it is gone.
            JobRefused: the job is not of a repository.
        """
        if self.job.repo == DEPLOYMENT:
            raise JobRefused(f"a job {self.job.type} is of a repository")
        found = await self.services.index.repositories_numbered([self.job.repo])
        if self.job.repo not in found:
            raise JobObsolete
        return found[self.job.repo]

    def timings(self) -> dict[str, float]:
        """Give the phases so far, and the whole as ``elapsed_ms``."""
        return {f"{phase}_ms": ms for phase, ms in self._timings.in_ms().items()}


Handler = Callable[[JobContext], Awaitable[Mapping[str, object]]]
"""Gives counts; timings are added by the runner."""

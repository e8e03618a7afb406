"""Daemons that do jobs, without their HTTP floor: a supervisor with the children of ``JobWork``, over either index."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from actors.fetch.assemble import FetchServices
from actors.jobs.handler import JobContext, JobServices
from actors.jobs.registry import Registry
from actors.jobs.runner import JobObservation
from actors.jobs.settings import JobSettings
from actors.jobs.work import JobWork
from actors.supervisor import Supervisor
from storage.environment import SeededEnvironment
from storage.index import Index
from storage.job_rows import Job, JobState
from storage.objects.memory import MemoryStore
from storage.slots import Slots
from wire.limits import Limits

_names = itertools.count(1)


class ClockEnvironment(SeededEnvironment):
    """Wall-clock time that goes with trio's clock, a mock clock included."""

    def now(self) -> dt.datetime:
        return super().now() + dt.timedelta(seconds=trio.current_time())


class Scripted:
    """A handler that does what the test says, attempt by attempt."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.begun: list[JobContext] = []
        self.cut = 0
        self.started = trio.Event()

    async def __call__(self, context: JobContext) -> Mapping[str, object]:
        self.begun.append(context)
        self.started.set()
        step = self.steps.pop(0) if self.steps else {}
        try:
            if callable(step):
                step = await step(context)
            if isinstance(step, Exception):
                raise step
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cut += 1
            raise
        return step  # type: ignore[return-value]


def job_services(index: Index, environment: SeededEnvironment | None = None, **settings: object) -> JobServices:
    environment, store, limits = environment or ClockEnvironment(1), MemoryStore(), Limits()
    spool_dir = Path("/nonexistent")
    fetch = FetchServices(index, store, environment, spool_dir, limits, Slots(1))
    return JobServices(
        index,
        store,
        environment,
        spool_dir,
        limits,
        fetch,
        replace(JobSettings(), **settings),  # type: ignore[arg-type]
    )


@dataclass
class Worker:
    """One daemon's worth of work."""

    work: JobWork
    supervisor: Supervisor
    scope: trio.CancelScope
    seen: list[JobObservation] = field(default_factory=list)

    def die(self) -> None:
        """End like a process that is killed: nothing is given back."""
        self.scope.cancel()

    def outcomes(self) -> list[tuple[str, str]]:
        return [(job.type, job.outcome.value) for job in self.seen]


def registry_of(handlers: Mapping[str, object], limits: Mapping[str, int] | None = None) -> Registry:
    registry = Registry()
    for type_, handler in handlers.items():
        registry.register(type_, handler, (limits or {}).get(type_, 1))  # type: ignore[arg-type]
    return registry


@asynccontextmanager
async def working(
    services: JobServices, handlers: Mapping[str, object], limits: Mapping[str, int] | None = None
) -> AsyncIterator[Worker]:
    """Run the children of a daemon that works, until the block ends or :meth:`Worker.die`."""
    seen: list[JobObservation] = []
    supervisor = Supervisor()
    work = JobWork(services, supervisor, registry_of(handlers, limits), f"worker-{next(_names)}", seen.append)
    async with trio.open_nursery() as nursery:
        inner = await nursery.start(_supervised, supervisor, work)
        yield Worker(work, supervisor, inner, seen)
        inner.cancel()


async def _supervised(supervisor: Supervisor, work: JobWork, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run, work.children())
            task_status.started(scope)


async def ended(index: Index, number: int, *states: JobState, limit_s: float = 100_000) -> Job:
    """Wait until a job is in one of some states, by default one it ends in."""
    wanted = states or (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
    with trio.fail_after(limit_s):
        pause_s = 0.01
        while True:
            job = await index.find_job(number)
            assert job is not None
            if job.state in wanted:
                return job
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 1.2, 20)

"""Handlers of jobs, run as a worker runs them, without one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from actors.fetch.assemble import FETCHES_AT_ONCE, FetchServices
from actors.jobs.builtin import builtin_registry
from actors.jobs.handler import JobContext, JobServices
from actors.jobs.settings import JobSettings
from storage.environment import Environment
from storage.index import Index
from storage.job_rows import LISTED_JOBS, Claim, ClaimedJob, JobFilter
from storage.object_store import ObjectStore
from storage.slots import Slots
from tests.servers import Server
from wire.limits import Limits


def job_services(
    index: Index, store: ObjectStore, environment: Environment, spool_dir: Path, **settings: object
) -> JobServices:
    limits = Limits()
    fetch = FetchServices(index, store, environment, spool_dir, limits, Slots(FETCHES_AT_ONCE))
    return JobServices(index, store, environment, spool_dir, limits, fetch, JobSettings(**settings))


def services_of(server: Server, **settings: object) -> JobServices:
    """What a worker of the server's deployment works with."""
    there = server.services
    return job_services(there.index, there.store, there.environment, there.fetch.spool_dir, **settings)


async def run(
    services: JobServices, type_: str, repo: int, payload: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Run a handler of that type once; gives its result with its timings."""
    now = services.environment.now()
    job = ClaimedJob(Claim(1, uuid.UUID(int=1)), repo, type_, payload or {}, 1, now, {})
    context = JobContext(services, job)
    result = await builtin_registry().get(type_)(context)
    return {**result, **context.timings()}


async def promoted(server: Server) -> None:
    """Put what small pushes have left in the index into the store."""
    await run(services_of(server), "content.promote", 1)


async def waiting(server: Server, number: int) -> dict[str, Mapping[str, object]]:
    """Payloads of the jobs of a repository, by their types."""
    found = await server.services.index.list_jobs(JobFilter(number), LISTED_JOBS)
    return {job.type: job.payload for job in found}

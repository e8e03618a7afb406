"""Claiming and completing jobs: several claimers at once, each as a daemon of its own would, over one database.

Nothing is done for the jobs, so it is the queue alone that is measured; every job has to be completed exactly once.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import psycopg
import trio

from bench.peers import BenchError, Sample
from bench.targets import CLAIMERS, PER_S
from storage.job_rows import Claim, JobState
from storage.migrate import migrate
from storage.postgres.database import DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex

JOBS = 6_000
"""A run."""
TYPES = 4
AT_ONCE = 4
"""Jobs a claimer takes at a time: what a daemon has room for unless it is told otherwise."""
HISTORY = 200_000
"""Jobs that have ended before."""
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POOL_SIZE = 2
_FILL = f"""
    INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at, finished_at)
    SELECT n / {TYPES}, 't' || n %% {TYPES}, %(state)s, 0, '{{}}', %(now)s, %(now)s, %(finished)s
    FROM generate_series(1, %(count)s) n
"""


@contextmanager
def database(place: Path) -> Iterator[str]:
    """Run a PostgreSQL with a schema and a history; gives how to reach it."""
    server = EmbeddedPostgres(place / "data")
    server.start()
    try:
        migrate(DatabaseSettings(server.conninfo))
        with psycopg.connect(server.conninfo) as connection:
            done = {"state": JobState.DONE, "now": NOW, "finished": NOW, "count": HISTORY}
            connection.execute(_FILL, done)
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE jobs")
        yield server.conninfo
    finally:
        server.destroy()


def measure(conninfo: str, jobs: int = JOBS) -> Sample:
    """Enqueue jobs and have them all claimed and completed."""
    with psycopg.connect(conninfo) as connection:
        connection.execute(_FILL, {"state": JobState.PENDING, "now": NOW, "finished": None, "count": jobs})
    done, sample = trio.run(_work_off, conninfo)
    if done != jobs:
        raise BenchError(f"of {jobs} jobs {done} were completed")
    return sample


async def _work_off(conninfo: str) -> tuple[int, Sample]:
    completed = 0

    async def claim(index: PostgresIndex, worker: str) -> None:
        nonlocal completed
        room = {f"t{number}": AT_ONCE for number in range(TYPES)}
        while claimed := await index.claim_jobs(room, AT_ONCE, worker, NOW):
            async with trio.open_nursery() as jobs:  # they run beside each other, as a daemon's do
                for job in claimed:
                    jobs.start_soon(complete, index, job.claim)
            completed += len(claimed)

    async def complete(index: PostgresIndex, claim: Claim) -> None:
        if not await index.complete_job(claim, {"elapsed_ms": 0.1}, NOW):
            raise BenchError(f"the claim on job {claim.job} was lost")

    async with AsyncExitStack() as stack:
        settings = DatabaseSettings(conninfo, pool_size=POOL_SIZE)
        indexes = [await stack.enter_async_context(PostgresIndex(settings)) for _ in range(CLAIMERS)]
        for index in indexes:
            await index.ping()
        cpu_s, began = time.process_time(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number, index in enumerate(indexes):
                nursery.start_soon(claim, index, f"claimer {number}")
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    return completed, Sample(wall_s, client_cpu_s=cpu_s, figures={PER_S: completed / wall_s})

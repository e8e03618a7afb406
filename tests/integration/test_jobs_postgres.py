"""Workers over PostgreSQL: woken and cut by notifications, and none the worse for a lost listening connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import psycopg
import trio

from actors.jobs.handler import JobContext
from storage.environment import SystemEnvironment
from storage.job_rows import JobFilter, JobState, NewJob
from storage.postgres.index import PostgresIndex
from tests.job_workers import Scripted, Worker, ended, job_services, working

LIMIT_S = 60.0


async def enqueue(index: PostgresIndex, type_: str = "a", repo: int = 1) -> int:
    (number,) = await index.enqueue_jobs(repo, [NewJob(type_)], SystemEnvironment().now())
    return number


async def eventually(look: Callable[[], object]) -> None:
    with trio.fail_after(LIMIT_S):
        while not look():
            await trio.sleep(0.01)


def services(index: PostgresIndex, **settings: object):
    return job_services(index, SystemEnvironment(), **settings)


def listeners(database_url: str) -> list[int]:
    """Give the server's processes that listen for jobs in this database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        ).fetchall()
    return [pid for (pid,) in rows]


async def listening(database_url: str) -> list[int]:
    found: list[int] = []
    with trio.fail_after(LIMIT_S):
        while not found:
            found = await trio.to_thread.run_sync(listeners, database_url)
            await trio.sleep(0.01)
    return found


async def test_a_new_job_begins_without_polling(postgres_index: PostgresIndex, database_url: str) -> None:
    async with working(services(postgres_index, poll_s=10_000), {"a": Scripted()}):
        await listening(database_url)
        for repo in (1, 2, 3):
            await ended(postgres_index, await enqueue(postgres_index, repo=repo), limit_s=LIMIT_S)


async def test_a_cancelled_job_is_cut_without_waiting_for_the_next_heartbeat(
    postgres_index: PostgresIndex, database_url: str
) -> None:
    handler = Scripted(lambda _: trio.sleep_forever())
    number = await enqueue(postgres_index)
    async with working(services(postgres_index, poll_s=10_000, stale_s=30_000), {"a": handler}) as worker:
        await listening(database_url)
        with trio.fail_after(LIMIT_S):
            await handler.started.wait()
        assert await postgres_index.cancel_job(number, SystemEnvironment().now())
        await eventually(lambda: worker.seen)
    assert (worker.outcomes(), handler.cut) == ([("a", "lost")], 1)


async def test_F16_a_lost_listening_connection_is_made_again_and_nothing_is_missed(
    postgres_index: PostgresIndex, database_url: str
) -> None:
    async with working(services(postgres_index, poll_s=0.3), {"a": Scripted()}) as worker:
        (pid,) = await listening(database_url)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await ended(postgres_index, await enqueue(postgres_index), limit_s=LIMIT_S)
        assert await listening(database_url) != [pid]
        await ended(postgres_index, await enqueue(postgres_index, repo=2), limit_s=LIMIT_S)
        assert worker.supervisor.statistics().restarts == 0


async def test_three_daemons_share_many_jobs_and_each_is_done_once(postgres_index: PostgresIndex) -> None:
    done: list[int] = []

    async def note(context: JobContext) -> dict[str, object]:
        done.append(context.job.claim.job)
        return {}

    numbers = [await enqueue(postgres_index, repo=repo) for repo in range(1, 151)]
    workers: list[Worker] = []
    async with AsyncExitStack() as stack:
        for _ in range(3):
            worker = working(services(postgres_index, at_once=4, poll_s=1), {"a": note}, {"a": 4})
            workers.append(await stack.enter_async_context(worker))
        await eventually(lambda: sum(len(worker.seen) for worker in workers) == len(numbers))
    assert sorted(done) == sorted(numbers)
    left = await postgres_index.list_jobs(JobFilter(states=frozenset({JobState.PENDING, JobState.RUNNING})), 10)
    assert left == []
    assert {outcome for worker in workers for _, outcome in worker.outcomes()} == {"done"}

"""Workers that die, stop or lose their database in the middle of jobs, for real: nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.environment import SystemEnvironment
from storage.index import Index
from storage.job_rows import Job, JobFilter, JobState, NewJob
from storage.postgres.database import DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex
from tests.forked_workers import Workers
from tests.job_plugin import Events, install
from tests.servers import start_daemon

STALE_S = 3.0
LIMIT_S = 60.0
_ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


SETTINGS = (f"jobs.stale_s={STALE_S}", "jobs.retry_s=0.1", "jobs.poll_s=0.2", "database.pool_size=4")


@pytest.fixture
def events(tmp_path: Path) -> Events:
    return Events(tmp_path / "events")


async def eventually(look: Callable[[], object]) -> None:
    """Wait until something can be seen."""
    with trio.fail_after(LIMIT_S):
        while not look():
            await wait_all_tasks_blocked(0.02)


async def ended(index: Index, number: int) -> Job:
    with trio.fail_after(LIMIT_S):
        while True:
            job = await index.find_job(number)
            assert job is not None
            if job.state in _ENDED:
                return job
            await wait_all_tasks_blocked(0.03)


async def enqueue(index: Index, events: Events, type_: str = "test.slow", repo: int = 0, **payload: object) -> int:
    new = NewJob(type_, 0, {"directory": str(events.directory), **payload})
    (number,) = await index.enqueue_jobs(repo, [new], SystemEnvironment().now())
    return number


@pytest.mark.parametrize("moment", ["begun", "kept"])
async def test_F20_a_job_whose_worker_is_killed_is_done_by_another_daemon(
    workers: Workers, tmp_path: Path, database_url: str, postgres_index: PostgresIndex, events: Events, moment: str
) -> None:
    number = await enqueue(postgres_index, events, keep=moment == "kept")
    with workers.running(tmp_path, database_url, 2, *SETTINGS) as daemons:
        await eventually(lambda: events.all(moment))
        ((pid, *_),) = events.all(moment)
        next(running for running in daemons if running.pid == pid).signal(signal.SIGKILL)
        await eventually(lambda: len(events.all("begun")) == 2)
        events.go()
        job = await ended(postgres_index, number)
    (survivor,) = [running.pid for running in daemons if running.pid != pid]
    assert (job.state, job.attempts) == (JobState.DONE, 2)
    assert job.result is not None
    assert job.result["pid"] == survivor
    assert job.result["found"] == ({"kept_by": 1} if moment == "kept" else {})
    assert job.result["wait_ms"] > 0
    assert len(events.all("ended")) == 1


async def test_F27_a_worker_that_was_stopped_cannot_finish_a_job_that_another_has_done(
    workers: Workers, tmp_path: Path, database_url: str, postgres_index: PostgresIndex, events: Events
) -> None:
    number = await enqueue(postgres_index, events)
    with workers.running(tmp_path, database_url, 2, *SETTINGS) as daemons:
        await eventually(lambda: events.all("begun"))
        ((pid, *_),) = events.all("begun")
        paused = next(running for running in daemons if running.pid == pid)
        paused.signal(signal.SIGSTOP)
        await eventually(lambda: len(events.all("begun")) == 2)
        other = events.all("begun")[1][0]
        events.go(other)
        job = await ended(postgres_index, number)
        events.go(pid)
        paused.signal(signal.SIGCONT)
        await eventually(lambda: '"outcome": "lost"' in paused.log.read_text())
        assert await postgres_index.find_job(number) == job
        # and it goes on working
        again = await enqueue(postgres_index, events)
        assert (await ended(postgres_index, again)).state is JobState.DONE
        assert paused.alive()
    assert job.result is not None
    assert (job.result["pid"], job.attempts) == (other, 2)


async def test_two_daemons_share_the_jobs_and_each_is_done_once(
    workers: Workers, tmp_path: Path, database_url: str, postgres_index: PostgresIndex, events: Events
) -> None:
    slow = [await enqueue(postgres_index, events, repo=repo) for repo in (1, 2)]
    quick = [await enqueue(postgres_index, events, "test.quick", repo) for repo in range(1, 101)]
    with workers.running(tmp_path, database_url, 2, *SETTINGS) as daemons:
        await eventually(lambda: len(events.all("begun")) == 102)
        events.go()
        jobs = [await ended(postgres_index, number) for number in slow + quick]
        for running in daemons:
            running.signal(signal.SIGTERM)
        assert {running.wait() for running in daemons} == {0}
    assert {(job.state, job.attempts) for job in jobs} == {(JobState.DONE, 1)}
    begun = events.all("begun")
    assert len({job for _, job, _ in begun}) == len(begun) == 102
    shares = Counter(pid for pid, *_ in begun)
    assert set(shares) == {running.pid for running in daemons}
    slow_pids = {job.result["pid"] for job in jobs if job.type == "test.slow" and job.result}
    assert slow_pids == set(shares)  # of a type each daemon does one at a time


@pytest.mark.parametrize(("drain_s", "goes"), [(30, True), (0.3, False)])
async def test_F21_a_daemon_that_drains_lets_jobs_finish_or_gives_them_back(
    workers: Workers,
    tmp_path: Path,
    database_url: str,
    postgres_index: PostgresIndex,
    events: Events,
    drain_s: float,
    goes: bool,
) -> None:
    number = await enqueue(postgres_index, events)
    with workers.running(tmp_path, database_url, 1, *SETTINGS, f"server.drain_s={drain_s}") as (running,):
        await eventually(lambda: events.all("begun"))
        later = await enqueue(postgres_index, events, repo=7)
        running.signal(signal.SIGTERM)
        await eventually(lambda: "draining" in running.log.read_text())
        if goes:
            events.go()
        assert await trio.to_thread.run_sync(running.wait, 30) == 0
        job, waiting = await postgres_index.find_job(number), await postgres_index.find_job(later)
    assert job is not None
    assert waiting is not None
    assert (job.state, job.attempts) == ((JobState.DONE, 1) if goes else (JobState.PENDING, 0))
    assert (waiting.state, waiting.attempts) == (JobState.PENDING, 0)
    assert "Traceback" not in running.log.read_text()


async def test_F14_jobs_go_on_when_their_database_was_killed_and_came_back(
    tmp_path: Path, postgres_home: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    data_dir = postgres_home / f"killed-{os.getpid()}"
    settings = ("jobs.stale_s=5", "jobs.retry_s=0.1", "jobs.poll_s=0.3", f"store.path={tmp_path / 'store'}")
    running = await trio.to_thread.run_sync(start_daemon, data_dir, None, *settings)
    try:
        embedded = EmbeddedPostgres(data_dir)
        async with PostgresIndex(DatabaseSettings(embedded.conninfo)) as index:
            slow = await enqueue(index, events)
            quick = [await enqueue(index, events, "test.quick", repo) for repo in range(1, 21)]
            await eventually(lambda: events.all("begun"))
            await trio.to_thread.run_sync(embedded.kill)
            events.go()
            await eventually(lambda: events.all("ended"))
            await eventually(embedded.alive)
        async with PostgresIndex(DatabaseSettings(embedded.conninfo)) as index:
            jobs = [await ended(index, number) for number in [slow, *quick]]
            left = await index.list_jobs(JobFilter(states=frozenset({JobState.PENDING, JobState.RUNNING})), 10)
        assert {job.state for job in jobs} == {JobState.DONE}
        assert left == []
        assert running.stop() == 0
    finally:
        running.process.kill()
        running.process.wait()
        embedded.destroy()

"""What becomes of jobs whose worker is gone, and of jobs that come back. Under a mock clock."""

from __future__ import annotations

import trio
import trio.testing

from actors.jobs.cron import cron_entries
from actors.jobs.handler import JobContext
from actors.jobs.settings import JobSettings
from storage.job_rows import DEPLOYMENT, JobFilter, JobState, NewJob
from storage.memory.index import MemoryIndex
from tests.job_workers import ClockEnvironment, Scripted, ended, job_services, working


async def enqueue(index: MemoryIndex, type_: str, repo: int = DEPLOYMENT) -> int:
    (number,) = await index.enqueue_jobs(repo, [NewJob(type_)], ClockEnvironment(1).now())
    return number


async def test_F20_a_job_of_a_dead_worker_is_done_by_another_one(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    number, services = await enqueue(memory_index, "a"), job_services(memory_index)
    dying, living = Scripted(lambda _: trio.sleep_forever()), Scripted({"n": 1})
    async with working(services, {"a": dying}) as first:
        await dying.started.wait()
        first.die()
    async with working(services, {"a": living}):
        job = await ended(memory_index, number)
        assert 300 <= trio.current_time() < 400
    assert (job.state, job.attempts, len(living.begun)) == (JobState.DONE, 2, 1)


async def test_a_job_that_kills_its_worker_every_time_fails_in_the_end(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    number, services = await enqueue(memory_index, "a"), job_services(memory_index)
    for _ in range(3):
        deadly = Scripted(lambda _: trio.sleep_forever())
        async with working(services, {"a": deadly}) as worker:
            await deadly.started.wait()
            worker.die()
    async with working(services, {"a": Scripted()}) as survivor:
        job = await ended(memory_index, number)
        assert survivor.seen == []
    assert (job.state, job.attempts) == (JobState.FAILED, 3)
    assert job.error is not None
    assert "was not heard of" in job.error


class Paused(MemoryIndex):
    """An index that one daemon does not reach while that is stopped: its beats come late."""

    def __init__(self, other: MemoryIndex) -> None:
        super().__init__(other.tables)
        self.until = 0.0

    async def beat_claims(self, *arguments: object) -> set:
        await trio.sleep_until(self.until)
        return await super().beat_claims(*arguments)

    async def complete_job(self, *arguments: object) -> bool:
        await trio.sleep_until(self.until)
        return await super().complete_job(*arguments)

    async def recover_stale(self, *arguments: object) -> list:
        await trio.sleep_until(self.until)
        return await super().recover_stale(*arguments)


async def test_F27_a_worker_that_wakes_up_late_cannot_finish_what_another_one_has(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    asleep = Paused(memory_index)
    asleep.until = 1_000.0

    async def slow(_context: JobContext) -> dict[str, object]:
        await trio.sleep(800)
        return {"by": "the late one"}

    number = await enqueue(memory_index, "a")
    async with working(job_services(asleep), {"a": slow}) as late:
        await trio.sleep(1)
        async with working(job_services(memory_index), {"a": Scripted({"by": "the other one"})}):
            job = await ended(memory_index, number)
            await trio.sleep(1_200)
            assert late.outcomes() == [("a", "lost")]
            assert len(late.work.runs) == 0
    assert job == await memory_index.find_job(number)
    assert job.result is not None
    assert (job.result["by"], job.attempts) == ("the other one", 2)


async def test_cron_enqueues_each_job_once_however_many_daemons_look(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    services = job_services(memory_index, gc_every_s=3_600, scrub_every_s=0)
    handler = Scripted()
    async with working(services, {"gc": handler}), working(services, {"gc": handler}):
        await trio.sleep(3 * 3_600 + 200)
    assert len(handler.begun) == 3
    assert {context.job.repo for context in handler.begun} == {DEPLOYMENT}


async def test_a_daemon_that_starts_again_does_not_begin_the_period_anew(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    services, handler = job_services(memory_index, gc_every_s=3_600), Scripted()
    for _ in range(8):
        async with working(services, {"gc": handler}):
            await trio.sleep(1_000)
    assert len(handler.begun) == 2


def test_what_comes_back_is_a_setting() -> None:
    assert {entry.name for entry in cron_entries(JobSettings())} == {"gc", "scrub"}
    assert cron_entries(JobSettings(gc_every_s=0, scrub_every_s=0)) == []


async def test_jobs_that_ended_long_ago_are_forgotten(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    services = job_services(memory_index, keep_s=7_200, gc_every_s=0, scrub_every_s=0)
    numbers = [await enqueue(memory_index, "a", repo) for repo in range(1, 30)]
    async with working(services, {"a": Scripted()}):
        for number in numbers:
            await ended(memory_index, number)
        await trio.sleep(6_900)
        assert len(await memory_index.list_jobs(JobFilter(), 100)) == 29
        await trio.sleep(1_500)
        assert await memory_index.list_jobs(JobFilter(), 100) == []

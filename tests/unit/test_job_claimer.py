"""Who claims what: within its limits, woken at once, for as long as the daemon does not drain. Under a mock clock."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from actors.jobs.handler import JobContext
from storage.errors import IndexUnavailable
from storage.job_rows import DEPLOYMENT, JobFilter, JobState, NewJob
from storage.memory.index import MemoryIndex
from tests.job_workers import ClockEnvironment, Scripted, ended, job_services, working


class Busy:
    """A handler that takes a while and counts how many of it run at once."""

    def __init__(self, seconds: float = 1) -> None:
        self.seconds = seconds
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.all_at_once = 0
        self.repos: list[int] = []

    async def __call__(self, context: JobContext) -> dict[str, object]:
        type_ = context.job.type
        self.repos.append(context.job.repo)
        self.running[type_] += 1
        self.most[type_] = max(self.most[type_], self.running[type_])
        self.all_at_once = max(self.all_at_once, self.running.total())
        await trio.sleep(self.seconds)
        self.running[type_] -= 1
        return {}


async def enqueue(index: MemoryIndex, type_: str, repos: range) -> list[int]:
    now = ClockEnvironment(1).now()
    return [number for repo in repos for number in await index.enqueue_jobs(repo, [NewJob(type_)], now)]


async def test_limits_hold_per_type_and_in_all(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    busy = Busy()
    limits = {"a": 2, "b": 5, "c": 1}
    numbers = [number for type_ in limits for number in await enqueue(memory_index, type_, range(1, 9))]
    async with working(job_services(memory_index, at_once=4), dict.fromkeys(limits, busy), limits):
        for number in numbers:
            await ended(memory_index, number)
    assert busy.most["a"] == 2
    assert busy.most["c"] == 1
    assert busy.all_at_once == 4
    assert len(busy.repos) == 24


async def test_the_next_job_begins_as_soon_as_there_is_room(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    numbers = await enqueue(memory_index, "a", range(1, 11))
    async with working(job_services(memory_index, at_once=1, poll_s=1_000), {"a": Busy(1)}):
        for number in numbers:
            await ended(memory_index, number)
    assert trio.current_time() < 12


async def test_a_new_job_begins_at_once_and_polling_is_not_needed(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async with working(job_services(memory_index, poll_s=1_000), {"a": Busy(0)}):
        await trio.sleep(100)
        (number,) = await enqueue(memory_index, "a", range(1, 2))
        await ended(memory_index, number)
        assert trio.current_time() < 101


class Deaf(MemoryIndex):
    """An index whose listening connection is lost again and again."""

    tried = 0

    @asynccontextmanager
    async def listen(self, channel: str):
        await trio.lowlevel.checkpoint()
        self.tried += 1
        raise IndexUnavailable("no connection to listen on")
        yield


async def test_F16_without_notifications_polling_finds_the_job(autojump_clock: trio.testing.MockClock) -> None:
    index = Deaf()
    async with working(job_services(index, poll_s=5), {"a": Busy(0)}):
        await trio.sleep(100)
        (number,) = await enqueue(index, "a", range(1, 2))
        await ended(index, number)
        assert trio.current_time() < 108
    assert 10 < index.tried < 30


class Away(MemoryIndex):
    away = False

    async def claim_jobs(self, *arguments: object) -> list:
        if self.away:
            raise IndexUnavailable("away")
        return await super().claim_jobs(*arguments)

    async def beat_claims(self, *arguments: object) -> set:
        if self.away:
            raise IndexUnavailable("away")
        return await super().beat_claims(*arguments)


async def test_F14_an_index_that_is_away_for_a_while_costs_nothing_but_the_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    index, busy = Away(), Busy(120)
    (first,) = await enqueue(index, "a", range(1, 2))
    async with working(job_services(index, poll_s=5), {"a": busy}, {"a": 2}) as worker:
        await trio.sleep(1)
        index.away = True
        (second,) = await enqueue(index, "a", range(2, 3))
        await trio.sleep(100)
        index.away = False
        assert (await ended(index, first)).attempts == 1
        assert (await ended(index, second)).attempts == 1
        assert worker.supervisor.statistics().restarts == 0
    assert busy.repos == [1, 2]


async def test_types_nobody_here_can_do_are_left_to_others(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "other", range(1, 2))
    async with working(job_services(memory_index), {"a": Busy(0)}):
        await trio.sleep(60)
        job = await memory_index.find_job(number)
    assert job is not None
    assert (job.state, job.attempts) == (JobState.PENDING, 0)


async def test_several_daemons_share_the_work_and_nothing_is_done_twice(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    busy = [Busy(1) for _ in range(3)]
    numbers = await enqueue(memory_index, "a", range(1, 61))
    services = job_services(memory_index, at_once=2)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(working(services, {"a": one}, {"a": 2})) for one in busy]
        for number in numbers:
            await ended(memory_index, number)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(len(worker.seen) for worker in workers) == 60
    assert sorted(repo for one in busy for repo in one.repos) == list(range(1, 61))
    assert all(len(one.repos) >= 10 for one in busy)


async def test_draining_claims_nothing_more_and_lets_what_runs_finish(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    running, waiting = await enqueue(memory_index, "a", range(1, 3))
    busy = Busy(20)
    services = job_services(memory_index, at_once=1)
    async with working(services, {"a": busy}) as worker:
        await ended(memory_index, running, JobState.RUNNING)
        assert await worker.supervisor.drain(30)
        await trio.sleep(60)
        assert await worker.work.give_back() == 0
    done, left = await memory_index.find_job(running), await memory_index.find_job(waiting)
    assert done is not None
    assert left is not None
    assert (done.state, left.state, left.attempts) == (JobState.DONE, JobState.PENDING, 0)


async def test_what_outlasts_the_drain_is_cut_and_given_back_without_costing_an_attempt(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "a", range(1, 2))
    handler = Scripted(lambda _: trio.sleep_forever(), {})
    services = job_services(memory_index)
    async with working(services, {"a": handler}) as worker:
        await handler.started.wait()
        assert not await worker.supervisor.drain(30)
        worker.die()
        await trio.testing.wait_all_tasks_blocked()
        assert await worker.work.give_back() == 1
    job = await memory_index.find_job(number)
    assert job is not None
    assert (job.state, job.attempts, handler.cut) == (JobState.PENDING, 0, 1)
    async with working(services, {"a": handler}):
        assert (await ended(memory_index, number)).attempts == 1


async def test_a_job_claimed_while_the_drain_begins_goes_back(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(MemoryIndex):
        asked = trio.Event()

        async def claim_jobs(self, *arguments: object) -> list:
            self.asked.set()
            await trio.sleep(5)
            return await super().claim_jobs(*arguments)

    index = Slow()
    await enqueue(index, "a", range(1, 3))
    async with working(job_services(index), {"a": Busy()}, {"a": 2}) as worker:
        await index.asked.wait()
        assert await worker.supervisor.drain(1)
        await trio.sleep(30)
        assert len(worker.work.runs) == 0
    jobs = await index.list_jobs(JobFilter(), 10)
    assert [(job.state, job.attempts) for job in jobs] == [(JobState.PENDING, 0)] * 2


async def test_a_job_outlives_a_crash_of_its_claimer(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    class Crashing(MemoryIndex):
        crashes = 1

        async def claim_jobs(self, *arguments: object) -> list:
            claimed = await super().claim_jobs(*arguments)
            if not claimed and self.crashes:
                self.crashes -= 1
                raise RuntimeError("a bug")
            return claimed

    index, busy = Crashing(), Busy(400)
    (number,) = await enqueue(index, "a", range(1, 2))
    async with working(job_services(index), {"a": busy}, {"a": 2}) as worker:
        job = await ended(index, number)
        assert worker.supervisor.statistics().restarts == 1
    assert (job.state, job.attempts, len(busy.repos)) == (JobState.DONE, 1, 1)


@pytest.mark.parametrize("ending", [False, True])
async def test_F12_what_was_claimed_while_the_answer_was_lost_is_given_back(
    ending: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """F12: by the daemon itself, soon, or at its end, and not only when the claim is stale; it costs no attempt."""

    class Forgetful(MemoryIndex):
        lost = 0

        async def claim_jobs(self, *arguments: object) -> list:
            claimed = await super().claim_jobs(*arguments)
            if claimed and not self.lost:
                self.lost = len(claimed)
                raise IndexUnavailable("the answer was lost")
            return claimed

    index, busy = Forgetful(), Busy(30)
    numbers = await enqueue(index, "a", range(1, 4))
    services = job_services(index, stale_s=3_000, poll_s=5)
    async with working(services, {"a": busy}, {"a": 3}) as worker:
        await trio.testing.wait_all_tasks_blocked()
        assert index.lost == 3
        if ending:
            worker.die()
            assert await worker.work.give_back() == 3
            assert {(await ended(index, number, JobState.PENDING)).attempts for number in numbers} == {0}
        else:
            jobs = [await ended(index, number, limit_s=60) for number in numbers]
            assert {(job.state, job.attempts) for job in jobs} == {(JobState.DONE, 1)}


async def test_the_claim_of_an_end_that_cannot_be_recorded_is_not_given_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each attempt counts, or a job whose end no index takes would be begun for ever."""

    class Refusing(MemoryIndex):
        async def complete_job(self, *_: object) -> bool:
            raise ValueError("a bug")

    index, handler = Refusing(), Scripted({}, {}, {})
    (number,) = await enqueue(index, "a", range(1, 2))
    async with working(job_services(index, stale_s=300, poll_s=5, retry_s=1), {"a": handler}):
        await trio.sleep(200)
        assert len(handler.begun) == 1
        job = await ended(index, number)
    assert (job.state, job.attempts) == (JobState.FAILED, 3)


async def test_paused_types_and_held_jobs_wait(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    (held,) = await enqueue(memory_index, "a", range(1, 2))
    (paused,) = await enqueue(memory_index, "b", range(DEPLOYMENT, 1))
    await memory_index.hold_job(held, True)
    await memory_index.pause_type("b", True)
    async with working(job_services(memory_index), {"a": Busy(0), "b": Busy(0)}) as worker:
        await trio.sleep(60)
        assert worker.seen == []
        await memory_index.hold_job(held, False)
        await memory_index.pause_type("b", False)
        for number in (held, paused):
            assert (await ended(memory_index, number)).state is JobState.DONE


@pytest.mark.parametrize("count", [1, 3])
async def test_claims_stay_fresh_while_their_jobs_run_for_long(
    memory_index: MemoryIndex, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    numbers = await enqueue(memory_index, "a", range(1, count + 1))
    async with working(job_services(memory_index), {"a": Busy(4_000)}, {"a": 3}) as worker:
        for number in numbers:
            assert (await ended(memory_index, number)).attempts == 1
        assert {outcome for _, outcome in worker.outcomes()} == {"done"}

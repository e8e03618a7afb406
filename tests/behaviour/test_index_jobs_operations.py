"""What every ``Index`` promises operators and the clock: retry, cancel, hold, pause, list, count, forget, cron."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import assert_checkpoints

from storage.job_rows import (
    DEPLOYMENT,
    JOBS_CHANNEL,
    LISTED_JOBS,
    CronEntry,
    JobCounts,
    JobFilter,
    JobState,
    NewJob,
)
from tests.behaviour.test_index import emptied_url, index, tables, url
from tests.behaviour.test_index_jobs import wakings
from tests.behaviour.test_index_jobs_claims import GC, NOW, PACKS, SCRUB, Desk, after, desk

__all__ = ["desk", "emptied_url", "index", "tables", "url", "wakings"]

PENDING, RUNNING, DONE, FAILED, CANCELLED = JobState


async def waiting(desk: Desk) -> int:
    return await desk.put()


async def running(desk: Desk) -> int:
    await desk.put()
    return (await desk.one()).claim.job


async def done(desk: Desk) -> int:
    await desk.put()
    claim = (await desk.one()).claim
    await desk.index.complete_job(claim, {"n": 1}, NOW)
    return claim.job


async def failed(desk: Desk) -> int:
    await desk.put(payload={"a": 1, "b": 1})
    claim = (await desk.one()).claim
    await desk.index.fail_job(claim, "broken", NOW, None)
    return claim.job


async def cancelled(desk: Desk) -> int:
    number = await desk.put(payload={"a": 1, "b": 1})
    await desk.index.cancel_job(number, NOW)
    return number


async def unknown(_: Desk) -> int:
    return 10**9


State = Callable[[Desk], Awaitable[int]]


@pytest.mark.parametrize(
    ("state", "retried", "was_cancelled", "was_held"),
    [
        (waiting, True, True, True), (running, False, True, False), (done, False, False, False),
        (failed, True, False, False), (cancelled, True, False, False), (unknown, False, False, False),
    ],
)  # fmt: skip
async def test_what_can_be_done_to_a_job_in_each_state(
    desk: Desk, state: State, retried: bool, was_cancelled: bool, was_held: bool
) -> None:
    """And what cannot be done leaves it as it is."""
    for act, expected in [
        (desk.index.retry_job, retried), (desk.index.cancel_job, was_cancelled),
        (lambda number, _: desk.index.hold_job(number, True), was_held),
    ]:  # fmt: skip
        number = await state(desk)
        before = await desk.index.find_job(number)
        assert await act(number, after(1)) is expected
        if not expected:
            assert await desk.index.find_job(number) == before
        await desk.index.cancel_job(number, after(1))
    assert await desk.index.find_job(10**9) is None


@pytest.mark.parametrize("state", [failed, cancelled])
async def test_a_job_that_is_retried_begins_anew(desk: Desk, state: State) -> None:
    """With all its attempts, at once, and no error of before."""
    number = await state(desk)
    assert await desk.index.retry_job(number, after(5))
    job = await desk.job(number)
    assert (job.state, job.run_at, job.attempts, job.error, job.finished_at) == (PENDING, after(5), 0, None, None)
    claimed = await desk.one(after(5))
    assert (claimed.claim.job, claimed.attempt, claimed.payload) == (number, 1, {"a": 1, "b": 1})


@pytest.mark.parametrize("state", [failed, cancelled])
async def test_a_job_that_is_retried_merges_into_one_that_waits(desk: Desk, state: State) -> None:
    """It stays what it was."""
    number = await state(desk)
    before = await desk.job(number)
    other = await desk.put(payload={"b": 2, "c": 2})
    assert await desk.index.retry_job(number, after(5))
    assert await desk.job(number) == before
    assert (await desk.job(other)).payload == {"a": 1, "b": 1, "c": 2}


async def test_a_job_that_waits_for_its_time_is_run_now_when_it_is_retried(desk: Desk) -> None:
    """And one whose time has come keeps its place in the row."""
    number = await desk.put()
    await desk.index.fail_job((await desk.one()).claim, "broken", NOW, after(600))
    assert await desk.claim(at=after(5)) == []
    assert await desk.index.retry_job(number, after(5))
    assert (await desk.job(number)).run_at == after(5)
    assert await desk.index.retry_job(number, after(9))
    assert (await desk.job(number)).run_at == after(5)
    assert (await desk.one(after(5))).attempt == 2


@pytest.mark.parametrize("state", [waiting, running])
async def test_a_cancelled_job_is_nobody_s_and_leaves_its_place(desk: Desk, state: State) -> None:
    """Another of its type can wait and run."""
    number = await state(desk)
    assert await desk.index.cancel_job(number, after(3))
    job = await desk.job(number)
    assert (job.state, job.finished_at, job.claim, job.held) == (CANCELLED, after(3), None, False)
    assert await desk.claim(at=after(9)) == []
    other = await desk.put()
    assert (await desk.one(after(9))).claim.job == other


async def test_a_held_job_waits_until_it_is_let_go(desk: Desk) -> None:
    """It takes the payloads of what is enqueued meanwhile."""
    number = await desk.put(payload={"a": 1})
    assert await desk.index.hold_job(number, True)
    assert (await desk.job(number)).held
    assert await desk.put(payload={"b": 1}) == number
    assert await desk.claim() == []
    assert await desk.index.hold_job(number, False)
    assert (await desk.one()).payload == {"a": 1, "b": 1}


async def test_a_held_job_that_is_cancelled_and_retried_is_not_held(desk: Desk) -> None:
    """Who retries it wants it to run."""
    number = await desk.put()
    await desk.index.hold_job(number, True)
    await desk.index.cancel_job(number, NOW)
    await desk.index.retry_job(number, NOW)
    assert (await desk.one()).claim.job == number


async def test_a_paused_type_is_claimed_by_nobody(desk: Desk) -> None:
    """What runs goes on; pausing twice is pausing."""
    first = await desk.put(GC, 1)
    running_one = (await desk.one()).claim
    for _ in range(2):
        await desk.index.pause_type(GC, True)
    await desk.index.pause_type(PACKS, True)
    assert await desk.index.paused_types() == {GC, PACKS}
    await desk.put(GC, 2)
    other = await desk.put(SCRUB, 2)
    assert [job.claim.job for job in await desk.claim()] == [other]
    assert await desk.index.complete_job(running_one, {}, NOW)
    assert (await desk.job(first)).state is DONE
    await desk.index.pause_type(GC, False)
    assert await desk.index.paused_types() == {PACKS}
    assert (await desk.one()).repo == 2


async def test_jobs_are_listed_by_what_is_wanted_of_them(desk: Desk) -> None:
    """The newest of them, oldest first."""
    gone = await failed(desk)
    first = [await desk.put(kind, repo) for kind in (GC, SCRUB) for repo in (1, 2)]
    held = (await desk.one()).claim
    await desk.index.complete_job(held, {}, NOW)
    await desk.one()
    everything = [gone, *first]
    state = {number: (await desk.job(number)).state for number in everything}
    for wanted, most, expected in [
        (JobFilter(), 9, everything),
        (JobFilter(), 2, everything[-2:]),
        (JobFilter(), 0, []),
        (JobFilter(repo=2), 9, [first[1], first[3]]),
        (JobFilter(repo=1, type=GC), 9, [gone, first[0]]),
        (JobFilter(repo=1, type=GC, states=frozenset({FAILED})), 9, [gone]),
        (JobFilter(repo=1), 1, [first[2]]),
        (JobFilter(type=SCRUB), 9, first[2:]),
        (JobFilter(type=GC), 1, [first[1]]),
        (JobFilter(type="none"), 9, []),
        (JobFilter(states=frozenset({PENDING})), 9, [n for n in everything if state[n] is PENDING]),
        (JobFilter(states=frozenset({FAILED, DONE, RUNNING})), 9, [n for n in everything if state[n] is not PENDING]),
        (JobFilter(states=frozenset({FAILED, PENDING})), 2, [n for n in everything if state[n] is PENDING][-2:]),
        (JobFilter(type=GC, states=frozenset({CANCELLED})), 9, []),
        (JobFilter(states=frozenset()), 9, []),
    ]:
        found = await desk.index.list_jobs(wanted, most)
        assert [job.number for job in found] == expected, wanted
        for job in found:
            assert job == await desk.job(job.number)
    assert len(await desk.index.list_jobs(JobFilter(), LISTED_JOBS * 2)) == len(everything)


async def test_jobs_are_counted_by_type_and_state(desk: Desk) -> None:
    """With since when the oldest waits that could run."""
    assert await desk.index.count_jobs() == []
    await failed(desk)
    for repo in (1, 2, 3):
        await desk.put(GC, repo, at=after(repo))
    await desk.index.hold_job((await desk.index.list_jobs(JobFilter(repo=1), 1))[0].number, True)
    only = await desk.put(SCRUB)
    await desk.index.hold_job(only, True)
    await desk.put(PACKS)
    await desk.index.claim_jobs({PACKS: 1}, 1, "w", NOW)
    assert await desk.index.count_jobs() == [
        JobCounts(GC, PENDING, 3, after(2)), JobCounts(GC, FAILED, 1, None), JobCounts(PACKS, RUNNING, 1, None),
        JobCounts(SCRUB, PENDING, 1, None),
    ]  # fmt: skip


async def test_what_ended_long_ago_is_forgotten_the_oldest_first(desk: Desk) -> None:
    """What waits or runs never is."""
    ended = []
    for at in (3, 1, 2):
        await desk.put(repo=at)
        claim = (await desk.one()).claim
        await desk.index.complete_job(claim, {}, after(at))
        ended.append(claim.job)
    ended.append(await failed(desk))
    ended.append(await cancelled(desk))
    await desk.put(SCRUB)
    await desk.one()
    await desk.put(PACKS)
    assert await desk.index.prune_jobs(NOW, 9) == 0
    assert await desk.index.prune_jobs(after(3), 3) == 3
    assert [job.number for job in await desk.index.list_jobs(JobFilter(), 9)][:2] == [ended[0], ended[2]]
    assert await desk.index.prune_jobs(after(3), 9) == 1
    assert await desk.index.prune_jobs(after(99), 9) == 1
    assert {(c.type, c.state) for c in await desk.index.count_jobs()} == {(SCRUB, RUNNING), (PACKS, PENDING)}


# ---- cron

DAILY = CronEntry("collect", GC, 100.0, 60, {"why": "cron"})
HOURLY = CronEntry("look", SCRUB, 10.0)


async def test_what_comes_back_is_enqueued_for_the_deployment_when_it_is_due(desk: Desk) -> None:
    """First after its period, then a period after it was enqueued; late once, it is not made up for."""
    await desk.index.set_cron([DAILY, HOURLY], NOW)
    for at, expected in [(9, []), (10, ["look"]), (19, []), (25, ["look"]), (34, []), (100, ["collect", "look"])]:
        assert await desk.index.run_cron(after(at)) == expected, at
    (job,) = await desk.index.list_jobs(JobFilter(type=GC), 9)
    assert (job.repo, job.priority, job.payload, job.run_at) == (DEPLOYMENT, 60, {"why": "cron"}, after(100))
    assert len(await desk.index.list_jobs(JobFilter(type=SCRUB), 9)) == 1  # it waits still


async def test_the_cron_table_is_made_anew_without_forgetting_when_things_ran(desk: Desk) -> None:
    """A daemon that starts puts nothing off, and a new period counts from the last time."""
    await desk.index.set_cron([DAILY, HOURLY], NOW)
    assert await desk.index.run_cron(after(10)) == ["look"]
    await desk.index.set_cron([DAILY, HOURLY], after(15))
    assert await desk.index.run_cron(after(19)) == []
    assert await desk.index.run_cron(after(20)) == ["look"]
    await desk.index.set_cron([CronEntry("look", PACKS, 4.0), CronEntry("new", GC, 1.0)], after(22))
    assert await desk.index.run_cron(after(23)) == ["new"]
    assert await desk.index.run_cron(after(24)) == ["look", "new"]
    assert len(await desk.index.list_jobs(JobFilter(type=PACKS), 9)) == 1
    assert await desk.index.run_cron(after(500)) == ["look", "new"]  # what is not in the table does not come back
    await desk.index.set_cron([], after(501))
    assert await desk.index.run_cron(after(999)) == []


async def test_two_entries_of_one_type_share_a_job(desk: Desk) -> None:
    """As any two that are enqueued do."""
    await desk.index.set_cron([CronEntry("b", GC, 1.0, 5, {"b": 1}), CronEntry("a", GC, 1.0, 4, {"a": 1})], NOW)
    assert await desk.index.run_cron(after(1)) == ["a", "b"]
    (job,) = await desk.index.list_jobs(JobFilter(), 9)
    assert (job.payload, job.priority) == ({"a": 1, "b": 1}, 4)


async def test_daemons_that_ask_at_once_enqueue_once(desk: Desk) -> None:
    """However many there are."""
    entries = [CronEntry(f"e{number}", f"t{number}", 1.0) for number in range(6)]
    ran: list[str] = []

    async def daemon() -> None:
        await desk.index.set_cron(entries, NOW)
        ran.extend(await desk.index.run_cron(after(1)))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(daemon)
    assert sorted(ran) == [entry.name for entry in entries]


# ---- waking


async def test_who_claims_is_woken_by_everything_that_lets_a_job_run_or_takes_one_away(
    desk: Desk, wakings: list[str]
) -> None:
    """Nobody has to wait for the next poll."""
    number = await desk.put()

    async def enqueue() -> object:
        return await desk.index.enqueue_jobs(5, [NewJob(GC)], NOW)

    async def return_one() -> object:
        return await desk.index.return_jobs([(await desk.one()).claim], NOW)

    async def recover() -> object:
        await desk.one()
        return await desk.index.recover_stale(after(999), 1, 0, 9)

    for act in [
        enqueue, return_one, recover,
        lambda: desk.index.hold_job(number, True), lambda: desk.index.hold_job(number, False),
        lambda: desk.index.pause_type(GC, False), lambda: desk.index.cancel_job(number, NOW),
        lambda: desk.index.retry_job(number, NOW), lambda: run_cron(desk),
    ]:  # fmt: skip
        await heard_nothing_more(desk, wakings)
        await act()
        with trio.fail_after(10):
            while not wakings:
                await trio.lowlevel.checkpoint()
        assert wakings[0] == ""


async def run_cron(desk: Desk) -> None:
    await desk.index.set_cron([HOURLY], NOW)
    await desk.index.run_cron(after(10))


async def heard_nothing_more(desk: Desk, wakings: list[str]) -> None:
    """Wait until everything said so far has been heard, and forget it."""
    await desk.index.notify(JOBS_CHANNEL, "mark")
    with trio.fail_after(10):
        while "mark" not in wakings:
            await trio.lowlevel.checkpoint()
    wakings.clear()


async def test_every_call_is_a_checkpoint(desk: Desk) -> None:
    """Nobody keeps the loop to himself."""
    queue = desk.index
    calls: list[Awaitable[object]] = [
        queue.find_job(1), queue.list_jobs(JobFilter(), 1), queue.count_jobs(), queue.retry_job(1, NOW),
        queue.cancel_job(1, NOW), queue.hold_job(1, True), queue.pause_type(GC, True), queue.paused_types(),
        queue.prune_jobs(NOW, 1), queue.set_cron([], NOW), queue.run_cron(NOW),
    ]  # fmt: skip
    for call in calls:
        with assert_checkpoints():
            await call

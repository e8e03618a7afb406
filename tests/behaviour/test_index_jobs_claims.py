"""What every ``Index`` promises of claims: who gets which job, and that only who holds a claim can end it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import assert_checkpoints

from storage.index import Index
from storage.job_rows import (
    Claim,
    ClaimedJob,
    ClaimFacts,
    Job,
    JobProgress,
    JobState,
    NewJob,
)
from tests.behaviour.test_index import emptied_url, index, tables, url

__all__ = ["emptied_url", "index", "tables", "url"]

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GC, SCRUB, PACKS = "gc", "scrub", "mpack.index"
PENDING, RUNNING, DONE, FAILED = JobState.PENDING, JobState.RUNNING, JobState.DONE, JobState.FAILED
STRANGE = {"text": "a \0, a \ud800, a ä", "numbers": [1, 2.5, None, True], "nested": {"": {}}}
"""What may be in a result or a kept state: PostgreSQL's jsonb would refuse it."""


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


@dataclass
class Desk:
    """An index, and who works on its jobs."""

    index: Index
    room: Mapping[str, int] = field(default_factory=lambda: {GC: 9, SCRUB: 9, PACKS: 9})

    async def put(
        self, kind: str = GC, repo: int = 1, payload: Mapping[str, object] | None = None, priority: int = 0,
        at: dt.datetime = NOW,
    ) -> int:  # fmt: skip
        (number,) = await self.index.enqueue_jobs(repo, [NewJob(kind, priority, payload or {})], at)
        return number

    async def claim(self, most: int = 9, at: dt.datetime = NOW, worker: str = "w") -> list[ClaimedJob]:
        return await self.index.claim_jobs(self.room, most, worker, at)

    async def one(self, at: dt.datetime = NOW, worker: str = "w") -> ClaimedJob:
        (claimed,) = await self.claim(1, at, worker)
        return claimed

    async def job(self, number: int) -> Job:
        found = await self.index.find_job(number)
        assert found is not None
        return found

    async def states(self, *numbers: int) -> list[JobState]:
        return [(await self.job(number)).state for number in numbers]


@pytest.fixture
def desk(index: Index) -> Desk:
    return Desk(index)


# ---- enqueueing and claiming


async def test_jobs_are_enqueued_by_type_and_one_that_waits_is_named_again(desk: Desk) -> None:
    """Each type of each repository has one place to wait."""
    first = await desk.index.enqueue_jobs(1, [NewJob(SCRUB), NewJob(GC)], NOW)
    assert [(await desk.job(number)).type for number in first] == [GC, SCRUB]
    assert await desk.index.enqueue_jobs(1, [NewJob(GC, 7, {"x": 1}), NewJob(PACKS)], NOW) != first
    assert (await desk.job(first[0])).payload == {"x": 1}
    assert (await desk.job(first[0])).priority == 0
    assert await desk.index.enqueue_jobs(2, [NewJob(GC)], NOW) not in [[number] for number in first]
    assert await desk.index.enqueue_jobs(1, [], NOW) == []


async def test_a_claim_tells_everything_its_holder_needs(desk: Desk) -> None:
    """And the job says who holds it."""
    number = await desk.put(PACKS, 7, {"p": True})
    claimed = await desk.one(after(5), "host-1")
    assert claimed == ClaimedJob(Claim(number, claimed.claim.token), 7, PACKS, {"p": True}, 1, NOW, {})
    job = await desk.job(number)
    assert (job.state, job.attempts, job.finished_at) == (RUNNING, 1, None)
    assert job.claim == ClaimFacts("host-1", after(5), after(5), None)
    assert await desk.claim() == []


async def test_the_most_urgent_go_first_within_the_room_of_each_type(desk: Desk) -> None:
    """By priority, then by when their time came, then by number."""
    late = await desk.put(GC, 1, priority=1, at=after(2))
    early = await desk.put(GC, 2, priority=1, at=after(1))
    urgent = await desk.put(SCRUB, 1, priority=0, at=after(3))
    urgent_later = await desk.put(SCRUB, 2, priority=0, at=after(3))
    idle = await desk.put(PACKS, 1, priority=9, at=NOW)
    for room, most, expected in [
        ({GC: 2, SCRUB: 2, PACKS: 0}, 3, [urgent, urgent_later, early]),
        ({GC: 1, SCRUB: 1, PACKS: 1}, 9, [urgent, early, idle]),
        ({GC: 1}, 9, [early]),
        ({GC: 5, PACKS: 5}, 9, [early, late, idle]),
        ({GC: 5, PACKS: -1}, 0, []),
        ({"unheard of": 5}, 5, []),
        ({}, 5, []),
    ]:
        claimed = await desk.index.claim_jobs(room, most, "w", after(9))
        assert [job.claim.job for job in claimed] == expected
        assert await desk.index.return_jobs([job.claim for job in claimed], after(9)) == len(expected)


async def test_what_may_not_run_now_is_left_and_takes_nobody_s_place(desk: Desk) -> None:
    """Held, paused, not yet due, or of a type that runs for its repository: what comes after it is claimed."""
    running = await desk.put(GC, 1)
    await desk.one()
    behind = await desk.put(GC, 1)
    held = await desk.put(GC, 2)
    await desk.index.hold_job(held, True)
    early = await desk.put(GC, 3, at=after(60))
    paused = await desk.put(SCRUB, 4)
    await desk.index.pause_type(SCRUB, True)
    free = await desk.put(GC, 5, priority=100, at=after(1))
    other_type = await desk.put(PACKS, 1, priority=200, at=after(1))
    claimed = await desk.index.claim_jobs({GC: 1, SCRUB: 1, PACKS: 1}, 3, "w", after(1))
    assert [job.claim.job for job in claimed] == [free, other_type]
    assert await desk.states(running, behind, held, early, paused) == [RUNNING, PENDING, PENDING, PENDING, PENDING]


async def test_one_of_a_type_runs_for_a_repository_and_the_next_comes_after_it(desk: Desk) -> None:
    """Two collections of one repository never run at once."""
    await desk.put()
    first = await desk.one()
    second = await desk.put(payload={"more": 1})
    assert second != first.claim.job
    assert await desk.claim() == []
    assert await desk.index.complete_job(first.claim, {}, NOW)
    assert (await desk.one()).claim.job == second


# ---- a claim that holds, and one that is gone


async def test_a_heartbeat_says_how_far_a_job_is(desk: Desk) -> None:
    """Without news it leaves the last ones as they are."""
    await desk.put()
    claim = (await desk.one()).claim
    for at, news, expected in [
        (1, None, None), (2, JobProgress("read", 3, 10), JobProgress("read", 3, 10)),
        (3, None, JobProgress("read", 3, 10)), (4, JobProgress("write"), JobProgress("write", 0, None)),
    ]:  # fmt: skip
        assert await desk.index.beat_claims({claim: news}, after(at)) == set()
        assert (await desk.job(claim.job)).claim == ClaimFacts("w", NOW, after(at), expected)


async def test_a_heartbeat_of_many_names_those_that_are_gone(desk: Desk) -> None:
    """And beats for the others."""
    for repo in range(5):
        await desk.put(repo=repo)
    claims = [job.claim for job in await desk.claim()]
    await desk.index.complete_job(claims[1], {}, NOW)
    await desk.index.cancel_job(claims[3].job, NOW)
    strange = Claim(claims[0].job, uuid.uuid4())
    unknown = Claim(10**9, uuid.uuid4())
    beats = dict.fromkeys([*reversed(claims), strange, unknown])
    assert await desk.index.beat_claims(beats, after(9)) == {claims[1], claims[3], strange, unknown}
    for claim in (claims[0], claims[2], claims[4]):
        facts = (await desk.job(claim.job)).claim
        assert facts is not None
        assert facts.heartbeat_at == after(9)
    assert await desk.index.beat_claims({}, NOW) == set()


async def test_a_later_attempt_goes_on_from_what_was_kept(desk: Desk) -> None:
    """Keeping is a heartbeat, too; what is kept is gone when the job has ended for good."""
    number = await desk.put()
    claim = (await desk.one()).claim
    assert await desk.index.keep_state(claim, {"at": 1}, after(1))
    assert await desk.index.keep_state(claim, STRANGE, after(2))
    facts = (await desk.job(number)).claim
    assert facts is not None
    assert facts.heartbeat_at == after(2)
    assert await desk.index.fail_job(claim, "lost", after(3), after(4)) is PENDING
    again = await desk.one(after(4))
    assert (again.state, again.attempt) == (STRANGE, 2)
    assert await desk.index.return_jobs([again.claim], after(5)) == 1
    once_more = await desk.one(after(5))
    assert once_more.state == STRANGE
    assert await desk.index.fail_job(once_more.claim, "for good", after(6), None) is FAILED
    await desk.index.retry_job(number, after(7))
    assert (await desk.one(after(7))).state == {}


async def test_done_is_recorded_once_and_told_again_to_who_did_it(desk: Desk) -> None:
    """After a lost answer the same claim hears that it held; nobody else does."""
    number = await desk.put()
    claim = (await desk.one()).claim
    assert await desk.index.complete_job(claim, STRANGE, after(1))
    done = await desk.job(number)
    assert (done.state, done.finished_at, done.result, done.claim, done.error) == (DONE, after(1), STRANGE, None, None)
    assert await desk.index.complete_job(claim, {"second": 1}, after(2))
    assert not await desk.index.complete_job(Claim(number, uuid.uuid4()), {}, after(3))
    assert await desk.job(number) == done


async def test_many_that_are_done_at_once_are_each_recorded_for_themselves(desk: Desk) -> None:
    """Whatever becomes of the others: done, taken by another, or ended by somebody who knows of no claim."""
    numbers = [await desk.put(repo=repo) for repo in range(8)]
    claims = [job.claim for job in await desk.claim()]
    await desk.index.cancel_job(numbers[2], NOW)
    await desk.index.return_jobs([claims[5]], NOW)
    held: dict[int, bool] = {}

    async def complete(at: int, claim: Claim) -> None:
        held[at] = await desk.index.complete_job(claim, {"n": at}, after(at))

    async with trio.open_nursery() as nursery:
        for at, claim in enumerate([*claims, Claim(numbers[0], uuid.uuid4()), claims[1]]):
            nursery.start_soon(complete, at, claim)
    assert [at for at, holds in sorted(held.items()) if not holds] == [2, 5, 8]
    for at, number in enumerate(numbers):
        job = await desk.job(number)
        if held[at] and at != 1:
            assert (job.state, job.finished_at, job.result) == (DONE, after(at), {"n": at})
    assert (await desk.job(numbers[1])).result in ({"n": 1}, {"n": 9})
    assert await desk.states(numbers[2], numbers[5]) == [JobState.CANCELLED, PENDING]


async def test_who_is_cut_while_it_completes_takes_nobody_with_it(desk: Desk) -> None:
    """The others' completions are recorded, and its own may be said again."""
    for repo in range(6):
        await desk.put(repo=repo)
    claims = [job.claim for job in await desk.claim()]
    for cut in range(3):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.index.complete_job, claims[cut], {}, NOW)
                nursery.start_soon(desk.index.complete_job, claims[5 - cut], {}, NOW)
                await trio.lowlevel.checkpoint()
                scope.cancel()
    for claim in claims:
        assert await desk.index.complete_job(claim, {}, NOW)
    assert set(await desk.states(*(claim.job for claim in claims))) == {DONE}


async def test_a_failure_is_recorded_once_and_told_again_to_who_failed(desk: Desk) -> None:
    """Whatever has become of the job since: it waits, somebody works on it, or it has failed for good."""
    number = await desk.put()
    claim = (await desk.one()).claim
    assert await desk.index.fail_job(claim, "x", NOW, after(5)) is PENDING
    waiting = await desk.job(number)
    assert await desk.index.fail_job(claim, "again", after(1), after(9)) is PENDING
    assert not await desk.index.complete_job(claim, {}, after(1))
    assert await desk.job(number) == waiting
    second = (await desk.one(after(5))).claim
    assert await desk.index.fail_job(claim, "again", after(6), after(9)) is PENDING
    assert await desk.index.fail_job(second, "y", after(7), None) is FAILED
    assert await desk.index.fail_job(second, "again", after(8), after(9)) is FAILED
    assert await desk.index.fail_job(claim, "again", after(8), after(9)) is None
    assert (await desk.job(number)).error == "y"


async def test_what_a_worker_has_claimed_can_be_looked_up(desk: Desk) -> None:
    """It may not have heard of all of it."""
    for repo in range(4):
        await desk.put(repo=repo)
    mine = {job.claim for job in await desk.claim(3)}
    (other,) = await desk.claim(1, worker="another")
    assert await desk.index.claims_of("w") == mine
    assert await desk.index.claims_of("another") == {other.claim}
    ended = mine.pop()
    await desk.index.complete_job(ended, {}, NOW)
    assert await desk.index.claims_of("w") == mine
    assert await desk.index.claims_of("nobody") == set()


async def lost_by_recovery(desk: Desk, claim: Claim) -> None:
    assert await desk.index.recover_stale(after(900), 300, 0, 9) == [(claim.job, PENDING)]


async def taken_by_another(desk: Desk, claim: Claim) -> None:
    await lost_by_recovery(desk, claim)
    assert (await desk.one(after(901), "another")).claim.job == claim.job


async def done_by_another(desk: Desk, claim: Claim) -> None:
    await lost_by_recovery(desk, claim)
    assert await desk.index.complete_job((await desk.one(after(901))).claim, {"by": "another"}, after(902))


async def cancelled(desk: Desk, claim: Claim) -> None:
    assert await desk.index.cancel_job(claim.job, after(1))


async def given_back(desk: Desk, claim: Claim) -> None:
    assert await desk.index.return_jobs([claim], after(1)) == 1


async def failed(desk: Desk, claim: Claim) -> None:
    assert await desk.index.fail_job(claim, "gone wrong", after(1), None) is FAILED


ENDINGS = [lost_by_recovery, taken_by_another, done_by_another, cancelled, given_back, failed]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_F27_a_claim_that_is_gone_can_do_nothing(
    desk: Desk, ending: Callable[[Desk, Claim], Awaitable[None]]
) -> None:
    """A worker that wakes up late neither ends, nor beats, nor writes into a job that is not its own any more."""
    await desk.put()
    claim = (await desk.one()).claim
    await ending(desk, claim)
    before = await desk.job(claim.job)
    assert await desk.index.beat_claims({claim: JobProgress("mine")}, after(999)) == {claim}
    assert not await desk.index.keep_state(claim, {"mine": 1}, after(999))
    assert not await desk.index.complete_job(claim, {"mine": 1}, after(999))
    told_again = FAILED if ending is failed else None
    assert await desk.index.fail_job(claim, "mine", after(999), after(1000)) is told_again
    assert await desk.index.return_jobs([claim], after(999)) == 0
    assert await desk.job(claim.job) == before


# ---- many at once


async def test_four_claimers_share_two_thousand_jobs(desk: Desk) -> None:
    """Each job is claimed once and completed once, whoever is in whose way."""
    await in_groups(range(500), lambda repo: desk.index.enqueue_jobs(repo, EACH, NOW))
    claimed: list[Claim] = []
    completed: list[int] = []

    async def work(worker: str) -> None:
        room = {job.type: 10 for job in EACH}
        while jobs := await desk.index.claim_jobs(room, 25, worker, NOW):
            claimed.extend(job.claim for job in jobs)
            for job in jobs:
                assert await desk.index.complete_job(job.claim, {"by": worker}, after(1))
                completed.append(job.claim.job)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(work, f"w{worker}")
    assert len(completed) == len(set(completed)) == len({c.token for c in claimed}) == 500 * len(EACH)
    assert {(c.type, c.state, c.count) for c in await desk.index.count_jobs()} == {(j.type, DONE, 500) for j in EACH}


EACH = [NewJob(f"t{number}", number % 2) for number in range(4)]


async def in_groups(over: Sequence[int], call: Callable[[int], Awaitable[object]], most: int = 8) -> None:
    async def every(part: int) -> None:
        for number in over[part::most]:
            await call(number)

    async with trio.open_nursery() as nursery:
        for part in range(most):
            nursery.start_soon(every, part)


async def test_claimers_that_take_one_at_a_time_do_not_pass_over_a_type(desk: Desk) -> None:
    """Who finds the most urgent type's only job taken gets the next one, not nothing."""
    await desk.put(SCRUB, priority=-1)
    for repo in range(7):
        await desk.put(GC, repo)
    found: list[ClaimedJob] = []

    async def take() -> None:
        found.extend(await desk.claim(1))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(take)
    assert len({job.claim.job for job in found}) == 8


async def test_pushes_and_attempts_that_fail_meet_without_loss(desk: Desk) -> None:
    """Whatever is enqueued while a job runs, fails and is recovered is in the payload of one that ends."""
    seen: set[str] = set()

    async def push(number: int) -> None:
        await desk.put(payload={f"p{number}": True}, repo=number % 3)

    async def work() -> None:
        for round_ in range(40):
            for job in await desk.claim():
                if round_ % 3:
                    await desk.index.fail_job(job.claim, "x", NOW, NOW, 10**4)
                elif round_ % 2:
                    await desk.index.return_jobs([job.claim], NOW)
                elif await desk.index.complete_job(job.claim, {}, NOW):
                    seen.update(job.payload)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_groups, range(90), push, 3)
            nursery.start_soon(work)
            nursery.start_soon(work)
        while jobs := await desk.claim():
            for job in jobs:
                seen.update(job.payload)
                await desk.index.complete_job(job.claim, {}, NOW)
    assert seen == {f"p{number}" for number in range(90)}


async def test_every_call_is_a_checkpoint(desk: Desk) -> None:
    """Nobody keeps the loop to himself."""
    claim = Claim(1, uuid.uuid4())
    calls: list[Awaitable[object]] = [
        desk.index.enqueue_jobs(1, [], NOW), desk.claim(), desk.index.beat_claims({}, NOW),
        desk.index.keep_state(claim, {}, NOW), desk.index.complete_job(claim, {}, NOW),
        desk.index.fail_job(claim, "", NOW, None), desk.index.return_jobs([], NOW),
        desk.index.recover_stale(NOW, 1, 1, 1),
    ]  # fmt: skip
    for call in calls:
        with assert_checkpoints():
            await call

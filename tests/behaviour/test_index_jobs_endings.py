"""What every ``Index`` promises of claims that end without their job being done: failed, given back, gone stale."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable

import pytest

from storage.job_rows import ATTEMPTS_MOST, ERROR_MOST, PAYLOAD_MEMBERS, WHOLE, Claim
from tests.behaviour.test_index import emptied_url, index, tables, url
from tests.behaviour.test_index_jobs_claims import DONE, FAILED, NOW, PENDING, RUNNING, Desk, after, desk

__all__ = ["desk", "emptied_url", "index", "tables", "url"]

# ---- failing


async def test_a_job_is_tried_again_until_its_attempts_are_used_up(desk: Desk) -> None:
    """It waits until it is told to; its last error is kept, and it is failed for good after the third."""
    number = await desk.put()
    for attempt in range(1, ATTEMPTS_MOST):
        claimed = await desk.one(after(10 * attempt))
        assert claimed.attempt == attempt
        at = after(10 * attempt + 10)
        assert await desk.index.fail_job(claimed.claim, f"error {attempt}", after(10 * attempt), at) is PENDING
        job = await desk.job(number)
        assert (job.run_at, job.error, job.attempts, job.claim) == (at, f"error {attempt}", attempt, None)
        assert await desk.claim(at=at - dt.timedelta(seconds=1)) == []
    last = await desk.one(after(100))
    assert await desk.index.fail_job(last.claim, "the last", after(101), after(110)) is FAILED
    job = await desk.job(number)
    assert (job.state, job.finished_at, job.error, job.claim) == (FAILED, after(101), "the last", None)
    assert await desk.claim(at=after(999)) == []


async def test_of_a_long_error_the_end_is_kept_and_no_text_is_refused(desk: Desk) -> None:
    """The end of a traceback says what happened; what a database cannot hold is replaced."""
    number = await desk.put()
    claim = (await desk.one()).claim
    assert await desk.index.fail_job(claim, "x" * ERROR_MOST + "\0\ud800 the end", NOW, None, 1) is FAILED
    error = (await desk.job(number)).error
    assert error is not None
    assert len(error) == ERROR_MOST
    assert error.endswith("x\ufffd? the end")


async def test_a_job_that_is_done_at_last_has_no_error(desk: Desk) -> None:
    """What went wrong before does not stay beside the result."""
    number = await desk.put()
    await desk.index.fail_job((await desk.one()).claim, "first", NOW, NOW)
    await desk.index.complete_job((await desk.one()).claim, {"n": 1}, after(1))
    job = await desk.job(number)
    assert (job.state, job.error, job.result, job.attempts) == (DONE, None, {"n": 1}, 2)


async def test_what_is_given_back_does_not_count_as_an_attempt(desk: Desk) -> None:
    """A daemon that drains leaves its jobs as it found them."""
    numbers = [await desk.put(repo=repo) for repo in range(3)]
    before = [await desk.job(number) for number in numbers]
    claims = [job.claim for job in await desk.claim()]
    assert await desk.index.return_jobs([*claims, Claim(10**9, uuid.uuid4())], after(1)) == 3
    assert [await desk.job(number) for number in numbers] == before
    assert await desk.index.return_jobs([], NOW) == 0


# ---- recovering


async def test_claims_without_heartbeat_are_taken_and_their_jobs_wait(desk: Desk) -> None:
    """Those longest silent first, and no more than asked for; who beats in time keeps its job."""
    numbers = [await desk.put(repo=repo) for repo in range(4)]
    claims = {job.claim.job: job.claim for job in await desk.claim()}
    await desk.index.beat_claims({claims[numbers[0]]: None}, after(20))
    await desk.index.beat_claims({claims[numbers[1]]: None}, after(10))
    await desk.index.beat_claims({claims[numbers[3]]: None}, after(600))
    assert await desk.index.recover_stale(after(300), 300, 5, 9) == []
    recovered = await desk.index.recover_stale(after(700), 300, 5, 2)
    assert recovered == [(numbers[1], PENDING), (numbers[2], PENDING)]
    assert await desk.index.recover_stale(after(701), 300, 5, 9) == [(numbers[0], PENDING)]
    assert await desk.index.recover_stale(after(701), 300, 5, 9) == []
    job = await desk.job(numbers[1])
    assert (job.state, job.run_at, job.attempts, job.claim) == (PENDING, after(705), 1, None)
    assert job.error == "its worker w was not heard of for 300 s"
    assert (await desk.job(numbers[3])).state is RUNNING


async def test_a_job_whose_workers_die_each_time_has_failed_at_last(desk: Desk) -> None:
    """A job that kills its worker does not go round for ever."""
    number = await desk.put()
    for attempt in range(ATTEMPTS_MOST):
        await desk.one(after(1000 * attempt), f"w{attempt}")
        expected = FAILED if attempt == ATTEMPTS_MOST - 1 else PENDING
        assert await desk.index.recover_stale(after(1000 * attempt + 400), 300, 0, 9) == [(number, expected)]
    job = await desk.job(number)
    assert (job.error, job.attempts) == ("its worker w2 was not heard of for 300 s", ATTEMPTS_MOST)


# ---- giving way


async def fails(desk: Desk, claim: Claim) -> None:
    assert await desk.index.fail_job(claim, "broken", after(1), after(2)) is FAILED


async def is_recovered(desk: Desk, claim: Claim) -> None:
    assert await desk.index.recover_stale(after(400), 300, 0, 9) == [(claim.job, FAILED)]


async def is_returned(desk: Desk, claim: Claim) -> None:
    assert await desk.index.return_jobs([claim], after(1)) == 1


WAYS_BACK = [
    (fails, "broken\njob {0} goes on with it", 1),
    (is_recovered, "its worker w was not heard of for 300 s\njob {0} goes on with it", 1),
    (is_returned, "job {0} goes on with it", 0),
]


@pytest.mark.parametrize(("way", "error", "attempts"), WAYS_BACK)
async def test_a_job_that_would_wait_again_gives_way_to_one_that_waits(
    desk: Desk, way: Callable[[Desk, Claim], Awaitable[None]], error: str, attempts: int
) -> None:
    """The other gets its payload; it has failed and says which job goes on, and what it kept is dropped."""
    await desk.put(payload={"a": 1, "b": 1})
    claim = (await desk.one()).claim
    await desk.index.keep_state(claim, {"far": True}, NOW)
    other = await desk.put(payload={"b": 2, "c": 2})
    await way(desk, claim)
    job = await desk.job(claim.job)
    assert (job.state, job.error, job.claim, job.attempts) == (FAILED, error.format(other), None, attempts)
    assert job.finished_at is not None
    assert (await desk.job(other)).payload == {"a": 1, "b": 1, "c": 2}
    next_one = await desk.one(after(500))
    assert (next_one.claim.job, next_one.state, next_one.attempt) == (other, {}, 1)


async def test_a_payload_that_is_given_to_another_keeps_within_bounds(desk: Desk) -> None:
    """As one that is enqueued does."""
    half = [{f"{side}{at}": True for at in range(PAYLOAD_MEMBERS // 2 + 1)} for side in "ab"]
    await desk.put(payload=half[0])
    claim = (await desk.one()).claim
    other = await desk.put(payload=half[1])
    assert await desk.index.fail_job(claim, "x", NOW, NOW) is FAILED
    assert (await desk.job(other)).payload == WHOLE


async def test_many_go_back_at_once_some_of_them_giving_way(desk: Desk) -> None:
    """Each by itself."""
    numbers = [await desk.put(repo=repo, payload={"old": repo}) for repo in range(6)]
    claims = [job.claim for job in await desk.claim()]
    others = {repo: await desk.put(repo=repo) for repo in (0, 2, 4)}
    assert await desk.index.return_jobs(claims[:3], NOW) == 3
    assert len(await desk.index.recover_stale(after(400), 300, 0, 9)) == 3
    expected = [FAILED if repo in others else PENDING for repo in range(6)]
    assert await desk.states(*numbers) == expected
    assert [(await desk.job(number)).payload for number in others.values()] == [{"old": repo} for repo in others]

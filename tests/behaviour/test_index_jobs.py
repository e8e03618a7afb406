"""What every ``Index`` promises of jobs, held against the memory twin and against PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import psycopg
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from storage.index import Index
from storage.job_rows import JOBS_CHANNEL, LISTED_JOBS, PAYLOAD_MEMBERS, WHOLE, Job, JobFilter, JobState, NewJob
from storage.postgres import jobs, jobs_listing
from storage.rows import (
    BranchMove,
    MoveResult,
    Outcome,
    PushTicket,
    Repository,
)
from tests.behaviour.test_index import PLAIN, TYPED, VERDICT, Bench, blob, emptied_url, index, name, tables, url

__all__ = ["emptied_url", "index", "tables", "url"]

SOME = (NewJob("mpack.index", 10, {"p1": True}), NewJob("mpack.gc", 50))
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def bench(index: Index) -> Queue:
    return Queue(index)


class Queue(Bench):
    """An index, and pushes that enqueue jobs."""

    async def accept_with(
        self, ticket: PushTicket, new_jobs: Sequence[NewJob] = SOME, branch: str = "main", old: str | None = None
    ) -> MoveResult:
        move = BranchMove(branch, None if old is None else name(old), name(branch), False)
        return await self.index.accept_push(ticket, TYPED, move, VERDICT, self.environment.now(), 0, new_jobs)

    async def queue(self, repository: Repository, new_jobs: Sequence[NewJob], branch: str = "main") -> None:
        ticket = await self.begin(repository)
        assert (await self.accept_with(ticket, new_jobs, branch)).outcome is Outcome.MOVED

    async def payloads(self, repository: Repository) -> dict[str, object]:
        return {job.type: job.payload for job in await self.index.list_jobs(JobFilter(repository.number), LISTED_JOBS)}


@pytest.fixture
async def wakings(index: Index) -> AsyncIterator[list[str]]:
    """What a claimer hears."""
    heard: list[str] = []
    async with index.listen(JOBS_CHANNEL) as listener, trio.open_nursery() as nursery:

        async def listen() -> None:
            async for payload in listener:
                heard.append(payload)  # noqa: PERF401 - one by one

        nursery.start_soon(listen)
        yield heard
        nursery.cancel_scope.cancel()


async def test_who_claims_is_woken_for_what_may_run_now_and_not_for_what_waits(
    bench: Queue, wakings: list[str]
) -> None:
    """Transactions that notify commit one after the other: pushes that leave work for later do not."""
    repository = await bench.repository()
    later = [replace(job, delay_s=2.0) for job in SOME]
    await bench.queue(repository, later)
    assert await bench.index.enqueue_jobs(repository.number, later, bench.environment.now())
    await bench.queue(repository, SOME[:1], "b")
    await bench.queue(repository, [later[1], SOME[0]], "c")
    await bench.index.notify(JOBS_CHANNEL, "the end")
    with trio.fail_after(10):
        while "the end" not in wakings:
            await wait_all_tasks_blocked(0.02)
    assert wakings == ["", "", "the end"]


async def test_an_accepted_push_enqueues_its_jobs(bench: Queue) -> None:
    repository = await bench.repository()
    await bench.queue(repository, SOME)
    found = await bench.index.list_jobs(JobFilter(repository.number), LISTED_JOBS)
    now = bench.environment.now()
    assert {job.type for job in found} == {"mpack.index", "mpack.gc"}
    for job in found:
        payload, priority = ({"p1": True}, 10) if job.type == "mpack.index" else ({}, 50)
        assert job == Job(
            job.number, repository.number, job.type, JobState.PENDING, priority, payload, now, 0, now, None, None, None,
        )  # fmt: skip


async def test_one_job_of_a_type_waits_for_any_number_of_pushes(bench: Queue) -> None:
    first, second = await bench.repository(), await bench.repository(slug="y")
    await bench.queue(first, SOME)
    before = await bench.index.list_jobs(JobFilter(first.number), LISTED_JOBS)
    for branch in ("b", "c"):
        bench.environment.move(60)
        await bench.queue(first, SOME, branch)
    await bench.queue(second, SOME)
    assert await bench.index.list_jobs(JobFilter(first.number), LISTED_JOBS) == before
    assert len(await bench.index.list_jobs(JobFilter(second.number), LISTED_JOBS)) == len(SOME)


async def test_no_payload_is_lost_where_a_job_waits_already(bench: Queue) -> None:
    repository = await bench.repository()
    for number in range(3):
        await bench.queue(repository, [NewJob("mpack.index", 10, {f"p{number}": True}), SOME[1]], f"b{number}")
    await bench.queue(repository, [NewJob("mpack.index", 10)], "b")
    assert await bench.payloads(repository) == {"mpack.index": {"p0": True, "p1": True, "p2": True}, "mpack.gc": {}}


async def test_a_payload_that_grows_too_large_stands_for_everything(bench: Queue) -> None:
    repository = await bench.repository()
    half = [{f"{side}{at}": True for at in range(PAYLOAD_MEMBERS // 2)} for side in "ab"]
    for number, payload in enumerate(half):
        await bench.queue(repository, [NewJob("mpack.index", 10, payload)], f"b{number}")
    assert await bench.payloads(repository) == {"mpack.index": {**half[0], **half[1]}}
    await bench.queue(repository, [NewJob("mpack.index", 10, {"more": True})], "b")
    assert await bench.payloads(repository) == {"mpack.index": WHOLE}
    await bench.queue(repository, [NewJob("mpack.index", 10, {"still": True})], "c")
    assert await bench.payloads(repository) == {"mpack.index": {**WHOLE, "still": True}}


async def test_a_push_that_is_not_accepted_enqueues_nothing(bench: Queue) -> None:
    repository = await bench.repository()
    await bench.queue(repository, [])
    stale = await bench.begin(repository)
    await bench.begin(repository, stale.push_id)
    refused = await bench.begin(repository)
    await bench.index.refuse_push(refused, {}, bench.environment.now())
    late = await bench.begin(repository)
    large = await bench.begin(repository)
    await bench.index.record_blobs(large, TYPED, [blob("a", 30)])
    await bench.index.set_quota("ada", 10)
    for ticket, old, outcome in [
        (stale, "main", Outcome.SUPERSEDED), (refused, "main", Outcome.SUPERSEDED), (late, "c", Outcome.HEAD_DIFFERS),
        (large, "main", Outcome.QUOTA_EXCEEDED),
    ]:  # fmt: skip
        branch = "other" if outcome is Outcome.HEAD_DIFFERS else "main"
        assert (await bench.accept_with(ticket, SOME, branch, old)).outcome is outcome
    move = BranchMove("plain", None, name("p"), False)
    other = await bench.begin(repository)
    differs = await bench.index.accept_push(other, PLAIN, move, VERDICT, bench.environment.now(), 0, SOME)
    assert differs.outcome is Outcome.SCHEME_DIFFERS
    assert await bench.index.list_jobs(JobFilter(repository.number), LISTED_JOBS) == []
    await bench.index.delete_repository(repository.number, bench.environment.now())
    assert (await bench.accept_with(await bench.begin(repository))).outcome is Outcome.GONE
    assert await bench.index.list_jobs(JobFilter(repository.number), LISTED_JOBS) == []


async def test_an_acceptance_repeated_after_a_lost_answer_enqueues_nothing_more(bench: Queue) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    for payload in ("first", "second"):
        done = await bench.accept_with(ticket, [NewJob("mpack.index", 10, {payload: True})])
        assert done.outcome is Outcome.MOVED
    assert await bench.payloads(repository) == {"mpack.index": {"first": True}}


async def test_who_claims_is_woken(bench: Queue, wakings: list[str]) -> None:
    repository = await bench.repository()
    for branch in ("a", "b"):  # once more also when the jobs wait already: they may have been passed over meanwhile
        wakings.clear()
        await bench.queue(repository, SOME, branch)
        with trio.fail_after(10):
            while not wakings:
                await trio.lowlevel.checkpoint()
        assert wakings == [""]


async def test_pushes_at_once_enqueue_each_type_once(bench: Queue) -> None:
    repository = await bench.repository()

    async def push(number: int) -> None:
        await bench.queue(repository, [NewJob("mpack.index", 10, {f"p{number}": True}), SOME[1]], f"b{number}")

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(push, number)
    found = await bench.payloads(repository)
    assert found == {"mpack.index": {f"p{number}": True for number in range(12)}, "mpack.gc": {}}
    assert len(await bench.index.list_jobs(JobFilter(repository.number), LISTED_JOBS)) == 2


async def test_every_call_is_a_checkpoint(bench: Queue) -> None:
    with assert_checkpoints():
        await bench.index.list_jobs(JobFilter(1), LISTED_JOBS)


def test_a_waiting_job_cannot_be_claimed_before_what_it_is_for_can_be_seen(emptied_url: str) -> None:
    """Claimed earlier, it would run without seeing the push, and nothing would be left to do it for the push."""
    claim = "SELECT job FROM jobs WHERE state = 0 FOR UPDATE SKIP LOCKED"
    with psycopg.connect(emptied_url) as accepting, psycopg.connect(emptied_url) as claiming:
        jobs.enqueue(accepting, 1, SOME, NOW)
        accepting.commit()
        jobs.enqueue(accepting, 1, [NewJob(job.type) for job in SOME], NOW)  # with nothing to add to them
        assert claiming.execute(claim).fetchall() == []
        accepting.commit()
        assert len(claiming.execute(claim).fetchall()) == 2


def test_what_comes_while_a_job_is_being_claimed_gets_a_job_of_its_own(emptied_url: str) -> None:
    with psycopg.connect(emptied_url) as accepting, psycopg.connect(emptied_url) as claiming:
        jobs.enqueue(accepting, 1, SOME[:1], NOW)
        accepting.commit()
        claiming.execute("UPDATE jobs SET state = 1")
        claiming.commit()
        jobs.enqueue(accepting, 1, SOME[:1], NOW)
        accepting.commit()
        assert [job.state for job in jobs_listing.list_jobs(accepting, JobFilter(1), LISTED_JOBS)] == [
            JobState.RUNNING,
            JobState.PENDING,
        ]

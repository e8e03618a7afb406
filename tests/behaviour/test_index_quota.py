"""What every ``Index`` promises of quotas, held against the memory twin and against PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import assert_checkpoints

from storage.errors import QuotaExceeded
from storage.index import Index
from storage.memory.index import MemoryIndex
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import (
    ABANDONED_S,
    QUOTA_NONE,
    BranchMove,
    MoveResult,
    Outcome,
    OwnerUsage,
    PushState,
    PushTicket,
    Repository,
)
from tests.behaviour.test_index import TYPED, VERDICT, Bench, blob, emptied_url, name, tables, url

__all__ = ["emptied_url", "tables", "url"]

LEASE_S = 600


@pytest.fixture
def default_quota() -> int:
    """The deployment's quota; a test may have another one."""
    return QUOTA_NONE


@pytest.fixture
async def index(url: str | None, default_quota: int) -> AsyncIterator[Index]:
    if url is None:
        yield MemoryIndex(owner_quota=default_quota)
        return
    async with PostgresIndex(DatabaseSettings(url), None, default_quota) as made:
        yield made


@pytest.fixture
def bench(index: Index) -> Quotas:
    return Quotas(index)


class Quotas(Bench):
    """An index, and the ordinary ways to use up a quota."""

    async def usage(self, owner: str = "ada") -> tuple[int, int]:
        found = await self.index.owner_usage(owner, self.environment.now())
        return found.used, found.reserved

    async def bring(self, repository: Repository, text: str, size: int) -> PushTicket:
        """A push under way that has recorded one blob."""
        ticket = await self.begin(repository)
        await self.index.record_blobs(ticket, TYPED, [blob(text, size)])
        return ticket

    async def store(self, repository: Repository, text: str, size: int) -> None:
        """An accepted push of one blob, to a branch of its own."""
        ticket = await self.bring(repository, text, size)
        assert (await self.accept(ticket, text, branch=text)).outcome is Outcome.MOVED

    async def accept_records(self, ticket: PushTicket, size: int, branch: str = "main") -> MoveResult:
        move = BranchMove(branch, None, name("c"), False)
        return await self.index.accept_push(ticket, TYPED, move, VERDICT, self.environment.now(), size)

    async def reserve(self, repository: Repository, text: str, size: int, **fields: object) -> None:
        now = self.environment.now()
        lifetime = dt.timedelta(seconds=fields.pop("lifetime_s", 100))
        await self.index.reserve_bytes(
            repository.number, name(text), size, now, now + lifetime, fields.pop("push_id", None)
        )


# ---- what counts


async def test_what_a_push_brings_is_on_its_way_until_it_is_accepted(bench: Quotas) -> None:
    ticket = await bench.bring(await bench.repository(), "a", 30)
    await bench.index.record_blobs(ticket, TYPED, [blob("b", 5), blob("empty", 0)])
    assert await bench.usage() == (0, 35)
    assert (await bench.accept_records(ticket, 7)).outcome is Outcome.MOVED
    assert await bench.usage() == (42, 0)


async def test_what_a_push_records_again_counts_once(bench: Quotas) -> None:
    repository = await bench.repository()
    push_id = bench.environment.uuid()
    for _ in range(2):  # the second attempt finds what the first one brought
        ticket = await bench.begin(repository, push_id)
        await bench.index.record_blobs(ticket, TYPED, [blob("a", 30)])
        await bench.index.record_blobs(ticket, TYPED, [blob("a", 30), blob("b", 5), blob("b", 5)])
    assert await bench.usage() == (0, 35)


async def test_an_acceptance_repeated_after_a_lost_answer_counts_once(bench: Quotas) -> None:
    ticket = await bench.bring(await bench.repository(), "a", 30)
    for _ in range(2):
        assert (await bench.accept_records(ticket, 7)).outcome is Outcome.MOVED
    assert await bench.usage() == (37, 0)


async def test_a_push_that_was_not_accepted_counts_nothing(bench: Quotas) -> None:
    repository = await bench.repository()
    refused = await bench.bring(repository, "a", 30)
    await bench.index.refuse_push(refused, {}, bench.environment.now())
    beaten = await bench.bring(repository, "b", 5)
    assert (await bench.accept(beaten, "c2", old="c1")).outcome is Outcome.HEAD_DIFFERS
    assert await bench.usage() == (0, 5)


async def test_an_owners_repositories_count_together_and_nobody_elses(bench: Quotas) -> None:
    for slug, size in [("x", 1), ("y", 20)]:
        await bench.store(await bench.repository(slug=slug), "a", size)
    await bench.store(await bench.repository("bob"), "a", 300)
    assert (await bench.usage(), await bench.usage("bob"), await bench.usage("eve")) == ((21, 0), (300, 0), (0, 0))


async def test_a_deleted_repository_no_longer_counts(bench: Quotas) -> None:
    await bench.index.set_quota("ada", 1000)
    gone = await bench.repository(slug="gone")
    await bench.store(gone, "a", 30)
    await bench.bring(gone, "b", 5)
    await bench.reserve(gone, "r", 7)
    await bench.store(await bench.repository(), "a", 200)
    assert await bench.usage() == (230, 12)
    await bench.index.delete_repository(gone.number, bench.environment.now())
    assert await bench.usage() == (200, 0)


async def test_T28_what_was_left_alone_counts_for_a_day(bench: Quotas) -> None:
    await bench.bring(await bench.repository(), "a", 30)
    bench.environment.move(LEASE_S + ABANDONED_S - 1)
    assert await bench.usage() == (0, 30)
    bench.environment.move(2)
    assert await bench.usage() == (0, 0)


async def test_a_held_blob_counts_when_a_push_claims_it(bench: Quotas) -> None:
    repository = await bench.repository()
    now = bench.environment.now()
    held = [blob("a", 30), blob("b", 5)]
    await bench.index.hold_blobs(repository.number, TYPED, held, now + dt.timedelta(hours=1))
    ticket = await bench.begin(repository)
    for _ in range(2):
        await bench.index.claim_blobs(ticket, TYPED, [one.object_id for one in held], now)
        assert await bench.usage() == (0, 35)
    assert (await bench.accept(ticket, "c")).outcome is Outcome.MOVED
    assert await bench.usage() == (35, 0)


# ---- quotas


@pytest.mark.parametrize(
    ("default_quota", "own", "found"),
    [
        (0, None, OwnerUsage(0, 0, None, True)), (0, 0, OwnerUsage(0, 0, None, False)),
        (0, 9, OwnerUsage(0, 0, 9, False)), (5, None, OwnerUsage(0, 0, 5, True)),
        (5, 0, OwnerUsage(0, 0, None, False)), (5, 9, OwnerUsage(0, 0, 9, False)),
    ],
)  # fmt: skip
async def test_an_owners_own_quota_goes_before_the_deployments(
    bench: Quotas, own: int | None, found: OwnerUsage
) -> None:
    now = bench.environment.now()
    before = await bench.index.owner_usage("ada", now)
    await bench.index.set_quota("ada", own)
    assert await bench.index.owner_usage("ada", now) == found
    await bench.index.set_quota("ada", None)
    assert await bench.index.owner_usage("ada", now) == before


@pytest.mark.parametrize("default_quota", [QUOTA_NONE, 100])
async def test_a_push_that_brings_too_much_is_stopped_on_its_way(bench: Quotas, default_quota: int) -> None:
    if not default_quota:
        await bench.index.set_quota("ada", 100)
    await bench.store(await bench.repository(slug="other"), "a", 40)
    await bench.bring(await bench.repository(slug="third"), "a", 10)
    repository = await bench.repository()
    ticket = await bench.bring(repository, "b", 50)  # it is full now, and not too full
    with pytest.raises(QuotaExceeded) as caught:
        await bench.index.record_blobs(ticket, TYPED, [blob("c", 1), blob("b", 50)])
    assert (caught.value.used, caught.value.reserved, caught.value.quota) == (40, 60, 100)
    assert await bench.index.lacking_blobs(ticket, [blob("c").object_id]) == [blob("c").object_id]
    await bench.index.record_blobs(ticket, TYPED, [blob("empty", 0), blob("b", 50)])  # nothing more


async def test_what_was_stopped_for_the_quota_is_not_in_the_way_of_a_new_try(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    ticket = await bench.bring(repository, "a", 90)
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            await bench.index.record_blobs(ticket, TYPED, [blob("b", 20)])
        await bench.index.renew_pushes([ticket], bench.environment.now(), LEASE_S)  # the clock comes round once more
        assert await bench.usage() == (0, 0)
    await bench.store(repository, "smaller", 15)
    again = await bench.begin(repository, ticket.push_id)  # it is taken up again, with what it had brought
    assert await bench.usage() == (15, 90)
    await bench.index.renew_pushes([again], bench.environment.now(), LEASE_S)
    await bench.index.set_quota("ada", 200)
    await bench.index.record_blobs(again, TYPED, [blob("a", 90), blob("b", 20)])
    assert (await bench.accept(again, "c")).outcome is Outcome.MOVED
    assert await bench.usage() == (125, 0)


async def test_a_push_that_turns_out_too_much_when_it_ends_does_not_count_and_may_come_again(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.store(repository, "old", 40)
    ticket = await bench.bring(repository, "a", 60)
    await bench.index.set_quota("ada", 100)
    refused = await bench.accept_records(ticket, 1)
    assert refused == MoveResult(Outcome.QUOTA_EXCEEDED, usage=OwnerUsage(40, 0, 100, False))
    assert await bench.index.branch_heads(repository.number) == {"old": name("old")}
    assert await bench.log(repository) == []
    found = await bench.index.find_push(repository.number, ticket.push_id)
    assert found is not None
    assert (found.state, found.verdict) == (PushState.OPEN, None)
    assert await bench.usage() == (40, 60)
    await bench.index.set_quota("ada", 101)
    assert (await bench.accept_records(ticket, 1)).outcome is Outcome.MOVED
    assert await bench.usage() == (101, 0)


async def test_a_push_that_brings_nothing_passes_above_the_quota(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.store(repository, "a", 40)
    await bench.index.set_quota("ada", 10)
    ticket = await bench.begin(repository)
    await bench.index.record_blobs(ticket, TYPED, [])
    assert (await bench.accept(ticket, "a", old=None, forced=True)).outcome is Outcome.MOVED


@pytest.mark.parametrize("default_quota", [QUOTA_NONE, 100])
async def test_T28_pushes_at_once_cannot_exceed_a_quota_together(bench: Quotas, default_quota: int) -> None:
    repositories = [await bench.repository(slug=f"r{number}") for number in range(4)]
    if default_quota:
        await bench.index.set_quota("ada", QUOTA_NONE)
    tickets = [await bench.bring(repositories[at % 4], f"b{at}", 30) for at in range(12)]
    await bench.index.set_quota("ada", None if default_quota else 100)
    outcomes: list[Outcome] = []

    async def accept(ticket: PushTicket, branch: str) -> None:
        outcomes.append((await bench.accept(ticket, branch, branch=branch)).outcome)

    async with trio.open_nursery() as nursery:
        for at, ticket in enumerate(tickets):
            nursery.start_soon(accept, ticket, f"b{at}")
    assert (outcomes.count(Outcome.MOVED), outcomes.count(Outcome.QUOTA_EXCEEDED)) == (3, 9)
    assert (await bench.usage())[0] == 90


# ---- reservations


async def test_a_reservation_counts_once_however_often_it_is_made(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    for size in (60, 60, 70):
        await bench.reserve(repository, "r", size)
    assert await bench.usage() == (0, 70)
    await bench.reserve(await bench.repository(slug="y"), "r", 30)
    assert await bench.usage() == (0, 100)


async def test_what_does_not_fit_is_not_reserved(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    await bench.store(repository, "a", 40)
    await bench.bring(repository, "b", 10)
    await bench.reserve(await bench.repository(slug="y"), "other", 20)
    with pytest.raises(QuotaExceeded) as caught:
        await bench.reserve(repository, "r", 31)
    assert (caught.value.used, caught.value.reserved, caught.value.quota) == (40, 30, 100)
    assert await bench.usage() == (40, 30)
    await bench.reserve(repository, "r", 30)


async def test_a_reservation_leaves_room_for_no_push(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    await bench.reserve(repository, "r", 60, lifetime_s=2 * LEASE_S)
    with pytest.raises(QuotaExceeded):
        await bench.bring(repository, "a", 41)
    await bench.bring(repository, "a", 40)


async def test_a_reservation_ends_by_release_by_time_and_with_its_push(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    ticket = await bench.bring(repository, "a", 30)
    await bench.reserve(repository, "released", 10)
    await bench.reserve(repository, "expired", 20, lifetime_s=5)
    await bench.reserve(repository, "of the push", 30, push_id=ticket.push_id)
    await bench.reserve(repository, "of another", 7, push_id=bench.environment.uuid())
    assert await bench.usage() == (0, 97)
    for _ in range(2):
        await bench.index.release_bytes(repository.number, name("released"))
    assert await bench.usage() == (0, 87)
    bench.environment.move(5)
    assert await bench.usage() == (0, 67)
    assert (await bench.accept(ticket, "c")).outcome is Outcome.MOVED
    assert await bench.usage() == (30, 7)


async def test_T28_what_a_push_has_announced_and_not_brought_stays_reserved(bench: Quotas) -> None:
    """The URLs live on: any small push of that id would make room for as much again."""
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    ticket = await bench.bring(repository, "a", 1)
    await bench.reserve(repository, "of the push", 30, push_id=ticket.push_id)
    assert (await bench.accept(ticket, "c")).outcome is Outcome.MOVED
    assert await bench.usage() == (1, 30)


async def test_T28_what_is_announced_again_as_less_stays_reserved(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 100)
    await bench.reserve(repository, "r", 30)
    await bench.reserve(repository, "r", 1)
    assert await bench.usage() == (0, 30)


async def test_nothing_is_reserved_for_who_has_no_quota(bench: Quotas) -> None:
    repository = await bench.repository()
    await bench.reserve(repository, "r", 2**60)
    assert await bench.usage() == (0, 0)
    await bench.index.release_bytes(repository.number, name("r"))


async def test_T28_reservations_at_once_cannot_exceed_a_quota_together(bench: Quotas) -> None:
    repositories = [await bench.repository(slug=f"r{number}") for number in range(3)]
    await bench.index.set_quota("ada", 100)
    refused: list[QuotaExceeded] = []

    async def reserve(number: int) -> None:
        try:
            await bench.reserve(repositories[number % 3], f"r{number}", 30)
        except QuotaExceeded as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(reserve, number)
    assert (len(refused), await bench.usage()) == (9, (0, 90))


async def test_every_call_is_a_checkpoint(bench: Quotas) -> None:
    repository = await bench.repository()
    for call in [
        bench.usage,
        lambda: bench.index.set_quota("ada", 5),
        lambda: bench.reserve(repository, "r", 1),
        lambda: bench.index.release_bytes(repository.number, name("r")),
    ]:
        with assert_checkpoints():
            await call()

"""Locks and plans of the PostgreSQL index that its memory twin cannot have."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
import trio

from storage.postgres.index import PostgresIndex
from storage.rows import (
    BranchMove,
    CommitRow,
    NewRepository,
    Outcome,
    PushTicket,
    Repository,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Visibility,
)
from wire.ids import Scheme

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
async def repository(postgres_index: PostgresIndex) -> Repository:
    new = NewRepository(uuid.UUID(int=1), "ada", "x", Visibility.PRIVATE, "main", "code", NOW)
    made = await postgres_index.create_repository(new)
    assert made is not None
    return made


@pytest.fixture
def beside(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url) as connection:
        yield connection


async def begin(index: PostgresIndex, repository: Repository, push: int = 1) -> PushTicket:
    ticket = await index.begin_push(repository.number, uuid.UUID(int=push), "ada", "main", NOW, 600)
    assert isinstance(ticket, PushTicket)
    return ticket


async def waits_for_locks(database_url: str, count: int, or_else: Callable[[], bool] = lambda: False) -> None:
    """Look until so many sessions wait for a lock."""

    def look() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with psycopg.connect(database_url, autocommit=True) as connection:
            return any(connection.execute(query).fetchone()[0] >= count for _ in range(200))

    with trio.fail_after(30):
        while not or_else() and not await trio.to_thread.run_sync(look):
            pass


def store_unfinished(beside: psycopg.Connection, blob: str) -> None:
    """Begin to store a blob as another server would: whoever stores the same one has to wait."""
    beside.execute("INSERT INTO blobs (blob_id, scheme, size) VALUES (%s, 'typed', 3)", (name(blob),))


async def test_nothing_is_added_to_a_push_once_it_is_accepted(
    postgres_index: PostgresIndex, repository: Repository, beside: psycopg.Connection, database_url: str
) -> None:
    late = await begin(postgres_index, repository)
    outcomes = []

    async def accept(ticket: PushTicket) -> None:
        move = BranchMove("main", None, name("c"), False)
        outcomes.append((await postgres_index.accept_push(ticket, Scheme.TYPED, move, {}, NOW)).outcome)

    async def held() -> frozenset[bytes]:
        return (await postgres_index.known_blobs(repository.number, Scheme.TYPED, [name("b")])).held

    store_unfinished(beside, "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(postgres_index.record_blobs, late, Scheme.TYPED, [StoredBlob(name("b"), 3)])
        await waits_for_locks(database_url, 1)
        ticket = await begin(postgres_index, repository)  # the client has come back on another connection
        assert ticket.attempt == 2
        nursery.start_soon(accept, ticket)
        await waits_for_locks(database_url, 2, or_else=lambda: bool(outcomes))
        when_accepted = await held() if outcomes else None
        beside.rollback()
    assert outcomes == [Outcome.MOVED]
    assert when_accepted in {None, await held()}


async def test_batches_of_one_push_do_not_wait_for_each_other(
    postgres_index: PostgresIndex, repository: Repository, beside: psycopg.Connection, database_url: str
) -> None:
    ticket = await begin(postgres_index, repository)
    store_unfinished(beside, "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(postgres_index.record_blobs, ticket, Scheme.TYPED, [StoredBlob(name("b"), 3)])
        await waits_for_locks(database_url, 1)
        with trio.fail_after(5):
            assert await postgres_index.record_blobs(ticket, Scheme.TYPED, [StoredBlob(name("other"), 3)]) == 1
            await postgres_index.renew_pushes([ticket], NOW, 600)
        beside.rollback()


async def test_pushes_that_bring_the_same_blobs_in_any_order_do_not_deadlock(
    postgres_index: PostgresIndex, repository: Repository
) -> None:
    blobs = [StoredBlob(name(f"b{at}"), at, name(f"pack {at % 5}")) for at in range(300)]
    tickets = [await begin(postgres_index, repository, push) for push in range(1, 7)]
    async with trio.open_nursery() as nursery:
        for at, ticket in enumerate(tickets):
            order = blobs if at % 2 else blobs[::-1]
            nursery.start_soon(postgres_index.record_blobs, ticket, Scheme.TYPED, order)
    assert postgres_index.statistics().retries == 0


async def test_pushes_that_bring_the_same_history_in_any_order_do_not_deadlock(
    postgres_index: PostgresIndex, repository: Repository
) -> None:
    commits = [CommitRow(name(f"c{at}"), (), name(f"s{at}"), 1, b"record %d" % at) for at in range(300)]
    snapshots = [SnapshotRef(SnapshotRow(name(f"s{at}"), None, 0, b"", None), b"") for at in range(300)]
    tickets = [await begin(postgres_index, repository, push) for push in range(1, 7)]
    for record, rows in ((postgres_index.record_snapshots, snapshots), (postgres_index.record_commits, commits)):
        async with trio.open_nursery() as nursery:
            for at, ticket in enumerate(tickets):
                nursery.start_soon(record, ticket, Scheme.TYPED, rows if at % 2 else rows[::-1])
    assert postgres_index.statistics().retries == 0


async def test_two_attempts_of_a_push_that_bring_the_same_blobs_in_any_order_do_not_deadlock(
    postgres_index: PostgresIndex, repository: Repository, beside: psycopg.Connection, database_url: str
) -> None:
    """What the first connection had sent may still be under way when the second one sends it again."""
    ticket = await begin(postgres_index, repository)
    blobs = [StoredBlob(name(text), 3) for text in ("b", "other")]
    first, last = sorted(blob.object_id for blob in blobs)
    for blob in blobs:
        beside.execute("INSERT INTO blobs (blob_id, scheme, size) VALUES (%s, 'typed', 3)", (blob.object_id,))
    beside.commit()
    beside.execute(
        "INSERT INTO blob_refs (repo, blob_id, push) VALUES (%s, %s, %s)", (ticket.repo, first, ticket.number)
    )
    async with trio.open_nursery() as nursery:
        for order in (blobs, blobs[::-1]):
            nursery.start_soon(postgres_index.record_blobs, ticket, Scheme.TYPED, order)
        await waits_for_locks(database_url, 2)  # both for the first: neither holds the last one
        beside.execute("SET LOCAL lock_timeout = '5s'")
        beside.execute(
            "INSERT INTO blob_refs (repo, blob_id, push) VALUES (%s, %s, %s)", (ticket.repo, last, ticket.number)
        )
        beside.rollback()
    assert postgres_index.statistics().retries == 0

"""Bodies of huge snapshots: kept in parts, so that no connection is held while tens of megabytes move."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest

from storage.errors import SnapshotDamaged
from storage.index import READ_BYTES
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.postgres.large_bodies import APART_BYTES, PART_BYTES
from storage.rows import (
    BranchMove,
    CommitRow,
    NewRepository,
    Outcome,
    PushRows,
    PushTicket,
    SnapshotRef,
    SnapshotRow,
    Visibility,
)
from wire.ids import Scheme

NOW = dt.datetime(2026, 4, 1, tzinfo=dt.UTC)
TYPED = Scheme.TYPED
LARGE = random.Random(7).randbytes(APART_BYTES + PART_BYTES // 2 + 1)
LARGEST = random.Random(8).randbytes(2 * APART_BYTES)
DAMAGES = [
    "DELETE FROM large_bodies WHERE part = 1",
    "UPDATE large_bodies SET content = set_byte(content, 5, (get_byte(content, 5) + 1) % 256) WHERE part = 2",
    "UPDATE large_bodies SET content = substring(content FROM 2) WHERE part = 3",
]
AT_MOST = random.Random(9).randbytes(APART_BYTES)
NAMES = {at: bytes([at]) * 32 for at in range(9)}


@pytest.fixture
async def index(database_url: str) -> AsyncIterator[PostgresIndex]:
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        yield index


async def begun(index: PostgresIndex) -> PushTicket:
    new = NewRepository(uuid.uuid4(), "ada", "huge", Visibility.PRIVATE, "main", "code", NOW)
    repository = await index.create_repository(new)
    assert repository is not None
    ticket = await index.begin_push(repository.number, uuid.uuid4(), "ada", "main", NOW, 600)
    assert isinstance(ticket, PushTicket)
    return ticket


def ref(at: int, delta: bytes, full: bytes | None = None, base: int | None = None) -> SnapshotRef:
    base_id = None if base is None else NAMES[base]
    return SnapshotRef(SnapshotRow(NAMES[at], base_id, 0 if full or base is None else 1, delta, full), b"")


ROWS = [ref(1, LARGE), ref(2, b"small", LARGEST, 1), ref(3, AT_MOST, None, 2), ref(4, LARGEST, None, 3)]


async def test_a_body_of_any_size_is_read_as_it_was_written(index: PostgresIndex) -> None:
    ticket = await begun(index)
    assert await index.record_snapshots(ticket, TYPED, ROWS[:2]) == 2
    commit = CommitRow(NAMES[8], (), NAMES[4], 1, b"record")
    rows = PushRows((), ROWS[2:], [commit])
    move = BranchMove("main", None, NAMES[8], False)
    done = await index.finish_push(ticket, TYPED, rows, move, lambda _: {}, NOW)
    assert done.outcome is Outcome.MOVED
    for expected in ROWS:
        row = expected.row
        chain = await index.snapshot_chain(TYPED, row.snapshot_id)
        assert chain[0] == row
        (read,) = (await index.snapshot_deltas(TYPED, [row.snapshot_id])).values()
        assert (read.delta, read.base_id) == (row.delta, row.base_id)


async def test_what_is_read_at_once_is_bounded_by_what_the_bodies_are(index: PostgresIndex) -> None:
    """A row that only names its body counts as the body: four of them are not read into memory for one request."""
    ticket = await begun(index)
    await index.record_snapshots(ticket, TYPED, ROWS)
    assert len(LARGE) > READ_BYTES
    assert list(await index.snapshot_deltas(TYPED, [NAMES[1], NAMES[4], NAMES[3]])) == [NAMES[1]]


async def test_a_body_is_stored_once_whoever_pushes_it_again(index: PostgresIndex, database_url: str) -> None:
    ticket = await begun(index)
    await index.record_snapshots(ticket, TYPED, [ref(1, LARGEST)])
    await index.record_snapshots(ticket, TYPED, [ref(2, LARGEST)])
    with psycopg.connect(database_url) as beside:
        (count,) = beside.execute("SELECT count(*) FROM large_bodies").fetchone() or (None,)
    assert count == len(LARGEST) // PART_BYTES


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_part_is_found_and_never_read_as_a_body(
    index: PostgresIndex, database_url: str, damage: str
) -> None:
    ticket = await begun(index)
    await index.record_snapshots(ticket, TYPED, [ROWS[0]])
    with psycopg.connect(database_url) as beside:
        beside.execute(damage)
    with pytest.raises(SnapshotDamaged, match=NAMES[1].hex()):
        await index.snapshot_chain(TYPED, NAMES[1])
    with pytest.raises(SnapshotDamaged, match=NAMES[1].hex()):
        await index.snapshot_deltas(TYPED, [NAMES[1]])


@pytest.mark.parametrize("damage", DAMAGES)
async def test_whoever_pushes_a_body_again_heals_it(index: PostgresIndex, database_url: str, damage: str) -> None:
    """For every row that names it, and what is sound is not written again."""
    ticket = await begun(index)
    await index.record_snapshots(ticket, TYPED, [ref(1, LARGEST)])
    with psycopg.connect(database_url) as beside:
        beside.execute(damage)
    await index.record_snapshots(ticket, TYPED, [ref(2, LARGEST)])
    for at in (1, 2):
        (row,) = await index.snapshot_chain(TYPED, NAMES[at])
        assert row.delta == LARGEST
    versions = "SELECT array_agg((part, xmin::text) ORDER BY part)::text FROM large_bodies"
    with psycopg.connect(database_url) as beside:
        before = beside.execute(versions).fetchone()
    await index.record_snapshots(ticket, TYPED, [ref(3, LARGEST)])
    with psycopg.connect(database_url) as beside:
        assert beside.execute(versions).fetchone() == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("right", [ref(1, LARGEST), ref(1, LARGE), ref(1, b"small", LARGE, 2), ref(1, b"small")])
async def test_a_row_is_mended_whose_body_cannot_be_read(
    index: PostgresIndex, database_url: str, damage: str, right: SnapshotRef
) -> None:
    """By compare-and-swap on what the row says; the new body is kept apart again."""
    ticket = await begun(index)
    await index.record_snapshots(ticket, TYPED, [ref(1, LARGEST), ref(2, b"base")])
    with psycopg.connect(database_url) as beside:
        beside.execute(damage)
    wrong = await index.stored_snapshot(TYPED, NAMES[1])
    assert wrong is not None
    assert len(wrong.delta) < 100
    assert await index.mend_snapshot(TYPED, replace(wrong, delta=wrong.delta[:-1] + b"\x01"), right.row) is False
    assert await index.mend_snapshot(TYPED, wrong, right.row) is True
    assert (await index.snapshot_chain(TYPED, NAMES[1]))[0] == right.row
    with psycopg.connect(database_url) as beside:
        sizes = 'SELECT max(octet_length(delta)), max(octet_length("full")) FROM snapshots'
        assert all(size is None or size < 100 for size in beside.execute(sizes).fetchone() or ())


async def test_a_push_of_a_huge_snapshot_holds_a_connection_for_a_part_at_a_time(index: PostgresIndex) -> None:
    """By the number of transactions: as many as parts, and the one that names them."""
    ticket = await begun(index)
    before = index.database.statistics().transactions
    await index.record_snapshots(ticket, TYPED, [ref(1, LARGEST)])
    assert index.database.statistics().transactions - before == len(LARGEST) // PART_BYTES + 1

"""What the collector asks PostgreSQL stays short however large the tables are: keys, and pieces of a table."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from storage.collection_rows import ReviewCursor
from storage.postgres import collection_marks
from storage.postgres.arrays import Byteas
from storage.postgres.collection_meeting import Recorder, _q_meet, meet_marks
from storage.postgres.database import DatabaseSettings, connection_arguments
from storage.rows import StoredBlob
from wire.ids import Scheme

MANY = 300_000
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HELD_MOST_S = 0.5
NUMBER = uuid.UUID(int=1)


@pytest.fixture(scope="module")
def filled(module_database_url: str) -> str:
    settings = DatabaseSettings(module_database_url)
    with psycopg.connect(module_database_url, **connection_arguments(settings)) as connection:
        connection.execute("SET session_replication_role = replica")
        some = f"generate_series(1, {MANY}) n"
        connection.execute(
            f"""INSERT INTO blobs (blob_id, scheme, size, pack)
                SELECT sha256(('b' || n)::bytea), 'typed', 1, CASE WHEN n % 2 = 0 THEN n % 1000 END FROM {some}"""
        )
        connection.execute(
            f"INSERT INTO blob_refs SELECT n % 50, sha256(('b' || n)::bytea), 1 FROM {some} WHERE n % 3 > 0"
        )
        connection.execute(
            "INSERT INTO packs (pack_id) SELECT sha256(('p' || n)::bytea) FROM generate_series(1, 1000) n"
        )
        connection.execute(
            f"""INSERT INTO collect_marks (kind, scheme, id, loose, marked_at)
                SELECT 0, 'typed', sha256(('b' || n)::bytea), false, '2025-01-01' FROM {some} WHERE n % 5 = 0"""
        )
        connection.execute(
            """INSERT INTO collect_marks (kind, scheme, id, loose, marked_at)
               SELECT 1, '', pack_id, true, '2025-01-01' FROM packs"""
        )
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return module_database_url


@pytest.fixture
def connection(filled: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(filled, **connection_arguments(DatabaseSettings(filled))) as made:
        yield made
        made.rollback()


def ids(count: int, start: int = 0) -> list[bytes]:
    return sorted(hashlib.sha256(b"b%d" % at).digest() for at in range(start + 1, start + count + 1))


def test_marks_are_met_by_key(connection: psycopg.Connection) -> None:
    wanted = ids(1_000)
    arguments = {
        "ids": Byteas(wanted), "packs": 0, "scheme": "typed", "push": None, "lease": None,
    }  # fmt: skip
    plan = "\n".join(row[0] for row in connection.execute("EXPLAIN " + _q_meet, arguments))
    assert "Seq Scan" not in plan, plan
    began = time.perf_counter()
    meet_marks(connection, Scheme.TYPED, [], [StoredBlob(one, 1) for one in wanted], Recorder())
    assert time.perf_counter() - began < HELD_MOST_S
    left = connection.execute("SELECT count(*) FROM collect_marks WHERE id = ANY (%s)", (wanted,)).fetchone()
    assert left == (0,)


def test_a_review_reads_tables_in_pieces_and_each_step_is_short(connection: psycopg.Connection) -> None:
    longest = 0.0

    def timed(run: object, *arguments: object) -> object:
        nonlocal longest
        began = time.perf_counter()
        result = run(connection, *arguments)  # type: ignore[operator]
        longest = max(longest, time.perf_counter() - began)
        connection.commit()
        return result

    chosen = 0
    while chosen < MANY:
        found = timed(collection_marks.begin_review, NUMBER, NOW, 300.0, 2_000)
        chosen += found.objects + found.packs  # type: ignore[attr-defined]
        if found.objects + found.packs < 2_000:  # type: ignore[attr-defined]
            break
    assert chosen == MANY // 5 + 1_000
    cursor: object = ReviewCursor()
    pieces = 0
    while cursor is not None:
        cursor = timed(collection_marks.review, NUMBER, cursor)
        pieces += 1
    assert pieces > 5
    counts = connection.execute(
        "SELECT kind, count(*) FILTER (WHERE NOT referenced) FROM collect_marks GROUP BY 1 ORDER BY 1"
    )
    assert counts.fetchall() == [(0, MANY // 15), (1, 1_000 - 499)]
    done = timed(collection_marks.condemn, NUMBER, 500, NOW)
    assert done.looked_at == 500  # type: ignore[attr-defined]
    assert longest < 2 * HELD_MOST_S  # this machine may be busy

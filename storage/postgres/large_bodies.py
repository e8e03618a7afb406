"""Bodies of snapshots too large for one row: kept in parts under their hash, each part a transaction of its own.

Written before the row that names them, and changed only where they are damaged, by whoever brings the same body
again. A push that dies in between leaves parts that nobody names; the next push of the same snapshot uses them. The
row holds a mark in the body's stead, which no packed changes can be: they are msgpack, where its first byte is never
used, or a zstd frame.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from dataclasses import replace

import trio

from storage.errors import SnapshotDamaged
from storage.history_rows import SnapshotRow
from storage.postgres.database import Connection, Database, one_large_statement
from storage.rows import SnapshotRef

APART_BYTES = 4 * 1024 * 1024
"""Bodies above it are kept in parts."""
PART_BYTES = 1024 * 1024
_MARK = struct.Struct(">c32sQ")
_FIRST = b"\xc1"
_q_insert_part = """
    INSERT INTO large_bodies (body_id, part, content) VALUES (%b, %s, %b)
    ON CONFLICT (body_id, part) DO UPDATE SET content = excluded.content
        WHERE large_bodies.content IS DISTINCT FROM excluded.content
"""
_q_part = "SELECT content FROM large_bodies WHERE body_id = %b AND part = %s"


def body_bytes(column: str) -> str:
    """Give the expression of a body's size in bytes, whether it is in the row or apart."""
    return f"""CASE WHEN octet_length({column}) = {_MARK.size} AND substring({column} FROM 1 FOR 1) = '\\xc1'::bytea
                    THEN ('x' || encode(substring({column} FROM 34 FOR 8), 'hex'))::bit(64)::bigint
                    ELSE octet_length({column}) END"""


async def put_apart(database: Database, refs: Sequence[SnapshotRef]) -> list[SnapshotRef]:
    """Write the parts of large bodies; gives what is to be recorded."""
    recorded = []
    for ref in refs:
        row = await row_apart(database, ref.row)
        recorded.append(ref if row is ref.row else replace(ref, row=row))
    return recorded


async def row_apart(database: Database, row: SnapshotRow) -> SnapshotRow:
    """Write the parts of a row's large bodies, also over damaged ones; gives the row as it is to be recorded."""
    delta, full = await _named(database, row.delta), row.full
    if full is not None:
        full = await _named(database, full)
    return row if delta is row.delta and full is row.full else replace(row, delta=delta, full=full)


async def together(database: Database, row: SnapshotRow) -> SnapshotRow:
    """Give a recorded row with its bodies in it.

    Raises:
        SnapshotDamaged: parts are missing, or not what was written.
    """
    delta, full = await _body(database, row.snapshot_id, row.delta), row.full
    if full is not None:
        full = await _body(database, row.snapshot_id, full)
    return row if delta is row.delta and full is row.full else replace(row, delta=delta, full=full)


async def _named(database: Database, body: bytes) -> bytes:
    if len(body) <= APART_BYTES:
        return body
    hasher = hashlib.sha256()
    for start in range(0, len(body), PART_BYTES):
        hasher.update(memoryview(body)[start : start + PART_BYTES])
        await trio.lowlevel.checkpoint()
    body_id = hasher.digest()
    for part, start in enumerate(range(0, len(body), PART_BYTES)):
        await database.run(_insert_part, body_id, part, body[start : start + PART_BYTES])
    return _MARK.pack(_FIRST, body_id, len(body))


async def _body(database: Database, snapshot_id: bytes, stored: bytes) -> bytes:
    if stored[:1] != _FIRST or len(stored) != _MARK.size:
        return stored
    _, body_id, size = _MARK.unpack(stored)
    found, hasher = io.BytesIO(), hashlib.sha256()
    for part in range(-(-size // PART_BYTES)):
        content = await database.run(_part, body_id, part)
        hasher.update(content)
        found.write(content)
    if found.tell() != size or hasher.digest() != body_id:
        raise SnapshotDamaged(snapshot_id, f"lacks parts of its large body {body_id.hex()}, or has damaged ones")
    return found.getvalue()


@one_large_statement
def _insert_part(connection: Connection, body_id: bytes, part: int, content: bytes) -> None:
    connection.execute(_q_insert_part, (body_id, part, content))


@one_large_statement
def _part(connection: Connection, body_id: bytes, part: int) -> bytes:
    row = connection.execute(_q_part, (body_id, part), binary=True).fetchone()
    return b"" if row is None else row[0]

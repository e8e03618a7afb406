"""Mending rows by packs: one look at what should be there, and writing only of what is not."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.pack_repair import PackRepair
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.blobs import store_rows
from storage.postgres.collection_meeting import Recorder, hold_lease
from storage.postgres.database import Connection, one_statement
from storage.rows import PushState, StoredBlob
from wire.ids import Scheme

_q_look = """
    SELECT * FROM (
        SELECT wanted.id,
               b.blob_id IS NULL AS absent,
               coalesce(b.pack = (SELECT pack FROM packs WHERE pack_id = %(pack_id)s)
                        AND (b."offset" <> wanted.at OR b.size <> wanted.size), false) AS misplaced,
               coalesce(b.pending, false) AS pending,
               %(refs)s AND NOT EXISTS (
                   SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
                   WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND p.state = 1 OFFSET 0) AS unheld
        FROM unnest(%(ids)b, %(sizes)b, %(offsets)b) AS wanted (id, size, at)
        LEFT JOIN LATERAL (SELECT * FROM blobs
                           WHERE blob_id = wanted.id AND scheme = %(scheme)s OFFSET 0) AS b ON true
    ) AS found
    WHERE absent OR misplaced OR pending OR unheld
"""
_q_place = """
    UPDATE blobs b SET "offset" = given.at, size = given.size
    FROM unnest(%(ids)b, %(sizes)b, %(offsets)b) AS given (id, size, at)
    WHERE b.blob_id = given.id AND b.scheme = %(scheme)s
      AND b.pack = (SELECT pack FROM packs WHERE pack_id = %(pack_id)s)
"""
_q_promote = """
    WITH moved AS (
        UPDATE blobs b
        SET pack = (SELECT pack FROM packs WHERE pack_id = %(pack_id)s), "offset" = given.at, pending = false
        FROM unnest(%(ids)b, %(sizes)b, %(offsets)b) AS given (id, size, at)
        WHERE b.blob_id = given.id AND b.scheme = %(scheme)s AND b.pending
        RETURNING b.blob_id
    )
    DELETE FROM content_cache c USING moved WHERE c.blob_id = moved.blob_id AND c.scheme = %(scheme)s
"""
_q_brought = f"""
    SELECT p.push FROM repositories r JOIN pushes p ON p.repo = r.repo AND p.collected = r.collected
    WHERE r.repo = %s AND p.push_id = %s AND p.state = {PushState.ACCEPTED.value} FOR SHARE OF r
"""
"""Who collects from a repository locks its row, and counts."""
_q_hold = """
    INSERT INTO blob_refs (repo, blob_id, push)
    SELECT %(repo)s, given.id, %(push)s FROM unnest(%(ids)b) AS given (id)
    ON CONFLICT DO NOTHING
"""
_q_suspect = "INSERT INTO collect_suspects SELECT 0, %(scheme)s, given.id, false FROM unnest(%(ids)b) AS given (id)"
"""What is mended here is recorded, so it was unmarked, and nobody may need it all the same."""
_q_held_packs = """
    SELECT r.blob_id, (SELECT p.pack_id FROM packs p WHERE p.pack = b.pack)
    FROM (SELECT DISTINCT blob_id FROM blob_refs
          WHERE repo = %(repo)s AND blob_id > %(after)s ORDER BY blob_id LIMIT %(most)s) AS r
    LEFT JOIN LATERAL (SELECT * FROM blobs WHERE blob_id = r.blob_id AND scheme = %(scheme)s OFFSET 0) AS b ON true
    ORDER BY r.blob_id
"""


def complete_pack(
    connection: Connection, repo: int, scheme: Scheme, objects: Sequence[StoredBlob],
    brought_by: uuid.UUID | None, lease: uuid.UUID | None = None,
) -> PackRepair:  # fmt: skip
    """See ``PackRepairs.complete_pack``."""
    if not objects:
        return PackRepair()
    arguments = {"repo": repo, "scheme": scheme.value, "pack_id": objects[0].pack_id}
    rows = connection.execute(
        _q_look, {**arguments, **_columns(objects), "refs": brought_by is not None}, binary=True
    ).fetchall()
    if not rows:
        return PackRepair()
    faulty = {object_id: tuple(faults) for object_id, *faults in rows}
    wrong = [blob for blob in objects if blob.object_id in faulty]
    push = None
    if brought_by is not None and any(unheld for *_, unheld in rows):
        push = connection.execute(_q_brought, (repo, brought_by)).fetchone()
    if lease is not None:
        hold_lease(connection, lease)
    store_rows(connection, scheme, wrong, Recorder(lease=lease))  # also of rows that are there: nothing is collected
    absent, misplaced, pending, unheld = (
        sorted((blob for blob in wrong if faulty[blob.object_id][at]), key=lambda blob: blob.object_id)
        for at in range(4)
    )
    if misplaced:
        connection.execute(_q_place, {**arguments, **_columns(misplaced)})
    if pending:
        connection.execute(_q_promote, {**arguments, **_columns(pending)})
    held = 0
    if push is None:
        connection.execute(_q_suspect, {"scheme": scheme.value, "ids": Byteas([blob.object_id for blob in wrong])})
    else:
        held = connection.execute(_q_hold, {**arguments, **_columns(unheld), "push": push[0]}).rowcount
    return PackRepair(len(absent), len(misplaced), len(pending), held)


@one_statement
def held_packs(
    connection: Connection, repo: int, scheme: Scheme, after: bytes, most: int
) -> tuple[set[bytes], bytes | None]:
    """See ``PackRepairs.held_packs``."""
    arguments = {"repo": repo, "scheme": scheme.value, "after": after, "most": most}
    rows = connection.execute(_q_held_packs, arguments, binary=True).fetchall()
    return {pack_id for _, pack_id in rows if pack_id is not None}, rows[-1][0] if len(rows) == most else None


def _columns(objects: Sequence[StoredBlob]) -> dict[str, object]:
    return {
        "ids": Byteas([blob.object_id for blob in objects]),
        "sizes": Int8s([blob.size for blob in objects]),
        "offsets": Int8s([blob.offset for blob in objects]),
    }

"""Moving objects into larger packs, by compare-and-swap on where they are."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from storage.layout import Place
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.collection_meeting import Recorder, hold_lease, meet_marks
from storage.postgres.database import Connection, one_statement
from wire.ids import Scheme

_q_begin = "UPDATE repositories SET folded_at = %(now)s WHERE repo = %(repo)s AND folded_at <= %(before)s"
_q_places = """
    SELECT y.scheme, b.blob_id, b.size, (SELECT p.pack_id FROM packs p WHERE p.pack = b.pack), b."offset", b.pending
    FROM repositories y LEFT JOIN (
        SELECT DISTINCT r.blob_id FROM blob_refs r JOIN pushes p ON p.push = r.push AND p.state = 1
        WHERE r.repo = %(repo)s AND r.blob_id > %(after)s ORDER BY r.blob_id LIMIT %(most)s
    ) AS held ON true
    LEFT JOIN blobs b ON b.blob_id = held.blob_id AND b.scheme = y.scheme
    WHERE y.repo = %(repo)s ORDER BY b.blob_id
"""
_q_insert_pack = "INSERT INTO packs (pack_id) VALUES (%s) ON CONFLICT DO NOTHING"
_q_pack = "SELECT pack FROM packs WHERE pack_id = %s"
_q_lock = """
    SELECT 1 FROM blobs b JOIN unnest(%(ids)b) AS moved (id) ON b.blob_id = moved.id
    WHERE b.scheme = %(scheme)s ORDER BY b.blob_id FOR NO KEY UPDATE OF b
"""
_q_move = """
    UPDATE blobs b SET pack = %(pack)s, "offset" = m.at
    FROM unnest(%(ids)b, %(packs)b, %(offsets)b, %(ats)b) AS m (id, pack_id, old, at)
    WHERE b.blob_id = m.id AND b.scheme = %(scheme)s AND NOT b.pending AND b."offset" = m.old
      AND b.pack IS NOT DISTINCT FROM (SELECT p.pack FROM packs p WHERE p.pack_id = m.pack_id)
      AND (b.pack IS NULL) = (m.pack_id IS NULL)
    RETURNING b.blob_id
"""
_q_suspect = """
    INSERT INTO collect_suspects
    SELECT %(kind)s, %(scheme)s, old.id, true FROM unnest(%(ids)b) AS old (id)
"""


def begin_fold(connection: Connection, repo: int, now: dt.datetime, every_s: float) -> bool:
    """See ``Folding.begin_fold``."""
    arguments = {"repo": repo, "now": now, "before": now - dt.timedelta(seconds=every_s)}
    return connection.execute(_q_begin, arguments).rowcount == 1


@one_statement
def repository_places(connection: Connection, repo: int, after: bytes, most: int) -> tuple[Scheme | None, list[Place]]:
    """See ``Folding.repository_places``."""
    rows = connection.execute(_q_places, {"repo": repo, "after": after, "most": most}).fetchall()
    scheme = None if not rows or rows[0][0] is None else Scheme(rows[0][0])
    return scheme, [
        Place(bytes(object_id), size, None if pack_id is None else bytes(pack_id), offset, pending)
        for _, object_id, size, pack_id, offset, pending in rows
        if object_id is not None
    ]


def move_places(
    connection: Connection, lease: uuid.UUID, scheme: Scheme, pack_id: bytes, moves: Sequence[tuple[Place, int]]
) -> set[bytes]:
    """See ``Folding.move_places``."""
    hold_lease(connection, lease)
    meet_marks(connection, scheme, [pack_id], [], Recorder(lease=lease))
    connection.execute(_q_insert_pack, (pack_id,))
    row = connection.execute(_q_pack, (pack_id,)).fetchone()
    assert row is not None
    ordered = sorted(moves, key=lambda move: move[0].object_id)
    arguments = {
        "scheme": scheme.value, "pack": row[0],
        "ids": Byteas([place.object_id for place, _ in ordered]),
        "packs": Byteas([place.pack_id for place, _ in ordered]),
        "offsets": Int8s([place.offset for place, _ in ordered]),
        "ats": Int8s([at for _, at in ordered]),
    }  # fmt: skip
    connection.execute(_q_lock, arguments)
    moved = {bytes(row[0]) for row in connection.execute(_q_move, arguments)}
    loose = [place.object_id for place, _ in ordered if place.pack_id is None and place.object_id in moved]
    packs = sorted({place.pack_id for place, _ in ordered if place.pack_id is not None} - {pack_id})
    connection.execute(_q_suspect, {"kind": 0, "scheme": scheme.value, "ids": Byteas(loose)})
    connection.execute(_q_suspect, {"kind": 1, "scheme": "", "ids": Byteas(packs)})
    return moved

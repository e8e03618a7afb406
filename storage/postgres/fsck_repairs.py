"""Correcting where blobs are said to be, by compare-and-swap on where they were."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.fsck_repairs import PlaceCorrection
from storage.layout import Place
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.blobs import places, store_rows
from storage.postgres.collection_meeting import Recorder, hold_lease, meet_marks
from storage.postgres.database import Connection
from storage.rows import StoredBlob
from wire.ids import Scheme

_q_insert_packs = "INSERT INTO packs (pack_id) SELECT unnest(%(ids)b) ON CONFLICT DO NOTHING"
_q_lock = """
    SELECT 1 FROM unnest(%(ids)b) AS moved (id)
    CROSS JOIN LATERAL (
        SELECT 1 FROM blobs WHERE blob_id = moved.id AND scheme = %(scheme)s FOR NO KEY UPDATE
    ) AS locked
"""
_q_correct = """
    WITH moved AS (
        UPDATE blobs b
        SET pack = (SELECT p.pack FROM packs p WHERE p.pack_id = m.new_pack), "offset" = m.new_offset,
            size = m.new_size, pending = false
        FROM unnest(%(ids)b, %(packs)b, %(offsets)b, %(sizes)b, %(pending)b, %(new_packs)b, %(new_offsets)b,
                    %(new_sizes)b) AS m (id, pack, at, size, pending, new_pack, new_offset, new_size)
        WHERE b.blob_id = m.id AND b.scheme = %(scheme)s AND b."offset" = m.at AND b.size = m.size
          AND b.pending = (m.pending = 1)
          AND b.pack IS NOT DISTINCT FROM (SELECT p.pack FROM packs p WHERE p.pack_id = m.pack)
          AND (b.pack IS NULL) = (m.pack IS NULL)
        RETURNING b.blob_id
    )
    DELETE FROM content_cache c USING moved WHERE c.blob_id = moved.blob_id AND c.scheme = %(scheme)s
"""
_q_suspect = """
    INSERT INTO collect_suspects
    SELECT %(kind)s, %(scheme)s, old.id, true FROM unnest(%(ids)b) AS old (id)
"""


def correct_places(
    connection: Connection, lease: uuid.UUID, scheme: Scheme, corrections: Sequence[PlaceCorrection]
) -> set[bytes]:
    """See ``PlaceCorrections.correct_places``."""
    ordered = sorted(corrections, key=lambda correction: correction[1].object_id)
    new = [_stored(place) for _, place in ordered]
    recorder = Recorder(lease=lease)
    hold_lease(connection, lease)
    pack_ids = sorted({blob.pack_id for blob in new if blob.pack_id is not None})
    meet_marks(connection, scheme, pack_ids, new, recorder)
    if pack_ids:
        connection.execute(_q_insert_packs, {"ids": Byteas(pack_ids)})
    unknown = [_stored(place) for old, place in ordered if old is None]
    if unknown:
        store_rows(connection, scheme, unknown, recorder)
    known = [(old, place) for old, place in ordered if old is not None]
    if known:
        connection.execute(_q_lock, {"scheme": scheme.value, "ids": Byteas([old.object_id for old, _ in known])})
        connection.execute(_q_correct, {"scheme": scheme.value, **_columns(known)})
    now = places(connection, scheme, [place.object_id for _, place in ordered])
    corrected = {place.object_id for _, place in ordered if now.get(place.object_id) == place}
    left = [old for old, place in known if place.object_id in corrected and _leaves(old, place)]
    loose = [old.object_id for old in left if old.pack_id is None]
    packs = sorted({old.pack_id for old in left if old.pack_id is not None})
    for kind, of_scheme, ids in ((0, scheme.value, loose), (1, "", packs)):
        if ids:
            connection.execute(_q_suspect, {"kind": kind, "scheme": of_scheme, "ids": Byteas(ids)})
    return corrected


def _leaves(old: Place, place: Place) -> bool:
    """Whether a file stays behind that a blob lay in."""
    return not old.pending and old.pack_id != place.pack_id


def _stored(place: Place) -> StoredBlob:
    return StoredBlob(place.object_id, place.size, place.pack_id, place.offset)


def _columns(known: Sequence[tuple[Place, Place]]) -> dict[str, object]:
    return {
        "ids": Byteas([old.object_id for old, _ in known]),
        "packs": Byteas([old.pack_id for old, _ in known]),
        "offsets": Int8s([old.offset for old, _ in known]),
        "sizes": Int8s([old.size for old, _ in known]),
        "pending": Int8s([int(old.pending) for old, _ in known]),
        "new_packs": Byteas([place.pack_id for _, place in known]),
        "new_offsets": Int8s([place.offset for _, place in known]),
        "new_sizes": Int8s([place.size for _, place in known]),
    }

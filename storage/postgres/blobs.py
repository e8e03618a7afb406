"""Blobs: what is stored, what a push brings, what a repository holds."""

from __future__ import annotations

from collections.abc import Sequence

from storage.layout import Place
from storage.postgres.database import Connection
from storage.postgres.pushes import require_current
from storage.rows import Known, PushTicket, StoredBlob
from wire.ids import Scheme

# Each id is looked up by key on its own: `OFFSET 0` keeps the planner from joining instead, which for a large batch
# reads every row the repository holds, and with statistics of a smaller table the whole table once for each id.
_q_known = """
    SELECT wanted.id,
           EXISTS (SELECT 1 FROM blob_refs r
                   WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND r.push = %(push)s OFFSET 0),
           EXISTS (SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
                   WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND p.state = 1 OFFSET 0)
    FROM unnest(%(ids)b::bytea[]) AS wanted (id)
"""
_q_insert_packs = "INSERT INTO packs (pack_id) SELECT unnest(%b::bytea[]) ON CONFLICT DO NOTHING"
_q_insert = """
    INSERT INTO blobs (blob_id, scheme, size, pack, "offset")
    SELECT new.id, %(scheme)s, new.size, (SELECT p.pack FROM packs p WHERE p.pack_id = new.pack_id), new.at
    FROM unnest(%(ids)b::bytea[], %(sizes)b::bigint[], %(packs)b::bytea[], %(offsets)b::bigint[])
         AS new (id, size, pack_id, at)
    ORDER BY new.id
    ON CONFLICT DO NOTHING
"""
_q_insert_refs = """
    INSERT INTO blob_refs (repo, blob_id, push)
    SELECT %(repo)s, new.id, %(push)s FROM unnest(%(ids)b::bytea[]) AS new (id) ORDER BY new.id
    ON CONFLICT DO NOTHING
"""
_q_lacking = """
    SELECT DISTINCT wanted.id FROM unnest(%(ids)b::bytea[]) AS wanted (id)
    WHERE NOT EXISTS (
        SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
        WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND (p.state = 1 OR r.push = %(push)s) OFFSET 0
    )
"""
_q_places = """
    SELECT b.blob_id, b.size, (SELECT p.pack_id FROM packs p WHERE p.pack = b.pack), b."offset"
    FROM unnest(%(ids)b::bytea[]) AS wanted (id)
    CROSS JOIN LATERAL (SELECT * FROM blobs WHERE blob_id = wanted.id AND scheme = %(scheme)s OFFSET 0) AS b
"""
_q_held_places = (
    _q_places
    + """
    WHERE EXISTS (SELECT 1 FROM blob_refs r JOIN pushes h USING (push)
                  WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND h.state = 1 OFFSET 0)
"""
)


def known_blobs(
    connection: Connection, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
) -> Known:
    """See ``Pushes.known_blobs``."""
    del scheme  # a repository has one
    sent, held = set(), set()
    rows = connection.execute(_q_known, {"repo": repo, "push": push, "ids": list(object_ids)})
    for object_id, is_sent, is_held in rows:
        if is_sent:
            sent.add(bytes(object_id))
        if is_held:
            held.add(bytes(object_id))
    return Known(frozenset(sent), frozenset(held))


def record_blobs(connection: Connection, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob]) -> int:
    """See ``Pushes.record_blobs``."""
    require_current(connection, ticket)
    packs = sorted({blob.pack_id for blob in blobs if blob.pack_id is not None})
    if packs:
        connection.execute(_q_insert_packs, (packs,))
    arguments = {
        "repo": ticket.repo,
        "push": ticket.number,
        "scheme": scheme.value,
        "ids": [blob.object_id for blob in blobs],
        "sizes": [blob.size for blob in blobs],
        "packs": [blob.pack_id for blob in blobs],
        "offsets": [blob.offset for blob in blobs],
    }
    connection.execute(_q_insert, arguments)
    return connection.execute(_q_insert_refs, arguments).rowcount


def lacking_blobs(connection: Connection, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
    """See ``Pushes.lacking_blobs``."""
    arguments = {"repo": ticket.repo, "push": ticket.number, "ids": list(object_ids)}
    return [bytes(row[0]) for row in connection.execute(_q_lacking, arguments)]


def places(connection: Connection, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
    """See ``History.places``."""
    return _places(connection, _q_places, {"scheme": scheme.value, "ids": list(object_ids)})


def held_places(connection: Connection, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
    """See ``History.held_places``."""
    return _places(connection, _q_held_places, {"repo": repo, "scheme": scheme.value, "ids": list(object_ids)})


def _places(connection: Connection, query: str, arguments: dict[str, object]) -> dict[bytes, Place]:
    return {
        bytes(object_id): Place(bytes(object_id), size, None if pack_id is None else bytes(pack_id), offset)
        for object_id, size, pack_id, offset in connection.execute(query, arguments)
    }

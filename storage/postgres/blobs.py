"""Blobs: what is stored, what a push brings, what a repository holds."""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import QuotaExceeded
from storage.layout import Place
from storage.postgres import usage
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.collection_meeting import NOBODY, Recorder, meet_marks
from storage.postgres.database import Connection, one_statement
from storage.postgres.pushes import require_current
from storage.rows import QUOTA_NONE, Known, PushTicket, StoredBlob
from wire.ids import Scheme

# Each id is looked up by key on its own: `OFFSET 0` keeps the planner from joining instead, which for a large batch
# reads every row the repository holds, and with statistics of a smaller table the whole table once for each id.
_q_known = """
    SELECT wanted.id,
           EXISTS (SELECT 1 FROM blob_refs r
                   WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND r.push = %(push)s OFFSET 0),
           EXISTS (SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
                   WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND p.state = 1 OFFSET 0)
    FROM unnest(%(ids)b) AS wanted (id)
"""
_q_insert_packs = "INSERT INTO packs (pack_id) SELECT unnest(%b) ON CONFLICT DO NOTHING"
_q_packs = "SELECT pack_id, pack FROM packs WHERE pack_id = ANY (%b)"
_q_insert = """
    INSERT INTO blobs (blob_id, scheme, size, pack, "offset")
    SELECT new.id, %(scheme)s, new.size, new.pack, new.at
    FROM unnest(%(ids)b, %(sizes)b, %(packs)b, %(offsets)b) AS new (id, size, pack, at)
    ON CONFLICT DO NOTHING
"""
_q_insert_pending = """
    WITH new AS (
        INSERT INTO blobs (blob_id, scheme, size, pack, "offset", pending)
        SELECT given.id, %(scheme)s, given.size, given.pack, given.at, given.waits = 1
        FROM unnest(%(ids)b, %(sizes)b, %(packs)b, %(offsets)b, %(waiting)b) AS given (id, size, pack, at, waits)
        ON CONFLICT DO NOTHING
        RETURNING blob_id, pending
    )
    INSERT INTO content_cache (blob_id, scheme, content)
    SELECT new.blob_id, %(scheme)s, given.content
    FROM new JOIN unnest(%(ids)b, %(contents)b) AS given (id, content) ON given.id = new.blob_id
    WHERE new.pending AND given.content IS NOT NULL
    ON CONFLICT DO NOTHING
"""
"""Of what is new, contents that came along wait in the index; what is there already stays where it is."""
_q_insert_refs = """
    INSERT INTO blob_refs (repo, blob_id, push)
    SELECT %(repo)s, new.id, %(push)s FROM unnest(%(ids)b) AS new (id)
    ON CONFLICT DO NOTHING
    RETURNING blob_id
"""
_q_lacking = """
    SELECT DISTINCT wanted.id FROM unnest(%(ids)b) AS wanted (id)
    WHERE NOT EXISTS (
        SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
        WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND (p.state = 1 OR r.push = %(push)s) OFFSET 0
    )
"""
_q_places = """
    SELECT b.blob_id, b.size, (SELECT p.pack_id FROM packs p WHERE p.pack = b.pack), b."offset", b.pending
    FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (SELECT * FROM blobs WHERE blob_id = wanted.id AND scheme = %(scheme)s OFFSET 0) AS b
"""
_q_held_places = (
    _q_places
    + """
    WHERE EXISTS (SELECT 1 FROM blob_refs r JOIN pushes h USING (push)
                  WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND h.state = 1 OFFSET 0)
"""
)


@one_statement
def known_blobs(
    connection: Connection, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
) -> Known:
    """See ``Pushes.known_blobs``."""
    del scheme  # a repository has one
    sent, held = set(), set()
    rows = connection.execute(_q_known, {"repo": repo, "push": push, "ids": Byteas(object_ids)})
    for object_id, is_sent, is_held in rows:
        if is_sent:
            sent.add(bytes(object_id))
        if is_held:
            held.add(bytes(object_id))
    return Known(frozenset(sent), frozenset(held))


def record_blobs(
    connection: Connection, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob], quota: int = QUOTA_NONE
) -> int | QuotaExceeded:
    """See ``Pushes.record_blobs``; ``quota`` is the deployment's default."""
    require_current(connection, ticket)
    added, size = insert_blobs(connection, ticket, scheme, blobs)
    return usage.count(connection, ticket, size, quota) or added


def insert_blobs(
    connection: Connection, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob]
) -> tuple[int, int]:
    """Record blobs of an attempt known to be the current one; gives how many the push lacked, and their size."""
    ids = store_rows(connection, scheme, blobs, Recorder(ticket.number, ticket.attempt))
    arguments = {"repo": ticket.repo, "push": ticket.number, "ids": ids}
    added = connection.execute(_q_insert_refs, arguments, binary=True)
    sizes = {blob.object_id: blob.size for blob in blobs}
    size = sum(sizes.values()) if added.rowcount == len(sizes) else sum(sizes[bytes(row[0])] for row in added)
    return added.rowcount, size


def store_rows(
    connection: Connection, scheme: Scheme, blobs: Sequence[StoredBlob], recorder: Recorder = NOBODY
) -> Byteas:
    """Insert the rows that say where blobs lie, for nobody in particular; gives their ids in the order taken.

    Raises:
        Tombstoned: some are being collected, or were after ``recorder`` began.
    """
    pack_ids = sorted({blob.pack_id for blob in blobs if blob.pack_id is not None})
    ordered = sorted(blobs, key=lambda blob: blob.object_id)  # in one order, or two pushes would wait in a circle
    meet_marks(connection, scheme, pack_ids, ordered, recorder)
    packs = _packs(connection, pack_ids)
    ids = Byteas([blob.object_id for blob in ordered])
    arguments = {
        "scheme": scheme.value,
        "ids": ids,
        "sizes": Int8s([blob.size for blob in ordered]),
        "packs": Int8s([None if blob.pack_id is None else packs[blob.pack_id] for blob in ordered]),
        "offsets": Int8s([blob.offset for blob in ordered]),
    }
    if any(blob.content is not None for blob in ordered):
        contents = Byteas([blob.content for blob in ordered])
        waiting = Int8s([int(blob.content is not None) for blob in ordered])  # the contents need be copied only once
        connection.execute(_q_insert_pending, {**arguments, "waiting": waiting, "contents": contents})
    else:
        connection.execute(_q_insert, arguments)
    return ids


def _packs(connection: Connection, pack_ids: Sequence[bytes]) -> dict[bytes, int]:
    """Give the numbers of packs, new ones included."""
    if not pack_ids:
        return {}
    connection.execute(_q_insert_packs, (Byteas(pack_ids),))
    return {bytes(pack_id): number for pack_id, number in connection.execute(_q_packs, (Byteas(pack_ids),))}


@one_statement
def lacking_blobs(connection: Connection, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
    """See ``Pushes.lacking_blobs``."""
    arguments = {"repo": ticket.repo, "push": ticket.number, "ids": Byteas(object_ids)}
    return [bytes(row[0]) for row in connection.execute(_q_lacking, arguments)]


@one_statement
def places(connection: Connection, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
    """See ``History.places``."""
    return _places(connection, _q_places, {"scheme": scheme.value, "ids": Byteas(object_ids)})


@one_statement
def held_places(connection: Connection, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
    """See ``History.held_places``."""
    return _places(connection, _q_held_places, {"repo": repo, "scheme": scheme.value, "ids": Byteas(object_ids)})


def _places(connection: Connection, query: str, arguments: dict[str, object]) -> dict[bytes, Place]:
    return {
        bytes(object_id): Place(bytes(object_id), size, None if pack_id is None else bytes(pack_id), offset, pending)
        for object_id, size, pack_id, offset, pending in connection.execute(query, arguments)
    }

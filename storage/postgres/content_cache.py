"""Contents of pending blobs: what a small push brought, until it is in the object store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.content_cache import CachedContent
from storage.index import READ_BYTES
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.collection_meeting import Recorder, hold_lease, meet_marks
from storage.postgres.database import Connection, one_statement
from storage.rows import StoredBlob
from wire.ids import Scheme

# Sizes are those of the rows: nobody reads a large content to see whether it fits.
_q_contents = f"""
    SELECT c.blob_id, c.content
    FROM (
        SELECT w.id, sum(octet_length(f.content)) OVER (ORDER BY w.at) - octet_length(f.content) AS before
        FROM unnest(%(ids)b) WITH ORDINALITY AS w (id, at)
        CROSS JOIN LATERAL (SELECT content FROM content_cache
                            WHERE blob_id = w.id AND scheme = %(scheme)s OFFSET 0) AS f
    ) AS wanted
    CROSS JOIN LATERAL (SELECT blob_id, content FROM content_cache
                        WHERE blob_id = wanted.id AND scheme = %(scheme)s OFFSET 0) AS c
    WHERE wanted.before < {READ_BYTES}
"""
_q_oldest = f"""
    SELECT entry, scheme, blob_id, content
    FROM (
        SELECT entry, scheme, blob_id, content,
               sum(octet_length(content)) OVER (ORDER BY entry) - octet_length(content) AS before
        FROM (SELECT * FROM content_cache WHERE entry > %(after)s ORDER BY entry LIMIT %(most)s) AS next
    ) AS counted
    WHERE before < {READ_BYTES} ORDER BY entry
"""
_q_entries = """
    SELECT scheme, blob_id, octet_length(content) FROM content_cache WHERE entry = ANY (%(entries)b) ORDER BY 1, 2
"""
_q_lock = """
    SELECT b.blob_id FROM content_cache c
    JOIN blobs b ON b.blob_id = c.blob_id AND b.scheme = c.scheme
    WHERE c.entry = ANY (%(entries)b) ORDER BY b.blob_id FOR NO KEY UPDATE OF b
"""
"""Blobs are locked in the order in which pushes record them, and before their contents, as by whoever deletes them."""
_q_promote = """
    WITH gone AS (DELETE FROM content_cache WHERE entry = ANY (%(entries)b) RETURNING blob_id, scheme)
    UPDATE blobs b SET pending = false FROM gone WHERE b.blob_id = gone.blob_id AND b.scheme = gone.scheme
"""
_q_count = "SELECT count(*), coalesce(sum(octet_length(content)), 0) FROM content_cache"


@one_statement
def cached_contents(connection: Connection, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``ContentCache.cached_contents``."""
    arguments = {"scheme": scheme.value, "ids": Byteas(object_ids)}
    return dict(connection.execute(_q_contents, arguments, binary=True).fetchall())


@one_statement
def oldest_cached(connection: Connection, after: int, most: int) -> list[CachedContent]:
    """See ``ContentCache.oldest_cached``."""
    rows = connection.execute(_q_oldest, {"after": after, "most": most}, binary=True)
    return [CachedContent(entry, Scheme(scheme), blob_id, content) for entry, scheme, blob_id, content in rows]


def promote_cached(connection: Connection, entries: Sequence[int], lease: uuid.UUID | None = None) -> int:
    """See ``ContentCache.promote_cached``."""
    arguments = {"entries": Int8s(entries)}
    if lease is not None:
        hold_lease(connection, lease)
    blobs: dict[Scheme, list[StoredBlob]] = {}
    for scheme, object_id, size in connection.execute(_q_entries, arguments, binary=True):
        blobs.setdefault(Scheme(scheme), []).append(StoredBlob(object_id, size))
    for of_scheme, stored in blobs.items():
        meet_marks(connection, of_scheme, [], stored, Recorder(lease=lease), moved=True)
    connection.execute(_q_lock, arguments)
    return connection.execute(_q_promote, arguments).rowcount


@one_statement
def count_cached(connection: Connection) -> tuple[int, int]:
    """See ``ContentCache.count_cached``."""
    count, size = connection.execute(_q_count).fetchone() or (0, 0)
    return count, int(size)

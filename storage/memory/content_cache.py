"""Contents of pending blobs, in dictionaries."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

from storage.content_cache import CachedContent
from storage.index import READ_BYTES
from storage.memory.collection_marks import lease_begun, meet_marks
from storage.memory.tables import Tables
from storage.rows import StoredBlob
from wire.ids import Scheme


def store_row(tables: Tables, scheme: Scheme, blob: StoredBlob) -> None:
    """Record where a blob is, and its content if it waits for its place; one that is known stays where it is."""
    if (scheme, blob.object_id) in tables.blobs:
        return
    tables.blobs[scheme, blob.object_id] = replace(blob, content=None)
    if blob.content is not None:
        tables.cached[scheme, blob.object_id] = CachedContent(
            tables.next_number(), scheme, blob.object_id, blob.content
        )


def cached_contents(tables: Tables, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``ContentCache.cached_contents``."""
    found = [tables.cached[scheme, i] for i in dict.fromkeys(object_ids) if (scheme, i) in tables.cached]
    return {cached.object_id: cached.content for cached in _that_fit(found)}


def oldest_cached(tables: Tables, after: int, most: int) -> list[CachedContent]:
    """See ``ContentCache.oldest_cached``."""
    later = sorted((c for c in tables.cached.values() if c.entry > after), key=lambda cached: cached.entry)
    return _that_fit(later[:most])


def promote_cached(tables: Tables, entries: Sequence[int], lease: uuid.UUID | None) -> int:
    """See ``ContentCache.promote_cached``."""
    wanted = set(entries)
    promoted = [key for key, cached in tables.cached.items() if cached.entry in wanted]
    begun = 0 if lease is None else lease_begun(tables, lease)
    for scheme in Scheme:
        meet_marks(tables, scheme, [tables.blobs[key] for key in promoted if key[0] is scheme], begun, moved=True)
    for key in promoted:
        del tables.cached[key]
    return len(promoted)


def _that_fit(found: Iterable[CachedContent]) -> list[CachedContent]:
    before, fit = 0, []
    for cached in found:
        if before < READ_BYTES:
            fit.append(cached)
        before += len(cached.content)
    return fit

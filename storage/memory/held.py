"""Blobs a repository holds before a push names them, in dictionaries; see ``storage.postgres.held``."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from storage.memory.content_cache import store_row
from storage.memory.tables import PushEntry, Tables
from storage.rows import HELD_S, PushState, StoredBlob
from wire.ids import Scheme


def stored_blobs(
    tables: Tables, repo: int, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime,
    push: tuple[uuid.UUID, str] | None,
) -> set[bytes]:  # fmt: skip
    """See ``Holdings.stored_blobs``."""
    pushes = tables.pushes_of(repo)
    for entry in tables.pushes.values():
        if entry.repo == repo and (entry.record.push_id, entry.record.handle) == push:
            pushes += [entry] if entry.record.state is PushState.OPEN else []
    there = {i for i in object_ids if any(i in entry.blobs for entry in pushes)}
    held = {i for i in object_ids if i not in there and _is_held(tables, repo, scheme, i, now)}
    for object_id in held:
        if tables.held_blobs[repo, scheme, object_id] < now + dt.timedelta(seconds=HELD_S / 2):
            tables.held_blobs[repo, scheme, object_id] = now + dt.timedelta(seconds=HELD_S)
    return there | held


def hold_blobs(tables: Tables, repo: int, scheme: Scheme, blobs: Sequence[StoredBlob], expires: dt.datetime) -> None:
    """See ``Holdings.hold_blobs``."""
    for blob in blobs:
        store_row(tables, scheme, blob)
        key = repo, scheme, blob.object_id
        tables.held_blobs[key] = max(expires, tables.held_blobs.get(key, expires))


def claim_blobs(
    tables: Tables, entry: PushEntry, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
) -> set[bytes]:
    """See ``Holdings.claim_blobs``."""
    there = [*tables.pushes_of(entry.repo), entry]
    claimed = {
        i
        for i in object_ids
        if _is_held(tables, entry.repo, scheme, i, now) and not any(i in push.blobs for push in there)
    }
    entry.blobs |= claimed
    return claimed


def forget_held(tables: Tables, now: dt.datetime, most: int) -> int:
    """See ``Holdings.forget_held``."""
    expired = [key for key, until in tables.held_blobs.items() if until <= now][:most]
    for repo, scheme, object_id in expired:
        del tables.held_blobs[repo, scheme, object_id]
        tables.collection.suspect((scheme, object_id), loose=False)
    return len(expired)


def _is_held(tables: Tables, repo: int, scheme: Scheme, object_id: bytes, now: dt.datetime) -> bool:
    until = tables.held_blobs.get((repo, scheme, object_id))
    return until is not None and until > now

"""Walking through a listing of the store that may be left before its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from storage.object_store import ObjectStore, StoredObject


@asynccontextmanager
async def listed(store: ObjectStore, prefix: str) -> AsyncIterator[AsyncIterator[StoredObject]]:
    """List keys under a prefix; the listing is closed with the block."""
    found = store.scan(prefix)
    try:
        yield found
    finally:
        if isinstance(found, AsyncGenerator):
            await found.aclose()

"""The part of the ``Index`` port that keeps contents of small pushes until they are in the object store.

* A blob recorded with its content (``StoredBlob.content``) is *pending*: its row says so, and its content is durable
  in the index by the transaction that recorded it. A blob that was there before stays where it was.
* A pending blob is read from here, whole. Once it is promoted it is read from its place in the store and never
  becomes pending again; whoever finds no content here looks its place up anew (see ``storage.contents``).
* Promotion is: put the content into the store, durably; then one transaction takes the content out of here and lets
  the row say where it is. If the process dies between the two, the content is put again, to the same key.
* A content goes with its blob's row: nothing here outlives what it is the content of.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wire.ids import Scheme


@dataclass(frozen=True, slots=True)
class CachedContent:
    """A content that waits to be promoted."""

    entry: int
    """Its number, in the order contents came; the same blob has another one when it comes again."""
    scheme: Scheme
    object_id: bytes
    content: bytes


class ContentCache(Protocol):
    """Contents of pending blobs."""

    async def cached_contents(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Give contents of pending blobs, the first ones asked for that fit into ``READ_BYTES``, one at least.

        Nothing is said about rights: whoever asks has found the blobs' places by them.
        """

    async def oldest_cached(self, after: int, most: int) -> list[CachedContent]:
        """Give up to ``most`` contents with numbers above ``after``, in order, that fit into ``READ_BYTES``."""

    async def promote_cached(self, entries: Sequence[int], lease: uuid.UUID | None = None) -> int:
        """Let pending blobs be loose objects, whose contents are durable in the store by now; gives how many were.

        They were put there by somebody who had taken that lease. Entries that are gone are none; a content that came
        again meanwhile stays.

        Raises:
            LeaseLost, Tombstoned: what was put may have been collected; nothing was promoted.
        """

    async def count_cached(self) -> tuple[int, int]:
        """Count contents that wait, and their bytes."""

"""Contents of a small push, kept in memory until it is known to be small: then they go into the index with its rows.

The limits of protocol §12 decide: no object above ``content_cache_object_bytes``, all of them together no more than
``content_cache_push_bytes``. The push that exceeds one has what was kept put into the store, and goes on as all others
do. So does one that is cut: nobody knows what was to come.

What all pushes of a daemon keep has a bound of its own. Nobody waits for it: where there is no room, the store is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from storage.rows import StoredBlob
from wire.limits import KIB, MIB, Limits

KEPT_IN_ALL_BYTES = 32 * MIB
"""For all pushes of a daemon together."""
KEPT_OBJECTS = 1_000
"""Of one push: each is a row of its own, and takes a kilobyte besides its content while it waits."""
ROWS_BYTES = 512 * KIB
"""Contents of one transaction: some 10 ms in the index."""
_OBJECT_BYTES = 1024


class KeptRoom:
    """How much the pushes of a daemon may keep together."""

    def __init__(self, total: int = KEPT_IN_ALL_BYTES) -> None:
        self._free = total

    def take(self, size: int) -> bool:
        """Take room if there is any."""
        if size > self._free:
            return False
        self._free -= size
        return True

    def give(self, size: int) -> None:
        """Give room back."""
        self._free += size

    @property
    def free(self) -> int:
        """How much is left, in bytes."""
        return self._free


class KeptContents:
    """What one push keeps; used as an async context manager that gives the room back."""

    def __init__(self, room: KeptRoom, limits: Limits) -> None:
        self._room = room
        self._limits = limits
        self._kept: dict[bytes, bytes] = {}
        self._bytes = self._taken = 0
        self._small = limits.content_cache_object_bytes > 0
        self.given = False
        """Whether contents have gone into the index."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.spill()

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self._kept

    def get(self, object_id: bytes) -> bytes | None:
        """Give a content that is kept."""
        return self._kept.get(object_id)

    def keep(self, blobs: Mapping[bytes, bytes | Path]) -> bool:
        """Keep contents, by id, if the push is small with them; gives whether they are kept."""
        if not self._small:
            return False
        new = {object_id: content for object_id, content in blobs.items() if object_id not in self._kept}
        contents = {object_id: content for object_id, content in new.items() if isinstance(content, bytes)}
        size = sum(map(len, contents.values()))
        cost = size + _OBJECT_BYTES * len(contents)
        limits = self._limits
        self._small = (
            len(contents) == len(new)
            and all(len(content) <= limits.content_cache_object_bytes for content in contents.values())
            and self._bytes + size <= limits.content_cache_push_bytes
            and len(self._kept) + len(contents) <= KEPT_OBJECTS
            and self._room.take(cost)
        )
        if not self._small:
            return False
        self._kept.update(contents)
        self._bytes += size
        self._taken += cost
        return True

    def spill(self) -> dict[bytes, bytes]:
        """Take everything out; nothing is kept from now on."""
        kept, self._kept = self._kept, {}
        self._room.give(self._taken)
        self._bytes = self._taken = 0
        self._small = False
        return kept

    def contents(self) -> Mapping[bytes, bytes]:
        """Give what has gone into the index, by id."""
        return self._kept if self.given else {}

    def rows(self, most: int, most_bytes: int) -> Iterator[list[StoredBlob]]:
        """Give rows that take the contents into the index, some at a time, when the push is known to be small."""
        part: list[StoredBlob] = []
        size = 0
        for object_id, content in self._kept.items():
            if part and (len(part) >= most or size + len(content) > most_bytes):
                yield part
                part, size = [], 0
            part.append(StoredBlob(object_id, len(content), content=content))
            size += len(content)
        if part:
            self.given = True
            yield part

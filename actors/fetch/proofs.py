"""Large contents that are given in parts, as ranges ask for them: nothing leaves that was not held against its id.

The hash of a whole says nothing about a part. So a content is read once to its end, and while that is hashed a digest
of each piece is kept; it is worth something only when the whole was right. From then on every piece is held against
its digest before it leaves. Digests are a cache of one daemon, 32 bytes for 256 KiB.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from storage.errors import ObjectDamaged
from storage.object_store import ObjectStore, ReadRange

CHUNK_BYTES = 256 * 1024
KEPT_BYTES = 8 * 1024 * 1024
"""Of digests: of 64 GiB."""
_DIGEST_BYTES = 32


class Check(Protocol):
    """What a whole content is held against."""

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""

    def matches(self) -> bool:
        """Tell whether it was the right content."""


class ChunkDigests:
    """The digests of a content that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._hasher = hashlib.sha256()
        self._held = 0

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(piece)
        while view:
            part = view[: CHUNK_BYTES - self._held]
            self._hasher.update(part)
            self._held += len(part)
            view = view[len(part) :]
            if self._held == CHUNK_BYTES:
                self._end()

    def finish(self) -> bytes:
        """Give all digests, one after the other."""
        if self._held:
            self._end()
        return bytes(self._digests)

    def _end(self) -> None:
        self._digests += self._hasher.digest()
        self._hasher, self._held = hashlib.sha256(), 0


class Proofs:
    """What one daemon knows of contents that it has read, or written, whole."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[ReadRange, bytes] = OrderedDict()
        self._held_bytes = 0
        self._turns: WeakValueDictionary[ReadRange, trio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def known(self, where: ReadRange | None) -> bool:
        """Tell whether a content has been proved here; nothing is none."""
        return where in self._kept

    def note(self, where: ReadRange, digests: bytes) -> None:
        """Keep the digests of a content that was right."""
        self.forget(where)
        self._kept[where] = digests
        self._held_bytes += len(digests)
        while self._held_bytes > self._kept_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._held_bytes -= len(dropped)

    def forget(self, where: ReadRange) -> None:
        """Drop what is known of a content."""
        self._held_bytes -= len(self._kept.pop(where, b""))

    async def prove(self, store: ObjectStore, where: ReadRange, check: Check) -> bytes:
        """Read a content to its end, unless that has been done; gives its digests for :meth:`pieces`.

        Raises:
            ObjectDamaged, ObjectMissing: it is not what it should be.
        """
        if where in self._kept:
            return self._kept[where]
        async with self._turns.setdefault(where, trio.Lock()):  # one reads it for all who want it
            if where in self._kept:
                return self._kept[where]
            digests = ChunkDigests()
            async with store.stream(where.key, where.offset, where.size) as pieces:
                async for piece in pieces:
                    check.update(piece)
                    digests.update(piece)
            if not check.matches():
                raise ObjectDamaged(f"what lies at {where.key} does not hash to its id")
            proved = digests.finish()
            self.note(where, proved)
            return proved

    async def pieces(
        self, store: ObjectStore, where: ReadRange, digests: bytes, start: int, length: int
    ) -> AsyncGenerator[bytes, None]:
        """Give a part of a content that has been proved, each piece held against its digest before it is given.

        Raises:
            ObjectDamaged, ObjectMissing: it is not what it was.
        """
        if where in self._kept:
            self._kept.move_to_end(where)
        end = start + length
        at = start - start % CHUNK_BYTES
        size = min(end + -end % CHUNK_BYTES, where.size) - at
        async with aclosing(_chunks(store, ReadRange(where.key, where.offset + at, size))) as chunks:
            async for chunk in chunks:
                number = at // CHUNK_BYTES * _DIGEST_BYTES
                if hashlib.sha256(chunk).digest() != digests[number : number + _DIGEST_BYTES]:
                    self.forget(where)
                    raise ObjectDamaged(f"what lies at {where.key} is not what it was")
                yield chunk[max(start - at, 0) : end - at]
                at += len(chunk)


async def _chunks(store: ObjectStore, where: ReadRange) -> AsyncGenerator[bytes, None]:
    """Read in pieces of :data:`CHUNK_BYTES`, but for the last."""
    waiting = b""
    async with store.stream(where.key, where.offset, where.size) as pieces:
        async for piece in pieces:
            waiting = waiting + piece if waiting else piece
            while len(waiting) >= CHUNK_BYTES:
                yield waiting[:CHUNK_BYTES]
                waiting = waiting[CHUNK_BYTES:]
    if waiting:
        yield waiting

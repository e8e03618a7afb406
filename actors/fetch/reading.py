"""Reading stored blobs: neighbouring ones at once, every byte proved before the last one is handed on.

What is missing, unreadable or not what its id says is read from another copy where there is one, and mended on the way
(see ``actors.repair``); else it is an error that names it, never left out (fault F3, regression R8).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import trio

from actors.repair.copies import other_copies
from actors.repair.reading import RepairServices
from storage.contents import read_contents, settled_place
from storage.errors import ObjectDamaged, ObjectMended, ObjectMissing, ObjectUnreadable
from storage.layout import Place
from wire.ids import Kind, Scheme, hash_bytes, hasher_for

READ_OBJECTS = 512
READ_BYTES = 4 * 1024 * 1024
STREAMED_FROM_BYTES = 4 * 1024 * 1024
"""Blobs of at least this size are read piece by piece."""
PROVED_BYTES = 256 * 1024 * 1024
"""Blobs up to this size may be read whole and proved before their first byte goes out."""


async def small_blobs(
    services: RepairServices, scheme: Scheme, places: Iterable[Place]
) -> AsyncGenerator[list[tuple[Place, bytes]] | Place, None]:
    """Give batches of whole, proved blobs in the order of ``places``; a large one comes as its place, to be streamed.

    Raises:
        ObjectDamaged: a blob is not what it should be, and there is no other copy; the message names it.
        StoreUnavailable: the store does not answer now.
    """
    batch: list[Place] = []
    size = 0
    for place in places:
        large = place.size >= STREAMED_FROM_BYTES
        if batch and (large or len(batch) >= READ_OBJECTS or size + place.size > READ_BYTES):
            yield await _read(services, scheme, batch)
            batch, size = [], 0
        if large:
            yield place
        else:
            batch.append(place)
            size += place.size
    if batch:
        yield await _read(services, scheme, batch)


async def small_blob(services: RepairServices, scheme: Scheme, place: Place) -> bytes:
    """Give one proved blob whole; the caller knows that it is not too large. Raises as :func:`small_blobs`."""
    ((_, content),) = await _read(services, scheme, [place])
    return content


async def large_blob(services: RepairServices, scheme: Scheme, place: Place) -> AsyncGenerator[bytes, None]:
    """Give a blob piece by piece; the last piece comes when the whole is proved.

    Raises:
        ObjectDamaged: it does not hash to its id, and there is no other copy.
        ObjectMended: it did not, and another copy has taken its place: begin again.
        StoreUnavailable: the store does not answer now.
    """
    try:
        async with aclosing(_pieces(services, scheme, place)) as pieces:
            async for piece in pieces:
                yield piece
    except (ObjectMissing, ObjectDamaged, ObjectUnreadable) as error:
        await _mended(services, scheme, [place], error)
        raise ObjectMended(f"object {place.object_id.hex()} was damaged and has been mended") from error


async def proved_place(services: RepairServices, scheme: Scheme, place: Place) -> Place:
    """Read a blob to its end and give where it is sound: there, or where another copy is.

    For what has to be right from its first byte on. Larger blobs than :data:`PROVED_BYTES` are not read. Raises as
    :func:`small_blobs`.
    """
    if place.size > PROVED_BYTES:
        return place
    try:
        async with aclosing(_pieces(services, scheme, place)) as pieces:
            async for _ in pieces:
                pass
    except (ObjectMissing, ObjectDamaged, ObjectUnreadable) as error:
        return (await _mended(services, scheme, [place], error))[place.object_id]
    return place


async def sound_place(services: RepairServices, scheme: Scheme, place: Place) -> Place:
    """Give where another copy of a blob is than the place where it was not right; raises as :func:`small_blobs`."""
    return (await _mended(services, scheme, [place], None))[place.object_id]


class BlobCheck:
    """Holds a content that arrives in pieces against the blob's id and length."""

    def __init__(self, place: Place, scheme: Scheme) -> None:
        self._place = place
        self._hasher = hasher_for(Kind.BLOB, place.size, scheme)

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._hasher.update(piece)

    def matches(self) -> bool:
        """Tell whether it was the blob."""
        return self._hasher.digest() == self._place.object_id


async def found_place(services: RepairServices, scheme: Scheme, object_id: bytes) -> Place:
    """Give where a blob is that the index names no place for; raises as :func:`small_blobs`."""
    found = (await other_copies(services, scheme, {object_id: None})).get(object_id)
    if found is None:
        raise damaged(object_id)
    return found


async def _pieces(services: RepairServices, scheme: Scheme, place: Place) -> AsyncGenerator[bytes, None]:
    place, whole = await settled_place(services.index, scheme, place)
    hasher = hasher_for(Kind.BLOB, place.size, scheme)
    held = b"" if whole is None else whole
    hasher.update(held)
    if whole is None:
        async with services.store.stream(place.key(scheme), place.offset, place.size) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                if held:
                    yield held
                held = piece
    if hasher.digest() != place.object_id:
        raise damaged(place.object_id)
    yield held


async def _read(services: RepairServices, scheme: Scheme, batch: list[Place]) -> list[tuple[Place, bytes]]:
    """Read a batch: all at once, and what was not right then one by one from where it is by now."""
    try:
        contents = await read_contents(services.index, services.store, scheme, batch)
    except (ObjectMissing, ObjectDamaged, ObjectUnreadable):
        found = [await _one(services, scheme, place) for place in batch]
    else:
        found = await trio.to_thread.run_sync(_proved, batch, contents, scheme)
    bad = [place for place, content in zip(batch, found, strict=True) if content is None]
    mended = await _mended(services, scheme, bad, None) if bad else {}
    result: list[tuple[Place, bytes]] = []
    for place, content in zip(batch, found, strict=True):
        again = await _one(services, scheme, mended[place.object_id]) if content is None else content
        if again is None:
            raise damaged(place.object_id)
        result.append((place, again))
    return result


async def _one(services: RepairServices, scheme: Scheme, place: Place) -> bytes | None:
    """Read one blob; ``None`` when it is missing, unreadable or another one."""
    try:
        contents = await read_contents(services.index, services.store, scheme, [place])
    except (ObjectMissing, ObjectDamaged, ObjectUnreadable):
        return None
    return (await trio.to_thread.run_sync(_proved, [place], contents, scheme))[0]


def _proved(batch: Sequence[Place], contents: Sequence[bytes], scheme: Scheme) -> list[bytes | None]:
    """Put ``None`` for what is not what its id says; CPU-bound."""
    found: list[bytes | None] = []
    for place, content in zip(batch, contents, strict=True):
        right = len(content) == place.size and hash_bytes(Kind.BLOB, content, scheme) == place.object_id
        found.append(content if right else None)
    return found


async def _mended(
    services: RepairServices, scheme: Scheme, bad: Sequence[Place], error: Exception | None
) -> dict[bytes, Place]:
    """Give where other copies are; raises for a blob without one."""
    found = await other_copies(services, scheme, {place.object_id: place for place in bad})
    for place in bad:
        if place.object_id not in found:
            raise damaged(place.object_id) from error
    return found


def damaged(object_id: bytes) -> ObjectDamaged:
    """Name a blob that is not what it should be."""
    return ObjectDamaged(f"object {object_id.hex()} is missing or does not hash to its id, and there is no other copy")

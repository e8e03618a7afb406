"""Reading stored blobs in bulk: neighbouring ones at once, every byte proved before the last one is handed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

import trio

from storage.contents import Places, read_contents
from storage.errors import ObjectDamaged
from storage.layout import Place
from storage.object_store import ObjectStore
from wire.ids import Kind, Scheme, hash_bytes, hasher_for

READ_OBJECTS = 512
READ_BYTES = 4 * 1024 * 1024
STREAMED_FROM_BYTES = 4 * 1024 * 1024
"""Blobs of at least this size are read piece by piece."""


async def small_blobs(
    index: Places, store: ObjectStore, scheme: Scheme, places: Iterable[Place]
) -> AsyncGenerator[list[tuple[Place, bytes]] | Place, None]:
    """Give batches of whole, proved blobs in the order of ``places``; a large one comes as its place, to be streamed.

    Raises:
        ObjectDamaged, ObjectMissing: a blob is not what it should be; the message names it.
    """
    batch: list[Place] = []
    size = 0
    for place in places:
        large = place.size >= STREAMED_FROM_BYTES
        if batch and (large or len(batch) >= READ_OBJECTS or size + place.size > READ_BYTES):
            yield await _read(index, store, scheme, batch)
            batch, size = [], 0
        if large:
            yield place
        else:
            batch.append(place)
            size += place.size
    if batch:
        yield await _read(index, store, scheme, batch)


async def large_blob(store: ObjectStore, scheme: Scheme, place: Place) -> AsyncGenerator[bytes, None]:
    """Give a blob piece by piece; the last piece comes when the whole is proved.

    Raises:
        ObjectDamaged: it does not hash to its id.
    """
    hasher = hasher_for(Kind.BLOB, place.size, scheme)
    held = b""
    async with store.stream(place.key(scheme), place.offset, place.size) as pieces:
        async for piece in pieces:
            hasher.update(piece)
            if held:
                yield held
            held = piece
    if hasher.digest() != place.object_id:
        raise _damaged(place)
    yield held


async def _read(index: Places, store: ObjectStore, scheme: Scheme, batch: list[Place]) -> list[tuple[Place, bytes]]:
    contents = await read_contents(index, store, scheme, batch)

    def proved() -> list[tuple[Place, bytes]]:
        for place, content in zip(batch, contents, strict=True):
            if len(content) != place.size or hash_bytes(Kind.BLOB, content, scheme) != place.object_id:
                raise _damaged(place)
        return list(zip(batch, contents, strict=True))

    return await trio.to_thread.run_sync(proved)


def _damaged(place: Place) -> ObjectDamaged:
    return ObjectDamaged(f"object {place.object_id.hex()} does not hash to its id")

"""Which objects a stored pack holds, and where, by the heads of its records alone: no content is looked at or hashed.

The pack was proved when it was pushed. Heads of small objects lie close together, so they are read by the window, one
request for 8 MiB; what is larger than a window's worth is stepped over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from storage.errors import ObjectDamaged
from storage.object_store import ObjectStore, ReadRange
from wire.errors import Refusal
from wire.limits import KIB, MIB, Limits
from wire.mpack import HEAD_MOST_BYTES, Section, find_section
from wire.pack import (
    FOOTER_BYTES,
    PACK_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    IndexEntry,
    read_record_header,
)

_WINDOW_BYTES = 8 * MIB
_SHORT_BYTES = 64 * KIB
"""What is read at first, and behind an object that was stepped over."""
_STEP_BYTES = MIB
"""An object that reaches so far beyond the window is stepped over: the next one may be as large."""
_ID_PREFIX = b"sha256:"


async def pack_heads(store: ObjectStore, key: str, limits: Limits) -> AsyncGenerator[list[IndexEntry], None]:
    """Give where every content of a pack file, or of an mpack's OBJECTS section, lies in the file, some at a time.

    Raises:
        ObjectMissing: there is no such file. ObjectDamaged: it is not a pack, or is cut.
    """
    length = await store.size(key)
    start, block = 0, await _read(store, key, 0, min(_SHORT_BYTES, length))
    try:
        at, end = _objects(block, length)
        header = block[at : at + PACK_HEADER_BYTES]
        if len(header) < PACK_HEADER_BYTES:
            header = await _read(store, key, at, min(PACK_HEADER_BYTES, end - at))
        count = int.from_bytes(header[5:], "little")
        at += PACK_HEADER_BYTES
        while count:
            if at + RECORD_HEADER_BYTES > end:
                raise ObjectDamaged(f"{key} ends before its last object")
            if not start <= at <= start + len(block) - RECORD_HEADER_BYTES:
                far = at - (start + len(block)) > _STEP_BYTES
                start, block = at, await _read(store, key, at, min(_SHORT_BYTES if far else _WINDOW_BYTES, end - at))
            entries, at = await trio.to_thread.run_sync(_heads, block, start, at, count, limits)
            count -= len(entries)
            yield entries
    except Refusal as refusal:
        raise ObjectDamaged(f"{key} is no pack: {refusal.detail}") from None
    if at != end:
        raise ObjectDamaged(f"{key} has bytes between its last object and its end")


async def _read(store: ObjectStore, key: str, offset: int, size: int) -> bytes:
    (block,) = await store.get_ranges([ReadRange(key, offset, size)])
    return block


def _objects(head: bytes, length: int) -> tuple[int, int]:
    """Tell a pack from an mpack, and give where its objects begin and where they end.

    What stands behind a pack's header is an id; in an mpack it would be part of an offset no file has.
    """
    first = head[PACK_HEADER_BYTES : PACK_HEADER_BYTES + len(_ID_PREFIX)]
    if first == _ID_PREFIX or length == PACK_HEADER_BYTES + FOOTER_BYTES:
        return 0, length - FOOTER_BYTES
    section = find_section(head[:HEAD_MOST_BYTES], Section.OBJECTS)
    if section is None or section[0] + section[1] > length:
        raise ObjectDamaged("an mpack without objects, or one that is cut")
    return section[0], section[0] + section[1] - FOOTER_BYTES


def _heads(block: bytes, start: int, at: int, most: int, limits: Limits) -> tuple[list[IndexEntry], int]:
    """Walk the heads that lie whole in a block; gives where the next one begins; for worker threads."""
    entries: list[IndexEntry] = []
    last = start + len(block) - RECORD_HEADER_BYTES
    view = memoryview(block)
    while at <= last and len(entries) < most:
        begin = read_record_header(
            view[at - start : at - start + RECORD_HEADER_BYTES], at + RECORD_HEADER_BYTES, limits
        )
        entries.append(IndexEntry(begin.object_id, begin.offset, begin.size))
        at = begin.offset + begin.size
    return entries, at

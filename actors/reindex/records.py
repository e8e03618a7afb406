"""Commits and snapshots in canonical form, read from the object store alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import trio

from storage.errors import ObjectDamaged, ObjectMissing
from storage.object_store import ObjectStore, StoredObject
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.frames import Record
from wire.ids import Kind
from wire.limits import Limits
from wire.pack import FOOTER_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, pack_header, read_record_header

_PLURALS = {Kind.COMMIT: "commits", Kind.TAG: "tags"}
_SEARCHES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One record of a pack."""

    record_id: bytes
    canonical: bytes

    def parsed(self) -> tuple[Kind, dict[str, object]]:
        """Read it; raises ``ObjectDamaged`` when that cannot be."""
        try:
            return parse_canonical(self.canonical)
        except Refusal as refusal:
            raise ObjectDamaged(f"record {self.record_id.hex()}: {refusal.detail}") from refusal

    def as_sent(self) -> Record:
        """Give it as a push brings it."""
        kind, record = self.parsed()
        plural = _PLURALS.get(kind) or ("snapshots" if "manifest" in record else "snapshot_deltas")
        return Record(plural, record, len(self.canonical))


async def pack_records(store: ObjectStore, key: str, limits: Limits) -> AsyncGenerator[StoredRecord, None]:
    """Give the records of a pack in order, each as a whole.

    Raises:
        ObjectMissing, ObjectDamaged: it is not there, or not what its key says; what was given before is whole all the
            same only when the end was reached.
    """
    try:
        async with store.stream(key) as pieces, aclosing(_records(pieces, key, limits)) as records:
            async for record in records:
                yield record
    except Refusal as refusal:
        raise ObjectDamaged(f"{key}: {refusal.detail}") from refusal


async def _records(pieces: AsyncIterator[bytes], key: str, limits: Limits) -> AsyncGenerator[StoredRecord, None]:
    waiting, at, left = bytearray(), PACK_HEADER_BYTES, -1
    async for piece in pieces:
        waiting += piece
        if left < 0 and len(waiting) >= PACK_HEADER_BYTES:
            if waiting[:5] != pack_header(0)[:5]:
                raise ObjectDamaged(f"{key} is no pack")
            left = int.from_bytes(waiting[5:PACK_HEADER_BYTES], "little")
        while left > 0 and len(waiting) >= at + RECORD_HEADER_BYTES:
            begun = read_record_header(bytes(waiting[at : at + RECORD_HEADER_BYTES]), 0, limits)
            end = at + RECORD_HEADER_BYTES + begun.size
            if len(waiting) < end:
                break
            yield StoredRecord(begun.object_id, bytes(waiting[at + RECORD_HEADER_BYTES : end]))
            at, left = end, left - 1
        del waiting[: at if left >= 0 else 0]
        at = 0 if left >= 0 else at
    if left != 0 or len(waiting) != FOOTER_BYTES:
        raise ObjectDamaged(f"{key} is cut or padded")


async def find_record(store: ObjectStore, kind: Kind, record_id: bytes, limits: Limits) -> bytes:
    """Read a commit or snapshot by its id, from the object store alone: looks through all record packs.

    The snapshot may be stored as changes to another one (``parent_snapshot_id``), which is found the same way.

    Raises:
        ObjectMissing: no pack has it.
    """
    found: list[bytes] = []
    keys = trio.open_memory_channel[str](0)

    async def look(receive: trio.MemoryReceiveChannel[str], scope: trio.CancelScope) -> None:
        async with receive:
            async for key in receive:
                async with aclosing(pack_records(store, key, limits)) as records:
                    async for record in records:
                        if record.record_id == record_id and record.canonical.startswith(kind.value.encode() + b" "):
                            found.append(record.canonical)
                            scope.cancel()
                            return

    async with trio.open_nursery() as nursery:
        send, receive = keys
        async with receive, send:
            for _ in range(_SEARCHES_AT_ONCE):
                nursery.start_soon(look, receive.clone(), nursery.cancel_scope)
            async with aclosing(cast("AsyncGenerator[StoredObject, None]", store.scan("records"))) as listed:
                async for stored in listed:
                    await send.send(stored.key)
    if not found:
        raise ObjectMissing(f"{kind.value} {record_id.hex()} is in no record pack")
    return found[0]

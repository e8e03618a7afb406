"""Which records of a damaged record pack are damaged: the bytes of each against its own id.

A commit's id covers what it is made of, and so does a snapshot's, whole or as changes to a base that the index has.
What no id covers — notes, metadata, the pack's own lengths — is only covered by the hash of the pack.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import trio

from actors.manifests import ManifestCache
from storage.errors import ObjectDamaged
from storage.index import Index
from storage.object_store import ObjectStore
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.ids import Kind, Scheme, parse_any_id
from wire.limits import Limits
from wire.manifest import empty as empty_manifest
from wire.opaque import is_opaque
from wire.pack import FOOTER_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, pack_header
from wire.records import Snapshot, parse_commit, parse_snapshot_either

RECORD_MOST = 64 * 1024 * 1024
"""A larger record is not looked into."""
_ID_TEXT_BYTES = RECORD_HEADER_BYTES - 8
_MANY = 2**40


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A record that is not what its id says; without an id, where the pack stops making sense."""

    record_id: bytes | None
    detail: str


async def damaged_records(
    index: Index, store: ObjectStore, key: str, limits: Limits
) -> AsyncGenerator[DamagedRecord, None]:
    """Read a record pack record by record and give those that are damaged."""
    size = await store.size(key)
    head = await _read(store, key, 0, PACK_HEADER_BYTES, size)
    count = int.from_bytes(head[5:], "little")
    if head[:5] != pack_header(0)[:5] or count > _MANY:
        yield DamagedRecord(None, "the pack's head is damaged")
        return
    at = PACK_HEADER_BYTES
    for _ in range(count):
        header = await _read(store, key, at, RECORD_HEADER_BYTES, size)
        record_id, length = _header_of(header)
        at += RECORD_HEADER_BYTES
        if record_id is None or at + length + FOOTER_BYTES > size:
            yield DamagedRecord(record_id, f"the record's head at {at - RECORD_HEADER_BYTES} is damaged")
            return
        if length <= RECORD_MOST:
            body = await _read(store, key, at, length, size)
            problem = await _problem(index, record_id, body, limits)
            if problem is not None:
                yield DamagedRecord(record_id, problem)
        at += length


async def _read(store: ObjectStore, key: str, offset: int, length: int, size: int) -> bytes:
    length = max(min(length, size - offset), 0)
    parts = []
    async with store.stream(key, offset, length) as pieces:
        async for piece in pieces:
            parts.append(piece)  # noqa: PERF401 - some megabytes at most
    return b"".join(parts)


def _header_of(header: bytes) -> tuple[bytes | None, int]:
    try:
        _, record_id = parse_any_id(header[:_ID_TEXT_BYTES].decode("ascii"))
    except (UnicodeDecodeError, Refusal):
        return None, 0
    return record_id, int.from_bytes(header[_ID_TEXT_BYTES:], "little")


async def _problem(index: Index, record_id: bytes, body: bytes, limits: Limits) -> str | None:
    try:
        kind, record = await trio.to_thread.run_sync(parse_canonical, body)
        scheme, named = parse_any_id(record.get(f"{kind.value}_id"))
        if is_opaque(record_id):  # what it came under is no hash: only the pack's covers it
            return None
        if named != record_id:
            return "the record names another id"
        if kind is Kind.COMMIT:
            parse_commit(record, scheme, limits)
        elif kind is Kind.SNAPSHOT:
            return await _snapshot_problem(index, record_id, record, scheme, limits)
    except Refusal as refusal:
        return refusal.detail[:300]
    return None


async def _snapshot_problem(
    index: Index, snapshot_id: bytes, record: dict[str, object], scheme: Scheme, limits: Limits
) -> str | None:
    item = parse_snapshot_either(record, scheme, limits)
    base = empty_manifest(None)
    if isinstance(item, Snapshot):
        upsert, remove = item.manifest, tuple[str, ...]()
    else:
        upsert, remove = item.upsert, tuple(item.remove)
        if item.parent_snapshot_id is not None:
            try:
                base = await ManifestCache(index, scheme, None, limits).get(item.parent_snapshot_id)
            except ObjectDamaged:
                return "what it is changes to is not in the index"
    made = await trio.to_thread.run_sync(base.apply, upsert, remove, item.directories, limits)
    found = await trio.to_thread.run_sync(made.snapshot_id, scheme)
    return None if found == snapshot_id else "the record does not hash to its id"

"""The answer to a fetch of the public 0.1.x client (protocol §9): one map with full manifests and every content.

It is written into a spool, so that its length is known before its first byte leaves, and never above what that client
takes. Each record is as it was received; each blob is proved on its way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgpack
import trio

from actors.fetch.assemble import FetchServices, located
from actors.fetch.contents import BlobList, by_pieces
from actors.fetch.plan import FetchPlan, plan_fetch
from actors.fetch.reading import large_blob, small_blobs
from actors.manifests import ManifestCache
from actors.spool import Spool
from storage.errors import ObjectDamaged
from storage.layout import Place
from storage.rows import Repository
from wire.canonical import parse_canonical
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id
from wire.manifest import Manifest

ANSWER_MOST_BYTES = 64 * 1024 * 1024
"""What that client takes in one answer."""
BLOBS_MOST = 200_000
_BATCH = 200


@dataclass(slots=True)
class _Writer:
    """Writes the map, as msgpack or as JSON with contents in base64; blocking only in ``add``."""

    spool: Spool
    packed: bool
    members: int
    first: bool = True
    first_item: bool = True

    async def begin(self) -> None:
        await self._raw(msgpack.Packer().pack_map_header(self.members) if self.packed else b"{")

    async def open_list(self, key: str, count: int) -> None:
        if self.packed:
            await self._raw(msgpack.packb(key) + msgpack.Packer().pack_array_header(count))
        else:
            await self._raw(("" if self.first else ",").encode() + json.dumps(key).encode() + b":[")
        self.first, self.first_item = False, True

    async def close_list(self) -> None:
        if not self.packed:
            await self._raw(b"]")

    async def item(self, value: Mapping[str, object]) -> None:
        if self.packed:
            await self._raw(msgpack.packb(value, use_bin_type=True))
            return
        await self._raw(("" if self.first_item else ",").encode() + _json(value))
        self.first_item = False

    async def member(self, key: str, value: Mapping[str, object]) -> None:
        if self.packed:
            await self._raw(msgpack.packb(key) + msgpack.packb(value))
        else:
            await self._raw(("" if self.first else ",").encode() + json.dumps(key).encode() + b":" + _json(value))
        self.first = False

    async def end(self) -> None:
        if not self.packed:
            await self._raw(b"}")

    async def _raw(self, data: bytes) -> None:
        if self.spool.size + len(data) > ANSWER_MOST_BYTES:
            raise _too_large()
        await self.spool.append(data)


async def plain_answer(
    services: FetchServices, repository: Repository, want: list[bytes], have: list[bytes], spool: Spool, *, packed: bool
) -> None:
    """Write the answer into a spool; an empty ``want`` asks for nothing. The caller holds a lease.

    Raises:
        Refusal: ``not_found``, or ``too_large`` when it would be more than that client takes.
        ObjectDamaged, ObjectMissing: stored data is not whole.
    """
    heads = await services.index.branch_heads(repository.number)
    writer = _Writer(spool, packed, 4)
    await writer.begin()
    if want:
        plan = await plan_fetch(services.index, repository, want, have, None)
        await _history(services, repository, plan, writer)
    else:
        for key in ("commits", "snapshots", "objects"):
            await writer.open_list(key, 0)
            await writer.close_list()
    await writer.member("branch_heads", {name: format_id(head, Scheme.PLAIN) for name, head in heads.items()})
    await writer.end()


async def _history(services: FetchServices, repository: Repository, plan: FetchPlan, writer: _Writer) -> None:
    index, scheme = services.index, Scheme.PLAIN
    await writer.open_list("commits", len(plan.commits))

    def read(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, bytes]]:
        return index.commit_records(repository.number, ids)

    for start in range(0, len(plan.commits), _BATCH):
        ids = [fact.commit_id for fact in plan.commits[start : start + _BATCH]]
        async with aclosing(by_pieces(ids, read)) as pieces:
            async for part, records in pieces:
                for commit_id in part:
                    if commit_id not in records:
                        raise ObjectDamaged(f"the index lacks the record of commit {commit_id.hex()}")
                    await writer.item(parse_canonical(records[commit_id])[1])
    await writer.close_list()
    snapshots = list(dict.fromkeys(fact.snapshot_id for fact in plan.commits))
    known = {fact.snapshot_id for fact in plan.boundary}
    cache = ManifestCache(index, scheme, None, services.limits)
    paths: dict[bytes, str] = {}
    for snapshot_id in known:
        manifest = await cache.get(snapshot_id)
        paths.update(dict.fromkeys(manifest.blobs(), ""))
        _check_count(paths)
    had = set(paths)
    await writer.open_list("snapshots", len(snapshots))
    for start in range(0, len(snapshots), _BATCH):
        part = snapshots[start : start + _BATCH]
        extras = await _extras(services, repository, part)
        for snapshot_id in part:
            manifest = await cache.get(snapshot_id)
            if manifest.text_bytes > ANSWER_MOST_BYTES:
                raise _too_large()
            more = extras.get(snapshot_id, b"")
            await writer.item(await trio.to_thread.run_sync(_record, snapshot_id, manifest, more))
            await trio.to_thread.run_sync(_note, manifest, paths)
            _check_count(paths)
    await writer.close_list()
    await _objects(services, repository, [blob for blob in paths if blob not in had], paths, writer)


async def _objects(
    services: FetchServices, repository: Repository, wanted: Sequence[bytes], paths: Mapping[bytes, str],
    writer: _Writer,
) -> None:  # fmt: skip
    await writer.open_list("objects", len(wanted))
    blobs = BlobList()
    blobs.add_all(wanted)
    blobs.finish()
    places = await located(services.index, repository.number, Scheme.PLAIN, blobs)
    if sum(places.sizes) > ANSWER_MOST_BYTES:
        raise _too_large()
    async with aclosing(small_blobs(services.index, services.store, Scheme.PLAIN, places)) as batches:
        async for batch in batches:
            if isinstance(batch, Place):
                async with aclosing(large_blob(services.store, Scheme.PLAIN, batch)) as blob:
                    pieces = [piece async for piece in blob]
                await writer.item(_object(batch, b"".join(pieces), paths))
                continue
            for place, content in batch:
                await writer.item(_object(place, content, paths))
    await writer.close_list()


async def _extras(services: FetchServices, repository: Repository, snapshot_ids: list[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}

    def read(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, bytes]]:
        return services.index.snapshot_extras(repository.number, ids)

    async with aclosing(by_pieces(snapshot_ids, read)) as pieces:
        async for _, extras in pieces:
            found.update(extras)
    return found


def _record(snapshot_id: bytes, manifest: Manifest, extras: bytes) -> dict[str, object]:
    record: dict[str, object] = dict(parse_canonical(extras)[1]) if extras else {}
    record["snapshot_id"] = format_id(snapshot_id, Scheme.PLAIN)
    record["manifest"] = {path: blob_id.hex() for path, blob_id in manifest.items()}
    if manifest.directories:
        record["directories"] = list(manifest.directories)
    return record


def _note(manifest: Manifest, paths: dict[bytes, str]) -> None:
    for path, blob_id in manifest.items():
        paths.setdefault(blob_id, path)


def _object(place: Place, content: bytes, paths: Mapping[bytes, str]) -> dict[str, object]:
    object_id = format_id(place.object_id, Scheme.PLAIN)
    return {"object_id": object_id, "content": content, "path": paths[place.object_id]}


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=_as_text).encode("utf-8", "replace")


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)


def _check_count(paths: Mapping[bytes, str]) -> None:
    if len(paths) > BLOBS_MOST:
        raise _too_large()


def _too_large() -> Refusal:
    most = ANSWER_MOST_BYTES // (1024 * 1024)
    return Refusal(
        Code.TOO_LARGE,
        f"this fetch is larger than the {most} MiB that a client of version 0.1 takes: use a newer client, which "
        "fetches packs of any size",
        limit=ANSWER_MOST_BYTES,
    )

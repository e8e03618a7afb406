"""The answer to a fetch of the public 0.1.x client (protocol §9): one map with full manifests and every content.

It is written into a spool, so that its length is known before its first byte leaves, and never above what that client
takes. Each record is as it was received; each blob is proved on its way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing

import trio

from actors.fetch.assemble import FetchServices
from actors.fetch.blob_list import BlobList
from actors.fetch.contents import by_pieces, commit_record
from actors.fetch.places import located
from actors.fetch.plain_writer import ANSWER_MOST_BYTES, PlainWriter, answer_too_large
from actors.fetch.plan import FetchPlan, plan_fetch
from actors.fetch.reading import large_blob, small_blobs
from actors.manifests import ManifestCache
from actors.opaque import as_sent
from actors.spool import Spool
from storage.errors import ObjectDamaged, SnapshotDamaged
from storage.layout import Place
from storage.rows import Repository
from wire.canonical import parse_canonical
from wire.ids import Scheme, format_id
from wire.manifest import Manifest
from wire.opaque import CLAIMED, is_opaque

BLOBS_MOST = 200_000
_BATCH = 200


async def plain_answer(
    services: FetchServices, repository: Repository, want: list[bytes], have: list[bytes], spool: Spool, *, packed: bool
) -> None:
    """Write the answer into a spool; an empty ``want`` asks for nothing. The caller holds a lease.

    Raises:
        Refusal: ``not_found``, or ``too_large`` when it would be more than that client takes.
        ObjectDamaged, ObjectMissing: stored data is not whole.
    """
    heads = await services.index.branch_heads(repository.number)
    writer = PlainWriter(spool, packed, 4)
    await writer.begin()
    if want:
        plan = await plan_fetch(services.index, repository, want, have, None)
        await _history(services, repository, plan, writer)
    else:
        for key in ("commits", "snapshots", "objects"):
            await writer.open_list(key, 0)
            await writer.close_list()
    shown = {name: format_id(head, Scheme.PLAIN) for name, head in heads.items()}
    await writer.member("branch_heads", await as_sent(services.index, repository, shown))
    await writer.end()


async def _history(services: FetchServices, repository: Repository, plan: FetchPlan, writer: PlainWriter) -> None:
    index, scheme = services.index, Scheme.PLAIN
    await writer.open_list("commits", len(plan.commits))

    def read(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, bytes]]:
        return index.commit_records(repository.number, ids)

    for start in range(0, len(plan.commits), _BATCH):
        facts = {fact.commit_id: fact for fact in plan.commits[start : start + _BATCH]}
        async with aclosing(by_pieces(list(facts), read)) as pieces:
            async for part, records in pieces:
                for commit_id in part:
                    if commit_id not in records:
                        raise ObjectDamaged(f"the index lacks the record of commit {commit_id.hex()}")
                    await writer.item(commit_record(facts[commit_id], records[commit_id], scheme))
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
                raise answer_too_large()
            more = extras.get(snapshot_id, b"")
            await writer.item(await trio.to_thread.run_sync(_record, snapshot_id, manifest, more))
            await trio.to_thread.run_sync(_note, manifest, paths)
            _check_count(paths)
    await writer.close_list()
    await _objects(services, repository, [blob for blob in paths if blob not in had], paths, writer)


async def _objects(
    services: FetchServices, repository: Repository, wanted: Sequence[bytes], paths: Mapping[bytes, str],
    writer: PlainWriter,
) -> None:  # fmt: skip
    await writer.open_list("objects", len(wanted))
    blobs = BlobList()
    blobs.add_all(wanted)
    blobs.finish()
    places = await located(services, repository.number, Scheme.PLAIN, blobs)
    if sum(places.sizes) > ANSWER_MOST_BYTES:
        raise answer_too_large()
    async with aclosing(small_blobs(services, Scheme.PLAIN, places)) as batches:
        async for batch in batches:
            if isinstance(batch, Place):
                named = format_id(batch.object_id, Scheme.PLAIN), paths[batch.object_id]
                async with aclosing(large_blob(services, Scheme.PLAIN, batch)) as pieces:
                    await writer.large_object(*named, batch.size, pieces)
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
    claimed = record.pop(CLAIMED, None) if is_opaque(snapshot_id) else None
    if not is_opaque(snapshot_id) and manifest.snapshot_id(Scheme.PLAIN) != snapshot_id:
        raise SnapshotDamaged(snapshot_id, "does not hash to its id")
    record["snapshot_id"] = claimed or format_id(snapshot_id, Scheme.PLAIN)
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


def _check_count(paths: Mapping[bytes, str]) -> None:
    if len(paths) > BLOBS_MOST:
        raise answer_too_large()

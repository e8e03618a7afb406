"""Assembling the answer to a fetch: one mpack, written as a stream to a local file, stored under its hash.

Every blob is hashed as it is copied: a flipped bit in the store becomes an error that names the object, never part of
an answer (fault F3). A blob whose place is unknown is an error as well, never left out (regression R8).
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import trio

from actors.actor import Actor
from actors.fetch.contents import BlobList, ContentWriter
from actors.fetch.making import FetchAnswer, FetchMakers
from actors.fetch.plan import FetchPlan, plan_fetch, require_reachable
from actors.fetch.prepared import prepared_pack, remember
from actors.leases import leased
from actors.spool import Spool, SpoolDirectory
from storage.contents import read_contents
from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.layout import Place, fetch_pack_key
from storage.object_store import ObjectStore
from storage.rows import Repository
from storage.slots import Slots
from wire.ids import Kind, Scheme, hash_bytes, hasher_for
from wire.limits import Limits
from wire.mpack import MPackWriter, Section, record_section_head
from wire.pack import PackWriter, pack_size

FETCHES_AT_ONCE = 8
_LOOKUP_BATCH = 2_000
_READ_OBJECTS = 512
_READ_BYTES = 4 * 1024 * 1024
_STREAMED_FROM_BYTES = 4 * 1024 * 1024
_LOOSE, _PENDING = -1, -2
"""In place of a pack's number."""


@dataclass(frozen=True, slots=True)
class FetchServices:
    """What every fetch of a daemon works with."""

    index: Index
    store: ObjectStore
    environment: Environment
    spool_dir: Path
    limits: Limits
    slots: Slots
    makers: FetchMakers = field(default_factory=FetchMakers)


async def fetch(
    services: FetchServices, start: Callable[[Actor[Any]], Awaitable[None]], repository: Repository, want: list[bytes],
    have: list[bytes], depth: int | None, patience_s: float = math.inf,
) -> FetchAnswer:  # fmt: skip
    """Give the answer to a fetch: one made ahead or a short while ago, or a new one, by an actor that is started.

    Raises:
        Refusal: ``not_found`` for what no branch leads to, ``preparing`` when it takes longer than ``patience_s``.
        ObjectDamaged, ObjectMissing: stored data is not whole.
    """
    if repository.scheme is not None:
        await require_reachable(services.index, repository, repository.scheme, want)
    if not have and depth is None and repository.scheme is not None:
        made = await prepared_pack(services.index, services.store, services.environment, repository.number, want)
        if made is not None:
            return FetchAnswer(made.mpack_id, made.commits, made.objects, made.size)
    key = (repository.number, tuple(sorted(want)), tuple(sorted(have)), depth)
    known = services.makers.made(key)
    if known is not None and await _is_there(services.store, known):
        return known
    return await services.makers.answer(key, lambda: _made(services, repository, want, have, depth), start, patience_s)


async def _is_there(store: ObjectStore, answer: FetchAnswer) -> bool:
    assert answer.mpack_id is not None
    try:
        return await store.size(fetch_pack_key(answer.mpack_id)) == answer.size_bytes
    except ObjectMissing:
        return False


async def _made(
    services: FetchServices, repository: Repository, want: list[bytes], have: list[bytes], depth: int | None
) -> FetchAnswer:
    async with (
        services.slots.hold(1),  # the plan of a long history is no small thing either
        leased(services.index, services.environment, repository.number),
    ):
        plan = await plan_fetch(services.index, repository, want, have, depth)
        if not plan.commits:
            return FetchAnswer(None, 0, 0, 0)
        answer = await assemble(services, repository, plan)
        if not have and depth is None:
            await remember(services.index, services.environment, repository.number, want, answer)
        return answer


async def assemble(services: FetchServices, repository: Repository, plan: FetchPlan) -> FetchAnswer:
    """Write the mpack of a plan and store it.

    Raises:
        ObjectDamaged, ObjectMissing: stored data is not whole; the message names the object.
    """
    scheme = repository.scheme
    assert scheme is not None
    name = f"fetch-{services.environment.uuid().hex}"
    async with SpoolDirectory(services.spool_dir, name) as spools:
        snapshots, commits = spools.new(), spools.new()
        contents = ContentWriter(services.index, repository.number, scheme, plan, services.limits)
        await contents.run_into(snapshots, commits)
        places = await located(services.index, repository.number, scheme, contents.blobs)
        snapshot_head, commit_head = record_section_head(contents.snapshots), record_section_head(len(plan.commits))
        writer = MPackWriter([
            (Section.OBJECTS, pack_size(places.sizes)),
            (Section.SNAPSHOTS, len(snapshot_head) + snapshots.size),
            (Section.COMMITS, len(commit_head) + commits.size),
        ])  # fmt: skip
        path = await trio.to_thread.run_sync(spools.new_path)
        file = await trio.to_thread.run_sync(lambda: path.open("wb"))
        with file:
            output = _Output(file, writer)
            await _write_objects(services, scheme, places, output)
            for head, spool in ((snapshot_head, snapshots), (commit_head, commits)):
                await trio.to_thread.run_sync(output.section_pieces, [head], spool)
            mpack_id = await trio.to_thread.run_sync(output.close)
        await services.store.put_file(fetch_pack_key(mpack_id), path)
    return FetchAnswer(mpack_id, len(plan.commits), len(places), output.size, plan.shallow)


class _Places:
    """Where many blobs are, in little memory, in sending order."""

    def __init__(self) -> None:
        self.ids = bytearray()
        self.sizes = array("Q")
        self._offsets = array("Q")
        self._packs = array("l")
        self._pack_ids: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, place: Place) -> None:
        """Append one."""
        self.ids += place.object_id
        self.sizes.append(place.size)
        self._offsets.append(place.offset)
        if place.pack_id is None:
            self._packs.append(_PENDING if place.pending else _LOOSE)
            return
        number = self._numbers.setdefault(place.pack_id, len(self._pack_ids))
        if number == len(self._pack_ids):
            self._pack_ids.append(place.pack_id)
        self._packs.append(number)

    def __iter__(self) -> Iterator[Place]:
        for at in range(len(self.sizes)):
            pack = self._packs[at]
            object_id = bytes(self.ids[at * 32 : at * 32 + 32])
            pack_id = None if pack < 0 else self._pack_ids[pack]
            yield Place(object_id, self.sizes[at], pack_id, self._offsets[at], pack == _PENDING)


class _Output:
    """The file being written, with the hashes that run along."""

    def __init__(self, file: BinaryIO, writer: MPackWriter) -> None:
        self._file = file
        self._writer = writer
        self._whole = hashlib.sha256()
        self.size = 0
        self._emit(writer.begin())

    def section(self, piece: bytes) -> None:
        """Write section bytes; blocking."""
        self._emit(self._writer.content(piece))

    def section_pieces(self, first: list[bytes], spool: Spool) -> None:
        """Write a spooled section; blocking."""
        for piece in first:
            self.section(piece)
        for piece in spool.pieces():
            self.section(piece)

    def close(self) -> bytes:
        """Write the footer and give the mpack id; blocking."""
        self._emit(self._writer.finish())
        self._file.flush()
        return self._whole.digest()

    def _emit(self, data: bytes) -> None:
        self._file.write(data)
        self._whole.update(data)
        self.size += len(data)


async def located(index: Index, repo: int, scheme: Scheme, blobs: BlobList) -> _Places:
    """Find where all blobs of an answer are; one that is nowhere raises ``ObjectDamaged``, and is named."""
    places = _Places()
    for part in blobs.parts(_LOOKUP_BATCH):
        found = await index.held_places(repo, scheme, part)
        for blob_id in part:
            place = found.get(blob_id)
            if place is None:
                raise ObjectDamaged(f"the index does not know where object {blob_id.hex()} of this repository is")
            places.add(place)
    return places


async def _write_objects(services: FetchServices, scheme: Scheme, places: _Places, output: _Output) -> None:
    pack = PackWriter(len(places), keep_entries=False)
    await trio.to_thread.run_sync(output.section, pack.begin())
    batch: list[Place] = []
    size = 0
    for place in places:
        if place.size >= _STREAMED_FROM_BYTES:
            await _copy_batch(services, scheme, batch, pack, output)
            batch, size = [], 0
            await _copy_streamed(services.store, scheme, place, pack, output)
            continue
        batch.append(place)
        size += place.size
        if len(batch) >= _READ_OBJECTS or size >= _READ_BYTES:
            await _copy_batch(services, scheme, batch, pack, output)
            batch, size = [], 0
    await _copy_batch(services, scheme, batch, pack, output)
    await trio.to_thread.run_sync(output.section, pack.finish())


async def _copy_batch(
    services: FetchServices, scheme: Scheme, batch: list[Place], pack: PackWriter, output: _Output
) -> None:
    if not batch:
        return
    contents = await read_contents(services.index, services.store, scheme, batch)

    def write() -> None:
        for place, content in zip(batch, contents, strict=True):
            if len(content) != place.size or hash_bytes(Kind.BLOB, content, scheme) != place.object_id:
                raise ObjectDamaged(f"object {place.object_id.hex()} does not hash to its id")
            output.section(pack.head(place.object_id, place.size) + pack.content(content))

    await trio.to_thread.run_sync(write)


async def _copy_streamed(store: ObjectStore, scheme: Scheme, place: Place, pack: PackWriter, output: _Output) -> None:
    hasher = hasher_for(Kind.BLOB, place.size, scheme)
    left = place.size
    await trio.to_thread.run_sync(output.section, pack.head(place.object_id, place.size))
    async with store.stream(place.key(scheme), place.offset, place.size) as pieces:
        async for piece in pieces:
            hasher.update(piece)
            left -= len(piece)
            await trio.to_thread.run_sync(output.section, pack.content(piece))
    if left or hasher.digest() != place.object_id:
        raise ObjectDamaged(f"object {place.object_id.hex()} does not hash to its id")

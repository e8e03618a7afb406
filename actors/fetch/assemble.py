"""Assembling the answer to a fetch: one mpack, written as a stream to a local file, stored under its hash.

Every blob is hashed as it is copied: a flipped bit in the store is mended from another copy or becomes an error that
names the object, never part of an answer (fault F3). A blob that is nowhere is an error as well, never left out
(regression R8). A pack that was made before is proved before its name is given.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import structlog
import trio

from actors.actor import Actor
from actors.fetch.contents import ContentWriter
from actors.fetch.making import FetchAnswer, FetchMakers
from actors.fetch.mending import until_whole
from actors.fetch.places import Places, located
from actors.fetch.plan import FetchPlan, plan_fetch, require_reachable
from actors.fetch.prepared import is_stored, prepared_pack, remember
from actors.fetch.proofs import ChunkDigests, Proofs
from actors.fetch.reading import large_blob, small_blobs
from actors.fetch.unreachable import Unreachable
from actors.leases import leased
from actors.spool import Spool, SpoolDirectory
from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.layout import Place, fetch_pack_key, verifier
from storage.object_store import ObjectStore, ReadRange
from storage.rows import Repository
from storage.slots import Slots
from wire.ids import Scheme
from wire.limits import Limits
from wire.mpack import MPackWriter, Section, record_section_head
from wire.pack import PackWriter, pack_size

log = structlog.get_logger("fetch")

FETCHES_AT_ONCE = 8


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
    proofs: Proofs = field(default_factory=Proofs)
    unreachable: Unreachable = field(default_factory=Unreachable)

    def statistics(self) -> dict[str, float]:
        """Count answers being made, and large contents whose pieces are known to be right."""
        return {"making": len(self.makers), "proved": len(self.proofs)}


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
    key = (repository.number, tuple(sorted(want)), tuple(sorted(have)), depth)
    known = await _known(services, repository, want, whole=not have and depth is None)
    if known is None:
        known = services.makers.made(key)
    if known is not None and services.proofs.known(known.where) and await is_stored(services.store, known):
        return known
    return await services.makers.answer(key, lambda: _made(services, repository, want, have, depth), start, patience_s)


async def _known(
    services: FetchServices, repository: Repository, want: Sequence[bytes], *, whole: bool
) -> FetchAnswer | None:
    """Find a full clone that was made ahead, if that is what is asked for."""
    if not whole or repository.scheme is None:
        return None
    return await prepared_pack(services.index, services.store, services.environment, repository.number, want)


async def _made(
    services: FetchServices, repository: Repository, want: list[bytes], have: list[bytes], depth: int | None
) -> FetchAnswer:
    async with (
        services.slots.hold(1),  # the plan of a long history is no small thing either
        leased(services.index, services.environment, repository.number),
    ):
        known = await _known(services, repository, want, whole=not have and depth is None)
        if known is not None and await _is_proved(services, known):
            return known
        plan = await plan_fetch(services.index, repository, want, have, depth)
        if not plan.commits:
            return FetchAnswer(None, 0, 0, 0)
        answer = await assemble(services, repository, plan)
        if not have and depth is None:
            await remember(services.index, services.environment, repository.number, want, answer)
        return answer


async def _is_proved(services: FetchServices, answer: FetchAnswer) -> bool:
    """Read a pack that somebody else has made, or this daemon long ago; what is not right is taken away."""
    where = answer.where
    assert where is not None
    try:
        await services.proofs.prove(services.store, where, verifier(where.key, where.size))
    except (ObjectDamaged, ObjectMissing):
        await drop_pack(services, where)
        return False
    return True


async def drop_pack(services: FetchServices, where: ReadRange) -> None:
    """Take a damaged pack away, so that it is made anew: it is a cache entry, never the truth."""
    log.warning("a damaged fetch pack is taken away", key=where.key)
    services.proofs.forget(where)
    await services.store.delete([where.key])


async def assemble(services: FetchServices, repository: Repository, plan: FetchPlan) -> FetchAnswer:
    """Write the mpack of a plan and store it.

    Raises:
        ObjectDamaged, ObjectMissing: stored data is not whole; the message names the object.
    """
    scheme = repository.scheme
    assert scheme is not None
    name = f"fetch-{services.environment.uuid().hex}"
    async with SpoolDirectory(services.spool_dir, name) as spools:
        number = repository.number
        return await until_whole(services, scheme, lambda: _written(services, number, scheme, plan, spools))


async def _written(
    services: FetchServices, repo: int, scheme: Scheme, plan: FetchPlan, spools: SpoolDirectory
) -> FetchAnswer:
    snapshots, commits = spools.new(), spools.new()
    contents = ContentWriter(services.index, repo, scheme, plan, services.limits)
    await contents.run_into(snapshots, commits)
    places = await located(services, repo, scheme, contents.blobs)
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
    answer = FetchAnswer(mpack_id, len(plan.commits), len(places), output.size, plan.shallow)
    await services.store.put_file(fetch_pack_key(mpack_id), path)
    services.proofs.note(ReadRange(fetch_pack_key(mpack_id), 0, output.size), output.digests.finish())
    return answer


class _Output:
    """The file being written, with the hashes that run along."""

    def __init__(self, file: BinaryIO, writer: MPackWriter) -> None:
        self._file = file
        self._writer = writer
        self.digests = ChunkDigests()
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
        return self._writer.digest()

    def _emit(self, data: bytes) -> None:
        self._file.write(data)
        self.digests.update(data)
        self.size += len(data)


async def _write_objects(services: FetchServices, scheme: Scheme, places: Places, output: _Output) -> None:
    pack = PackWriter(len(places), keep_entries=False)
    await trio.to_thread.run_sync(output.section, pack.begin())

    def write(batch: list[tuple[Place, bytes]]) -> None:
        for place, content in batch:
            output.section(pack.head(place.object_id, place.size) + pack.content(content))

    async with aclosing(small_blobs(services, scheme, places)) as batches:
        async for batch in batches:
            if isinstance(batch, Place):
                await _write_large(services, scheme, batch, pack, output)
            else:
                await trio.to_thread.run_sync(write, batch)
    await trio.to_thread.run_sync(output.section, pack.finish())


async def _write_large(
    services: FetchServices, scheme: Scheme, place: Place, pack: PackWriter, output: _Output
) -> None:
    def write(piece: bytes) -> None:
        output.section(pack.content(piece))

    await trio.to_thread.run_sync(output.section, pack.head(place.object_id, place.size))
    async with aclosing(large_blob(services, scheme, place)) as pieces:
        async for piece in pieces:
            await trio.to_thread.run_sync(write, piece)

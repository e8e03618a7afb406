"""Folding loose objects and small packs of a repository into packs of up to 64 MiB.

Steps for each new pack, and what is left if the process dies after each:

1. contents are read, each is hashed as it is copied, and the pack is written to a local file — that file; swept at the
   next start;
2. the pack is put into the store under its hash, durably — a pack no row names; collected, or written again;
3. short transactions move rows that still say where the contents were read — some rows moved, which is as good; the
   others are found by the next run, which makes another pack of them;
4. the old places are suspects from then on, and collected like everything else: fetches that planned with them hold a
   lease, which is older than their marks.

What is damaged or missing is told and left where it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import trio

from actors.leases import leased
from actors.push.pack_file import PackFile
from actors.spool import SpoolDirectory
from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.layout import Place, pack_key
from storage.object_store import ObjectStore, ReadRange
from wire.ids import Kind, Scheme, hash_bytes
from wire.limits import MIB
from wire.pack import RECORD_HEADER_BYTES

PACK_BYTES = 64 * MIB
OBJECT_MOST_BYTES = 4 * MIB
"""Larger loose objects stay: a file of their own is as good."""
SMALL_PACK_BYTES = 8 * MIB
PACK_OBJECTS = 20_000
LOOSE_LEAST, PACKS_LEAST = 64, 8
"""Fewer are left for later: what is folded small is folded again."""
PLACES_AT_ONCE = 2_000
_READ_OBJECTS, _READ_BYTES = 512, 4 * MIB
_MOVED_AT_ONCE = 1_000
_PACKS_KNOWN = 50_000

log = structlog.get_logger("fold")


@dataclass(slots=True)
class Folded:
    """What a run has done; sizes in bytes."""

    packs: int = 0
    objects: int = 0
    bytes: int = 0
    left: int = 0
    """Objects that had been moved or collected meanwhile."""
    damaged: int = 0

    def counts(self) -> Mapping[str, object]:
        """Give them by name."""
        return asdict(self)


class Folder:
    """Fold what one repository holds."""

    def __init__(
        self, index: Index, store: ObjectStore, environment: Environment, spool_dir: Path, pack_bytes: int = PACK_BYTES
    ) -> None:
        self._index = index
        self._store = store
        self._environment = environment
        self._spool_dir = spool_dir
        self._pack_bytes = pack_bytes
        self._small: dict[bytes, bool] = {}
        self.folded = Folded()

    async def run(self, repo: int) -> Folded:
        """Fold; raises ``LeaseLost`` when the index has not heard of it for too long."""
        async with leased(self._index, self._environment, repo) as lease:
            after: bytes | None = b""
            waiting: list[Place] = []
            size = 0
            while after is not None:
                scheme, places = await self._index.repository_places(repo, after, PLACES_AT_ONCE)
                if scheme is None:
                    break
                after = places[-1].object_id if len(places) == PLACES_AT_ONCE else None
                for place in places:
                    if not await self._is_small(place):
                        continue
                    cost = place.size + RECORD_HEADER_BYTES
                    if waiting and (size + cost > self._pack_bytes - MIB or len(waiting) >= PACK_OBJECTS):
                        await self._fold(lease, scheme, waiting)
                        waiting, size = [], 0
                    waiting.append(place)
                    size += cost
                if after is None and _are_many(waiting):
                    await self._fold(lease, scheme, waiting)
        return self.folded

    async def _is_small(self, place: Place) -> bool:
        if place.pending or place.size > OBJECT_MOST_BYTES:
            return False
        if place.pack_id is None:
            return True
        if place.pack_id not in self._small:
            if len(self._small) >= _PACKS_KNOWN:
                self._small.clear()
            try:
                small = await self._store.size(pack_key(place.pack_id)) < SMALL_PACK_BYTES
            except ObjectMissing:
                log.error("a pack is missing", pack=place.pack_id.hex())
                small = False
            self._small[place.pack_id] = small
        return self._small[place.pack_id]

    async def _fold(self, lease: uuid.UUID, scheme: Scheme, places: Sequence[Place]) -> None:
        """Make one pack of what lies at some places."""
        ordered = sorted(places, key=lambda place: (place.pack_id or b"", place.offset, place.object_id))
        moves: list[tuple[Place, int]] = []
        async with SpoolDirectory(self._spool_dir, f"fold-{self._environment.uuid().hex}") as spools:
            pack = await trio.to_thread.run_sync(PackFile, spools)
            try:
                for part in _parts(ordered):
                    contents = await self._read(scheme, part)
                    await trio.to_thread.run_sync(self._copy, scheme, part, contents, pack, moves)
            except BaseException:
                pack.close()
                raise
            pack_id, path = await trio.to_thread.run_sync(pack.finish)
            if not moves:
                return
            await self._store.put_file(pack_key(pack_id), path)
        moved = 0
        for at in range(0, len(moves), _MOVED_AT_ONCE):
            part_moves = moves[at : at + _MOVED_AT_ONCE]
            moved += len(await self._index.move_places(lease, scheme, pack_id, part_moves))
        self.folded.packs += 1
        self.folded.objects += moved
        self.folded.left += len(moves) - moved
        self.folded.bytes += sum(place.size for place, _ in moves)

    async def _read(self, scheme: Scheme, part: Sequence[Place]) -> list[bytes | None]:
        """Read contents together, or one by one when one of them cannot be read."""
        try:
            return list(await self._store.get_ranges([_range(place, scheme) for place in part]))
        except (ObjectMissing, ObjectDamaged):
            return [await self._read_one(scheme, place) for place in part]

    async def _read_one(self, scheme: Scheme, place: Place) -> bytes | None:
        try:
            return (await self._store.get_ranges([_range(place, scheme)]))[0]
        except (ObjectMissing, ObjectDamaged):
            return None

    def _copy(
        self, scheme: Scheme, part: Sequence[Place], contents: Sequence[bytes | None], pack: PackFile,
        moves: list[tuple[Place, int]],
    ) -> None:  # fmt: skip
        """Prove contents and append them; blocking."""
        for place, content in zip(part, contents, strict=True):
            if content is None or hash_bytes(Kind.BLOB, content, scheme) != place.object_id:
                self.folded.damaged += 1
                log.error("a stored object is damaged or missing", object=place.object_id.hex(), key=place.key(scheme))
                continue
            moves.append((place, pack.add(place.object_id, len(content), [content])))


def _are_many(places: Sequence[Place]) -> bool:
    loose = sum(place.pack_id is None for place in places)
    packs = {place.pack_id for place in places if place.pack_id is not None}
    return loose >= LOOSE_LEAST or len(packs) >= PACKS_LEAST


def _parts(places: Sequence[Place]) -> Iterator[list[Place]]:
    part: list[Place] = []
    size = 0
    for place in places:
        if part and (len(part) >= _READ_OBJECTS or size + place.size > _READ_BYTES):
            yield part
            part, size = [], 0
        part.append(place)
        size += place.size
    if part:
        yield part


def _range(place: Place, scheme: Scheme) -> ReadRange:
    return ReadRange(place.key(scheme), place.offset, place.size)

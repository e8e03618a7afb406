"""What a snapshot is made of: files and bytes by language and the largest files; whole, or from the one before it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

import msgpack
import trio

from actors.jobs.churn import Churn
from actors.jobs.commit_walk import files_at
from actors.jobs.languages import language_of
from actors.jobs.sized_files import SizedBlob, sized_blobs, sizes_of
from storage.index import Index
from wire.ids import Scheme
from wire.manifest import Manifest

LARGEST_SHOWN = 20
LARGEST_KEPT = 10 * LARGEST_SHOWN
"""So many that some may go before all files have to be looked at again."""
CHANGES_MOST = 20_000
"""Above it a snapshot is looked at whole."""
_VERSION = 1


@dataclass(slots=True)
class Structure:
    """Sums over the files of one snapshot."""

    snapshot_id: bytes | None = None
    files: int = 0
    size: int = 0
    """In bytes."""
    unknown: int = 0
    """Files whose size the index does not know."""
    languages: dict[str, list[int]] = field(default_factory=dict)
    """Language → files and bytes."""
    largest: dict[str, int] = field(default_factory=dict)
    """The largest files with their sizes."""
    floor: tuple[int, str] | None = None
    """Up to here, in order of :func:`_rank`, all files are among the largest; ``None``: all there are."""

    def count(self, path: str, size: int | None, sign: int = 1) -> None:
        """Add a file, or take it out."""
        self.files += sign
        sums = self.languages.setdefault(language_of(path), [0, 0])
        sums[0] += sign
        if size is None:
            self.unknown += sign
        else:
            self.size += sign * size
            sums[1] += sign * size
        if not sums[0]:
            del self.languages[language_of(path)]
        if sign < 0:
            self.largest.pop(path, None)
        elif size is not None and (self.floor is None or _rank((path, size)) <= self.floor):
            self.largest[path] = size
            if len(self.largest) >= 2 * LARGEST_KEPT:
                self.cut()

    def count_all(self, blobs: Iterable[SizedBlob]) -> None:
        """Add files; for a worker thread."""
        for sized in blobs:
            for path in sized.paths:
                self.count(path, sized.size)

    def cut(self) -> None:
        """Keep no more of the largest files than there is room for."""
        if len(self.largest) > LARGEST_KEPT:
            ranked = sorted(self.largest.items(), key=_rank)[:LARGEST_KEPT]
            self.largest, self.floor = dict(ranked), _rank(ranked[-1])

    def report(self) -> dict[str, object]:
        """Give what readers are shown."""
        ordered = sorted(self.languages.items(), key=lambda item: (-item[1][1], item[0]))
        return {
            "files": self.files,
            "bytes": self.size,
            "unknown_sizes": self.unknown,
            "languages": [{"language": name, "files": files, "bytes": size} for name, (files, size) in ordered],
            "largest": [
                {"path": path, "bytes": size} for path, size in sorted(self.largest.items(), key=_rank)[:LARGEST_SHOWN]
            ],
        }


async def structure_of(index: Index, scheme: Scheme, snapshot_id: bytes, manifest: Manifest) -> Structure:
    """Look at all files."""
    found = Structure(snapshot_id)
    async with aclosing(sized_blobs(index, scheme, manifest)) as some:
        async for blobs in some:
            await trio.to_thread.run_sync(found.count_all, blobs)
    found.cut()
    return found


async def moved_structure(
    index: Index, scheme: Scheme, old: Structure, before: Manifest, snapshot_id: bytes, after: Manifest
) -> Structure | None:
    """Look at what differs between two snapshots; ``None`` when that does not tell enough."""
    differing = await trio.to_thread.run_sync(before.few_changes_to, after, CHANGES_MOST)
    if differing is None:
        return None
    upsert, removed = differing
    gone = await files_at(before, [*upsert, *removed])
    sizes = await sizes_of(index, scheme, [*gone.values(), *upsert.values()])
    languages = {name: [*sums] for name, sums in old.languages.items()}
    found = Structure(snapshot_id, old.files, old.size, old.unknown, languages, dict(old.largest), old.floor)
    for path, blob in gone.items():
        found.count(path, sizes.get(blob), -1)
    for path, blob in upsert.items():
        found.count(path, sizes.get(blob))
    found.cut()
    return None if found.floor is not None and len(found.largest) < LARGEST_SHOWN else found


def pack_state(structure: Structure, churn: Churn) -> bytes:
    """Write what the next job goes on from."""
    packed: bytes = msgpack.packb(
        [
            _VERSION, structure.snapshot_id, structure.files, structure.size, structure.unknown, structure.languages,
            structure.largest, structure.floor, churn.head, churn.commits, dict(churn.counts), churn.bulk,
        ]
    )  # fmt: skip
    return packed


def unpack_state(packed: bytes | None) -> tuple[Structure, Churn]:
    """Read it back; what another version wrote counts as nothing."""
    if packed is None:
        return Structure(), Churn()
    fields = msgpack.unpackb(packed)
    if fields[0] != _VERSION:
        return Structure(), Churn()
    _, snapshot_id, files, size, unknown, languages, largest, floor, head, commits, counts, bulk = fields
    least = None if floor is None else (floor[0], floor[1])
    structure = Structure(snapshot_id, files, size, unknown, languages, largest, least)
    churn = Churn(head, [(order, commit_id) for order, commit_id in commits], bulk=bulk)
    churn.counts.update(counts)
    return structure, churn


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    """Order files by size, the largest first."""
    return -item[1], item[0]

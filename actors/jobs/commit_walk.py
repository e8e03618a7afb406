"""Commits newest first with what each changed, read in batches and kept only while they are near.

Jobs walk whole histories: what lies behind is forgotten, what lies ahead is fetched some thousand commits and some
megabytes of changes at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import trio

from actors.history import ANCESTRY_BATCH, ANCESTRY_LEAST
from actors.manifests import ManifestCache
from storage.errors import ObjectDamaged
from storage.index import Index
from storage.rows import SnapshotRow
from storage.snapshots import apply_packed, build_manifest, unpack_changes
from wire.graph import CommitFacts
from wire.ids import Scheme
from wire.limits import Limits
from wire.manifest import Manifest

_FACTS_MOST = 4 * ANCESTRY_BATCH
_AHEAD_LEAST, _AHEAD_MOST = 8, 256
"""Snapshots whose changes are fetched with one query; the index gives at most some megabytes of them."""
_LARGE_BYTES = 8 * 1024
"""Changes above it are unpacked in a worker thread."""
LOOKED_UP_AT_ONCE = 256
"""More paths than that are looked up in a worker thread."""


async def files_at(manifest: Manifest, paths: Collection[str]) -> dict[str, bytes]:
    """Look paths up in a manifest; those it does not have are left out."""
    if len(paths) <= LOOKED_UP_AT_ONCE:
        return _files_at(manifest, paths)
    return await trio.to_thread.run_sync(_files_at, manifest, paths)


def _files_at(manifest: Manifest, paths: Collection[str]) -> dict[str, bytes]:
    return {path: blob for path in paths if (blob := manifest.get(path)) is not None}


def _unpacked(packed: bytes) -> tuple[Mapping[str, bytes], set[str]]:
    changes = unpack_changes(packed)
    removed = set(changes.remove)
    return changes.upsert, removed.difference(changes.upsert) if removed else removed


class CommitWalk:
    """Give added commits and whatever is added on the way, each before its parents."""

    def __init__(self, index: Index, scheme: Scheme) -> None:
        self._index = index
        self._scheme = scheme
        self._facts: dict[bytes, CommitFacts] = {}
        self._unknown: list[bytes] = []
        self._heap: list[tuple[int, bytes, CommitFacts]] = []
        self._batch = ANCESTRY_LEAST
        self.given = 0
        """Commits given so far."""

    def add(self, commit_id: bytes) -> None:
        """Have a commit given; once each."""
        fact = self._facts.get(commit_id)
        if fact is None:
            self._unknown.append(commit_id)
        else:
            heapq.heappush(self._heap, (-fact.order, commit_id, fact))

    async def next(self) -> CommitFacts | None:
        """Give the newest commit that was added and not given; ``None`` when there is none left.

        Raises:
            ObjectDamaged: the index lacks a commit.
        """
        if self._unknown:
            await self.facts_of(self._unknown)
            unknown, self._unknown = self._unknown, []
            for commit_id in unknown:
                self.add(commit_id)
        if not self._heap:
            return None
        self.given += 1
        return heapq.heappop(self._heap)[2]

    async def facts_of(self, commit_ids: Sequence[bytes]) -> list[CommitFacts]:
        """Give facts of commits; raises ``ObjectDamaged`` for one that the index lacks."""
        lacking = [commit_id for commit_id in commit_ids if commit_id not in self._facts]
        if lacking:
            found = await self._index.ancestry(self._scheme, lacking, self._batch)
            self._batch = min(4 * self._batch, ANCESTRY_BATCH)
            if len(self._facts) + len(found) > _FACTS_MOST:
                self._facts = {i: self._facts[i] for i in commit_ids if i in self._facts}
            self._facts.update((fact.commit_id, fact) for fact in found)
        lost = [commit_id for commit_id in commit_ids if commit_id not in self._facts]
        if lost:
            raise ObjectDamaged(f"the index lacks commit {lost[0].hex()}, which others build on")
        return [self._facts[commit_id] for commit_id in commit_ids]

    def ahead(self, fact: CommitFacts) -> list[CommitFacts]:
        """Give commits that are likely to come next."""
        older = (other for other in self._facts.values() if other.order < fact.order)
        return heapq.nlargest(_AHEAD_MOST, older, key=lambda other: other.order)


class ChangeReader:
    """What commits changed against their first parents, as far as the index can say."""

    def __init__(self, index: Index, scheme: Scheme, limits: Limits) -> None:
        self._index = index
        self._scheme = scheme
        self._rows: dict[bytes, SnapshotRow] = {}
        self._batch = _AHEAD_LEAST
        self._limits = limits
        self._manifests = ManifestCache(index, scheme, None, limits)

    async def manifest(self, fact: CommitFacts) -> Manifest:
        """Give the files of a commit."""
        return await self.manifest_of(fact.snapshot_id)

    async def manifest_of(self, snapshot_id: bytes) -> Manifest:
        """Give the files of a snapshot; those it builds on are kept as well, for who walks into the past needs them."""
        found = self._manifests.at_hand(snapshot_id)
        if found is not None:
            return found
        chain = await self._index.snapshot_chain(self._scheme, snapshot_id)
        if not chain:
            raise ObjectDamaged(f"the index lacks snapshot {snapshot_id.hex()}")
        start = next((at for at, row in enumerate(chain) if row.snapshot_id in self._manifests), len(chain))
        near = self._manifests.at_hand(chain[start].snapshot_id) if start < len(chain) else None
        built = await trio.to_thread.run_sync(self._built, chain[:start], near)
        for row, manifest in zip(reversed(chain[:start]), built, strict=True):
            self._manifests.keep(row.snapshot_id, manifest)
        return built[-1]

    def _built(self, chain: Sequence[SnapshotRow], near: Manifest | None) -> list[Manifest]:
        """Build the manifests of a chain, the oldest first."""
        built: list[Manifest] = []
        for row in reversed(chain):
            if near is None:
                try:
                    near = build_manifest([row], None, self._limits)
                except ValueError as error:
                    raise ObjectDamaged(str(error)) from error
            else:
                near = apply_packed(near, row.delta, self._limits)
            built.append(near)
        return built

    async def changes(
        self, fact: CommitFacts, parent: CommitFacts, most: int, ahead: Callable[[], Iterable[CommitFacts]] = tuple
    ) -> tuple[Mapping[str, bytes], set[str]] | None:
        """Give what was set and what is gone from ``parent`` to ``fact``; ``None`` if it is more than ``most`` files.

        What was set may name a path that was so before: whoever pushed said it again. It is for reading from front to
        back; when there is much of it, in a worker thread.
        """
        if fact.snapshot_id == parent.snapshot_id:
            return {}, set()
        row = await self._row(fact, ahead)
        if row.base_id == parent.snapshot_id:
            if len(row.delta) > _LARGE_BYTES:
                found = await trio.to_thread.run_sync(_unpacked, row.delta)
            else:
                found = _unpacked(row.delta)
            return found if len(found[0]) + len(found[1]) <= most else None
        before, after = await self.manifest(parent), await self.manifest(fact)
        differing = await trio.to_thread.run_sync(before.few_changes_to, after, most)
        return None if differing is None else (differing[0], set(differing[1]))

    async def _row(self, fact: CommitFacts, ahead: Callable[[], Iterable[CommitFacts]]) -> SnapshotRow:
        row = self._rows.get(fact.snapshot_id)
        if row is None:
            wanted = dict.fromkeys([fact.snapshot_id, *(other.snapshot_id for other in ahead())])
            self._rows = await self._index.snapshot_deltas(self._scheme, list(wanted)[: self._batch])
            self._batch = min(4 * self._batch, _AHEAD_MOST)
            row = self._rows.get(fact.snapshot_id)
            if row is None:
                raise ObjectDamaged(f"the index lacks snapshot {fact.snapshot_id.hex()}")
        return row

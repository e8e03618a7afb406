"""Is what a repository holds whole: commits, their parents and snapshots, the files of these, and its branches?

Nothing is walked from branch to root. Every commit that is held is looked at by itself: if its parents, its snapshot
and all blobs of that are held as well, and every head is, then what a branch leads to is whole, whatever its length,
and little is kept in memory. A lease on the repository keeps the collector from taking what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack
import trio

from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.manifests import ManifestCache
from actors.opaque import takes_opaque
from actors.repair.reading import RepairServices
from actors.repair.snapshot_rows import readable_chain, readable_deltas
from storage.collection_rows import RefKind
from storage.errors import ObjectDamaged
from storage.history_rows import SnapshotRow
from storage.rows import Repository
from storage.snapshots import apply_packed, build_manifest, unpack_changes
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.graph import CommitFacts
from wire.ids import Kind, Scheme, hash_bytes
from wire.manifest import Manifest
from wire.opaque import is_opaque
from wire.records import parse_commit

COMMITS_AT_ONCE = 1_000
SNAPSHOTS_AT_ONCE = 200
BLOBS_AT_ONCE = 2_000


@dataclass(slots=True)
class HistoryCheck:
    """Looks through one repository."""

    services: RepairServices
    report: FsckReport
    repository: Repository
    scheme: Scheme
    phase: Phase
    _cache: ManifestCache = field(init=False)

    def __post_init__(self) -> None:
        self._cache = ManifestCache(self.services.index, self.scheme, None, self.services.limits)

    async def run(self) -> None:
        """Look through it all."""
        await self._commits()
        await self._snapshots()

    # ---- commits

    async def _commits(self) -> None:
        index, repo, after = self.services.index, self.repository.number, b""
        while ids := await index.held_ids(repo, RefKind.COMMIT, after, COMMITS_AT_ONCE):
            after = ids[-1]
            facts = {one.commit_id: one for one in await index.ancestry(self.scheme, ids, 0)}
            parents = {parent for one in facts.values() for parent in one.parents}
            generations = await index.held_commits(repo, list(parents))
            unheld = await index.unheld(repo, RefKind.SNAPSHOT, [one.snapshot_id for one in facts.values()])
            for commit_id in ids:
                one = facts.get(commit_id)
                if one is None:
                    await self._of_commit(Problem.COMMIT_MISSING, commit_id, "the index has no facts of it")
                    continue
                await self._parents_of(one, generations)
                if one.snapshot_id in unheld:
                    await self._of_commit(
                        Problem.SNAPSHOT_UNHELD, commit_id, f"its snapshot {one.snapshot_id.hex()} is not held"
                    )
            await self._records([facts[commit_id] for commit_id in ids if commit_id in facts])
            self.report.checked["commits"] += len(ids)
            self.phase.advance(len(ids))

    async def _parents_of(self, one: CommitFacts, generations: Mapping[bytes, int]) -> None:
        for parent in one.parents:
            if parent not in generations:
                await self._of_commit(Problem.PARENT_MISSING, one.commit_id, f"its parent {parent.hex()} is not held")
        known = [generations[parent] for parent in one.parents if parent in generations]
        if len(known) == len(one.parents) and one.order != 1 + max(known, default=0):
            await self._of_commit(
                Problem.COMMIT_WRONG, one.commit_id, f"it is of generation {one.order}, by its parents "
                f"{1 + max(known, default=0)}",
            )  # fmt: skip

    async def _records(self, facts: Sequence[CommitFacts]) -> None:
        left = {one.commit_id: one for one in facts}
        while left:
            try:
                found = await self.services.index.commit_records(self.repository.number, list(left))
            except ObjectDamaged:
                found = {}
            if not found:
                found = await self._one_by_one(list(left))
            if not found:
                break
            wrong = await trio.to_thread.run_sync(self._wrong_records, found, left)
            for commit_id, detail in wrong.items():
                await self._of_commit(Problem.COMMIT_WRONG, commit_id, detail)
            for commit_id in found:
                del left[commit_id]
        for commit_id in left:
            await self._of_commit(Problem.COMMIT_MISSING, commit_id, "the index has no sound record of it")

    async def _one_by_one(self, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Read records of which the index itself finds some damaged; these are left out."""
        found: dict[bytes, bytes] = {}
        for commit_id in commit_ids:
            try:
                found |= await self.services.index.commit_records(self.repository.number, [commit_id])
            except ObjectDamaged:
                continue
        return found

    def _wrong_records(self, records: Mapping[bytes, bytes], facts: Mapping[bytes, CommitFacts]) -> dict[bytes, str]:
        """Give what is wrong with some records; CPU-bound."""
        wrong = {}
        for commit_id, body in records.items():
            try:
                kind, record = parse_canonical(body)
                if kind is not Kind.COMMIT:
                    wrong[commit_id] = f"its record is of a {kind.value}"
                elif not is_opaque(commit_id):
                    commit = parse_commit(record, self.scheme, self.services.limits)
                    one = facts[commit_id]
                    if takes_opaque(self.repository):  # what it builds on may be kept under another id
                        continue
                    if commit.commit_id != commit_id:
                        wrong[commit_id] = "its record is of another commit"
                    elif (set(commit.parents), commit.snapshot_id) != (set(one.parents), one.snapshot_id):
                        wrong[commit_id] = "the index names other parents or another snapshot than its record"
            except Refusal as refusal:
                wrong[commit_id] = refusal.detail[:300]
        return wrong

    # ---- snapshots

    async def _snapshots(self) -> None:
        index, repo, after = self.services.index, self.repository.number, b""
        while ids := await index.held_ids(repo, RefKind.SNAPSHOT, after, SNAPSHOTS_AT_ONCE):
            after, left = ids[-1], ids
            while left:
                rows, unreadable = await readable_deltas(index, self.scheme, left)
                for snapshot_id in unreadable:
                    await self._of_snapshot(Problem.SNAPSHOT_WRONG, snapshot_id, "its row cannot be read")
                left = [snapshot_id for snapshot_id in left if snapshot_id not in unreadable]
                bases = {row.base_id for row in rows.values() if row.base_id is not None}
                unheld = await index.unheld(repo, RefKind.SNAPSHOT, list(bases))
                for row in rows.values():
                    await self._snapshot(row, row.base_id is not None and row.base_id not in unheld)
                if not rows:
                    for snapshot_id in left:
                        await self._of_snapshot(Problem.SNAPSHOT_MISSING, snapshot_id, "the index has no row of it")
                    break
                left = [snapshot_id for snapshot_id in left if snapshot_id not in rows]
            self.report.checked["snapshots"] += len(ids)
            self.phase.advance(len(ids))

    async def _snapshot(self, row: SnapshotRow, has_base: bool) -> None:
        """Prove a snapshot by its base and its changes, and by its full content if it has one; look for its blobs.

        What the base has was looked for with the base, if the repository holds that, too.
        """
        snapshot_id, manifest = row.snapshot_id, None
        if row.base_id is None or not row.depth:
            chain = await readable_chain(self.services.index, self.scheme, snapshot_id)
            manifest = await trio.to_thread.run_sync(self._whole, chain[0]) if chain else None
            if manifest is None:
                await self._of_snapshot(Problem.SNAPSHOT_WRONG, snapshot_id, "its full content does not hash to its id")
                return
        if row.base_id is not None:
            base = await self._base(snapshot_id, row.base_id)
            if base is None:
                return
            manifest = await self._applied(base, row.delta)
            if manifest is None or not await trio.to_thread.run_sync(_is, manifest, snapshot_id, self.scheme):
                await self._of_snapshot(Problem.SNAPSHOT_WRONG, snapshot_id, "its changes to its base do not make it")
                return
        assert manifest is not None
        self._cache.keep(snapshot_id, manifest)
        blobs: Iterable[bytes] = manifest.blobs()
        if has_base:
            blobs = (await trio.to_thread.run_sync(unpack_changes, row.delta)).upsert.values()
        await self._blobs(snapshot_id, blobs)

    async def _base(self, snapshot_id: bytes, base_id: bytes) -> Manifest | None:
        found = self._cache.at_hand(base_id)
        if found is not None:
            return found
        try:
            return (await self._cache.load(base_id))[0]
        except ObjectDamaged as error:
            chain = await readable_chain(self.services.index, self.scheme, base_id)
            lacks = chain == [] or (chain and chain[-1].full is None and chain[-1].base_id is not None)
            problem = Problem.SNAPSHOT_MISSING if lacks else Problem.SNAPSHOT_WRONG
            detail = f"what it is stored as changes to cannot be rebuilt: {error}"[:300]
            await self._of_snapshot(problem, snapshot_id, detail)
            return None

    def _whole(self, row: SnapshotRow) -> Manifest | None:
        try:
            made = build_manifest([row], None, self.services.limits)
        except (ValueError, msgpack.UnpackException, Refusal):
            return None
        return made if _is(made, row.snapshot_id, self.scheme) else None

    async def _applied(self, base: Manifest, delta: bytes) -> Manifest | None:
        try:
            return await trio.to_thread.run_sync(apply_packed, base, delta, self.services.limits)
        except (ValueError, msgpack.UnpackException, Refusal):
            return None

    async def _blobs(self, snapshot_id: bytes, blobs: Iterable[bytes]) -> None:
        index, repo = self.services.index, self.repository.number
        wanted = list(dict.fromkeys(blobs))
        for start in range(0, len(wanted), BLOBS_AT_ONCE):
            part = wanted[start : start + BLOBS_AT_ONCE]
            places = await index.held_places(repo, self.scheme, part)
            lacking = [blob for blob in part if blob not in places]
            if lacking:
                unheld = await index.unheld(repo, RefKind.BLOB, lacking)
                known = await index.places(self.scheme, lacking)
                for blob in lacking:
                    if blob in unheld:
                        await self._of_blob(Problem.BLOB_UNHELD, snapshot_id, blob, "the repository does not hold it")
                    elif blob not in known:
                        await self._of_blob(Problem.ROW_MISSING, snapshot_id, blob, "the index says nowhere that it is")
            waiting = [place.object_id for place in places.values() if place.pending]
            await self._contents(snapshot_id, waiting)

    async def _contents(self, snapshot_id: bytes, waiting: Sequence[bytes]) -> None:
        """Look at contents that wait in the index; those that are gone have their places by now."""
        index, left = self.services.index, list(waiting)
        while left:
            found = await index.cached_contents(self.scheme, left)
            if not found:
                break
            for blob, content in found.items():
                if hash_bytes(Kind.BLOB, content, self.scheme) != blob:
                    await self._of_blob(Problem.CONTENT_MISSING, snapshot_id, blob, "its content is another one")
            left = [blob for blob in left if blob not in found]
        if left:
            now = await index.places(self.scheme, left)
            gone = {blob for blob in left if blob in now and now[blob].pending}
            if gone:
                gone -= set(await index.cached_contents(self.scheme, sorted(gone)))
            for blob in gone:
                await self._of_blob(Problem.CONTENT_MISSING, snapshot_id, blob, "its content is not in the index")

    # ---- telling

    async def _of_commit(self, problem: Problem, commit_id: bytes, detail: str) -> None:
        await self._tell(RefKind.COMMIT, commit_id, Found(problem, detail, object_id=commit_id))

    async def _of_snapshot(self, problem: Problem, snapshot_id: bytes, detail: str) -> None:
        await self._tell(RefKind.SNAPSHOT, snapshot_id, Found(problem, detail, object_id=snapshot_id))

    async def _of_blob(self, problem: Problem, snapshot_id: bytes, blob: bytes, detail: str) -> None:
        named = f"{detail}; snapshot {snapshot_id.hex()} names it"
        await self._tell(RefKind.SNAPSHOT, snapshot_id, Found(problem, named, object_id=blob))

    async def _tell(self, kind: RefKind, holder: bytes, found: Found) -> None:
        """Report something, unless what it was found by is not held any more."""
        if await self.services.index.unheld(self.repository.number, kind, [holder]):
            return
        found.repository = f"{self.repository.owner}/{self.repository.slug}"
        found.scheme = self.scheme
        self.report.add(found)


def _is(manifest: Manifest, snapshot_id: bytes, scheme: Scheme) -> bool:
    """Tell whether a manifest hashes to an id, or has one that nothing hashes to."""
    return is_opaque(snapshot_id) or manifest.snapshot_id(scheme) == snapshot_id

"""Taking commits and snapshots into a local repository: every id is recomputed before anything is written."""

from __future__ import annotations

from actors.manifests import ManifestCache
from actors.snapshot_builder import SnapshotBuilder
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.local_index import LocalIndex
from storage.history_rows import CommitRow, SnapshotRow
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id
from wire.manifest import Manifest
from wire.paths import PathPolicy
from wire.records import Commit, Snapshot, SnapshotDelta
from wire.signatures import check_signature


class HistoryIntake:
    """Verify records in order (bases and parents first) and collect rows for one transaction."""

    def __init__(self, index: LocalIndex, scheme: Scheme) -> None:
        self._index = index
        self._scheme = scheme
        self.manifests = ManifestCache(index, scheme, PathPolicy.RELAXED, CLIENT_LIMITS)
        self._builder = SnapshotBuilder(scheme, PathPolicy.RELAXED, CLIENT_LIMITS)
        self._generations: dict[bytes, int] = {}
        self._new_snapshots: set[bytes] = set()
        self.snapshots: list[tuple[SnapshotRow, bytes]] = []
        self.commits: list[CommitRow] = []

    async def snapshot(self, item: Snapshot | SnapshotDelta) -> tuple[bytes, ...]:
        """Verify a snapshot; gives the blobs it adds to its base, which the caller has to have."""
        bases = await self._bases(item)
        built = self._builder.build(item, bases)
        self.manifests.keep(item.snapshot_id, built.manifest)
        if item.snapshot_id not in self._new_snapshots:
            self._new_snapshots.add(item.snapshot_id)
            self.snapshots.append((built.row, built.extras))
        return built.blobs

    def commit(self, commit: Commit, *, shallow: bool = False) -> None:
        """Check that a commit stands on what is here.

        Raises:
            Refusal: ``missing_parents``, ``missing_objects`` or ``bad_signature``.
        """
        check_signature(commit, self._scheme)
        if commit.snapshot_id not in self._new_snapshots and not self._index.has_snapshot(commit.snapshot_id):
            shown = format_id(commit.commit_id, self._scheme)
            raise Refusal(Code.MISSING_OBJECTS, f"the snapshot of commit {shown} is not here")
        generation = 1
        for parent in () if shallow else commit.parents:
            generation = max(generation, 1 + self._generation(parent, commit))
        self._generations[commit.commit_id] = generation
        self.commits.append(
            CommitRow(commit.commit_id, commit.parents, commit.snapshot_id, generation, commit.canonical)
        )

    def write(self) -> None:
        """Add what was collected to the index, inside the caller's transaction, and forget it."""
        self._index.add_snapshots(self.snapshots)
        self._index.add_commits(self.commits)
        self.snapshots, self.commits = [], []

    async def _bases(self, item: Snapshot | SnapshotDelta) -> dict[bytes, Manifest]:
        wanted = item.parent_snapshot_id if isinstance(item, SnapshotDelta) else self._builder.last
        if wanted is None:
            return {}
        manifest = self.manifests.at_hand(wanted)
        if manifest is None:
            chain = await self._index.snapshot_chain(self._scheme, wanted)
            if not chain and self.snapshots:  # fallen out of memory before it was written
                self._index.add_snapshots(self.snapshots)
                self.snapshots = []
            manifest, chain = await self.manifests.load(wanted)
            self._builder.cost.learn(chain)
        return {wanted: manifest}

    def _generation(self, parent: bytes, commit: Commit) -> int:
        known = self._generations.get(parent)
        if known is None:
            facts = self._index.facts(parent)
            if facts is None:
                raise Refusal(
                    Code.MISSING_PARENTS,
                    f"commit {format_id(commit.commit_id, self._scheme)} builds on "
                    f"{format_id(parent, self._scheme)}, which is not here",
                )
            known = self._generations[parent] = facts.order
        return known

"""Sweeping a repository: what its branches lead to is kept, other references are taken away.

The walk is kept in the index, so that a history of any length takes little memory: commits by ``ancestry``, a few
thousand at a time, then their snapshots, then the blobs of these. A snapshot that is stored as changes to one that is
reached, too, adds only what the changes add; of others the whole manifest is read.

Steps, and what is left if the process dies after each:

1. the walk — notes of a run that nobody goes on with; the next sweep of the repository removes them;
2. all needless commits are taken away at once — snapshots and blobs that are held in vain, as after 3;
3. needless snapshots, then needless blobs, some at a time; blobs are suspects from then on — the rest is found by the
   next sweep, for this one was not ended.

Between the steps branches may move. Each step looks whether they have, under a lock, and then does nothing: the walk is
extended and the step taken again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from actors.collect.report import Report
from actors.manifests import ManifestCache
from storage.collection_rows import RefKind, Sweep, SweepOutcome, Swept
from storage.environment import Environment
from storage.errors import ObjectDamaged
from storage.index import Index
from storage.rows import SnapshotRow
from storage.snapshots import unpack_changes
from wire.ids import Scheme
from wire.limits import Limits

ASKED_AT_ONCE = 256
ANCESTORS_AT_ONCE = 2_000
SNAPSHOTS_AT_ONCE = 200
REFS_AT_ONCE = 2_000
EXTENSIONS_MOST = 32
"""Times branches may move under a sweep before it gives up until the next one."""


class Sweeper:
    """Sweep one repository."""

    def __init__(
        self, index: Index, environment: Environment, limits: Limits, keep_s: float, report: Report, *, dry_run: bool
    ) -> None:  # fmt: skip
        self._index = index
        self._now = environment.now()
        self._environment = environment
        self._limits = limits
        self._keep_s = keep_s
        self._report = report
        self._dry_run = dry_run
        self._extensions = 0

    async def run(self, repo: int) -> None:
        """Sweep it, or as much of it as can be now.

        Raises:
            ObjectDamaged: the index is not whole: nothing is taken away that a damaged history might lead to.
        """
        sweep = await self._index.begin_sweep(repo, self._now, self._keep_s)
        if sweep is None:
            return
        await self._walk(sweep)
        complete = await self._take_away(sweep)
        done = complete and not self._dry_run
        await self._index.end_sweep(sweep, self._now, self._keep_s, complete=done)
        self._report.repositories += complete
        self._report.postponed += not complete

    async def _take_away(self, sweep: Sweep) -> bool:
        """Take away what is needless; gives whether all of it is gone."""
        index, report = self._index, self._report
        commits = await self._step(
            sweep, lambda: index.sweep_commits(sweep, self._now, dry_run=self._dry_run)
        )  # fmt: skip
        report.commit_refs += commits.refs
        complete = commits.outcome is SweepOutcome.DONE
        if commits.outcome in {SweepOutcome.LOST, SweepOutcome.MOVED}:
            return False
        for kind in (RefKind.SNAPSHOT, RefKind.BLOB):
            after: bytes | None = b""
            while after is not None:
                swept = await self._step(sweep, self._refs(sweep, kind, after))
                if kind is RefKind.BLOB:
                    report.blob_refs += swept.refs
                    report.released_bytes += swept.freed
                else:
                    report.snapshot_refs += swept.refs
                if swept.outcome in {SweepOutcome.LOST, SweepOutcome.MOVED}:
                    return False
                complete = complete and swept.outcome is SweepOutcome.DONE
                after = swept.after
        return complete

    def _refs(self, sweep: Sweep, kind: RefKind, after: bytes) -> Callable[[], Awaitable[Swept]]:
        return lambda: self._index.sweep_refs(sweep, kind, after, REFS_AT_ONCE, self._now, dry_run=self._dry_run)

    async def _step(self, sweep: Sweep, take: Callable[[], Awaitable[Swept]]) -> Swept:
        """Take a step, after the walk has caught up with the branches."""
        swept = await take()
        while swept.outcome is SweepOutcome.MOVED and self._extensions < EXTENSIONS_MOST:
            self._extensions += 1
            if not await self._index.extend_sweep(sweep, self._now):
                return Swept(SweepOutcome.LOST)
            await self._walk(sweep)
            swept = await take()
        return swept

    async def _walk(self, sweep: Sweep) -> None:
        if not sweep.walked:
            return
        assert sweep.scheme is not None
        await self._walk_commits(sweep, sweep.scheme)
        await self._walk_snapshots(sweep, sweep.scheme)

    async def _walk_commits(self, sweep: Sweep, scheme: Scheme) -> None:
        index = self._index
        while ids := await index.unvisited(sweep, RefKind.COMMIT, ASKED_AT_ONCE):
            facts = await index.ancestry(scheme, ids, ANCESTORS_AT_ONCE)
            found = {fact.commit_id for fact in facts}
            for commit_id in ids:
                if commit_id not in found:
                    raise ObjectDamaged(f"the index lacks commit {commit_id.hex()}, which a branch leads to")
            open_ids = {parent for fact in facts for parent in fact.parents} - found
            await index.reach(sweep, RefKind.SNAPSHOT, [fact.snapshot_id for fact in facts], visited=False)
            await index.reach(sweep, RefKind.COMMIT, list(open_ids), visited=False)
            await index.reach(sweep, RefKind.COMMIT, list(found), visited=True)

    async def _walk_snapshots(self, sweep: Sweep, scheme: Scheme) -> None:
        """Note the blobs of all snapshots that are reached; all of these are known by now."""
        index = self._index
        cache = ManifestCache(index, scheme, None, self._limits)
        while ids := await index.unvisited(sweep, RefKind.SNAPSHOT, SNAPSHOTS_AT_ONCE):
            rows = await index.snapshot_deltas(scheme, ids)
            if not rows:
                raise ObjectDamaged(f"the index lacks snapshot {ids[0].hex()}, which a branch leads to")
            bases = {row.base_id for row in rows.values() if row.base_id is not None}
            reached = await index.reached(sweep, RefKind.SNAPSHOT, list(bases))
            changed = [row for row in rows.values() if row.base_id in reached]
            blobs = await trio.to_thread.run_sync(_added, changed)
            await self._reach_blobs(sweep, blobs)
            for snapshot_id, row in rows.items():
                if row.base_id not in reached:
                    manifest = await cache.get(snapshot_id)
                    await self._reach_blobs(sweep, manifest.blobs())
            await index.reach(sweep, RefKind.SNAPSHOT, list(rows), visited=True)

    async def _reach_blobs(self, sweep: Sweep, blobs: Iterable[bytes]) -> None:
        part: set[bytes] = set()
        for blob in blobs:
            part.add(blob)
            if len(part) >= REFS_AT_ONCE:
                await self._index.reach(sweep, RefKind.BLOB, list(part), visited=True)
                part.clear()
        if part:
            await self._index.reach(sweep, RefKind.BLOB, list(part), visited=True)


def _added(rows: Iterable[SnapshotRow]) -> set[bytes]:
    """Give the blobs that changes add; CPU-bound."""
    return {blob for row in rows for blob in unpack_changes(row.delta).upsert.values()}

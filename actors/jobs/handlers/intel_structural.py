"""``intel.structural``: what each branch's newest snapshot is made of, and where its recent history was busy.

Languages, files, bytes, largest files (``actors.jobs.structure``); changes per file over the newest commits
(``actors.jobs.churn``); hotspots, which are large files that are changed often: churn times size. Read from the index
alone. What one job found the next goes on from, so a push costs what it changed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

from actors.jobs.churn import WINDOW_COMMITS, Churn, ChurnWindow
from actors.jobs.commit_walk import ChangeReader, files_at
from actors.jobs.handler import JobContext
from actors.jobs.lines import Head, forget_others, heads_of, write
from actors.jobs.sized_files import sizes_of
from actors.jobs.structure import Structure, moved_structure, pack_state, structure_of, unpack_state
from storage.errors import ObjectDamaged
from storage.insights import LineStanding
from wire.ids import Scheme
from wire.manifest import Manifest

SHOWN = 20
"""Files named in each list of a report."""


async def run(context: JobContext) -> Mapping[str, object]:
    """Bring the reports of all branches up to date; gives counts."""
    repository = await context.repository()
    heads, left_out = await heads_of(context, repository)
    counts: Counter[str] = Counter(branches=len(heads), current=0, snapshots_whole=0, files=0, commits=0)
    counts["branches_left_out"] = left_out
    if repository.scheme is not None:
        work = _Structural(context, repository.scheme, counts)
        for at, head in enumerate(heads):
            await context.progress("branches", at, len(heads))
            await work.update(head)
        counts["rows_forgotten"] = await forget_others(context, [head.branch for head in heads])
    return dict(counts)


class _Structural:
    """The branches of one repository, one after the other; a new one goes on from what the one before it is."""

    def __init__(self, context: JobContext, scheme: Scheme, counts: Counter[str]) -> None:
        self._context = context
        self._index = context.services.index
        self._scheme = scheme
        self._counts = counts
        self._reader = ChangeReader(self._index, scheme, context.services.limits)
        self._default: tuple[Structure, Churn] | None = None

    async def update(self, head: Head) -> None:
        """Bring one branch up to date."""
        job, now = self._context.job, self._context.services.environment.now()
        line = await self._index.begin_line(job.repo, job.type, head.branch, now)
        structure, churn = unpack_state(line.standing.state)
        if line.standing.commit_id == head.fact.commit_id and churn.head == head.fact.commit_id:
            self._counts["current"] += 1
        else:
            if churn.head is None and self._default is not None:
                structure, churn = self._default
            with self._context.phase("manifest"):
                manifest = await self._reader.manifest(head.fact)
            with self._context.phase("structure"):
                structure = await self._structure(structure, head.fact.snapshot_id, manifest)
            with self._context.phase("churn"):
                window = ChurnWindow(self._index, self._scheme, self._reader)
                churn = await window.move(churn, head.fact.commit_id)
                self._counts["commits"] += window.read
            with self._context.phase("hotspots"):
                report = {**structure.report(), **await self._busy(churn, manifest)}
            await write(
                self._context, line,
                LineStanding(head.fact.commit_id, state=pack_state(structure, churn), report=report),
            )  # fmt: skip
        self._default = self._default or (structure, churn)

    async def _structure(self, old: Structure, snapshot_id: bytes, manifest: Manifest) -> Structure:
        if old.snapshot_id == snapshot_id:
            return old
        if old.snapshot_id is not None:
            try:
                before = await self._reader.manifest_of(old.snapshot_id)
                moved = await moved_structure(self._index, self._scheme, old, before, snapshot_id, manifest)
            except ObjectDamaged:  # it may have been collected meanwhile
                moved = None
            if moved is not None:
                return moved
        self._counts["snapshots_whole"] += 1
        self._counts["files"] += len(manifest)
        return await structure_of(self._index, self._scheme, snapshot_id, manifest)

    async def _busy(self, churn: Churn, manifest: Manifest) -> dict[str, object]:
        """Describe which files were changed most, and which of them are large."""
        blobs = await files_at(manifest, churn.counts)
        sizes = await sizes_of(self._index, self._scheme, blobs.values())
        weights = {path: churn.counts[path] * sizes.get(blob, 0) for path, blob in blobs.items()}
        return {
            "window": {"commits": len(churn.commits), "most": WINDOW_COMMITS, "bulk_commits": churn.bulk},
            "churn": [{"path": path, "changes": count} for path, count in _largest(churn.counts)],
            "hotspots": [
                {"path": path, "changes": churn.counts[path], "bytes": sizes.get(blobs[path], 0)}
                for path, weight in _largest(weights)
                if weight
            ],
        }


def _largest(weights: Mapping[str, int]) -> list[tuple[str, int]]:
    return heapq.nsmallest(SHOWN, weights.items(), key=lambda item: (-item[1], item[0]))

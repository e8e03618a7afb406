"""``profile.snapshot``: the shape of each branch's newest snapshot. Files, directories, depth, sizes, duplicates.

Read from the index alone. A branch whose snapshot has been looked at is left alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing

import trio

from actors.jobs.commit_walk import ChangeReader
from actors.jobs.handler import JobContext
from actors.jobs.lines import Head, forget_others, heads_of, write
from actors.jobs.sized_files import SizedBlob, sized_blobs
from storage.insights import LineStanding
from wire.ids import Scheme
from wire.manifest import Manifest

DUPLICATES_SHOWN = 20
PATHS_SHOWN = 5
"""Of one content that is there more than once."""


async def run(context: JobContext) -> Mapping[str, object]:
    """Look at the snapshots of all branches; gives counts."""
    repository = await context.repository()
    heads, left_out = await heads_of(context, repository)
    counts: Counter[str] = Counter(branches=len(heads), current=0, snapshots=0, files=0, branches_left_out=left_out)
    if repository.scheme is not None:
        made: dict[bytes, Mapping[str, object]] = {}
        reader = ChangeReader(context.services.index, repository.scheme, context.services.limits)
        for at, head in enumerate(heads):
            await context.progress("branches", at, len(heads))
            await _update(context, repository.scheme, reader, head, made, counts)
        counts["rows_forgotten"] = await forget_others(context, [head.branch for head in heads])
    return dict(counts)


async def _update(
    context: JobContext, scheme: Scheme, reader: ChangeReader, head: Head, made: dict[bytes, Mapping[str, object]],
    counts: Counter[str],
) -> None:  # fmt: skip
    services, job, snapshot_id = context.services, context.job, head.fact.snapshot_id
    line = await services.index.begin_line(job.repo, job.type, head.branch, services.environment.now())
    report: Mapping[str, object] | None = line.standing.report if line.standing.state == snapshot_id else None
    if report is not None:
        counts["current"] += 1
    else:
        report = made.get(snapshot_id)
    if report is None:
        with context.phase("manifest"):
            manifest = await reader.manifest(head.fact)
        with context.phase("profile"):
            report = await profile(context, scheme, manifest)
        counts["snapshots"] += 1
        counts["files"] += len(manifest)
    made[snapshot_id] = report
    standing = LineStanding(head.fact.commit_id, state=snapshot_id, report=report)
    if standing != line.standing:
        await write(context, line, standing)


async def profile(context: JobContext, scheme: Scheme, manifest: Manifest) -> dict[str, object]:
    """Describe the shape of a manifest."""
    tree = await trio.to_thread.run_sync(_tree, manifest)
    sizes = _Sizes()
    async with aclosing(sized_blobs(context.services.index, scheme, manifest)) as some:
        async for blobs in some:
            await trio.to_thread.run_sync(sizes.take, blobs)
            await context.progress("files", sizes.files, len(manifest))
    return {**tree, **sizes.report()}


def _tree(manifest: Manifest) -> dict[str, object]:
    """Count directories and depths. Paths come in order, so whatever lies in one directory comes together."""
    named = {
        path[: len(path) if end < 0 else end]
        for path in manifest.directories
        for end in [at for at, char in enumerate(path) if char == "/"] + [-1]
    }
    directories, deepest, depths, last = 0, 0, 0, [""]
    for path in manifest.paths():
        parts = path.split("/")
        depths += len(parts)
        deepest = max(deepest, len(parts))
        same = 0
        while same < min(len(parts), len(last)) - 1 and parts[same] == last[same]:
            same += 1
        for end in range(same + 1, len(parts)):
            directories += 1
            if named:
                named.discard("/".join(parts[:end]))
        last = parts
    mean = round(depths / len(manifest), 2) if len(manifest) else 0.0
    return {
        "files": len(manifest), "directories": directories + len(named), "empty_directories": len(named),
        "depth": {"deepest": deepest, "mean": mean},
    }  # fmt: skip


class _Sizes:
    """What is summed up over all files."""

    def __init__(self) -> None:
        self.files = 0
        self._bytes = self._distinct = self._distinct_bytes = self._unknown = 0
        self._histogram: Counter[int] = Counter()
        self._repeated = 0
        self._largest: list[tuple[int, int, bytes, list[str]]] = []

    def take(self, blobs: list[SizedBlob]) -> None:
        """Add distinct blobs."""
        for sized in blobs:
            count = len(sized.paths)
            self.files += count
            if sized.size is None:
                self._unknown += count
                continue
            self._bytes += count * sized.size
            self._distinct += 1
            self._distinct_bytes += sized.size
            self._histogram[sized.size.bit_length()] += count
            if count > 1:
                self._repeated += count - 1
                wasted = (count - 1) * sized.size
                entry = (wasted, count, sized.blob, sorted(sized.paths)[:PATHS_SHOWN])
                keep = heapq.heappush if len(self._largest) < DUPLICATES_SHOWN else heapq.heappushpop
                keep(self._largest, entry)

    def report(self) -> dict[str, object]:
        """Give what readers are shown; a bucket of sizes is named by the size it stays below, in bytes."""
        return {
            "bytes": self._bytes,
            "unknown_sizes": self._unknown,
            "sizes": [{"below": 1 << bits, "files": self._histogram[bits]} for bits in sorted(self._histogram)],
            "distinct": {"contents": self._distinct, "bytes": self._distinct_bytes},
            "duplicates": {
                "files": self._repeated,
                "bytes": self._bytes - self._distinct_bytes,
                "largest": [
                    {"files": count, "bytes": wasted, "paths": paths}
                    for wasted, count, _, paths in sorted(self._largest, reverse=True)
                ],
            },
        }

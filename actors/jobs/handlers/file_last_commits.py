"""``push.file_last_commits``: for each file of each branch, the last commit that changed it.

What is kept of a merge is what git's ``log -1 -- path`` says, see ``actors.jobs.path_trace``.

A branch that moved is brought up to date in one transaction, at the cost of what its new commits changed; after a
forced move at the cost of what differs from where the histories part. A branch that is new begins with what is known
of the default branch. Where more than ``PATHS_AT_ONCE`` files differ, or nothing is known yet, all its files are
followed in slices, each with a transaction of its own; the line says how far that is, so that another attempt goes on
there, and is complete with the last one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

import trio

from actors.jobs.commit_walk import ChangeReader, CommitWalk, files_at
from actors.jobs.handler import ClaimLost, JobContext
from actors.jobs.lines import Head, forget_others, fork_of, heads_of, write
from actors.jobs.path_trace import PATHS_AT_ONCE, Paths, TooManyPaths, Trace, trace
from storage.errors import ObjectDamaged
from storage.insights import Line, LineStanding, PathChanges
from wire.ids import Scheme
from wire.manifest import Manifest

ROWS_MOST = 5_000_000
"""Rows kept of a repository: branches that would exceed it are left out, never the default one."""
_ROWS_AT_ONCE = 20_000


async def run(context: JobContext) -> Mapping[str, object]:
    """Bring all branches up to date; gives counts."""
    repository = await context.repository()
    heads, left_out = await heads_of(context, repository)
    counts: Counter[str] = Counter(branches=0, current=0, rebuilt=0, commits=0, paths=0)
    counts["branches_left_out"] = left_out
    if repository.scheme is not None:
        work = _LastCommits(context, repository.scheme, counts)
        for at, head in enumerate(heads):
            await context.progress("branches", at, len(heads))
            await work.update(head)
        with context.phase("forget"):
            counts["rows_forgotten"] = await forget_others(context, work.kept)
    return dict(counts)


class _LastCommits:
    """The branches of one repository, one after the other."""

    def __init__(self, context: JobContext, scheme: Scheme, counts: Counter[str]) -> None:
        self._context = context
        self._index = context.services.index
        self._scheme = scheme
        self._counts = counts
        self._reader = ChangeReader(self._index, scheme, context.services.limits)
        self._default: Line | None = None
        self._rows = 0
        self.kept: list[str] = []

    async def update(self, head: Head) -> None:
        """Bring one branch up to date."""
        with self._context.phase("manifest"):
            manifest = await self._reader.manifest(head.fact)
        if self.kept and self._rows + len(manifest) > ROWS_MOST:
            self._counts["branches_left_out"] += 1
            return
        self._rows += len(manifest)
        self._counts["branches"] += 1
        self.kept.append(head.branch)
        job, now = self._context.job, self._context.services.environment.now()
        line = await self._index.begin_line(job.repo, job.type, head.branch, now)
        target = head.fact.commit_id
        if line.standing == LineStanding(target):
            self._counts["current"] += 1
        else:
            if line.standing.commit_id is None and self._default is not None and line.standing.done_path is None:
                line = await self._begin_with_default(line, target)
            done = await self._move(line, target, manifest)
            line = done if done is not None else await self._rebuild(line, target, manifest)
        self._default = self._default or line

    async def _begin_with_default(self, line: Line, target: bytes) -> Line:
        """Copy the default branch's rows, so that only what differs is looked at."""
        source, after = self._default, b""
        assert source is not None
        with self._context.phase("copy"):
            line = await write(self._context, line, LineStanding(target_id=target))
            await self._clear(line)
            while True:
                last = await self._index.copy_paths(line.ticket, source.ticket.line, after, _ROWS_AT_ONCE)
                if last is None:
                    break
                after = last
            return await write(self._context, line, LineStanding(source.standing.commit_id))

    async def _move(self, line: Line, target: bytes, manifest: Manifest) -> Line | None:
        """Bring a complete line to a new commit; ``None`` when all files have to be followed."""
        old = line.standing.commit_id
        if old is None or line.standing.target_id is not None:
            return None
        try:
            with self._context.phase("walk"):
                changes = await self._changes(old, target, manifest)
        except (TooManyPaths, ObjectDamaged):  # or the old commits have been collected meanwhile
            return None
        self._counts["paths"] += len(changes.last)
        with self._context.phase("rows"):
            return await write(self._context, line, LineStanding(target), changes)

    async def _changes(self, old: bytes, new: bytes, manifest: Manifest) -> PathChanges:
        fork = await fork_of(self._index, self._scheme, old, new)
        if fork is None:
            raise TooManyPaths
        found = await self._trace(new, Paths(set(), all_but=True), {fork, old})
        last = found.last
        if fork != old:
            last = last | await self._below(fork, old, found.stopped.get(fork, Paths(set())))
        before = await self._manifest_of(old)
        differing = await trio.to_thread.run_sync(before.few_changes_to, manifest, 2 * PATHS_AT_ONCE)
        if differing is None:
            raise TooManyPaths
        return PathChanges(last, differing[1])

    async def _below(self, fork: bytes, old: bytes, arrived: Paths) -> dict[str, bytes]:
        """Follow on, from where two histories part, the files of which the old one does not tell what comes below."""
        known = (await self._trace(old, Paths(set(), all_but=True), {fork})).stopped.get(fork, Paths(set()))
        if not known.all_but:
            raise TooManyPaths
        files = await files_at(await self._manifest_of(fork), arrived.among(known.names))
        unknown = set(files)
        return (await self._trace(fork, Paths(unknown))).last if unknown else {}

    async def _manifest_of(self, commit_id: bytes) -> Manifest:
        (fact,) = await CommitWalk(self._index, self._scheme).facts_of([commit_id])
        return await self._reader.manifest(fact)

    async def _trace(self, start: bytes, paths: Paths, stops: set[bytes] | frozenset[bytes] = frozenset()) -> Trace:
        found = await trace(self._index, self._scheme, self._reader, start, paths, stops, PATHS_AT_ONCE)
        self._counts["commits"] += found.commits
        return found

    async def _rebuild(self, line: Line, target: bytes, manifest: Manifest) -> Line:
        """Follow all files of a commit, slice by slice."""
        self._counts["rebuilt"] += 1
        done = line.standing.done_path
        if line.standing.target_id != target or done is None:
            done = None
            line = await write(self._context, line, LineStanding(target_id=target))
            with self._context.phase("rows"):
                await self._clear(line)
        slices = _slices(manifest, done)
        while (following := await trio.to_thread.run_sync(next, slices, None)) is not None:
            part, ends = following
            with self._context.phase("walk"):
                found = await self._trace(target, Paths(set(part)))
            self._counts["paths"] += len(found.last)
            done = part[-1].encode()
            standing = LineStanding(target) if ends else LineStanding(target_id=target, done_path=done)
            with self._context.phase("rows"):
                line = await write(self._context, line, standing, PathChanges(found.last))
            await self._context.progress("paths", self._counts["paths"], len(manifest))
        if line.standing.target_id is not None:  # it has no files, or none was left
            line = await write(self._context, line, LineStanding(target))
        return line

    async def _clear(self, line: Line) -> None:
        while gone := await self._index.clear_paths(line.ticket, _ROWS_AT_ONCE):
            await self._context.progress("clear", gone)
        if gone is None:
            raise ClaimLost


def _slices(manifest: Manifest, done: bytes | None) -> Iterator[tuple[list[str], bool]]:
    """Cut a manifest's paths, in its order, into slices; each with whether it is the last one."""
    paths = (path for path in manifest.paths() if done is None or path.encode() > done)
    part = list(itertools.islice(paths, PATHS_AT_ONCE))
    while part:
        following = list(itertools.islice(paths, PATHS_AT_ONCE))
        yield part, not following
        part = following

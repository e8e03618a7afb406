"""Which commit was the last to change each file: git's ``log -1 -- path``, for many files in one walk.

A file is followed from a head into the past. At each commit it goes on to the first parent that has the same content
at its path; where no parent has, that commit is the one. This is git's default simplification of history, so a merge
is named only if it brought a content that none of its parents had.

Every file followed is at one commit at a time. So the walk keeps one set of paths for each commit on its frontier, and
hands a whole set on, less what the commit changed. A set can also be "all files but these": then a walk of few new
commits costs what they changed, however many files there are.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import trio

from actors.jobs.commit_walk import LOOKED_UP_AT_ONCE, ChangeReader, CommitWalk, files_at
from storage.index import Index
from wire.graph import CommitFacts
from wire.ids import Scheme

PATHS_AT_ONCE = 50_000
"""Files that are followed at once, and at most named as exceptions: some ten megabytes."""
_SHOWN_EVERY = 256


class TooManyPaths(Exception):
    """What changed is more than is kept at once; the files are followed in slices instead."""


@dataclass(slots=True)
class Paths:
    """Some files of a commit: the named ones, or all but the named ones."""

    names: set[str]
    all_but: bool = False

    def __bool__(self) -> bool:
        return self.all_but or bool(self.names)

    def among(self, paths: Iterable[str]) -> list[str]:
        """Give those of some paths that are in here."""
        return [path for path in paths if (path in self.names) != self.all_but]

    def drop(self, paths: Iterable[str]) -> None:
        """Take paths out."""
        if self.all_but:
            self.names.update(paths)
        else:
            self.names.difference_update(paths)

    def add(self, other: Paths) -> Paths:
        """Put in paths of the same commit, none of which is in here."""
        if other.all_but:
            return other.add(self)
        if self.all_but:
            self.names -= other.names
        elif len(self.names) < len(other.names):
            return Paths(other.names | self.names)
        else:
            self.names |= other.names
        return self


@dataclass(slots=True)
class Trace:
    """What a walk has found."""

    last: dict[str, bytes] = field(default_factory=dict)
    """File → the commit that changed it last."""
    stopped: dict[bytes, Paths] = field(default_factory=dict)
    """Commit where the walk was to stop → files that are as they were there."""
    commits: int = 0


async def trace(
    index: Index, scheme: Scheme, reader: ChangeReader, start: bytes, paths: Paths, stops: Collection[bytes] = (),
    most: int = PATHS_AT_ONCE,
) -> Trace:  # fmt: skip
    """Follow files of the commit ``start`` into the past, as far as the commits ``stops``.

    Raises:
        TooManyPaths: "all but" has become more than ``most`` exceptions, or reached the beginning of history.
        ObjectDamaged: the index lacks a commit or a snapshot.
    """
    walk = CommitWalk(index, scheme)
    found = Trace()
    waiting = {start: paths}
    walk.add(start)
    while (fact := await walk.next()) is not None:
        here = waiting.pop(fact.commit_id)
        if walk.given % _SHOWN_EVERY == 0:
            await trio.lowlevel.checkpoint()
        if fact.commit_id in stops:
            found.stopped[fact.commit_id] = here
            continue
        for parent, there in await _step(walk, reader, fact, here, found.last):
            known = waiting.get(parent)
            if known is None:
                walk.add(parent)
            waiting[parent] = there if known is None else known.add(there)
        if here.all_but and len(here.names) > most:
            raise TooManyPaths
    found.commits = walk.given
    return found


async def _held(here: Paths, upsert: Mapping[str, bytes]) -> dict[str, bytes]:
    """Give those of what a commit has set that are followed."""

    def held() -> dict[str, bytes]:
        return {path: blob for path, blob in upsert.items() if (path in here.names) != here.all_but}

    return held() if len(upsert) <= LOOKED_UP_AT_ONCE else await trio.to_thread.run_sync(held)


async def _step(
    walk: CommitWalk, reader: ChangeReader, fact: CommitFacts, here: Paths, last: dict[str, bytes]
) -> list[tuple[bytes, Paths]]:
    """Settle the files at one commit; gives where the others go on."""
    if not fact.parents:
        if here.all_but:
            raise TooManyPaths
        last.update(dict.fromkeys(here.names, fact.commit_id))
        return []
    first, *others = await walk.facts_of(fact.parents)
    most = PATHS_AT_ONCE if here.all_but else sys.maxsize  # of what is named, only that is kept
    changes = await reader.changes(fact, first, most, lambda: walk.ahead(fact))
    if changes is None:
        raise TooManyPaths
    upsert, removed = changes
    contents = await _held(here, upsert)
    changed = list(contents)
    if changed:  # a sender may have said what was so before: only what differs was changed
        before = await files_at(await reader.manifest(first), changed)
        changed = [path for path in changed if before.get(path) != contents[path]]
    here.drop(changed)
    onward: list[tuple[bytes, Paths]] = []
    for other in others if changed else ():
        there = await files_at(await reader.manifest(other), changed)
        same = {path for path, blob in there.items() if blob == contents[path]}
        if same:
            onward.append((other.commit_id, Paths(same)))
            changed = [path for path in changed if path not in same]
    last.update(dict.fromkeys(changed, fact.commit_id))
    if here.all_but:
        here.drop(removed)
    if here:
        onward.append((first.commit_id, here))
    return onward

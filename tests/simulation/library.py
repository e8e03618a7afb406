"""Everything any client of a run has ever made: contents, snapshots and commits, as the truth to compare with.

It is written from the protocol page through ``tests.muse`` and shares no code with the server.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.muse import Push, blob_id, make_commit, make_snapshot, typed

_PATHS = ("a.txt", "b.txt", "docs/c.md", "src/d.py", "src/deep/e.py")
_SHARED_CONTENTS = 6


@dataclass(frozen=True)
class Made:
    """A commit as its maker knows it."""

    record: dict
    parents: tuple[str, ...]
    manifest: Mapping[str, str]
    """Path → blob id."""


@dataclass
class Library:
    """Commits by id, and the contents they name; ids in their text form."""

    rng: random.Random
    shared: float = 0.4
    """How often a content is one of those that turn up everywhere."""
    commits: dict[str, Made] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    name: object = typed
    """The id scheme, as ``tests.muse`` has it."""
    _numbers: int = 0

    def __post_init__(self) -> None:
        self._shared = [b"", *(self.rng.randbytes(self.rng.choice([1, 30, 300])) for _ in range(_SHARED_CONTENTS))]
        """Contents that turn up in any repository again and again."""

    def make(self, rng: random.Random, parents: Iterable[str], who: str) -> str:
        """Make a commit that nobody has made before; gives its id."""
        parents = tuple(parents)
        manifest = dict(self.commits[parents[0]].manifest) if parents else {}
        for _ in range(rng.choice([1, 1, 2, 3])):
            path = rng.choice(_PATHS)
            if path in manifest and rng.random() < 0.2:
                del manifest[path]
            else:
                manifest[path] = self._content(rng)
        self._numbers += 1
        snapshot = make_snapshot(manifest, name=self.name)
        record = make_commit(
            snapshot["snapshot_id"], list(parents), self.name, author=f"{who} <{who}@example.org>",
            message=f"{self._numbers} ü",
        )  # fmt: skip
        self.commits[record["commit_id"]] = Made(record, parents, manifest)
        return record["commit_id"]

    def _content(self, rng: random.Random) -> str:
        shared = rng.random() < self.shared
        content = rng.choice(self._shared) if shared else rng.randbytes(rng.choice([3, 40, 400, 1500]))
        if not shared and self.blobs and rng.random() < 0.2:  # one that builds on another
            content = self.blobs[rng.choice(list(self.blobs))] + content[:40]
        object_id = blob_id(content, self.name)
        self.blobs[object_id] = content
        return object_id

    def closure(self, heads: Iterable[str]) -> dict[str, Made]:
        """Give the commits reachable from heads, by id, nearest first; unknown heads are a mistake of the server."""
        found: dict[str, Made] = {}
        waiting = list(heads)
        while waiting:
            commit_id = waiting.pop(0)
            if commit_id not in found:
                found[commit_id] = self.commits[commit_id]
                waiting += self.commits[commit_id].parents
        return found

    def leads_to(self, new: str, old: str) -> bool:
        """Tell whether ``old`` is ``new`` or one of its ancestors."""
        return old in self.closure([new])

    def push_of(self, branch: str, head: str, have: Iterable[str], *, deltas: bool) -> Push:
        """Give what a push of ``head`` has to bring to a server that has ``have`` and all they reach."""
        there = self.closure(commit_id for commit_id in have if commit_id in self.commits)
        known_blobs = {oid for made in there.values() for oid in made.manifest.values()}
        known_snapshots = {made.record["snapshot_id"] for made in there.values()}
        push = Push(branch, name=self.name)
        for commit_id, made in reversed(_parents_last(self, head)):
            if commit_id in there:
                continue
            push.commits.append(made.record)
            self._add_snapshot(push, made, known_snapshots, deltas=deltas)
            for object_id in sorted(made.manifest.values()):
                if object_id not in known_blobs:
                    push.blobs[object_id] = self.blobs[object_id]
        return push

    def _add_snapshot(self, push: Push, made: Made, known: set[str], *, deltas: bool) -> None:
        snapshot_id = made.record["snapshot_id"]
        if snapshot_id in known:
            return
        known.add(snapshot_id)
        base = self.commits[made.parents[0]] if made.parents and deltas else None
        if base is None or base.record["snapshot_id"] not in known:
            push.snapshots.append(make_snapshot(made.manifest, name=self.name))
            return
        push.deltas.append({
            "snapshot_id": snapshot_id, "parent_snapshot_id": base.record["snapshot_id"],
            "delta_upsert": {p: oid for p, oid in made.manifest.items() if base.manifest.get(p) != oid},
            "delta_remove": sorted(base.manifest.keys() - made.manifest.keys()),
        })  # fmt: skip


def _parents_last(library: Library, head: str) -> list[tuple[str, Made]]:
    """Give a head's history, children before their parents."""
    ordered: list[tuple[str, Made]] = []
    seen: set[str] = set()
    stack = [(head, False)]
    while stack:
        commit_id, done = stack.pop()
        if done:
            ordered.append((commit_id, library.commits[commit_id]))
        elif commit_id not in seen:
            seen.add(commit_id)
            stack.append((commit_id, True))
            stack += [(parent, False) for parent in library.commits[commit_id].parents]
    return ordered[::-1]

"""Merging two histories at file level: what both sides left alone or changed alike is taken, the rest is a conflict.

Contents are never mixed. With several merge bases (criss-cross histories) a path is merged only when every base
gives the same result.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from museworkd.client.checkout import manifest_of_commit
from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.ingest import HistoryIntake
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.repository import LocalRepository
from storage.environment import Environment
from wire.errors import Refusal
from wire.ids import Kind, format_id, hash_bytes
from wire.manifest import Manifest
from wire.paths import fold
from wire.records import SnapshotDelta, commit_text, parse_commit

FORMAT_VERSION = 7
"""A record without signature."""
_OURS, _THEIRS = 1, 2


@dataclass(frozen=True, slots=True)
class Merged:
    """What three manifests give; nothing of it counts when there are conflicts."""

    upsert: dict[str, bytes]
    remove: list[str]
    """Both relative to ours."""
    directories: tuple[str, ...]
    conflicts: list[str]


def merge_bases(repository: LocalRepository, ours: bytes, theirs: bytes) -> list[bytes]:
    """Give the newest commits both lead to, none of which leads to another; empty for unrelated histories."""
    index = repository.index
    flags = {ours: _OURS, theirs: _THEIRS} if ours != theirs else {ours: _OURS | _THEIRS}
    below: set[bytes] = set()
    """Commits that a merge base leads to."""
    heap = [(-_order(repository, commit_id), commit_id) for commit_id in flags]
    heapq.heapify(heap)
    bases = []
    while heap:
        _, commit_id = heapq.heappop(heap)
        facts = index.facts(commit_id)
        both = flags[commit_id] == _OURS | _THEIRS
        if both and commit_id not in below:
            bases.append(commit_id)
        if both and all(waiting in below for _, waiting in heap):
            break  # whatever else both lead to lies below a base
        for parent in facts.parents if facts is not None else ():
            if index.facts(parent) is None:
                continue  # cut here
            if both:
                below.add(parent)
            if parent not in flags:
                flags[parent] = 0
                heapq.heappush(heap, (-_order(repository, parent), parent))
            flags[parent] |= flags[commit_id]
    return bases


def merge(base: Manifest, ours: Manifest, theirs: Manifest) -> Merged:
    """Merge manifests path by path."""
    here, gone_here = base.changes_to(ours)
    there, gone_there = base.changes_to(theirs)
    mine: dict[str, bytes | None] = {**here, **dict.fromkeys(gone_here)}
    upsert: dict[str, bytes] = {}
    remove: list[str] = []
    conflicts = []
    for path in sorted({*there, *gone_there}):
        result = there.get(path)
        if path in mine and mine[path] != result:
            conflicts.append(path)
        elif path not in mine and result is None:
            remove.append(path)
        elif path not in mine:
            assert result is not None
            upsert[path] = result
    directories = _merged_directories(base, ours, theirs)
    return Merged(upsert, remove, directories, [*conflicts, *_collisions(ours, upsert, remove)])


async def merge_commits(repository: LocalRepository, ours: bytes, theirs: bytes) -> Merged:
    """Merge two commits that have a history in common.

    Raises:
        ClientError: they have none here.
    """
    bases = merge_bases(repository, ours, theirs)
    if not bases:
        shallow = " (this repository is shallow: fetch the rest first)" if repository.index.shallow() else ""
        raise ClientError(f"the two histories have nothing in common{shallow}")
    mine, others = await manifest_of_commit(repository, ours), await manifest_of_commit(repository, theirs)
    results = [merge(await manifest_of_commit(repository, base), mine, others) for base in bases]
    first = results[0]
    differing: set[str] = set()
    for other in results[1:]:
        for path in {*first.upsert, *other.upsert, *first.remove, *other.remove}:
            same = first.upsert.get(path) == other.upsert.get(path)
            if not same or (path in first.remove) != (path in other.remove):
                differing.add(path)
    conflicts = sorted({path for result in results for path in result.conflicts} | differing)
    return Merged(first.upsert, first.remove, first.directories, conflicts)


async def write_merge(
    repository: LocalRepository, ours: bytes, theirs: bytes, merged: Merged, branch: str, message: str, author: str,
    environment: Environment,
) -> bytes:  # fmt: skip
    """Add the merge commit to the repository; gives its id. No branch is moved."""
    scheme, index = repository.scheme, repository.index
    before = index.facts(ours)
    if before is None:
        raise IntegrityError(f"commit {format_id(ours, scheme)} is missing here")
    mine = await manifest_of_commit(repository, ours)
    made = mine.apply(merged.upsert, merged.remove, merged.directories, CLIENT_LIMITS)
    snapshot_id = made.snapshot_id(scheme)
    now = environment.now().isoformat()
    intake = HistoryIntake(index, scheme)
    if not index.has_snapshot(snapshot_id):
        extras = {"created_at": now, "note": "", "schema_version": 1}
        await intake.snapshot(
            SnapshotDelta(
                snapshot_id, before.snapshot_id, merged.upsert, tuple(merged.remove), merged.directories, extras
            )
        )
    record: dict[str, object] = {
        "branch": branch, "snapshot_id": format_id(snapshot_id, scheme), "message": message, "committed_at": now,
        "parent_commit_id": format_id(ours, scheme), "parent2_commit_id": format_id(theirs, scheme),
        "author": author, "metadata": {}, "structured_delta": None, "sem_ver_bump": "none", "breaking_changes": [],
        "agent_id": "", "model_id": "", "toolchain_id": "", "prompt_hash": "", "signature": "",
        "signer_public_key": "", "signer_key_id": "", "format_version": FORMAT_VERSION, "reviewed_by": [],
        "test_runs": 0,
    }  # fmt: skip
    text = commit_text(record, (ours, theirs), snapshot_id, scheme)
    record["commit_id"] = format_id(hash_bytes(Kind.COMMIT, text, scheme), scheme)
    commit = parse_commit(record, scheme)
    intake.commit(commit)
    with index.transaction():
        intake.write()
    return commit.commit_id


def _order(repository: LocalRepository, commit_id: bytes) -> int:
    facts = repository.index.facts(commit_id)
    if facts is None:
        raise IntegrityError(f"commit {format_id(commit_id, repository.scheme)} is missing here")
    return facts.order


def _merged_directories(base: Manifest, ours: Manifest, theirs: Manifest) -> tuple[str, ...]:
    before, mine, others = set(base.directories), set(ours.directories), set(theirs.directories)
    return tuple(sorted((mine & others) | (mine - before) | (others - before)))


def _collisions(ours: Manifest, upsert: dict[str, bytes], remove: list[str]) -> list[str]:
    """Give paths that cannot stand beside what is there: file against directory, or the same name but for its case."""
    added = [path for path in upsert if ours.get(path) is None]
    if not added:
        return []
    going = set(remove)
    staying = {path for path in ours.paths() if path not in going}
    names = {fold(path): path for path in staying}
    directories = {parent for path in staying for parent in _parents(path)}
    found = []
    for path in added:
        other = names.get(fold(path))
        if (other is not None and other != path) or path in directories or any(p in staying for p in _parents(path)):
            found.append(path)
    try:
        ours.apply({p: upsert[p] for p in upsert if p not in found}, remove, (), CLIENT_LIMITS)
    except Refusal as refusal:
        if not found:
            raise ClientError(f"the merged files cannot stand side by side: {refusal.detail}") from refusal
    return found


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]

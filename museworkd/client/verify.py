"""Proving a local repository: every byte against its id, every id against what it builds on, the work tree, and git.

What is proved is what commands read: the index as a whole, every pack and every place the index gives in one, every
snapshot and commit, refs and HEAD. The files of the work tree are the user's: where they differ from the commit they
were written from, that is told apart from damage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from actors.manifests import ManifestCache
from museworkd.client.checkout import manifest_of
from museworkd.client.errors import IntegrityError
from museworkd.client.git_import import PLAIN_MODE, as_shown, from_text
from museworkd.client.git_reader import GITLINK, GitReader
from museworkd.client.ingest import CLIENT_LIMITS
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository
from storage.errors import ObjectDamaged
from storage.snapshots import unpack_changes
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.ids import Kind, Scheme, format_id, hasher_for
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy
from wire.records import Commit, parse_commit
from wire.signatures import check_signature

PROBLEMS_LISTED = 50
_TREE_MODE = "40000"
_PIECE_BYTES = 1024 * 1024


@dataclass(slots=True)
class VerifyReport:
    """What was proved, and what is wrong."""

    commits: int = 0
    snapshots: int = 0
    blobs: int = 0
    git_commits: int = 0
    git_files: int = 0
    """Git's own files that were compared, over all commits."""
    shallow: int = 0
    """Commits whose parents are not here."""
    work_tree_files: int = 0
    """Files compared with the commit they were checked out from."""
    work_tree_changes: list[str] = field(default_factory=list)
    """The first of the files that differ from it."""
    work_tree_change_count: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    def problem(self, text: str) -> None:
        """Note something wrong."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append(text)

    def change(self, text: str) -> None:
        """Note a file of the work tree that is not as it was checked out."""
        self.work_tree_change_count += 1
        if len(self.work_tree_changes) < PROBLEMS_LISTED:
            self.work_tree_changes.append(text)


async def verify(repository: LocalRepository, meter: Meter) -> VerifyReport:
    """Prove index, blobs, snapshots, commits and refs of a repository, and compare its work tree."""
    report = VerifyReport()
    index = repository.index
    for text in index.check():
        report.problem(f"the repository's index is damaged, a fresh clone is needed: {text}")
    if lost := index.lost_blobs():
        report.problem(f"the repository's index is damaged: {lost} blobs lie in packs it does not know")
    found: set[bytes] = set()
    with meter.phase("Verifying blobs", index.blob_count()) as phase:
        for pack_id in index.pack_ids():
            places = index.pack_places(pack_id)
            try:
                for entry in repository.files.check(pack_id):
                    place = places.pop(entry.object_id, None)
                    if place is not None and place != (entry.offset, entry.size):
                        report.problem(f"the index gives a wrong place for blob {entry.object_id.hex()}")
                    elif place is not None:
                        found.add(entry.object_id)
                        phase.advance()
            except IntegrityError as error:
                report.problem(str(error))
            else:
                for blob_id in places:
                    report.problem(f"blob {blob_id.hex()} is not in pack {pack_id.hex()}, where the index says it is")
    report.blobs = len(found)
    commit_ids = index.commit_ids()
    with meter.phase("Verifying commits", len(commit_ids)) as phase:
        await _History(repository, report, found).run(commit_ids, phase)
    for kind, refs in (("branch", repository.branches()), ("tag", repository.tags())):
        for name, head in refs.items():
            if not index.has_commit(head):
                report.problem(f"{kind} {name} names {format_id(head, repository.scheme)}, which is missing")
    report.shallow = len(index.shallow())
    _check_head(repository, report)
    await _check_work_tree(repository, report, meter)
    return report


def _check_head(repository: LocalRepository, report: VerifyReport) -> None:
    try:
        head = repository.head_branch
    except IntegrityError as error:
        report.problem(str(error))
        return
    branches = repository.branches()
    if branches and head not in branches:
        report.problem(f"HEAD names the branch {head!a}, which does not exist")


async def _check_work_tree(repository: LocalRepository, report: VerifyReport, meter: Meter) -> None:
    """Compare the files that a checkout wrote; others in the work tree are nobody's business here."""
    try:
        commit_id = repository.checked_out
        if commit_id is None:
            return
        facts = repository.index.facts(commit_id)
        if facts is None:
            report.problem(f"the checked-out commit {format_id(commit_id, repository.scheme)} is missing")
            return
        manifest = await manifest_of(repository, facts.snapshot_id)
    except (IntegrityError, ObjectDamaged, Refusal, ValueError) as error:
        report.problem(f"the work tree cannot be compared: {error}")
        return
    with meter.phase("Comparing the work tree", len(manifest)) as phase:
        for path, blob_id in manifest.items():
            report.work_tree_files += 1
            change = _file_change(repository.root / path, blob_id, repository.scheme)
            if change is not None:
                report.change(f"{path!a} {change}")
            phase.advance()
        for path in manifest.directories:
            if not (repository.root / path).is_dir():
                report.change(f"{path!a} is no directory")


def _file_change(path: Path, blob_id: bytes, scheme: Scheme) -> str | None:
    """Say how a file differs from its blob."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return "is not a file"
        hasher = hasher_for(Kind.BLOB, facts.st_size, scheme)
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
    return None if hasher.digest() == blob_id else "is changed"


class _History:
    def __init__(self, repository: LocalRepository, report: VerifyReport, blobs: set[bytes]) -> None:
        self._repository = repository
        self._report = report
        self._blobs = blobs
        self._checked: set[bytes] = set()
        self._manifests = ManifestCache(repository.index, repository.scheme, PathPolicy.RELAXED, CLIENT_LIMITS)

    async def run(self, commit_ids: list[bytes], phase: Phase) -> None:
        index, report = self._repository.index, self._report
        known: set[bytes] = set()
        shallow = index.shallow()
        for commit_id in commit_ids:
            shown = format_id(commit_id, self._repository.scheme)
            try:
                commit = read_commit(self._repository, commit_id)
                check_signature(commit, self._repository.scheme)
            except (Refusal, IntegrityError) as error:
                report.problem(f"commit {shown}: {error}")
                continue
            known.add(commit_id)
            report.commits += 1
            if commit_id not in shallow:
                for parent in commit.parents:
                    if parent not in known:
                        report.problem(f"commit {shown}: its parent {parent.hex()} is missing")
            await self._snapshot(commit.snapshot_id)
            phase.advance()

    async def _snapshot(self, snapshot_id: bytes) -> None:
        if snapshot_id in self._checked:
            return
        scheme, report = self._repository.scheme, self._report
        try:
            chain = await self._repository.index.snapshot_chain(scheme, snapshot_id)
            manifest = await self._manifests.get(snapshot_id)
        except (IntegrityError, ObjectDamaged, Refusal) as error:
            report.problem(f"snapshot {snapshot_id.hex()}: {error}")
            return
        if manifest.snapshot_id(scheme) != snapshot_id:
            report.problem(f"snapshot {snapshot_id.hex()} does not hash to its id")
        # what a checked base has was checked with it; only what is new to it is left
        based = bool(chain) and chain[0].base_id in self._checked
        named = unpack_changes(chain[0].delta).upsert.values() if based else manifest.blobs()
        for blob_id in set(named):
            if blob_id not in self._blobs:
                report.problem(f"snapshot {snapshot_id.hex()}: blob {blob_id.hex()} is missing")
        self._checked.add(snapshot_id)
        report.snapshots += 1


def read_commit(repository: LocalRepository, commit_id: bytes) -> Commit:
    """Read a stored commit and recompute its id."""
    try:
        _, record = parse_canonical(repository.index.record(commit_id))
        commit = parse_commit(record, repository.scheme, CLIENT_LIMITS)
    except Refusal as refusal:
        raise IntegrityError(f"its record is damaged: {refusal.detail}") from refusal
    if commit.commit_id != commit_id:
        raise IntegrityError("its record is another commit's")
    return commit


async def compare_with_git(repository: LocalRepository, source: Path, meter: Meter) -> VerifyReport:
    """Compare every commit of git's branches with the Muse commit made of it, file by file.

    Contents are compared by git's own hash, computed from the Muse blob: equal means byte-identical. The commit object
    itself is rebuilt from the metadata and must hash to git's id. Files stand under the paths git has: what Muse
    stores under another path is led back by the metadata, never by the function that escaped it.
    """
    report = VerifyReport()
    with GitReader(source) as git:
        await _GitComparison(repository, git, report).run(meter)
    return report


class _GitComparison:
    def __init__(self, repository: LocalRepository, git: GitReader, report: VerifyReport) -> None:
        self._repository = repository
        self._git = git
        self._report = report
        self._muse: dict[str, Commit] = {}
        self._modes: dict[bytes, dict[str, str]] = {}
        self._trees: dict[str, dict[bytes, tuple[str, str]]] = {}
        self._blob_names: dict[bytes, str] = {}
        self._previous: Manifest = empty_manifest(PathPolicy.RELAXED)
        self._origins: dict[str, bytes] = {}
        """Muse path → git path, where the two differ."""
        self._found: dict[bytes, tuple[str, str]] = {}
        self._found_modes: dict[str, str] = {}
        self._manifests = ManifestCache(repository.index, repository.scheme, PathPolicy.RELAXED, CLIENT_LIMITS)

    async def run(self, meter: Meter) -> None:
        for commit_id in self._repository.index.commit_ids():
            commit = read_commit(self._repository, commit_id)
            metadata = commit.raw.get("metadata")
            if isinstance(metadata, dict):
                self._note_modes(commit, metadata)
                self._note_origins(commit, metadata)
                if "git.commit" in metadata:
                    self._muse[str(metadata["git.commit"])] = commit
        branches = self._git.branches()
        history = self._git.commits(list(branches.values()))
        with meter.phase("Comparing with git", len(history)) as phase:
            for sha, _ in history:
                await self._compare(sha)
                phase.advance()
        heads = self._repository.branches()
        for name, sha in branches.items():
            tip = self._muse.get(sha)
            if tip is None or heads.get(name) != tip.commit_id:
                self._report.problem(f"branch {name} is not at git's {sha}")

    def _note_modes(self, commit: Commit, metadata: dict[str, object]) -> None:
        """Follow the modes along first parents, as the import wrote them."""
        inherited = self._modes.get(commit.parents[0], {}) if commit.parents else {}
        modes = dict(inherited) if "git.modes" in metadata else inherited
        for path, mode in json.loads(str(metadata.get("git.modes", "{}"))).items():
            if mode is None:
                modes.pop(path, None)
            else:
                modes[path] = mode
        self._modes[commit.commit_id] = modes

    def _note_origins(self, commit: Commit, metadata: dict[str, object]) -> None:
        for path, encoded in json.loads(str(metadata.get("git.paths", "{}"))).items():
            raw = base64.b64decode(encoded)
            other = self._origins.setdefault(path, raw)
            if other != raw:
                self._report.problem(
                    f"commit {commit.commit_id.hex()}: {path!a} stands for {as_shown(raw)} and for {as_shown(other)}"
                )

    async def _compare(self, sha: str) -> None:
        report = self._report
        commit = self._muse.get(sha)
        if commit is None:
            report.problem(f"git commit {sha} has no Muse commit")
            return
        report.git_commits += 1
        self._compare_object(sha, commit)
        wanted = self._files(self._git.commit(sha).tree)
        found = await self._muse_files(commit)
        report.git_files += len(wanted)
        if found == wanted:
            return
        for path in sorted(found.keys() | wanted.keys()):
            if path not in wanted:
                report.problem(f"git commit {sha}: {as_shown(path)} is not in git")
            elif path not in found:
                report.problem(f"git commit {sha}: {as_shown(path)} is missing")
            elif found[path] != wanted[path]:
                report.problem(f"git commit {sha}: {as_shown(path)} is {found[path]}, in git {wanted[path]}")

    def _origin(self, path: str) -> bytes:
        return self._origins.get(path) or path.encode()

    async def _muse_files(self, commit: Commit) -> dict[bytes, tuple[str, str]]:
        """Give a commit's files by git path: mode and git name. Derived from the commit before: only changes cost."""
        manifest = await self._manifests.get(commit.snapshot_id)
        modes = self._modes[commit.commit_id]
        upsert, remove = self._previous.changes_to(manifest)
        changed = dict(self._found)
        for path in remove:
            changed.pop(self._origin(path), None)
        width = len(next(iter(self._muse)))
        for path, blob_id in upsert.items():
            changed[self._origin(path)] = (modes.get(path, PLAIN_MODE), self._git_name(blob_id, width))
        for path, _ in modes.items() ^ self._found_modes.items():
            known = changed.get(self._origin(path))
            if known is not None:
                changed[self._origin(path)] = (modes.get(path, PLAIN_MODE), known[1])
        if len(changed) != len(manifest):
            self._report.problem(f"commit {commit.commit_id.hex()}: two of its paths stand for one git path")
        self._previous, self._found, self._found_modes = manifest, changed, modes
        return changed

    def _compare_object(self, sha: str, commit: Commit) -> None:
        """Rebuild git's commit object and check its hash."""
        metadata = commit.raw["metadata"]
        assert isinstance(metadata, dict)
        headers = from_text(str(metadata.get("git.headers", "")))
        message = str(commit.raw["message"]).encode()
        if "git.message" in metadata:
            message = from_text(str(metadata["git.message"]))
        body = headers + b"\n\n" + message
        if _hash(b"commit", body, len(sha)) != sha:
            self._report.problem(f"git commit {sha} cannot be rebuilt from its metadata and message")

    def _files(self, tree: str) -> dict[bytes, tuple[str, str]]:
        """Give a tree's files by git path: mode and git name; submodules are left out."""
        return {path: entry for path, entry in self._flat(tree).items() if entry[0] != GITLINK}

    def _flat(self, tree: str) -> dict[bytes, tuple[str, str]]:
        known = self._trees.get(tree)
        if known is not None:
            return known
        found: dict[bytes, tuple[str, str]] = {}
        for mode, name, sha in self._git.tree(tree):
            if mode == _TREE_MODE:
                inside = {name + b"/" + path: entry for path, entry in self._flat(sha).items()}
            else:
                inside = {name: (PLAIN_MODE if mode == "100664" else mode, sha)}  # a mode of git's early days
            for path in inside.keys() & found.keys():
                self._report.problem(f"git tree {tree} has the path {as_shown(path)} twice")
            found.update(inside)
        self._trees[tree] = found
        return found

    def _git_name(self, blob_id: bytes, width: int) -> str:
        known = self._blob_names.get(blob_id)
        if known is None:
            place = self._repository.index.place(blob_id)
            if place is None:
                raise IntegrityError(f"blob {blob_id.hex()} is missing here")
            hasher = hashlib.sha1(usedforsecurity=False) if width == 40 else hashlib.sha256()
            hasher.update(b"blob %d\0" % place.size)
            for piece in self._repository.files.pieces(place):
                hasher.update(piece)
            known = self._blob_names[blob_id] = hasher.hexdigest()
        return known


def _hash(kind: bytes, content: bytes, width: int) -> str:
    hasher = hashlib.sha1(usedforsecurity=False) if width == 40 else hashlib.sha256()
    hasher.update(b"%b %d\0" % (kind, len(content)))
    hasher.update(content)
    return hasher.hexdigest()

"""Proving a local repository: every byte against its id, every id against what it builds on, and against git."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from actors.manifests import ManifestCache
from museworkd.client.errors import IntegrityError
from museworkd.client.git_import import PLAIN_MODE, from_text
from museworkd.client.git_paths import muse_path
from museworkd.client.git_reader import GITLINK, GitReader
from museworkd.client.ingest import CLIENT_LIMITS
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository
from storage.errors import ObjectDamaged
from storage.snapshots import unpack_changes
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.ids import format_id
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy
from wire.records import Commit, parse_commit
from wire.signatures import check_signature

PROBLEMS_LISTED = 50
_TREE_MODE = "40000"


@dataclass(slots=True)
class VerifyReport:
    """What was proved, and what is wrong."""

    commits: int = 0
    snapshots: int = 0
    blobs: int = 0
    git_commits: int = 0
    git_files: int = 0
    """Files compared with git, over all commits."""
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    def problem(self, text: str) -> None:
        """Note something wrong."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append(text)


async def verify(repository: LocalRepository, meter: Meter) -> VerifyReport:
    """Prove blobs, snapshots, commits and refs of a repository."""
    report = VerifyReport()
    index = repository.index
    found: set[bytes] = set()
    with meter.phase("Verifying blobs", index.blob_count()) as phase:
        for pack_id in index.pack_ids():
            try:
                for blob_id in repository.files.check(pack_id):
                    found.add(blob_id)
                    phase.advance()
            except IntegrityError as error:
                report.problem(str(error))
    report.blobs = len(found)
    commit_ids = index.commit_ids()
    with meter.phase("Verifying commits", len(commit_ids)) as phase:
        await _History(repository, report, found).run(commit_ids, phase)
    for kind, refs in (("branch", repository.branches()), ("tag", repository.tags())):
        for name, head in refs.items():
            if not index.has_commit(head):
                report.problem(f"{kind} {name} names {format_id(head, repository.scheme)}, which is missing")
    return report


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
        chain = await self._repository.index.snapshot_chain(scheme, snapshot_id)
        try:
            manifest = await self._manifests.get(snapshot_id)
        except (ObjectDamaged, Refusal) as error:
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
    itself is rebuilt from the metadata and must hash to git's id.
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
        self._found: dict[str, tuple[str, str]] = {}
        self._found_modes: dict[str, str] = {}
        self._manifests = ManifestCache(repository.index, repository.scheme, PathPolicy.RELAXED, CLIENT_LIMITS)

    async def run(self, meter: Meter) -> None:
        for commit_id in self._repository.index.commit_ids():
            commit = read_commit(self._repository, commit_id)
            metadata = commit.raw.get("metadata")
            if isinstance(metadata, dict):
                self._note_modes(commit, metadata)
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
        self._report.git_files += len(found)
        if found == wanted:
            return
        for path in sorted(found.keys() | wanted.keys()):
            if path not in wanted:
                report.problem(f"git commit {sha}: {path!a} is not in git")
            elif path not in found:
                report.problem(f"git commit {sha}: {path!a} is missing")
            elif found[path] != wanted[path]:
                report.problem(f"git commit {sha}: {path!a} is {found[path]}, in git {wanted[path]}")

    async def _muse_files(self, commit: Commit) -> dict[str, tuple[str, str]]:
        """Give a commit's files: mode and git name. Derived from the commit before, so only changes cost."""
        manifest = await self._manifests.get(commit.snapshot_id)
        modes = self._modes[commit.commit_id]
        upsert, remove = self._previous.changes_to(manifest)
        changed = dict(self._found)
        for path in remove:
            del changed[path]
        width = len(next(iter(self._muse)))
        for path, blob_id in upsert.items():
            changed[path] = (modes.get(path, PLAIN_MODE), self._git_name(blob_id, width))
        for path, _ in modes.items() ^ self._found_modes.items():
            if path in changed:
                changed[path] = (modes.get(path, PLAIN_MODE), changed[path][1])
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

    def _files(self, tree: str) -> dict[str, tuple[str, str]]:
        """Give a tree's files by Muse path: mode and git name; submodules are left out."""
        return {muse_path(path): entry for path, entry in self._flat(tree).items() if entry[0] != GITLINK}

    def _flat(self, tree: str) -> dict[bytes, tuple[str, str]]:
        known = self._trees.get(tree)
        if known is not None:
            return known
        found: dict[bytes, tuple[str, str]] = {}
        for mode, name, sha in self._git.tree(tree):
            if mode == _TREE_MODE:
                for path, entry in self._flat(sha).items():
                    found[name + b"/" + path] = entry
            else:
                found[name] = (PLAIN_MODE if mode == "100664" else mode, sha)  # a mode of git's early days
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

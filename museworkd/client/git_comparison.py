"""Comparing a repository with the git history it was imported from, commit by commit and file by file."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from actors.manifests import ManifestCache
from museworkd.client.errors import IntegrityError
from museworkd.client.git_import import PLAIN_MODE, as_shown, from_text
from museworkd.client.git_reader import GITLINK, GitReader
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.progress import Meter
from museworkd.client.repository import LocalRepository
from museworkd.client.verify_report import VerifyReport, read_commit
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy
from wire.records import Commit

_TREE_MODE = "40000"


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
                self._report.problem(f"branch {name!a} is not at git's {sha}")

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

"""Importing a git repository: every commit reachable from its branches and tags, nothing lost silently.

What Muse has no place for goes to commit ``metadata``, as changes against the first parent:

* ``git.commit``, ``git.headers`` (all of the commit object before its message) and, where the message is not
  UTF-8, ``git.message``; bytes that are not UTF-8 are ``base64:…``;
* ``git.modes``: JSON of path → mode where it is not 100644 (executables, symbolic links), null where it is again;
* ``git.submodules``: JSON of path → commit, null where one is gone;
* ``git.paths``: JSON of Muse path → git path in base64, where the two differ.

A merge of more than two parents becomes a chain of merges of two, marked ``git.octopus``.

Two git paths never become one (``git_paths``); a tree that names one path twice is refused.
"""

from __future__ import annotations

import base64
import codecs
import datetime as dt
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from museworkd.client.blob_packs import PACK_BYTES, PackBuilder
from museworkd.client.errors import ClientError
from museworkd.client.git_paths import is_portable, muse_path
from museworkd.client.git_reader import GITLINK, GitChange, GitCommit, GitReader
from museworkd.client.ingest import HistoryIntake
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository
from wire.errors import Refusal
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for
from wire.paths import check_branch_name
from wire.records import SnapshotDelta, commit_text, parse_commit

PLAIN_MODE = "100644"
_SPOOLED_FROM_BYTES = 16 * 1024 * 1024
_WRITE_EVERY = 1_000
_PREFERRED_BRANCHES = ("main", "master")
"""Where HEAD is on no branch."""
EXAMPLES = 3
"""Paths named in a note."""
_IDENTITY = re.compile(rb"(?P<who>.*) (?P<seconds>-?\d+) (?P<zone>[+-]\d{4})")
SCHEMA_VERSION = 1
FORMAT_VERSION = 7
"""A record without signature; 8 begins to sign provenance."""


@dataclass(slots=True)
class ImportReport:
    """What an import brought, and what of git it could only note."""

    commits: int = 0
    """Git's commits."""
    octopus_commits: int = 0
    """Commits made beside git's, because a Muse commit has at most two parents."""
    snapshots: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    branches: dict[str, str] = field(default_factory=dict)
    tags: int = 0
    only_tagged_commits: int = 0
    executables: int = 0
    symlinks: int = 0
    submodules: int = 0
    escaped_paths: int = 0
    escaped_examples: list[str] = field(default_factory=list)
    """The first few git paths of those, non-UTF-8 bytes escaped."""
    unportable_paths: int = 0
    unportable_examples: list[str] = field(default_factory=list)
    octopus_merges: int = 0
    skipped_refs: list[str] = field(default_factory=list)


async def import_git(source: Path, repository: LocalRepository, meter: Meter) -> ImportReport:
    """Import ``source`` (a repository, a work tree or a bundle) into an empty local repository.

    Raises:
        ClientError: the source is not a git repository, or has no commits.
    """
    with GitReader(source) as git:
        return await _Importer(git, repository).run(meter)


class _Importer:
    def __init__(self, git: GitReader, repository: LocalRepository) -> None:
        self._git = git
        self._repository = repository
        self._intake = HistoryIntake(repository.index, repository.scheme)
        self._report = ImportReport()
        self._pack = PackBuilder(repository.packs)
        self._blobs: dict[str, bytes] = {}
        self._blob_ids: set[bytes] = set()
        self._commits: dict[str, tuple[bytes, bytes]] = {}
        """git id → Muse commit id, snapshot id."""
        self._paths: dict[bytes, str] = {}
        self._origins: dict[str, bytes] = {}
        self._modes: dict[str, str] = {}
        self._submodules: set[str] = set()
        self._branch = ""

    async def run(self, meter: Meter) -> ImportReport:
        branches, tags = self._git.branches(), self._git.tags()
        if not branches:
            raise ClientError("the git repository has no commits on any branch")
        self._branch = self._choose_head(branches)
        history = self._git.commits([*branches.values(), *tags.values()])
        on_branches = {sha for sha, _ in self._git.commits(list(branches.values()))}
        self._report.only_tagged_commits = len(history) - len(on_branches)
        try:
            with meter.phase("Importing commits", len(history)) as phase:
                await self._take(history, phase)
            self._finish_pack()
        except BaseException:
            self._pack.abandon()
            raise
        with self._repository.index.transaction():
            self._intake.write()
        self._set_refs(branches, tags)
        report = self._report
        report.snapshots = self._repository.index.snapshot_count()
        report.blobs = len(self._blob_ids)
        unportable = [path for path in self._paths.values() if not is_portable(path)]
        report.unportable_paths = len(unportable)
        report.unportable_examples = unportable[:EXAMPLES]
        detached = self._git.detached_head()
        if detached is not None and detached not in self._commits:
            report.skipped_refs.append(f"HEAD: it is detached, and no branch or tag leads to its commit {detached}")
        return report

    def _choose_head(self, branches: dict[str, str]) -> str:
        """Give the branch the new repository is on: git's, else a usual one, else the first."""
        usable = [name for name in sorted(branches) if _branch_problem(name) is None]
        if not usable:
            raise ClientError("the git repository has no branch with a name that Muse can have")
        for name in (self._git.head_branch(), *_PREFERRED_BRANCHES):
            if name is not None and name in usable:
                return name
        return usable[0]

    async def _take(self, history: list[tuple[str, tuple[str, ...]]], phase: Phase) -> None:
        for number, ((sha, _), changes) in enumerate(zip(history, self._git.changes(history), strict=True), 1):
            await self._take_commit(self._git.commit(sha), changes)
            phase.advance()
            if number % _WRITE_EVERY == 0:
                with self._repository.index.transaction():
                    self._intake.write()

    async def _take_commit(self, commit: GitCommit, changes: list[GitChange]) -> None:
        metadata = _identity_metadata(commit)
        upsert, remove = self._tree_changes(changes, metadata)
        parents = [self._commits[parent] for parent in commit.parents]
        base = parents[0][1] if parents else None
        committed_at = _committed_at(commit)
        snapshot_id = await self._snapshot(base, upsert, remove, committed_at)
        muse_parents = [commit_id for commit_id, _ in parents]
        if len(muse_parents) > 2:
            muse_parents = self._octopus(commit, muse_parents, parents[0][1], committed_at)
        commit_id = self._commit(commit, muse_parents, snapshot_id, committed_at, metadata)
        self._commits[commit.sha] = (commit_id, snapshot_id)
        self._report.commits += 1

    def _tree_changes(
        self, changes: list[GitChange], metadata: dict[str, str]
    ) -> tuple[dict[str, bytes], tuple[str, ...]]:
        upsert: dict[str, bytes] = {}
        remove: list[str] = []
        modes: dict[str, str | None] = {}
        submodules: dict[str, str | None] = {}
        escaped: dict[str, str] = {}
        seen: set[bytes] = set()
        for change in changes:
            path = self._path(change.path)
            if change.path in seen:
                raise ClientError(f"a git tree has the path {as_shown(change.path)} twice; see `git fsck`")
            seen.add(change.path)
            if path.encode() != change.path:
                escaped[path] = base64.b64encode(change.path).decode()
            if change.mode == GITLINK:
                submodules[path] = change.blob
                self._submodules.add(path)
                remove.append(path)  # it may have been a file before
                self._report.submodules += 1
            elif change.blob is None:
                remove.append(path)
                submodules[path] = None
            else:
                upsert[path] = self._blob(change.blob)
                submodules[path] = None
            self._note_mode(change, path, modes)
        known = {path: sha for path, sha in submodules.items() if sha is not None or path in self._submodules}
        for key, value in (("git.modes", modes), ("git.submodules", known), ("git.paths", escaped)):
            if value:
                metadata[key] = json.dumps(value, sort_keys=True, ensure_ascii=False)
        return upsert, tuple(remove)

    def _note_mode(self, change: GitChange, path: str, modes: dict[str, str | None]) -> None:
        """Note a mode that is not the plain one, and its end: branches may differ, so ends are noted generously."""
        if change.blob is not None and change.mode != PLAIN_MODE:
            modes[path] = change.mode
            if self._modes.get(path) != change.mode:
                self._modes[path] = change.mode
                self._report.executables += change.mode == "100755"
                self._report.symlinks += change.mode == "120000"
        elif path in self._modes:
            modes[path] = None

    def _path(self, raw: bytes) -> str:
        path = self._paths.get(raw)
        if path is None:
            path = muse_path(raw)
            other = self._origins.setdefault(path, raw)
            if other != raw:
                raise ClientError(f"the git paths {as_shown(other)} and {as_shown(raw)} would both become {path!a}")
            self._paths[raw] = path
            if path.encode() != raw:
                self._report.escaped_paths += 1
                if len(self._report.escaped_examples) < EXAMPLES:
                    self._report.escaped_examples.append(as_shown(raw))
        return path

    def _blob(self, sha: str) -> bytes:
        known = self._blobs.get(sha)
        if known is not None:
            return known
        size, pieces = self._git.content(sha)
        if size < _SPOOLED_FROM_BYTES:
            content = b"".join(pieces)
            blob_id = hash_bytes(Kind.BLOB, content, Scheme.TYPED)
            if blob_id not in self._blob_ids:
                self._pack.add(blob_id, size, [content])
        else:
            hasher = hasher_for(Kind.BLOB, size, Scheme.TYPED)
            for piece in pieces:
                hasher.update(piece)
            blob_id = hasher.digest()
            if blob_id not in self._blob_ids:
                self._pack.add(blob_id, size, self._git.content(sha)[1])
        if blob_id not in self._blob_ids:
            self._blob_ids.add(blob_id)
            self._report.blob_bytes += size
        self._blobs[sha] = blob_id
        if self._pack.size >= PACK_BYTES:
            self._finish_pack()
            self._pack = PackBuilder(self._repository.packs)
        return blob_id

    async def _snapshot(
        self, base: bytes | None, upsert: dict[str, bytes], remove: tuple[str, ...], created_at: str
    ) -> bytes:
        """Work out the snapshot's id, then take it in like any other."""
        manifests = self._intake.manifests
        start = manifests.empty if base is None else await manifests.get(base)
        snapshot_id = start.apply(upsert, remove).snapshot_id(Scheme.TYPED)
        extras = {"created_at": created_at, "note": "", "schema_version": SCHEMA_VERSION}
        await self._intake.snapshot(SnapshotDelta(snapshot_id, base, upsert, remove, (), extras))
        return snapshot_id

    def _octopus(self, commit: GitCommit, parents: list[bytes], snapshot_id: bytes, committed_at: str) -> list[bytes]:
        """Chain the parents of an octopus merge; gives the two parents its own commit gets."""
        self._report.octopus_merges += 1
        self._report.octopus_commits += len(parents) - 2
        merged = parents[0]
        for other in parents[1:-1]:
            note = {"git.octopus": commit.sha}
            merged = self._commit(commit, [merged, other], snapshot_id, committed_at, note)
        return [merged, parents[-1]]

    def _commit(
        self, commit: GitCommit, parents: list[bytes], snapshot_id: bytes, committed_at: str, metadata: dict[str, str]
    ) -> bytes:
        record: dict[str, object] = {
            "branch": self._branch,
            "snapshot_id": format_id(snapshot_id, Scheme.TYPED),
            "message": _message(commit, metadata),
            "committed_at": committed_at,
            "parent_commit_id": format_id(parents[0], Scheme.TYPED) if parents else None,
            "parent2_commit_id": format_id(parents[1], Scheme.TYPED) if len(parents) > 1 else None,
            "author": _author(commit),
            "metadata": metadata,
            "structured_delta": None,
            "sem_ver_bump": "none",
            "breaking_changes": [],
            "agent_id": "",
            "model_id": "",
            "toolchain_id": "",
            "prompt_hash": "",
            "signature": "",
            "signer_public_key": "",
            "signer_key_id": "",
            "format_version": FORMAT_VERSION,
            "reviewed_by": [],
            "test_runs": 0,
        }
        text = commit_text(record, tuple(parents), snapshot_id, Scheme.TYPED)
        record["commit_id"] = format_id(hash_bytes(Kind.COMMIT, text, Scheme.TYPED), Scheme.TYPED)
        parsed = parse_commit(record, Scheme.TYPED)
        self._intake.commit(parsed)
        return parsed.commit_id

    def _finish_pack(self) -> None:
        entries = self._pack.entries
        pack_id = self._pack.finish()
        if pack_id is not None:
            with self._repository.index.transaction():
                self._repository.index.add_pack(pack_id, ((e.object_id, e.offset, e.size) for e in entries))

    def _set_refs(self, branches: dict[str, str], tags: dict[str, str]) -> None:
        for name, sha in branches.items():
            problem = _branch_problem(name)
            if problem is not None:
                self._report.skipped_refs.append(f"{name!a}: {problem}")
                continue
            head = self._commits[sha][0]
            self._repository.set_branch(name, head)
            self._report.branches[name] = format_id(head, Scheme.TYPED)
        for name, sha in tags.items():
            self._repository.set_tag(_tag_name(name), self._commits[sha][0])
            self._report.tags += 1
        self._repository.set_head_branch(self._branch)


def _branch_problem(name: str) -> str | None:
    try:
        check_branch_name(name)
    except Refusal as refusal:
        return refusal.detail
    return None


def _tag_name(name: str) -> str:
    """Give a tag's name in Muse: bytes that are not UTF-8 with a backslash, which git has in no name."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_shown(raw: bytes) -> str:
    """Write a git path for people: quoted, in ASCII, and the same for no other path."""
    return ascii(raw.decode("utf-8", "surrogateescape"))


def _identity_metadata(commit: GitCommit) -> dict[str, str]:
    return {"git.commit": commit.sha, "git.headers": as_text(commit.headers)}


def as_text(raw: bytes) -> str:
    """Write bytes as text that can be read back exactly."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
    return "base64:" + base64.b64encode(raw).decode() if text.startswith("base64:") else text


def from_text(text: str) -> bytes:
    """Read what :func:`as_text` wrote."""
    return base64.b64decode(text[7:]) if text.startswith("base64:") else text.encode("utf-8")


def _header(commit: GitCommit, name: bytes) -> bytes:
    for line in commit.headers.split(b"\n"):
        if line.startswith(name + b" "):
            return line[len(name) + 1 :]
    return b""


def _message(commit: GitCommit, metadata: dict[str, str]) -> str:
    raw = commit.message
    text = _decoded(raw, commit).replace("\0", "\ufffd")
    if text.encode("utf-8", "replace") != raw:
        metadata["git.message"] = "base64:" + base64.b64encode(raw).decode()
    return text


def _author(commit: GitCommit) -> str:
    match = _IDENTITY.fullmatch(_header(commit, b"author"))
    who = match.group("who") if match else _header(commit, b"author")
    return _decoded(who, commit).replace("\0", "\ufffd")


def _decoded(raw: bytes, commit: GitCommit) -> str:
    named = _header(commit, b"encoding").decode("ascii", "replace")
    for encoding in ("utf-8", named, "latin-1"):
        try:
            codecs.lookup(encoding)
            text = raw.decode(encoding)
            text.encode("utf-8")
        except (LookupError, UnicodeError, ValueError):
            continue
        return text
    raise AssertionError("latin-1 decodes everything")


def _committed_at(commit: GitCommit) -> str:
    match = _IDENTITY.fullmatch(_header(commit, b"committer"))
    if match is None:
        return "1970-01-01T00:00:00+00:00"
    zone = match.group("zone").decode("ascii")
    minutes = (int(zone[1:3]) * 60 + int(zone[3:5])) * (-1 if zone[0] == "-" else 1)
    try:
        moment = dt.datetime.fromtimestamp(int(match.group("seconds")), dt.timezone(dt.timedelta(minutes=minutes)))
    except (ValueError, OverflowError, OSError):  # git allows zones and years that datetime does not
        return f"@{match.group('seconds').decode()}{zone}"
    return moment.isoformat()

"""Histories of files that are looked at by their ids alone, put straight into an index, and what git says of them."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import trio

from actors.jobs.handler import JobContext, JobServices
from storage.environment import SeededEnvironment
from storage.index import Index
from storage.insights import LastCommits
from storage.job_rows import Claim, ClaimedJob
from storage.object_store import ObjectStore
from storage.objects.memory import MemoryStore
from storage.rows import (
    BranchMove,
    CommitRow,
    NewRepository,
    Outcome,
    PushTicket,
    Repository,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Visibility,
)
from storage.snapshots import Changes, pack_changes
from tests.git_histories import git
from tests.handler_runs import job_services
from wire.ids import Scheme

Files = Mapping[str, bytes]
"""Path → blob id."""


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def blob_size(blob: bytes) -> int:
    """Every blob of these histories has a size that follows from its id."""
    return int.from_bytes(blob[:2])


@dataclass
class Commit:
    id: bytes
    parents: tuple[bytes, ...]
    files: Files
    generation: int

    @cached_property
    def snapshot_id(self) -> bytes:
        return digest(repr(sorted(self.files.items())))


@dataclass
class FileHistory:
    """Commits by id, parents first."""

    commits: dict[bytes, Commit] = field(default_factory=dict)

    def add(self, commit_id: bytes, parents: Iterable[bytes], files: Files) -> bytes:
        parents = tuple(parents)
        generation = 1 + max((self.commits[p].generation for p in parents), default=0)
        self.commits[commit_id] = Commit(commit_id, parents, dict(files), generation)
        return commit_id

    def commit(self, text: str, parents: Iterable[str], **files: str | None) -> bytes:
        """Add a commit by names; ``files`` are changes against the first parent."""
        ids = [digest(name) for name in parents]
        tree = dict(self.commits[ids[0]].files) if ids else {}
        for path, content in files.items():
            if content is None:
                tree.pop(path, None)
            else:
                tree[path] = digest(content)
        return self.add(digest(text), ids, tree)

    def reachable(self, head: bytes) -> list[Commit]:
        """Give a head and all that it builds on, parents first."""
        seen, waiting = set(), [head]
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += self.commits[at].parents
        return [commit for commit in self.commits.values() if commit.id in seen]

    def last_commits(self, head: bytes) -> dict[str, bytes]:
        """The definition, read out: on to the first parent that has the same content, else this commit."""
        found = {}
        for path, blob in self.commits[head].files.items():
            at = head
            while same := [p for p in self.commits[at].parents if self.commits[p].files.get(path) == blob]:
                at = same[0]
            found[path] = at
        return found


def random_files(seed: int, commits: int = 60, files: int = 12) -> FileHistory:
    """Branches and merges of any two, with reverts, deletions, contents taken from either side or from nowhere."""
    rng = random.Random(seed)
    history = FileHistory()
    paths = [f"{d}/f{n}" for d in ("a", "a/b", "c") for n in range(files // 3)]
    for number in range(commits):
        known = list(history.commits)
        tips = known[-6:]
        parents = rng.sample(tips, k=min(len(tips), rng.choice([1, 1, 2]))) if number else []
        if rng.random() < 0.02:
            parents = []
        trees = [history.commits[p].files for p in parents]
        tree = dict(trees[0]) if trees else {}
        for path in rng.sample(paths, rng.choice([0, 1, 2, 4])):
            source = rng.random()
            if source < 0.2:
                tree.pop(path, None)
            elif len(trees) == 2 and source < 0.6:
                tree.pop(path, None)
                tree |= {p: b for p, b in trees[1].items() if p == path}
            else:
                tree[path] = digest(f"content {rng.randrange(4)}")
        history.add(digest(f"commit {number} of {seed}"), parents, tree)
    return history


def git_files(repository: Path) -> tuple[FileHistory, dict[bytes, str]]:
    """Read a git repository; a blob is git's with its mode, so that it differs just where git says so."""
    history, names = FileHistory(), {}
    shown = git(
        repository, "log", "--all", "--topo-order", "--reverse", "--root", "--diff-merges=first-parent", "--raw",
        "--no-renames", "--no-abbrev", "-z", "-r", "--format=commit %H %P",
    )  # fmt: skip
    tree: dict[str, bytes] = {}
    current, parents = "", []
    words = iter(shown.split("\0"))
    for raw_word in words:
        word = raw_word.lstrip("\n")
        if word.startswith("commit "):
            if current:
                history.add(digest(current), parents, tree)
            _, current, *of = word.split()
            names[digest(current)] = current
            parents = [digest(parent) for parent in of]
            tree = dict(history.commits[parents[0]].files) if parents else {}
        elif word.startswith(":"):
            _, mode, _, new, kind = word.split()
            path = next(words)
            if kind == "D":
                tree.pop(path)
            else:
                tree[path] = digest(mode + new)
    history.add(digest(current), parents, tree)
    return history, names


def git_last_commits(repository: Path, head: str, paths: Iterable[str]) -> dict[str, str]:
    return {path: git(repository, "log", "-1", "--format=%H", head, "--", path) for path in paths}


@dataclass
class Library:
    """An index with a repository whose history is put in as it is, and jobs of it."""

    index: Index
    spool_dir: Path
    store: ObjectStore = field(default_factory=MemoryStore)
    say_again: float = 0.1
    """How often changes name what was so before."""

    def __post_init__(self) -> None:
        self.environment = SeededEnvironment(7)

    async def make(self, slug: str = "x") -> Repository:
        self.repository = await self.index.create_repository(
            NewRepository(
                self.environment.uuid(), "ada", slug, Visibility.PRIVATE, "main", "code", self.environment.now()
            )
        )
        assert self.repository is not None
        return self.repository

    async def push(self, history: FileHistory, branch: str, head: bytes, seed: int = 0) -> None:
        """Record what a head needs and move a branch there, whatever it was at."""
        rng, number = random.Random(seed), self.repository.number
        ticket = await self.index.begin_push(
            number, self.environment.uuid(), "ada", branch, self.environment.now(), 600
        )
        assert isinstance(ticket, PushTicket)
        commits = history.reachable(head)
        blobs = {blob for commit in commits for blob in commit.files.values()}
        await self.index.record_blobs(ticket, Scheme.TYPED, [StoredBlob(blob, blob_size(blob)) for blob in blobs])
        depths: dict[bytes, int] = {}
        refs = [
            SnapshotRef(self._row(history, commit, depths, rng), b"")
            for commit in commits
            if commit.snapshot_id not in depths
        ]
        await self.index.record_snapshots(ticket, Scheme.TYPED, refs)
        rows = [CommitRow(c.id, c.parents, c.snapshot_id, c.generation, b"record " + c.id) for c in commits]
        await self.index.record_commits(ticket, Scheme.TYPED, rows)
        old = (await self.index.branch_heads(number)).get(branch)
        done = await self.index.accept_push(
            ticket, Scheme.TYPED, BranchMove(branch, old, head, True), {}, self.environment.now()
        )
        assert done.outcome is Outcome.MOVED
        self.repository = replace(self.repository, scheme=Scheme.TYPED)

    def _row(self, history: FileHistory, commit: Commit, depths: dict[bytes, int], rng: random.Random) -> SnapshotRow:
        """Now whole, now as changes to the first parent's, which may say again what was so before."""
        base = history.commits[commit.parents[0]] if commit.parents else None
        if base is None or depths.get(base.snapshot_id, 48) >= 10 or rng.random() < 0.1:
            depths[commit.snapshot_id] = 0
            whole = pack_changes(Changes(commit.files, (), ()))
            return SnapshotRow(commit.snapshot_id, None, 0, whole, None)
        upsert = {p: b for p, b in commit.files.items() if base.files.get(p) != b or rng.random() < self.say_again}
        removed = [path for path in base.files if path not in commit.files]
        depth = depths[commit.snapshot_id] = depths[base.snapshot_id] + 1
        changes = pack_changes(Changes(upsert, removed, ()))
        return SnapshotRow(commit.snapshot_id, base.snapshot_id, depth, changes, None)

    def context(self, type_: str) -> KeptContext:
        """Give an attempt at a job of the repository."""
        services = job_services(self.index, self.store, self.environment, self.spool_dir)
        return attempt(services, type_, self.repository.number)

    async def last_commits(self, branch: str, paths: Iterable[str]) -> LastCommits:
        return await self.index.last_commits(self.repository.number, "push.file_last_commits", branch, list(paths))


class KeptContext(JobContext):
    """An attempt at a job whose state is kept here."""

    kept: Mapping[str, object] | None = None
    times_kept = 0

    async def keep_state(self, state: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        self.kept = json.loads(json.dumps(state))
        self.times_kept += 1


def attempt(services: JobServices, type_: str, repo: int, state: Mapping[str, object] | None = None) -> KeptContext:
    job = ClaimedJob(Claim(1, uuid.UUID(int=1)), repo, type_, {}, 1, services.environment.now(), state or {})
    return KeptContext(services, job)

"""A deployment that lives through random operations, and what its tables say: to be compared with those made anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psycopg
import trio
from trio.testing import wait_all_tasks_blocked

from actors.collect.collector import Wishes, collect
from actors.heartbeat import Heartbeats
from actors.push.context import PushServices
from actors.reindex.rebuild import Rebuild, RebuildReport
from storage.environment import SeededEnvironment, SystemEnvironment
from storage.journal import Entry
from storage.object_store import ObjectStore
from storage.postgres.database import Database, DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.postgres.reindex_index import ReindexIndex
from storage.rows import Right
from storage.snapshots import build_manifest
from tests.deployments import bearer
from tests.growing import WAYS, push_ids
from tests.handler_runs import promoted, run, services_of
from tests.http_client import ask, push
from tests.muse import Push, blob_id, make_commit, make_snapshot, plain, typed
from tests.servers import Server
from wire.ids import Scheme

_ACCEPTED = "JOIN pushes p USING (push) WHERE p.state = 1"
TABLES = {
    "identities": "SELECT * FROM identities",
    "tokens": "SELECT * FROM tokens",
    "repositories": "SELECT repo, repo_id, owner, slug, visibility, scheme, default_branch, domain, settings::text, "
    "created_at, deleted_at FROM repositories",
    "collaborators": "SELECT * FROM collaborators",
    "pushes": "SELECT push, repo, push_id, handle, branch, state, verdict::jsonb::text, created_at, finished_at, "
    "bytes, record_pack FROM pushes WHERE state <> 0",
    "branches": "SELECT repo, name, head, updated_at FROM branches",
    "branch_log": "SELECT * FROM branch_log",
    "tags": "SELECT * FROM tags",
    "releases": "SELECT * FROM releases",
    "quotas": "SELECT * FROM owner_quotas WHERE quota_bytes IS NOT NULL",
    "usage": "SELECT * FROM repository_usage",
    "blob_refs": f"SELECT DISTINCT f.repo, f.blob_id FROM blob_refs f {_ACCEPTED}",
    "commit_refs": "SELECT DISTINCT ON (f.repo, commit_id) f.repo, commit_id, record_id FROM commit_refs f "
    f"{_ACCEPTED} ORDER BY f.repo, commit_id, push",
    "snapshot_refs": "SELECT DISTINCT ON (f.repo, snapshot_id) f.repo, snapshot_id, extras FROM snapshot_refs f "
    f"{_ACCEPTED} ORDER BY f.repo, snapshot_id, push",
    "blobs": f"SELECT DISTINCT b.blob_id, b.scheme, b.size FROM blobs b JOIN (SELECT f.repo, blob_id FROM blob_refs f "
    f"{_ACCEPTED}) h USING (blob_id) JOIN repositories r ON r.repo = h.repo AND r.scheme = b.scheme",
    "commits": f"SELECT DISTINCT c.* FROM commits c JOIN (SELECT f.repo, commit_id FROM commit_refs f {_ACCEPTED}) h "
    "USING (commit_id) JOIN repositories r ON r.repo = h.repo AND r.scheme = c.scheme",
    "records": f"SELECT DISTINCT c.* FROM commit_records c JOIN commit_refs f USING (record_id) {_ACCEPTED}",
}  # fmt: skip


async def truth(url: str) -> dict[str, object]:
    """Everything a database says that is the truth, snapshots as what is in them."""
    found: dict[str, object] = {}
    with psycopg.connect(url) as connection:
        for name, query in TABLES.items():
            found[name] = sorted(map(repr, connection.execute(query).fetchall()))
        held = connection.execute(
            f"SELECT DISTINCT r.scheme, snapshot_id FROM snapshot_refs f JOIN repositories r USING (repo) {_ACCEPTED}"
        ).fetchall()
    async with PostgresIndex(DatabaseSettings(url)) as index:
        manifests = {}
        for scheme, snapshot_id in held:
            chain = await index.snapshot_chain(Scheme(scheme), snapshot_id)
            manifest = build_manifest(chain, None)
            manifests[scheme, snapshot_id] = (dict(manifest.items()), manifest.directories)
        found["snapshots"] = manifests
    return found


async def emptied(index: PostgresIndex) -> None:
    """The outbox forgets what is written out."""
    with trio.fail_after(30):
        while await waiting(index):
            await wait_all_tasks_blocked(0.05)


async def waiting(index: PostgresIndex) -> list[Entry]:
    """What is not written out."""
    deployment = await index.deployment(None)
    assert deployment is not None
    return (await index.outbox(deployment, 1_000, 10**9)).entries


async def rebuild(
    url: str, store: ObjectStore, spool_dir: Path, *, replace_all: bool = False, database: type[Database] = Database
) -> RebuildReport:
    """Make a database anew from a store; ``database`` runs its transactions."""
    async with PostgresIndex(DatabaseSettings(url)) as opened:
        opened.database.__class__ = database
        index = ReindexIndex(opened)
        services = PushServices(index, store, SystemEnvironment(), Heartbeats(), spool_dir)
        return await Rebuild(index, services, lambda *_: None).run(replace_all=replace_all)


@dataclass
class Tree:
    """A repository as its clients know it."""

    scheme: Callable[[str, bytes], str]
    heads: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By commit."""
    snapshots: dict[str, str] = field(default_factory=dict)
    """By commit."""


class World:
    """Does random operations on a server, as its clients, its operator and its jobs."""

    OPERATIONS: ClassVar = {
        "pushed": 40, "forced": 5, "refused": 3, "made": 4, "deleted": 1, "moved": 6, "tagged": 4, "released": 4,
        "named": 3, "changed": 3, "tokens": 2, "quota": 2, "promoted": 5, "folded": 3, "collected": 2,
    }  # fmt: skip

    def __init__(self, server: Server, environment: SeededEnvironment, seed: int) -> None:
        self.server = server
        self.environment = environment
        self.random = random.Random(seed)
        self.trees: dict[str, Tree] = {}
        self.done: dict[str, int] = dict.fromkeys(self.OPERATIONS, 0)

    async def live(self, operations: int) -> None:
        """Do so many of them."""
        for slug in ("typed-0", "plain-0"):
            await self.made(slug)
        names, weights = list(self.OPERATIONS), list(self.OPERATIONS.values())
        for _ in range(operations):
            name = self.random.choices(names, weights)[0]
            await getattr(self, name)()
            self.done[name] += 1
            self.environment.move(self.random.choice([0.5, 30.0]))

    async def made(self, slug: str | None = None) -> None:
        """Make a repository, sometimes one of a name that was there before."""
        slug = slug or f"{self.random.choice(['typed', 'plain'])}-{self.random.randrange(4)}"
        if slug not in self.trees:
            answer = await self.api("POST", "/api/repos", {"slug": slug, "visibility": "public"}, 201)
            assert answer["slug"] == slug
            self.trees[slug] = Tree(typed if slug.startswith("typed") else plain)

    async def deleted(self) -> None:
        slug = self.random.choice(list(self.trees))
        if slug not in {"typed-0", "plain-0"}:
            await self.api("DELETE", f"/api/repos/alice/{slug}")
            del self.trees[slug]

    async def pushed(self, *, force: bool = False) -> None:
        """Push one or two commits by any way, on a branch or on a new one."""
        slug = self.random.choice(list(self.trees))
        tree = self.trees[slug]
        branch = self.random.choice(["main", "main", "dev"])
        base = tree.heads.get(branch) or tree.heads.get("main")
        if force:
            base = self.random.choice([*tree.files, None]) if tree.files else None
        history = self.history(tree, branch, base)
        if tree.scheme is plain:
            await self.push_plain(slug, history, force=force)
        elif force:
            said = await push(self.server, history.frames(force=True), repository=f"alice/{slug}")
            assert said["type"] == "R", said
        else:
            way = self.random.choice(list(WAYS))
            said = await WAYS[way](self.server, history, next(push_ids), slug)
            assert said["type"] == "R", (way, said)
        self.grown(tree, branch, history)

    def history(self, tree: Tree, branch: str, base: str | None) -> Push:
        made = Push(branch, name=tree.scheme)
        files = dict(tree.files[base]) if base else {}
        snapshot = tree.snapshots[base] if base else None
        parents = [base] if base else []
        self.coming: list[tuple[str, str, dict[str, bytes]]] = []
        for _ in range(self.random.choice([1, 1, 2])):
            for _ in range(self.random.randrange(1, 4)):
                path = f"{self.random.choice(['a', 'b/c', 'd'])}/{self.random.randrange(12)}"
                size = self.random.choice([0, 9, 300, 3000])
                files[path] = self.random.randbytes(size) if self.random.random() < 0.7 else b"shared %d" % (size % 7)
            if len(files) > 5 and self.random.random() < 0.3:
                del files[self.random.choice(list(files))]
            manifest = {path: blob_id(content, tree.scheme) for path, content in files.items()}
            record = make_snapshot(manifest, name=tree.scheme, note=f"note {self.random.randrange(3)}")
            known = made.blobs.keys()
            made.blobs |= {blob_id(content, tree.scheme): content for content in files.values()}
            if snapshot is not None and tree.scheme is typed and self.random.random() < 0.7 and not known:
                before = tree.files[base] if base else {}
                record = {
                    "snapshot_id": record["snapshot_id"], "parent_snapshot_id": snapshot,
                    "delta_upsert": {p: manifest[p] for p in files if before.get(p) != files[p]},
                    "delta_remove": [p for p in before if p not in files], "note": "a delta's",
                }  # fmt: skip
                made.deltas.append(record)
            else:
                made.snapshots.append(record)
            metadata = {"n": str(self.random.randrange(3))}
            commit = make_commit(
                record["snapshot_id"], parents, tree.scheme, message=f"{self.random.random()}", metadata=metadata,
                branch=branch,
            )  # fmt: skip
            made.commits.append(commit)
            parents = [commit["commit_id"]]
            self.coming.append((commit["commit_id"], record["snapshot_id"], dict(files)))
        return made

    def grown(self, tree: Tree, branch: str, history: Push) -> None:
        for commit, snapshot, files in self.coming:
            tree.files[commit], tree.snapshots[commit] = files, snapshot
        tree.heads[branch] = history.head

    async def push_plain(self, slug: str, history: Push, *, force: bool) -> None:
        objects = [{"object_id": oid, "content": content, "path": "p"} for oid, content in history.blobs.items()]
        if self.random.random() < 0.5:  # uploaded before, as that client does
            await self.control("POST", f"/alice/{slug}/push/objects", {"objects": objects})
            objects = []
        bundle = {"commits": history.commits, "snapshots": history.snapshots, "objects": objects}
        bundle["branch_heads"] = {history.branch: history.head}
        await self.control("POST", f"/alice/{slug}/push", {"bundle": bundle, "branch": history.branch, "force": force})

    async def forced(self) -> None:
        await self.pushed(force=True)

    async def refused(self) -> None:
        """A push that is refused leaves its verdict and nothing else."""
        slug, tree = next((s, t) for s, t in self.trees.items() if t.scheme is typed)
        if "main" not in tree.heads:
            return
        history = self.history(tree, "main", None)
        said = await WAYS["stream"](self.server, history, next(push_ids), slug)
        assert said["error"] == "non_fast_forward", said

    async def moved(self) -> None:
        slug = self.random.choice(list(self.trees))
        tree = self.trees[slug]
        if not tree.heads:
            return
        branch = f"b{self.random.randrange(3)}"
        old = tree.heads.get(branch)
        new = None if old and self.random.random() < 0.4 else self.random.choice(list(tree.heads.values()))
        update = {"branch": branch, "old": old, "new": new, "force": True}
        await self.control("POST", f"/alice/{slug}/refs", {"updates": [update]})
        tree.heads = {name: head for name, head in (tree.heads | {branch: new}).items() if head}

    async def tagged(self) -> None:
        slug, head = self.some_head()
        if head:
            name = f"t{self.random.randrange(4)}"
            tag = {
                "tag_id": name,
                "repo_id": "r",
                "commit_id": head,
                "tag": name,
                "created_at": f"{self.random.random()}",
            }
            await self.control("POST", f"/alice/{slug}/tags", {"tags": [tag]})

    async def released(self) -> None:
        slug, head = self.some_head()
        if head:
            release = f"r{self.random.randrange(3)}"
            body = {"release_id": release, "commit_id": head, "notes": f"{self.random.random()} ü"}
            await self.control("POST", f"/alice/{slug}/releases", {"release": body})
            if self.random.random() < 0.3:
                await self.control("DELETE", f"/alice/{slug}/releases", {"release_id": release})

    async def named(self) -> None:
        slug = self.random.choice(list(self.trees))
        right = {"right": self.random.choice(["none", "read", "write", "admin"])}
        await self.api("PUT", f"/api/repos/alice/{slug}/collaborators/{self.random.choice(['bob', 'eve'])}", right)

    async def changed(self) -> None:
        slug = self.random.choice(list(self.trees))
        settings = {"relaxed_paths": self.random.random() < 0.5, "protected_branches": ["x", "y"]}
        wanted = {"visibility": self.random.choice(["private", "public"]), "settings": settings}
        await self.api("PATCH", f"/api/repos/alice/{slug}", wanted)

    async def tokens(self) -> None:
        token, _ = await bearer(self.server, self.random.choice(["bob", "eve"]), Right.READ, 1000.0)
        if self.random.random() < 0.5:
            assert await self.server.services.index.revoke_token(token.token_id, self.environment.now())

    async def quota(self) -> None:
        quota = self.random.choice([None, 0, 10**12])
        await self.server.services.index.set_quota(self.random.choice(["alice", "bob"]), quota)

    async def promoted(self) -> None:
        await promoted(self.server)

    async def folded(self) -> None:
        found = await self.server.services.index.find_repository("alice", self.random.choice(list(self.trees)))
        assert found is not None
        self.environment.move(86_400.0)
        await run(services_of(self.server), "mpack.gc", found.number)

    async def collected(self) -> None:
        """Take what nobody reaches, and delete what was taken before."""
        services = self.server.services
        for _ in range(2):
            await collect(services.index, services.store, self.environment, Wishes(keep_s=0.0))
            self.environment.move(8_000.0)
            await services.index.forget_held(self.environment.now(), 1_000)
        for tree in self.trees.values():  # what no branch reaches is gone
            reached = set(tree.heads.values())
            tree.files = {commit: files for commit, files in tree.files.items() if commit in reached}

    def some_head(self) -> tuple[str, str | None]:
        slug = self.random.choice(list(self.trees))
        heads = list(self.trees[slug].heads.values())
        return slug, self.random.choice(heads) if heads else None

    async def api(self, method: str, target: str, body: object = None, status: int = 200) -> dict:
        answer = await ask(self.server, method, target, token="alice", json=body)
        assert answer.status == status, (target, answer)
        return answer.value  # type: ignore[return-value]

    async def control(self, method: str, target: str, body: object) -> None:
        answer = await ask(self.server, method, target, token="alice", msgpack=body)
        assert answer.status == 200, (target, answer, answer.body[:300])

"""A small Muse client written from the protocol page alone, sharing no code with the server.

Tests build histories and speak frames with it, so that a mistake in ``wire`` cannot hide behind itself.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgpack


def typed(kind: str, body: bytes) -> str:
    return "sha256:" + hashlib.sha256(b"%s %d\0" % (kind.encode(), len(body)) + body).hexdigest()


def plain(kind: str, body: bytes) -> str:
    del kind
    return hashlib.sha256(body).hexdigest()


def bare(object_id: str) -> str:
    return object_id.removeprefix("sha256:")


def blob_id(content: bytes, name=typed) -> str:
    return name("blob", content)


def snapshot_id(manifest: Mapping[str, str], directories: Iterable[str] = (), name=typed) -> str:
    entries = sorted(f"{path}\0{bare(oid)}" for path, oid in manifest.items())
    entries += sorted(f"dir\0{path}" for path in directories)
    return name("snapshot", "\0".join(entries).encode())


def commit_id(record: Mapping[str, object], name=typed) -> str:
    parents = [p for p in (record.get("parent_commit_id"), record.get("parent2_commit_id")) if p]
    fields = ["\0".join(sorted(bare(p) for p in parents)), bare(record["snapshot_id"])]
    fields += [record["message"], record["committed_at"]]
    if name is typed:
        fields += [record.get("author") or "", record.get("signer_public_key") or ""]
    return name("commit", "\0".join(fields).encode())


def make_commit(snapshot: str, parents: list[str] | None = None, name=typed, **fields: object) -> dict[str, object]:
    parents = parents or []
    record: dict[str, object] = {
        "branch": "main", "snapshot_id": snapshot, "message": "a message",
        "committed_at": "2026-01-02T03:04:05.678901+00:00",
        "parent_commit_id": parents[0] if parents else None,
        "parent2_commit_id": parents[1] if len(parents) > 1 else None,
        "author": "Ada <ada@example.org>", "metadata": {}, "structured_delta": None, "sem_ver_bump": "none",
        "breaking_changes": [], "format_version": 7,
    }  # fmt: skip
    record.update(fields)
    record["commit_id"] = commit_id(record, name)
    return record


def make_snapshot(manifest: Mapping[str, str], directories: Iterable[str] = (), name=typed, **extra: object) -> dict:
    return {
        "snapshot_id": snapshot_id(manifest, directories, name), "manifest": dict(manifest),
        "directories": list(directories), "created_at": "2026-01-02T03:04:05+00:00", "note": "", **extra,
    }  # fmt: skip


def frame(kind: str, **members: object) -> bytes:
    return msgpack.packb({"type": kind, **members}, use_bin_type=True)


@dataclass
class Push:
    """The records of one push, and its frames."""

    branch: str = "main"
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict] = field(default_factory=list)
    snapshots: list[dict] = field(default_factory=list)
    deltas: list[dict] = field(default_factory=list)
    name: object = typed

    @property
    def head(self) -> str:
        return self.commits[-1]["commit_id"]

    def commit(self, files: Mapping[str, bytes], parents: list[str] | None = None, **fields: object) -> str:
        """Add a commit with these files; its snapshot travels whole."""
        manifest = {}
        for path, content in files.items():
            oid = blob_id(content, self.name)
            self.blobs[oid] = content
            manifest[path] = oid
        snapshot = make_snapshot(manifest, name=self.name)
        if snapshot["snapshot_id"] not in {s["snapshot_id"] for s in self.snapshots}:
            self.snapshots.append(snapshot)
        if parents is None:
            parents = [self.head] if self.commits else []
        self.commits.append(make_commit(snapshot["snapshot_id"], parents, self.name, **fields))
        return self.head

    def header(self, **members: object) -> bytes:
        fields = {"version": 2, "branch": self.branch, "head": self.head if self.commits else None, "force": False}
        return frame("H", **{**fields, **members})

    def object_frames(self) -> Iterator[bytes]:
        for oid, content in self.blobs.items():
            yield frame("O", object_id=oid, encoding="raw", content=content)

    def commit_frame(self) -> bytes:
        return frame("C", commits=self.commits, snapshots=self.snapshots, snapshot_deltas=self.deltas)

    def end(self, **members: object) -> bytes:
        return frame("E", **{"n_objects": len(self.blobs), "n_commits": len(self.commits), **members})

    def frames(self, **header: object) -> bytes:
        return b"".join([self.header(**header), *self.object_frames(), self.commit_frame(), self.end()])


def unpack_frames(data: bytes) -> list[dict]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data)
    return list(unpacker)


def last_frame(data: bytes) -> dict:
    frames = unpack_frames(data)
    assert frames, "the server sent no frame"
    assert all(f["type"] == "P" for f in frames[:-1]), frames
    return frames[-1]


def random_history(seed: int, commits: int = 12, files: int = 8) -> Push:
    """A seeded history with branches, merges, empty files, renames and repeated contents."""
    rng = random.Random(seed)
    push = Push()
    states: dict[str, dict[str, bytes]] = {}
    for number in range(commits):
        tips = list(states)[-3:]
        parents = rng.sample(tips, k=min(len(tips), rng.choice([1, 1, 1, 2]))) if tips else []
        tree = dict(states[parents[0]]) if parents else {}
        for _ in range(rng.randrange(1, 4)):
            path = f"{rng.choice(['src', 'docs', 'a b'])}/f{rng.randrange(files)}.txt"
            kind = rng.randrange(5)
            if kind == 0:
                tree.pop(path, None)
            elif kind == 1:
                tree[path] = b""
            else:
                tree[path] = rng.randbytes(rng.randrange(1, 3000))
        head = push.commit(tree, parents, message=f"commit {number} of seed {seed} ü")
        states[head] = tree
    # one head that reaches everything: merge what is left over pairwise
    children = {p for c in push.commits for p in (c["parent_commit_id"], c["parent2_commit_id"]) if p}
    loose = [c["commit_id"] for c in push.commits if c["commit_id"] not in children]
    while len(loose) > 1:
        a, b = loose.pop(0), loose.pop(0)
        head = push.commit(states[a], [a, b], message=f"merge of seed {seed}")
        states[head] = states[a]
        loose.append(head)
    if push.commits[-1]["commit_id"] != loose[0]:
        push.commit(states[loose[0]], [loose[0]], message="the end")
    return push

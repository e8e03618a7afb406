"""Make the golden files: one small history in every form the protocol has for it.

They are checked in, so that a change of any byte shows up in review: ``python -m tests.golden.make`` writes them anew.
Only the mini client and the hand-made containers are used, nothing of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests import containers, muse
from tests.containers import COMMITS, OBJECTS, OBJECTS_ZSTD, SNAPSHOTS, TAGS

HERE = Path(__file__).parent

HELLO, AGAIN, EMPTY, BINARY = b"hello\n", b"hello again\n", b"", bytes(range(256)) * 3
CHUNKED = b"part one, part two, part three"


def manifest_of(files: Mapping[str, bytes], name=muse.typed) -> dict[str, str]:
    return {path: muse.blob_id(content, name) for path, content in files.items()}


class History:
    """Two commits and a merge; the second snapshot is a delta, directories and an empty file come along."""

    def __init__(self, name=muse.typed) -> None:
        self.name = name
        first = {"a.txt": HELLO, "b.txt": EMPTY}
        second = {"a.txt": AGAIN, "b.txt": EMPTY, "src/ünï.bin": BINARY, "src/big": CHUNKED}
        self.blobs = {muse.blob_id(content, name): content for content in (HELLO, EMPTY, AGAIN, BINARY, CHUNKED)}
        self.full = muse.make_snapshot(manifest_of(first, name), ["docs", "docs/empty"], name, note="the first")
        full_id = self.full["snapshot_id"]
        changed = {path: oid for path, oid in manifest_of(second, name).items() if path != "b.txt"}
        self.delta = {
            "snapshot_id": muse.snapshot_id(manifest_of(second, name), ["docs/empty"], name),
            "parent_snapshot_id": full_id, "delta_upsert": changed, "delta_remove": [], "directories": ["docs/empty"],
            "created_at": "2026-01-02T03:04:06Z",
        }  # fmt: skip
        root = muse.make_commit(full_id, [], name, message="first", metadata={"ключ": "значение"})
        child = muse.make_commit(
            self.delta["snapshot_id"], [root["commit_id"]], name, message="second\n\nwith a body ü\n",
            committed_at="2026-01-02T03:04:06.5+02:00", author=None,
            structured_delta={"ops": [{"$x": b"\0\xff"}, 1.5, -3]}, of_the_future=["kept", None, True],
        )  # fmt: skip
        merge = muse.make_commit(
            self.delta["snapshot_id"],
            [child["commit_id"], root["commit_id"]],
            name,
            message="merge",
            sem_ver_bump="minor",
        )
        self.commits = [root, child, merge]
        self.tags = [
            {"tag_id": "t-1", "repo_id": "r-1", "commit_id": root["commit_id"], "tag": "v1", "created_at": "now"}
        ]

    @property
    def head(self) -> str:
        return self.commits[-1]["commit_id"]


def push_stream(history: History) -> bytes:
    """Every frame and every encoding."""
    hello, empty, again, binary, chunked = history.blobs
    delta = containers.delta(len(HELLO), len(AGAIN), containers.copy(0, 5), containers.insert(b" again\n"))
    parts = [CHUNKED[:10], CHUNKED[10:20], CHUNKED[20:]]
    return b"".join([
        muse.frame(
            "H", version=2, branch="main", head=history.head, force=False,
            push_id="00000000-0000-4000-8000-000000000001", expected_head=None, n_objects=5,
            options={"client": "golden"},
        ),
        muse.frame("O", object_id=hello, content=HELLO, encoding="raw"),
        muse.frame("O", object_id=empty, content=containers.stored_zlib(EMPTY), encoding="zlib"),
        muse.frame("O", object_id=again, content=containers.stored_zlib(delta), encoding="delta+zlib", base=hello),
        muse.frame("O", object_id=binary, content=containers.stored_zstd(BINARY), encoding="zstd"),
        *(
            muse.frame("OC", object_id=chunked, encoding="raw", seq=seq, last=seq == 2, content=part)
            for seq, part in enumerate(parts)
        ),
        muse.frame("C", commits=history.commits[:1], snapshots=[history.full], snapshot_deltas=[]),
        muse.frame("C", commits=history.commits[1:], snapshots=[], snapshot_deltas=[history.delta]),
        muse.frame("E", n_objects=5, n_commits=3),
    ])  # fmt: skip


def answer_stream(history: History) -> bytes:
    result = {
        "push_id": "00000000-0000-4000-8000-000000000001", "branch": "main", "head": history.head, "commits_written": 3,
        "snapshots_written": 2, "blobs_written": 5, "blobs_skipped": 0, "timings_ms": {"receive": 1.5, "commit": 0.25},
    }  # fmt: skip
    return b"".join([
        muse.frame("P", stage="objects", done=2, total=5, message=""),
        muse.frame("P", stage="heartbeat", done=5, total=None, message="waiting for the store"),
        muse.frame("R", **result),
    ])  # fmt: skip


def failure_stream() -> bytes:
    missing = [muse.blob_id(b"%d" % n) for n in range(3)]
    body = {"error": "missing_objects", "detail": "3 objects are missing", "request_id": "r-1", "retryable": False}
    return muse.frame("P", stage="objects", done=0, total=None, message="") + muse.frame("X", **body, missing=missing)


def mpack(history: History) -> bytes:
    compressed = [(oid, containers.stored_zstd(content)) for oid, content in list(history.blobs.items())[3:]]
    return containers.mpack([
        (OBJECTS, containers.pack(list(history.blobs.items())[:3])),
        (OBJECTS_ZSTD, containers.pack(compressed)),
        (SNAPSHOTS, containers.record_section([history.full, history.delta])),
        (COMMITS, containers.record_section(history.commits)),
        (TAGS, containers.record_section(history.tags)),
    ])  # fmt: skip


def bundle(history: History) -> bytes:
    objects = [{"object_id": oid, "content": content} for oid, content in history.blobs.items()]
    return containers.bundle({
        "commits": history.commits, "snapshots": [history.full], "snapshot_deltas": [history.delta], "objects": objects,
        "tags": history.tags, "branch_heads": {"main": history.head},
    })  # fmt: skip


def build() -> dict[str, bytes]:
    """Give the content of every golden file by its name."""
    files: dict[str, bytes] = {"failure.frames": failure_stream()}
    for scheme, name in (("typed", muse.typed), ("plain", muse.plain)):
        history = History(name)
        files |= {
            f"{scheme}-push.frames": push_stream(history),
            f"{scheme}-answer.frames": answer_stream(history),
            f"{scheme}-blobs.mpack": containers.pack(history.blobs.items()),
            f"{scheme}-blobs.idx": containers.pack_index(history.blobs.items()),
            f"{scheme}-all-sections.mpack": mpack(history),
            f"{scheme}.bundle": bundle(history),
            f"{scheme}-commit.canonical": containers.canonical("commit", history.commits[1]),
            f"{scheme}-snapshot.canonical": containers.canonical("snapshot", history.full),
            f"{scheme}-snapshot-delta.canonical": containers.canonical("snapshot", history.delta),
        }
    return files


if __name__ == "__main__":
    for file_name, content in build().items():
        (HERE / file_name).write_bytes(content)
        print(file_name, len(content))

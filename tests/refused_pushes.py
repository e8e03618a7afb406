"""Pushes that are wrong in one way each, and what must be true after they were refused."""

from __future__ import annotations

from tests.http_client import ask, push
from tests.muse import Push, blob_id, frame, make_commit, make_snapshot
from tests.servers import Server
from wire.errors import Code

PUSH = "/alice/x/push/stream"
MIB = 1024 * 1024
ZEROS = "sha256:" + "0" * 64
X = blob_id(b"x")


async def refused(server: Server, frames: bytes, code: str, *blobs: str, **options: object) -> dict:
    """Push what must be refused with an ``X`` frame; nothing of it may be seen afterwards."""
    before = (await ask(server, "GET", "/alice/x/refs", token="alice")).value
    said = await push(server, frames, **options)
    assert (said["type"], said.get("error")) == ("X", code), said
    assert said["detail"]
    assert isinstance(said["request_id"], str)
    assert said["retryable"] is Code.from_text(code).retryable
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value == before
    for oid in blobs:
        assert (await ask(server, "GET", f"/alice/x/o/{oid}", token="alice")).status == 404
    return said


def one_commit() -> Push:
    history = Push()
    history.commit({"f": b"x"})
    return history


def around(frames: list[bytes], count: int = 0, commits: int = 0) -> bytes:
    """A header, these frames and an end."""
    end = frame("E", n_objects=count, n_commits=commits)
    return b"".join([frame("H", version=2, branch="main", head=ZEROS, force=False), *frames, end])


def member(**members: object) -> bytes:
    """An ``O`` frame with other members than it should have."""
    good = {"object_id": X, "encoding": "raw", "content": b"x"}
    return frame("O", **{key: value for key, value in {**good, **members}.items() if value != "leave out"})


def with_record(kind: str, **changes: object) -> bytes:
    """A push whose one commit, snapshot or delta has other members than it should."""
    snapshot = make_snapshot({"f": X})
    record = make_commit(snapshot["snapshot_id"])
    lists = {"commits": [record], "snapshots": [snapshot], "snapshot_deltas": []}
    if kind == "snapshot_deltas":
        lists["snapshots"] = []
        lists[kind] = [{
            "snapshot_id": snapshot["snapshot_id"], "parent_snapshot_id": None, "delta_upsert": {"f": X},
            "delta_remove": [],
        }]  # fmt: skip
    changed = {**lists[kind][0], **changes}
    lists[kind] = [{key: value for key, value in changed.items() if value != "leave out"}]
    header = frame("H", version=2, branch="main", head=record["commit_id"], force=False)
    return header + member() + frame("C", **lists) + frame("E", n_objects=1, n_commits=1)

"""Flipping bits in what a running server has stored, wherever that is, and reading it back by every way there is.

What is delivered is judged here: each content by its id, each record by its hash. So a way of reading either gives all
of a history as it was pushed, or says what is wrong, or this module fails the test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgpack
import psycopg

from storage.layout import loose_key
from storage.object_store import ObjectStore
from tests.clones import Clone, download, fetch
from tests.http_client import Answer, ask
from tests.muse import Push, blob_id, commit_id, plain, snapshot_id
from tests.servers import Server
from wire.ids import Scheme, parse_id

Way = Callable[[Server, Push], Awaitable[str | None]]
"""Reads all it can of a history; gives ``None``, or what the server said instead."""
_WHOLE_MOST = 64 * 1024 * 1024


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """Give the same bytes, but for one bit."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


async def keys(store: ObjectStore, prefix: str) -> list[str]:
    """List what is stored under a prefix."""
    return sorted([stored.key async for stored in store.scan(prefix)])


async def flip(root: Path, key: str, at: int, bit: int = 0) -> None:
    """Flip a bit of what lies at a key, behind everybody's back."""
    path = root / key
    path.write_bytes(flipped(path.read_bytes(), at, bit))


def key_of(object_id: str, scheme: Scheme = Scheme.TYPED) -> str:
    """Where a blob lies that is loose."""
    return loose_key(parse_id(object_id, scheme), scheme)


def flip_row(database_url: str, table: str, column: str, where: str, arguments: Sequence[object], at: float) -> int:
    """Flip a bit in a column of one row; ``at`` is from 0, the first byte, to 1."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(f"SELECT {column}, ctid::text FROM {table} WHERE {where}", arguments).fetchone()
        assert row is not None
        data = bytes(row[0])
        changed = flipped(data, round(at * (len(data) - 1)), 2)
        connection.execute(f"UPDATE {table} SET {column} = %s WHERE ctid = %s::tid", [changed, row[1]])
        return len(data)


async def by_pack(server: Server, history: Push) -> str | None:
    """``fetch/mpack`` and its URL."""
    answer = await fetch(server, [history.head])
    if answer.status != 200:
        return _said(answer)
    got = await ask(server, "GET", "/" + answer.value["mpack_url"].split("/", 3)[3])
    if (got.status, got.complete) != (200, True):
        return _said(got) if got.complete else "cut"
    taken = Clone()
    taken.apply(await download(server, answer.value))
    return _whole(history, taken.blobs, set(taken.snapshots), taken.commits)


async def by_pack_in_parts(server: Server, history: Push) -> str | None:
    """``fetch/mpack``, its file taken in two parts, as a download that is taken up again."""
    answer = await fetch(server, [history.head])
    if answer.status != 200:
        return _said(answer)
    target, size, data = "/" + answer.value["mpack_url"].split("/", 3)[3], answer.value["size_bytes"], b""
    for part in (f"bytes=0-{size // 2}", f"bytes={size // 2 + 1}-"):
        got = await ask(server, "GET", target, headers={"range": part})
        if (got.status, got.complete) != (206, True):
            return _said(got) if got.complete else "cut"
        data += got.body
    taken = Clone()
    taken.apply(data)
    return _whole(history, taken.blobs, set(taken.snapshots), taken.commits)


async def by_frames(server: Server, history: Push) -> str | None:
    """``fetch/stream``."""
    answer = await _post(server, "fetch/stream", {"want": [history.head], "have": []})
    if answer.status != 200:
        return _said(answer)
    frames = _frames(answer.body)
    blobs = _blobs(frames)
    if frames[-1]["type"] == "X":
        return str(frames[-1]["detail"])
    snapshots, commits = _records(frames)
    return _whole(history, blobs, snapshots, commits)


async def by_ids(server: Server, history: Push) -> str | None:
    """``fetch/objects``."""
    answer = await _post(server, "fetch/objects", {"object_ids": list(history.blobs)})
    if answer.status != 200:
        return _said(answer)
    frames = _frames(answer.body)
    blobs = _blobs(frames)
    return str(frames[-1]["detail"]) if frames[-1]["type"] == "X" else _whole(history, blobs)


async def by_urls(server: Server, history: Push) -> str | None:
    """``fetch/presign``, and every URL it gives."""
    answer = await _post(server, "fetch/presign", {"want": [history.head], "have": []})
    if answer.status != 200:
        return _said(answer)
    snapshots, commits = _records([answer.value])
    targets = {oid: "/" + url.split("/", 3)[3] for oid, url in answer.value["presigned_urls"].items()}
    return await _one_by_one(server, history, targets, None) or _whole(history, history.blobs, snapshots, commits)


async def one_by_one(server: Server, history: Push) -> str | None:
    """``o/{id}`` of every blob."""
    return await _one_by_one(server, history, {oid: f"/alice/x/o/{oid}" for oid in history.blobs}, "alice")


async def in_ranges(server: Server, history: Push) -> str | None:
    """``o/{id}`` of every blob, in two ranges."""
    said: str | None = None
    for oid, content in history.blobs.items():
        half = len(content) // 2
        for part in [(0, half), (half + 1, len(content) - 1)] if half > 1 else []:
            headers = {"range": f"bytes={part[0]}-{part[1]}"}
            got = await ask(server, "GET", f"/alice/x/o/{oid}", token="alice", headers=headers)
            if got.status != 206 or not got.complete:
                said = _said(got) if got.complete else "cut"
            else:
                assert got.body == content[part[0] : part[1] + 1], "other bytes were delivered"
    return said


async def as_of_old(server: Server, history: Push) -> str | None:
    """``fetch`` of a client of version 0.1."""
    answer = await _post(server, "fetch", {"want": [history.head], "have": []})
    if answer.status != 200:
        return _said(answer)
    value = answer.value
    blobs = {record["object_id"]: record["content"] for record in value["objects"]}
    assert all(blob_id(content, plain) == oid for oid, content in blobs.items()), "other bytes were delivered"
    for record in value["snapshots"]:
        assert snapshot_id(record["manifest"], record.get("directories", ()), plain) == record["snapshot_id"]
    commits = {record["commit_id"]: record for record in value["commits"]}
    return _whole(history, blobs, {record["snapshot_id"] for record in value["snapshots"]}, commits)


WAYS: dict[str, Way] = {
    "pack": by_pack, "parts": by_pack_in_parts, "frames": by_frames, "ids": by_ids, "urls": by_urls,
    "one": one_by_one, "ranges": in_ranges,
}  # fmt: skip
PLAIN_WAYS: dict[str, Way] = {"old": as_of_old, "one": one_by_one, "ranges": in_ranges, "frames": by_frames}


async def _one_by_one(server: Server, history: Push, targets: dict[str, str], token: str | None) -> str | None:
    said: str | None = None
    for oid, target in targets.items():
        got = await ask(server, "GET", target, token=token)
        if got.status != 200 or not got.complete:
            said = _said(got) if got.complete else "cut"
        else:
            assert got.body == history.blobs[oid], "other bytes were delivered"
    return said


async def _post(server: Server, path: str, body: object) -> Answer:
    headers = {"accept": "application/x-msgpack"}
    return await ask(server, "POST", f"/alice/x/{path}", token="alice", msgpack=body, headers=headers)


def _said(answer: Answer) -> str:
    assert answer.status == 503, answer
    return f"{answer.error}: {answer.value['detail']}"


def _frames(body: bytes) -> list[dict]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=_WHOLE_MOST)
    unpacker.feed(body)
    return list(unpacker)


def _blobs(frames: list[dict]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    pieces: dict[str, bytes] = {}
    for frame in frames:
        oid = frame.get("object_id")
        if frame["type"] == "O":
            found[oid] = frame["content"]
        elif frame["type"] == "OC":
            pieces[oid] = pieces.get(oid, b"") + frame["content"]
            if frame["last"]:
                found[oid] = pieces.pop(oid)
    name = plain if any(":" not in oid for oid in found) else None
    for oid, content in found.items():
        assert (blob_id(content, name) if name else blob_id(content)) == oid, "other bytes were delivered"
    return found


def _records(frames: list[dict]) -> tuple[set[str], dict[str, dict]]:
    manifests: dict[str, dict[str, str]] = {}
    commits: dict[str, dict] = {}
    for frame in frames:
        for record in [*frame.get("snapshots", []), *frame.get("snapshot_deltas", [])]:
            if "manifest" in record:
                manifest = record["manifest"]
            else:
                base = manifests[record["parent_snapshot_id"]] if record["parent_snapshot_id"] else {}
                manifest = {k: v for k, v in base.items() if k not in record["delta_remove"]} | record["delta_upsert"]
            name = {"name": plain} if ":" not in record["snapshot_id"] else {}
            assert snapshot_id(manifest, record.get("directories", ()), **name) == record["snapshot_id"]
            manifests[record["snapshot_id"]] = manifest
        commits |= {record["commit_id"]: record for record in frame.get("commits", [])}
    return set(manifests), commits


def _whole(
    history: Push, blobs: dict[str, bytes], snapshots: set[str] | None = None, commits: dict[str, dict] | None = None
) -> None:
    """All of it came, as it was pushed."""
    assert blobs == history.blobs
    if snapshots is not None:
        assert snapshots == {record["snapshot_id"] for record in history.snapshots}
    if commits is not None:
        pushed = {record["commit_id"]: record for record in history.commits}
        assert set(commits) == set(pushed)
        for oid, record in commits.items():
            assert commit_id(record, history.name) == oid
            assert record == {**record, **pushed[oid]}

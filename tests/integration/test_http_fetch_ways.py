"""The other ways to fetch: frames, blobs by id, records with URLs. What arrives is judged by a client of its own."""

from __future__ import annotations

import random

import msgpack
import pytest

from tests.deployments import two_commits, with_history
from tests.http_client import ask as request
from tests.muse import Push, blob_id, make_commit, make_snapshot, snapshot_id
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")


async def ask(server: Server, way: str, body: object, token: str | None = "alice", slug: str = "x"):
    return await request(server, "POST", f"/alice/{slug}/{way}", token=token, msgpack=body)


def frames_of(body: bytes) -> list[dict]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
    unpacker.feed(body)
    return list(unpacker)


def blobs_of(frames: list[dict]) -> dict[str, bytes]:
    """Put the blobs of ``O`` and ``OC`` frames together; every one hashes to its id."""
    found: dict[str, bytes] = {}
    pieces: dict[str, list[bytes]] = {}
    for frame in frames:
        if frame["type"] == "O":
            found[frame["object_id"]] = frame["content"]
        elif frame["type"] == "OC":
            held = pieces.setdefault(frame["object_id"], [])
            assert frame["seq"] == len(held)
            assert len(frame["content"]) <= 1024 * 1024
            held.append(frame["content"])
            if frame["last"]:
                found[frame["object_id"]] = b"".join(held)
    assert {blob_id(content) for content in found.values()} == set(found)
    return found


def manifests_of(frames: list[dict]) -> dict[str, dict[str, str]]:
    """Rebuild all snapshots in the order they came; every one hashes to its id."""
    found: dict[str, dict[str, str]] = {}
    for frame in frames:
        for record in [*frame.get("snapshots", []), *frame.get("snapshot_deltas", [])]:
            if "manifest" in record:
                manifest = record["manifest"]
            else:
                base = found[record["parent_snapshot_id"]] if record["parent_snapshot_id"] else {}
                manifest = {k: v for k, v in base.items() if k not in record["delta_remove"]} | record["delta_upsert"]
            assert snapshot_id(manifest, record.get("directories", ())) == record["snapshot_id"]
            found[record["snapshot_id"]] = manifest
    return found


async def test_a_stream_brings_what_was_pushed(server: Server):
    """``H O* C* E``, in this order, with counts that are true: everything of the history and nothing else (R13)."""
    history = await with_history(server)
    answer = await ask(server, "fetch/stream", {"want": [history.head], "have": []})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-muse-packstream")
    frames = frames_of(answer.body)
    kinds = "".join({"OC": "O"}.get(frame["type"], frame["type"]) for frame in frames)
    assert kinds.strip("O") == kinds
    assert kinds == "H" + "O" * kinds.count("O") + "C" * kinds.count("C") + "E"
    assert blobs_of(frames) == history.blobs
    commits = [record for frame in frames for record in frame.get("commits", [])]
    assert [record["commit_id"] for record in commits] == [record["commit_id"] for record in history.commits]
    assert commits[0]["message"] == history.commits[0]["message"]
    assert set(manifests_of(frames)) == {record["snapshot_id"] for record in history.snapshots}
    counts = {"n_objects": len(history.blobs), "n_commits": 2}
    assert frames[0] == {"type": "H", "version": 2, **counts}
    assert frames[-1] == {"type": "E", **counts}


async def test_a_stream_brings_only_what_is_lacking(twin: Server):
    """With ``have`` the first commit's blobs stay away; with everything, nothing comes."""
    history = await with_history(twin)
    first = history.commits[0]["commit_id"]
    frames = frames_of((await ask(twin, "fetch/stream", {"want": [history.head], "have": [first]})).body)
    new = set(history.snapshots[1]["manifest"].values()) - set(history.snapshots[0]["manifest"].values())
    assert set(blobs_of(frames)) == new
    nothing = frames_of((await ask(twin, "fetch/stream", {"want": [history.head], "have": [history.head]})).body)
    assert [(frame["type"], frame["n_objects"], frame["n_commits"]) for frame in nothing] == [("H", 0, 0), ("E", 0, 0)]


async def test_large_blobs_and_large_snapshots_come_in_pieces(server: Server):
    """A blob above 4 MiB is chunked at 1 MiB; a snapshot above a frame's size arrives whole all the same."""
    big = random.Random(1).randbytes(5 * 1024 * 1024 + 17)
    history = Push()
    history.commit({f"directory-{n:04}/{'long' * 20}": b"%d" % (n % 7) for n in range(3_000)} | {"big": big, "e": b""})
    history.commit({"big": big, "small": b"1"})
    await with_history(server, history)
    frames = frames_of((await ask(server, "fetch/stream", {"want": [history.head], "have": []})).body)
    assert blobs_of(frames) == history.blobs
    assert sum(frame["type"] == "OC" for frame in frames) == 6
    assert set(manifests_of(frames)) == {record["snapshot_id"] for record in history.snapshots}


async def test_directories_travel_and_depth_cuts(twin: Server):
    """Empty directories are part of a snapshot's id (R13); a cut history says where."""
    history = Push()
    history.commit({"a": b"1"})
    snapshot = make_snapshot({"a": blob_id(b"1")}, ["empty/one", "two"])
    history.snapshots.append(snapshot)
    history.commits.append(make_commit(snapshot["snapshot_id"], [history.head]))
    await with_history(twin, history)
    frames = frames_of((await ask(twin, "fetch/stream", {"want": [history.head], "have": [], "depth": 1})).body)
    assert list(manifests_of(frames)) == [snapshot["snapshot_id"]]
    assert frames[0]["shallow"] == [history.head]


async def test_blobs_by_id_come_in_the_order_asked_for(server: Server):
    """An id that this repository does not hold refuses the whole request and is named."""
    history = await with_history(server)
    wanted = sorted(history.blobs, reverse=True)
    answer = await ask(server, "fetch/objects", {"object_ids": wanted})
    frames = frames_of(answer.body)
    assert [frame["object_id"] for frame in frames[:-1]] == wanted
    assert blobs_of(frames) == history.blobs
    assert frames[-1] == {"type": "E", "n_objects": len(wanted), "n_commits": 0}
    other = Push()
    other.commit({"secret": b"of another repository"})
    await with_history(server, other, slug="y")
    unknown = await ask(server, "fetch/objects", {"object_ids": [*wanted, *other.blobs]})
    assert (unknown.status, unknown.error) == (404, "not_found")


async def test_presigned_urls_give_each_blob_and_nothing_else(server: Server):
    """Records inline, a URL for each blob: bound to it, without authorisation, never publicly cacheable (T4, T21)."""
    history = await with_history(server)
    answer = await ask(server, "fetch/presign", {"want": [history.head], "have": []})
    value = answer.value
    assert [record["commit_id"] for record in value["commits"]] == [c["commit_id"] for c in history.commits]
    assert set(manifests_of([value])) == {record["snapshot_id"] for record in history.snapshots}
    assert set(value["presigned_urls"]) == set(history.blobs)
    for object_id, url in value["presigned_urls"].items():
        path = "/" + url.split("/", 3)[3]
        got = await request(server, "GET", path)
        assert (got.status, got.body) == (200, history.blobs[object_id])
        assert "public" not in got.headers["cache-control"]
        other = next(i for i in history.blobs if i != object_id).removeprefix("sha256:")
        moved = path.replace(object_id.removeprefix("sha256:"), other)
        assert (await request(server, "GET", moved)).status == 403
        assert (await request(server, "PUT", path, body=b"x")).status == 405


@pytest.mark.parametrize("way", ["fetch/stream", "fetch/objects", "fetch/presign"])
async def test_who_may_not_read_learns_nothing(twin: Server, way: str):
    """A private repository answers like one that is not there, whatever is asked of it (R3, R4, T22)."""
    history = await with_history(twin)
    body = {"want": [history.head], "have": [], "object_ids": list(history.blobs)}
    absent = await ask(twin, way, body, "bob", slug="nothing")
    for token in ("bob", None):
        answer = await ask(twin, way, body, token)
        assert (answer.status, answer.error) == (absent.status, absent.error) == (404, "not_found")


@pytest.mark.parametrize("way", ["fetch/stream", "fetch/presign"])
async def test_what_cannot_be_wanted_is_refused(twin: Server, way: str):
    """An empty want is 422, a commit no branch leads to 404: by frames as by pack."""
    await with_history(twin)
    stranger = two_commits()
    stranger.commit({"never": b"pushed"})
    assert (await ask(twin, way, {"want": [], "have": []})).status == 422
    assert (await ask(twin, way, {"want": [stranger.head], "have": []})).status == 404


async def test_a_damaged_blob_ends_the_stream_with_an_error(twin: Server, expected_errors, logs):
    """A flipped bit is found before its last byte leaves: an ``X`` frame or an error, never an ``E`` (F3, R8)."""
    history = Push()
    history.commit({f"file{n}": random.Random(n).randbytes(9_000) for n in range(1_200)})
    await with_history(twin, history)
    damaged = sorted(history.blobs)[700]
    store = twin.services.store
    while hasattr(store, "_inner"):
        store = store._inner
    key = next(key for key in store._contents if damaged[9:] in key)
    content, modified = store._contents[key]
    store._contents[key] = (content[:100] + bytes([content[100] ^ 1]) + content[101:], modified)
    answer = await ask(twin, "fetch/stream", {"want": [history.head], "have": []})
    expected_errors += [entry for entry in logs if entry["log_level"] == "error"]
    if answer.status == 200:
        frames = frames_of(answer.body)
        assert frames[-1]["type"] == "X"
        assert damaged.removeprefix("sha256:") in frames[-1]["detail"]
        assert damaged not in blobs_of(frames)
    else:
        assert (answer.status // 100, damaged.removeprefix("sha256:") in str(answer.value)) == (5, True)

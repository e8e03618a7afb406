"""Pushing by stream over real HTTP: what a well-formed push may look like, and what comes of it (protocol §5).

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import uuid
import zlib
from collections.abc import Callable

import msgpack
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from storage.rows import Right
from tests.clones import clone
from tests.containers import copy, delta, insert
from tests.deployments import two_commits, with_history
from tests.http_client import PACKSTREAM, Answer, ask, connected, head_bytes, push
from tests.muse import (
    Push,
    blob_id,
    commit_id,
    frame,
    last_frame,
    make_commit,
    make_snapshot,
    plain,
    random_history,
    typed,
)
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")

PUSH = "/alice/x/push/stream"
MIB = 1024 * 1024
SCHEMES = [pytest.param(typed, id="typed"), pytest.param(plain, id="plain")]


def object_frame(content: bytes, encoding: str = "raw", base: bytes | None = None, name: Callable = typed) -> bytes:
    """An ``O`` frame; for a delta, ``base`` is the content of its base."""
    members = {"object_id": blob_id(content, name), "encoding": encoding, "content": encoded(content, encoding, base)}
    return frame("O", **members, **({} if base is None else {"base": blob_id(base, name)}))


def chunk_frames(content: bytes, encoding: str = "raw", base: bytes | None = None, size: int = MIB) -> list[bytes]:
    """``OC`` frames of one object."""
    data = encoded(content, encoding, base)
    members = {"object_id": blob_id(content), "encoding": encoding, **({} if base is None else {"base": blob_id(base)})}
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(pieces) - 1
    return [frame("OC", **members, seq=n, last=n == last, content=piece) for n, piece in enumerate(pieces)]


def encoded(content: bytes, encoding: str, base: bytes | None = None) -> bytes:
    if encoding.startswith("delta+"):
        content = appended(base, content)
    kind = encoding.removeprefix("delta+")
    return {"raw": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[kind](content)


def appended(base: bytes, content: bytes) -> bytes:
    """A delta for a content that goes on where its base ends."""
    assert content.startswith(base)
    more = content[len(base) :]
    inserts = [insert(more[at : at + 127]) for at in range(0, len(more), 127)]
    return delta(len(base), len(content), *([copy(0, len(base))] if base else []), *inserts)


def around(objects: list[bytes], history: Push, count: int | None = None, **header: object) -> bytes:
    """A whole push of these object frames and the records of a history."""
    count = len(objects) if count is None else count
    return b"".join([history.header(**header), *objects, history.commit_frame(), history.end(n_objects=count)])


async def heads(server: Server, slug: str = "x") -> dict[str, str]:
    return (await ask(server, "GET", f"/alice/{slug}/refs", token="alice")).value["branch_heads"]


async def get_blob(server: Server, oid: str, slug: str = "x") -> Answer:
    return await ask(server, "GET", f"/alice/{slug}/o/{oid}", token="alice")


@pytest.mark.parametrize("name", SCHEMES)
async def test_a_push_is_answered_with_its_result_and_can_be_cloned_at_once(server, name):
    await server.make_repository()
    history = random_history(1) if name is typed else Push(name=plain)
    if name is plain:
        history.commit({"a.txt": b"hello\n", "empty": b""})
        history.commit({"a.txt": b"again\n", "empty": b"", "dir/b": b"b"})
    push_id = str(uuid.UUID(int=7))
    said = await push(server, history.frames(push_id=push_id, n_objects=1, n_commits=2, n_bytes=3, options={"a": "b"}))
    timings = said.pop("timings_ms")
    assert said == {
        "type": "R", "push_id": push_id, "branch": "main", "head": history.head,
        "commits_written": len(history.commits), "snapshots_written": len(history.snapshots),
        "blobs_written": len(history.blobs), "blobs_skipped": 0,
    }  # fmt: skip
    assert all(isinstance(phase, str) and isinstance(ms, float) for phase, ms in timings.items())
    assert await heads(server) == {"main": history.head}
    copy = await clone(server, history.head)
    assert copy.blobs == history.blobs
    assert copy.commits == {commit["commit_id"]: commit for commit in history.commits}
    for oid, content in history.blobs.items():
        assert (await get_blob(server, oid)).body == content


async def test_the_golden_ids_of_the_plain_scheme_are_accepted(server):
    await server.make_repository()
    history = Push(name=plain)
    times = ["2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:06+00:00", "2026-01-02T03:04:07+00:00"]
    files = {"a.txt": b"hello\n", "b.txt": b""}
    c1 = history.commit(files, message="first", committed_at=times[0])
    c2 = history.commit(files, message="second", committed_at=times[1])
    merge = history.commit(files, [c2, c1], message="merge", committed_at=times[2])
    assert history.snapshots[0]["snapshot_id"].startswith("6a74a2dd1647067a")
    assert [c1[:8], c2[:8], merge[:8]] == ["41f1b9a9", "c3f758e0", "537acb26"]
    assert (await push(server, history.frames()))["head"] == merge


async def test_the_answer_starts_while_the_body_is_still_arriving(server):
    await server.make_repository()
    history = two_commits()
    async with connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(history.header())
        status, headers = await connection.begin_answer("POST")
        assert (status, headers["content-type"]) == (200, PACKSTREAM)
        unpacker = msgpack.Unpacker()
        unpacker.feed(await connection.piece())
        assert next(unpacker) == {"type": "P", "stage": "receiving", "done": 0, "total": None, "message": ""}
        for piece in history.object_frames():
            await connection.send_chunk(piece)
        await connection.send_chunk(history.commit_frame() + history.end())
        while piece := await connection.piece():
            unpacker.feed(piece)
        *progress, last = list(unpacker)
        assert last["type"] == "R"
        for said in progress:
            assert said.keys() == {"type", "stage", "done", "total", "message"}
            assert said["type"] == "P"


async def test_the_result_does_not_wait_for_the_end_of_the_body(server):
    await server.make_repository()
    async with connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(two_commits().frames())
        answer = await connection.answer("POST")  # the last chunk was never sent
        assert answer.complete
        assert last_frame(answer.body)["type"] == "R"


async def test_a_push_may_arrive_in_pieces_of_any_size(twin):
    for slug, size in (("one", 1), ("seven", 7), ("many", 100_000)):
        await twin.make_repository(slug=slug)
        history = two_commits()
        body = history.frames()
        async with connected(twin) as connection:
            head = head_bytes(
                "POST", f"/alice/{slug}/push/stream", token="alice", headers={"transfer-encoding": "chunked"}
            )
            await connection.send(head)
            for at in range(0, len(body), size):
                await connection.send_chunk(body[at : at + size])
            await connection.send_chunk(b"")
            assert (await connection.answer("POST")).complete
        assert await heads(twin, slug) == {"main": history.head}


@pytest.mark.parametrize("kind", [PACKSTREAM, "application/octet-stream", f"{PACKSTREAM}; v=2", PACKSTREAM.upper()])
async def test_the_body_has_the_type_of_a_push_stream(twin, kind):
    await twin.make_repository()
    assert (await push(twin, two_commits().frames(), headers={"content-type": kind}))["type"] == "R"


@pytest.mark.parametrize("kind", ["application/json", "application/x-msgpack", "text/plain", "application/x-muse-pack"])
async def test_a_body_of_another_type_is_unsupported_media(twin, kind):
    await twin.make_repository()
    said = await push(twin, two_commits().frames(), headers={"content-type": kind})
    assert (said["status"], said["error"]) == (415, "unsupported_media")


ENCODINGS = ["raw", "zlib", "zstd", "delta+zlib", "delta+zstd"]
SIZES = [0, 1, 5000, 300_000, MIB, MIB + 1, 3 * MIB + 17]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_objects_of_every_encoding_and_size_are_stored_as_their_content(server, encoding):
    await server.make_repository()
    rng = random.Random(5)
    contents = [rng.randbytes(size) for size in SIZES]
    frames, files = [], {}
    for number, content in enumerate(contents):
        base = content[: len(content) // 2] if encoding.startswith("delta+") else None
        if base is not None:
            frames.append(object_frame(base))
            files[f"base{number}"] = base
        frames.append(object_frame(content, encoding, base))
        files[f"file{number}"] = content
    history = Push()
    history.commit(files)
    said = await push(server, around(frames, history))
    assert said["type"] == "R", said
    assert (await clone(server, history.head)).files(history.head) == files


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_objects_in_chunks_are_stored_as_their_content(server, encoding):
    await server.make_repository()
    rng = random.Random(6)
    frames, files, count = [], {}, 0
    for size in (0, 10, 400_000, 5 * MIB + 3):
        content = rng.randbytes(size)
        base = content[: size // 2] if encoding.startswith("delta+") else None
        if base is not None:
            frames += chunk_frames(base)
            files[f"base{size}"] = base
            count += 1
        frames += chunk_frames(content, encoding, base, size=300_000)
        files[f"file{size}"] = content
        count += 1
    history = Push()
    history.commit(files)
    said = await push(server, around(frames, history, count))
    assert said["type"] == "R", said
    assert (await clone(server, history.head)).files(history.head) == files


async def test_a_delta_may_build_on_what_the_repository_holds(server):
    first = await with_history(server)
    base = b"hello again\n"
    second = Push()
    second.commit({"a.txt": base + b"and more\n"}, [first.head])
    said = await push(server, around([object_frame(base + b"and more\n", "delta+zstd", base)], second))
    assert (said["type"], said["blobs_written"]) == ("R", 1), said
    assert (await clone(server, second.head)).files(second.head) == {"a.txt": base + b"and more\n"}


async def test_deltas_may_build_on_deltas(server):
    await server.make_repository()
    contents = [b"x" * 50_000 * number for number in range(1, 12)]
    frames = [object_frame(contents[0])]
    frames += [object_frame(b, "delta+zlib", a) for a, b in itertools.pairwise(contents)]
    history = Push()
    history.commit({f"{number}": content for number, content in enumerate(contents)})
    assert (await push(server, around(frames, history)))["blobs_written"] == len(contents)
    assert (await clone(server, history.head)).files(history.head)["10"] == contents[10]


async def test_an_object_sent_several_times_is_one_object(server):
    await server.make_repository()
    content = b"c" * 200_000
    history = Push()
    history.commit({"a": content, "b": content + b"!"})
    frames = [*[object_frame(content)] * 12, object_frame(content + b"!", "delta+zlib", content)]
    said = await push(server, around(frames, history))
    assert (said["blobs_written"], said["blobs_skipped"]) == (2, 11)


async def test_an_object_no_commit_needs_is_taken_and_not_served(server):
    await server.make_repository()
    history = two_commits()
    frames = [*history.object_frames(), object_frame(b"nobody needs me")]
    assert (await push(server, around(frames, history)))["type"] == "R"
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_records_may_come_in_any_number_of_frames_and_commits_in_any_order(server):
    await server.make_repository()
    history = random_history(8)
    frames = [frame("C", commits=[record], snapshots=[], snapshot_deltas=[]) for record in reversed(history.commits)]
    frames += [frame("C", snapshots=[record]) for record in history.snapshots]
    frames += [frame("C"), frame("C", commits=[], snapshots=[], snapshot_deltas=[])]
    said = await push(server, b"".join([history.header(), *history.object_frames(), *frames, history.end()]))
    assert said["type"] == "R", said
    assert (await clone(server, history.head)).commits.keys() == {c["commit_id"] for c in history.commits}


def as_deltas(history: Push, key: str = "delta_upsert", first_base: str | None = None) -> list[dict]:
    """Describe the snapshots of a history each by the one before."""
    deltas, before, base = [], {}, first_base
    for snapshot in history.snapshots:
        manifest = snapshot["manifest"]
        record = {k: v for k, v in snapshot.items() if k != "manifest"}
        record |= {
            "parent_snapshot_id": base, "delta_remove": [path for path in before if path not in manifest],
            key: {path: oid for path, oid in manifest.items() if before.get(path) != oid},
        }  # fmt: skip
        deltas.append(record)
        before, base = manifest, snapshot["snapshot_id"]
    return deltas


@pytest.mark.parametrize("key", ["delta_upsert", "delta_add"])
@pytest.mark.parametrize("frames_each", [1, 100])
async def test_snapshots_may_come_as_deltas_on_snapshots_of_the_same_push(server, key, frames_each):
    await server.make_repository()
    history = random_history(9)
    deltas = as_deltas(history, key)
    frames = [history.header(), *history.object_frames()]
    parts = [deltas[at : at + frames_each] for at in range(0, len(deltas), frames_each)]
    frames += [frame("C", commits=[], snapshots=[], snapshot_deltas=part) for part in parts]
    frames += [frame("C", commits=history.commits, snapshots=[], snapshot_deltas=[]), history.end()]
    assert (await push(server, b"".join(frames)))["type"] == "R"
    copy = await clone(server, history.head)
    assert copy.manifests == {s["snapshot_id"]: s["manifest"] for s in history.snapshots}
    assert copy.blobs == history.blobs


async def test_a_snapshot_may_come_as_a_delta_on_one_the_repository_has(server):
    first = await with_history(server)
    base = first.snapshots[-1]
    manifest = {**base["manifest"], "new.txt": blob_id(b"new")}
    del manifest["a.txt"]
    snapshot = make_snapshot(manifest)
    commit = make_commit(snapshot["snapshot_id"], [first.head])
    record = {
        "snapshot_id": snapshot["snapshot_id"], "parent_snapshot_id": base["snapshot_id"],
        "delta_upsert": {"new.txt": blob_id(b"new")}, "delta_remove": ["a.txt"],
    }  # fmt: skip
    second = Push(commits=[commit], deltas=[record], blobs={blob_id(b"new"): b"new"})
    assert (await push(server, second.frames()))["type"] == "R"
    assert (await clone(server, commit["commit_id"])).files(commit["commit_id"]).keys() == manifest.keys()


async def test_R13_directories_are_kept_in_full_snapshots_and_in_deltas(server):
    await server.make_repository()
    oid = blob_id(b"x")
    first = make_snapshot({"f": oid}, ["empty", "b/c", "ü"])
    second = make_snapshot({"f": oid, "g": oid}, ["empty", "z"])
    third = make_snapshot({"g": oid}, [])
    empty = make_snapshot({}, ["only", "directories"])
    deltas = [
        {"snapshot_id": second["snapshot_id"], "parent_snapshot_id": first["snapshot_id"], "delta_upsert": {"g": oid},
         "delta_remove": [], "directories": ["z", "empty"]},
        {"snapshot_id": third["snapshot_id"], "parent_snapshot_id": second["snapshot_id"], "delta_upsert": {},
         "delta_remove": ["f"]},
    ]  # fmt: skip
    history = Push(blobs={oid: b"x"}, snapshots=[first, empty], deltas=deltas)
    parents: list[str] = []
    for snapshot in (first, second, third, empty):
        history.commits.append(make_commit(snapshot["snapshot_id"], parents))
        parents = [history.head]
    assert (await push(server, history.frames()))["type"] == "R"
    copy = await clone(server, history.head)
    shown = {s["snapshot_id"]: sorted(copy.snapshots[s["snapshot_id"]].get("directories", [])) for s in (first, second)}
    assert shown == {first["snapshot_id"]: ["b/c", "empty", "ü"], second["snapshot_id"]: ["empty", "z"]}
    assert copy.snapshots.keys() == {s["snapshot_id"] for s in (first, second, third, empty)}


async def test_an_empty_tree_is_a_snapshot(server):
    await server.make_repository()
    history = Push()
    history.commit({})
    assert history.snapshots[0]["snapshot_id"].startswith("sha256:be9d5d3870b85")
    assert (await push(server, history.frames()))["type"] == "R"
    assert (await clone(server, history.head)).files(history.head) == {}


async def test_everything_an_id_does_not_cover_comes_back_exactly_as_it_was_sent(server):
    await server.make_repository()
    odd = {
        "unknown": {"a": [1, -1, 2**63, 1.5, True, None, "ü", ""], "b": {"$bytes": "no", "$x": b"\0\xff"}},
        "escaped": {"$one": {"$bytes": 1}},
        "structured_delta": [{"op": "insert", "at": [0, 1], "raw": b"\x00\x01"}],
        "metadata": {"k": "v", "e\u0301": "decomposed"}, "sem_ver_bump": "major", "breaking_changes": ["x", "y"],
        "reviewed_by": [], "test_runs": 3, "repo_id": "whatever", "agent_id": None, "branch": "another name",
        "format_version": 99,
    }  # fmt: skip
    oid = blob_id(b"x")
    snapshot = make_snapshot({"f": oid}, note="\u2028", schema_version=3, later={"x": [b"y"]})
    record = make_commit(
        snapshot["snapshot_id"], message=" two\r\n\tlines \U0001f3b5", committed_at="not a date", **odd
    )
    history = Push(blobs={oid: b"x"}, snapshots=[snapshot], commits=[record])
    assert (await push(server, history.frames()))["type"] == "R"
    copy = await clone(server, history.head)
    assert copy.commits[history.head] == record
    assert copy.snapshots[snapshot["snapshot_id"]] == snapshot


async def test_a_commit_without_optional_fields_is_a_commit(server):
    await server.make_repository()
    oid = blob_id(b"x")
    snapshot = {"snapshot_id": make_snapshot({"f": oid})["snapshot_id"], "manifest": {"f": oid}}
    record = {"snapshot_id": snapshot["snapshot_id"], "message": "", "committed_at": ""}
    record["commit_id"] = commit_id(record)
    history = Push(blobs={oid: b"x"}, snapshots=[snapshot], commits=[record])
    assert (await push(server, history.frames()))["type"] == "R"
    assert (await clone(server, history.head)).commits[history.head] == record


def signed(snapshot: str, parents: list[str] | None = None, prefix: str = "", **changes: object) -> dict:
    """A commit with a signature by protocol §1; ``changes`` are made after signing."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a key for tests").digest())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    provenance = {"agent_id": "agent", "model_id": "model", "toolchain_id": "tools", "prompt_hash": "hash"}
    record = make_commit(
        snapshot, parents, signer_public_key=prefix + base64url(public), format_version=8, **provenance,
        signer_key_id="sha256:" + hashlib.sha256(public).hexdigest(),
    )  # fmt: skip
    covered = [record["commit_id"], record["author"], *provenance.values()]
    digest = hashlib.sha256("\0".join(covered).encode()).hexdigest()
    return {**record, "signature": prefix + base64url(key.sign(digest.encode())), **changes}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize("prefix", ["", "ed25519:"])
async def test_T7_a_good_signature_is_accepted_and_returned(server, prefix):
    await server.make_repository(require_signed_commits=True)
    oid = blob_id(b"x")
    snapshot = make_snapshot({"f": oid})
    record = signed(snapshot["snapshot_id"], prefix=prefix)
    history = Push(blobs={oid: b"x"}, snapshots=[snapshot], commits=[record])
    assert (await push(server, history.frames()))["type"] == "R"
    assert (await clone(server, history.head)).commits[history.head] == record


BAD_SIGNATURES: dict[str, dict] = {
    "signature of another text": {"signature": base64url(bytes(64))},
    "no base64": {"signature": "!" * 86},
    "short": {"signature": base64url(bytes(63))},
    "not text": {"signature": 5},
    "covered field changed": {"agent_id": "somebody else"},
    "covered field removed": {"model_id": None},
    "key id of another key": {"signer_key_id": "sha256:" + "0" * 64},
}


@pytest.mark.parametrize("changes", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES.keys())
async def test_T7_a_wrong_signature_refuses_the_push(server, changes):
    await server.make_repository()
    oid = blob_id(b"x")
    snapshot = make_snapshot({"f": oid})
    record = signed(snapshot["snapshot_id"], **changes)
    history = Push(blobs={oid: b"x"}, snapshots=[snapshot], commits=[record])
    said = await push(server, history.frames())
    assert (said["type"], said["error"]) == ("X", "bad_signature")
    assert await heads(server) == {}
    assert (await get_blob(server, oid)).status == 404


async def test_a_signature_without_its_key_refuses_the_push(twin):
    await twin.make_repository()
    snapshot = make_snapshot({})
    record = make_commit(snapshot["snapshot_id"], signature=base64url(bytes(64)))
    said = await push(twin, Push(snapshots=[snapshot], commits=[record]).frames())
    assert said["error"] == "bad_signature"


async def test_a_repository_may_require_signatures(server):
    await server.make_repository(require_signed_commits=True)
    for signature in ({}, {"signature": ""}, {"signature": None}):
        history = Push()
        history.commit({}, **signature)
        said = await push(server, history.frames())
        assert (said["type"], said["error"]) == ("X", "bad_signature")
    assert await heads(server) == {}


async def statuses(server: Server, target: str, **options: object) -> tuple[int, str]:
    """Ask to push without sending any of the body."""
    async with connected(server) as connection:
        headers = {"transfer-encoding": "chunked", **options.pop("headers", {})}
        await connection.send(head_bytes("POST", target, headers=headers, **options))
        answer = await connection.answer("POST")
        return answer.status, answer.error


async def test_T17_who_may_not_push_is_told_so_before_the_body_is_read(server):
    made = await server.make_repository()
    await server.make_repository(slug="public", public=True)
    await server.services.index.set_collaborator(made.number, "reader", Right.READ)
    assert await statuses(server, PUSH) == (401, "unauthenticated")
    assert await statuses(server, PUSH, headers={"authorization": "Bearer x"}) == (401, "unauthenticated")
    assert await statuses(server, "/alice/nothing/push/stream") == (401, "unauthenticated")
    assert await statuses(server, PUSH, token="reader") == (403, "forbidden")
    assert await statuses(server, "/alice/public/push/stream", token="bob") == (403, "forbidden")
    assert await statuses(server, PUSH, token="bob") == (404, "not_found")
    assert await statuses(server, "/alice/nothing/push/stream", token="alice") == (404, "not_found")
    assert await statuses(server, "/nobody/x/push/stream", token="alice") == (404, "not_found")
    assert not [a for a in server.services.supervisor.statistics().children if a.name.startswith("push")]


async def test_ids_of_the_two_schemes_are_never_mixed(server):
    history = await with_history(server)
    other = Push(name=plain)
    other.commit({"a": b"a"})
    said = await push(server, other.frames(branch="other"))
    assert (said["type"], said["error"]) == ("X", "malformed")
    assert "scheme" in said["detail"]
    assert await heads(server) == {"main": history.head}
    await server.make_repository(slug="plain")
    assert (await push(server, other.frames(), repository="alice/plain"))["type"] == "R"
    said = await push(server, history.frames(branch="other"), repository="alice/plain")
    assert (said["type"], said["error"]) == ("X", "malformed")


async def test_T13_an_id_of_the_other_scheme_inside_a_push_is_malformed(twin):
    await twin.make_repository()
    history = two_commits()
    bare_blob = frame("O", object_id=blob_id(b"x", plain), encoding="raw", content=b"x")
    said = await push(twin, around([*history.object_frames(), bare_blob], history))
    assert said["error"] == "malformed"
    oid = blob_id(b"x")
    for snapshot in (
        {**make_snapshot({"f": oid}), "manifest": {"f": oid.removeprefix("sha256:")}},
        {**make_snapshot({"f": oid}), "snapshot_id": make_snapshot({"f": oid})["snapshot_id"].removeprefix("sha256:")},
    ):
        changed = Push(commits=history.commits, snapshots=[snapshot], blobs={oid: b"x"})
        assert (await push(twin, changed.frames()))["error"] == "malformed"
    assert await heads(twin) == {}

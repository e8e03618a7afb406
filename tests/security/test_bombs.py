"""Few bytes that ask for many: refused before the memory is taken, at every door that reads a body."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.containers import copy, delta, insert
from tests.deployments import deployed, with_history
from tests.http_client import ask, push
from tests.muse import Push, blob_id, frame, make_commit, make_snapshot
from tests.refused_pushes import MIB, PUSH, ZEROS, X, around, member, one_commit, refused

pytestmark = pytest.mark.usefixtures("expected_errors")


@contextmanager
def within(most: int) -> Iterator[None]:
    """Take no more memory than so many bytes, at any moment of a block."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak / MIB:.1f} MiB"


async def test_T8_a_request_body_with_a_content_encoding_is_never_inflated(twin):
    history = await with_history(twin)
    bomb = gzip.compress(bytes(64 * MIB))
    headers = {"content-encoding": "gzip"}
    with within(8 * MIB):
        for method, target in [
            ("POST", "/alice/x/fetch"), ("POST", "/alice/x/negotiate"), ("POST", "/api/repos"), ("POST", PUSH),
            ("PATCH", "/api/repos/alice/x"),
        ]:  # fmt: skip
            answer = await ask(twin, method, target, token="alice", headers=headers, body=bomb)
            assert (answer.status, answer.error) in {(415, "unsupported_media"), (422, "malformed")}
    small = gzip.compress(b'{"want": ["%s"]}' % history.head.encode())
    answer = await ask(twin, "POST", "/alice/x/fetch", token="alice", headers=headers, body=small)
    assert answer.status in {415, 422}


async def test_T8_an_object_is_inflated_once_whatever_is_inside_it(twin):
    """An archive in an archive is a content like any other."""
    await twin.make_repository()
    inner = zlib.compress(bytes(64 * MIB))
    history = Push()
    history.commit({"f": inner})
    objects = frame("O", object_id=blob_id(inner), encoding="zlib", content=zlib.compress(inner))
    with within(16 * MIB):
        body = history.header() + objects + history.commit_frame() + history.end(n_objects=1)
        assert (await push(twin, body))["type"] == "R"
        assert (await ask(twin, "GET", f"/alice/x/o/{blob_id(inner)}", token="alice")).body == inner


async def test_T8_deltas_that_double_their_base_stop_at_the_limit(tmp_path):
    async with deployed(None, tmp_path, limits__delta_bytes=MIB) as server:
        await server.make_repository()
        content = b"x"
        frames = [member()]
        while len(content) <= MIB:
            instructions = delta(len(content), 2 * len(content), *[copy(0, len(content))] * 2)
            base, content = blob_id(content), content * 2
            frames.append(
                frame("O", object_id=blob_id(content), encoding="delta+zlib", base=base,
                      content=zlib.compress(instructions))
            )  # fmt: skip
        assert sum(map(len, frames)) < 10_000
        with within(16 * MIB):
            await refused(server, around(frames, len(frames)), "bomb", X, blob_id(content))


async def test_T8_deltas_of_one_base_share_the_budget_of_the_push(tmp_path):
    async with deployed(None, tmp_path, limits__inflated_push_bytes=4 * MIB) as server:
        await server.make_repository()
        base = bytes(1000) * 1000
        frames = [frame("O", object_id=blob_id(base), encoding="zlib", content=zlib.compress(base))]
        contents = [base + bytes([number]) for number in range(6)]
        for content in contents:
            change = zlib.compress(delta(len(base), len(content), copy(0, len(base)), insert(content[-1:])))
            frames.append(
                frame("O", object_id=blob_id(content), encoding="delta+zlib", base=blob_id(base), content=change)
            )
        await refused(server, around(frames, len(frames)), "bomb", blob_id(base), *map(blob_id, contents))
        assert (await push(server, one_commit().frames()))["type"] == "R"


LARGE = MIB - 100
MSGPACK_BOMBS = {
    "lists in a list": b"\x81\xa4want\xdd" + struct.pack(">I", LARGE) + b"\x90" * LARGE,
    "maps in a list": b"\x81\xa4want\xdd" + struct.pack(">I", LARGE) + b"\x80" * LARGE,
    "short texts": b"\x81\xa4want\xdd" + struct.pack(">I", LARGE // 2) + b"\xa1a" * (LARGE // 2),
    "announced and never sent": b"\x81\xa4want" + b"\xdd\xff\xff\xff\xff" * 1000,
    "announced texts": b"\x81\xa4want\x92\xdb\x7f\xff\xff\xff" + b"a" * 1000,
    "deep lists": b"\x81\xa4want" + b"\x91" * LARGE,
    "deep maps": b"\x81\xa1a" * (LARGE // 3),
    "deep open lists": b"\xdd\xff\xff\xff\xff" * 1000,
    "large extension": b"\x81\xa4want\xc9\xff\xff\xff\xff\x05" + b"x" * 1000,
}
MOST_FOR_A_BOMB = 48 * MIB
"""One value of a MiB may cost some sixty times its bytes before it is over its limit of containers."""


@pytest.mark.parametrize("body", MSGPACK_BOMBS.values(), ids=MSGPACK_BOMBS.keys())
async def test_T9_a_msgpack_bomb_in_a_control_body_is_refused_in_little_memory(twin, body):
    history = await with_history(twin)
    headers = {"content-type": "application/x-msgpack"}
    assert len(body) < MIB
    with within(MOST_FOR_A_BOMB):
        answer = await ask(twin, "POST", "/alice/x/fetch", token="alice", headers=headers, body=body)
    assert (answer.status, answer.error) in {(422, "malformed"), (413, "too_large")}
    assert (await ask(twin, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {"main": history.head}


@pytest.mark.parametrize("name", ["lists in a list", "deep lists", "announced texts", "large extension"])
@pytest.mark.parametrize("where", ["header", "record", "end"])
async def test_T9_a_msgpack_bomb_anywhere_in_a_push_is_refused_in_little_memory(twin, name, where):
    await twin.make_repository()
    bomb = MSGPACK_BOMBS[name].removeprefix(b"\x81\xa4want")
    opened = {
        "header": b"\x82\xa4type\xa1H\xa1m" + bomb,
        "record": around([member()], 1)[: -len(frame("E", n_objects=1, n_commits=0))]
        + b"\x82\xa4type\xa1C\xa7commits\x91\x81\xa1m" + bomb,
        "end": around([member()], 1)[: -len(frame("E", n_objects=1, n_commits=0))] + b"\x82\xa4type\xa1E\xa1m" + bomb,
    }[where]  # fmt: skip
    with within(MOST_FOR_A_BOMB):
        answer = await ask(twin, "POST", PUSH, token="alice", body=opened)
    if where == "header":
        assert (answer.status, answer.error) in {(422, "malformed"), (413, "too_large")}
    else:
        assert (answer.status, b"malformed" in answer.body or b"too_large" in answer.body) == (200, True)
    assert (await ask(twin, "GET", f"/alice/x/o/{X}", token="alice")).status == 404


def text(value: str) -> bytes:
    return b"\xd9" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize("key", ["manifest", "delta_upsert"])
async def test_T9_a_path_twice_in_one_manifest_is_refused_whichever_of_the_two_would_count(twin, key):
    await twin.make_repository()
    for order in ((X, ZEROS), (ZEROS, X), (X, X)):
        doubled = b"\x82" + b"".join(text("f") + text(oid) for oid in order)
        snapshot = make_snapshot({"f": X})
        members = text("snapshot_id") + text(snapshot["snapshot_id"]) + text(key) + doubled
        kind = "snapshots" if key == "manifest" else "snapshot_deltas"
        commit = make_commit(snapshot["snapshot_id"])
        records = b"\x82\xa4type\xa1C" + text(kind) + b"\x91\x82" + members
        frames = [frame("H", version=2, branch="main", head=commit["commit_id"], force=False), member(), records]
        frames += [frame("C", commits=[commit]), frame("E", n_objects=1, n_commits=1)]
        await refused(twin, b"".join(frames), "malformed", X)

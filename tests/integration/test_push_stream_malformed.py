"""Push streams that mean nothing: a frame, member or record of a wrong shape is ``malformed`` and leaves no trace."""

from __future__ import annotations

import zlib

import msgpack
import pytest
import zstandard

from tests.deployments import two_commits
from tests.http_client import ask
from tests.muse import (
    frame,
)
from tests.refused_pushes import MIB, PUSH, ZEROS, X, around, member, one_commit, refused, with_record

pytestmark = pytest.mark.usefixtures("expected_errors")


NO_FIRST_FRAMES: dict[str, bytes] = {
    "nothing": b"",
    "reserved byte": b"\xc1",
    "no map": b"\x93\x01\x02\x03",
    "text": b"\xa5hello",
    "an empty map": b"\x80",
    "no type": msgpack.packb({"version": 2, "branch": "main", "head": ZEROS}),
    "type that is a list": msgpack.packb({"type": [], "version": 2}),
    "type that is a map": msgpack.packb({"type": {}, "version": 2}),
    "type that is bytes": msgpack.packb({"type": b"H", "version": 2}),
    "unknown type": frame("Z"),
    "objects first": frame("O", object_id=X, encoding="raw", content=b"x"),
    "commits first": frame("C", commits=[], snapshots=[], snapshot_deltas=[]),
    "end first": frame("E", n_objects=0, n_commits=0),
    "result first": frame("R", push_id="x"),
    "progress first": frame("P", stage="x", done=0, total=None, message=""),
    "no version": frame("H", branch="main", head=ZEROS),
    "version 1": frame("H", version=1, branch="main", head=ZEROS),
    "version in text": frame("H", version="2", branch="main", head=ZEROS),
    "version that is a list": frame("H", version=[2], branch="main", head=ZEROS),
    "content in a header": frame("H", version=2, branch="main", head=ZEROS, content=b"x"),
    "records in a header": frame("H", version=2, branch="main", head=ZEROS, commits=[]),
    "65 members": frame("H", version=2, branch="main", head=ZEROS, **{f"m{n}": 0 for n in range(61)}),
    "a member twice": b"\x82\xa4type\xa1H\xa4type\xa1H",
    "a member that is no text": b"\x81\x01\x02",
    "text that is not UTF-8": b"\x81\xa4type\xa1\xff",
    "ext": b"\x81\xa4type\xd4\x01\x00",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "deep arrays": b"\x81\xa4type" + b"\x91" * 100_000,
    "a cut frame": frame("H", version=2, branch="main", head=ZEROS)[:-5],
    "json": b'{"type": "H", "version": 2}',
    "an mpack": b"MUSE\x01\x00" + bytes(32),
}


@pytest.mark.parametrize("body", NO_FIRST_FRAMES.values(), ids=NO_FIRST_FRAMES.keys())
async def test_R14_T9_a_first_frame_that_is_no_header_is_refused_with_a_status(twin, body):
    await twin.make_repository()
    answer = await ask(twin, "POST", PUSH, token="alice", body=body)
    assert (answer.status, answer.error) == (422, "malformed")
    assert not [a for a in twin.services.supervisor.statistics().children if a.name.startswith("push")]


async def test_a_first_frame_that_is_too_large_is_refused_with_a_status(twin):
    await twin.make_repository()
    answer = await ask(twin, "POST", PUSH, token="alice", body=frame("H", version=2, branch="x" * 5 * MIB))
    assert answer.status in {413, 422}
    assert answer.error in {"too_large", "malformed"}


BAD_HEADERS: dict[str, dict] = {
    "no branch": {"branch": None},
    "branch in bytes": {"branch": b"main"},
    "empty branch": {"branch": ""},
    "branch of 256 bytes": {"branch": "b" * 256},
    **{f"branch {name!r}": {"branch": name} for name in (
        "a b", "a\\b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a..b", "a//b", "a@{b", "-a", ".a", "/a", "a.", "a/",
        "a.lock", "a\0b", "a\nb", "a\x7fb", "a\x9fb",
    )},
    "no head": {"head": None},
    "head in bytes": {"head": bytes(32)},
    "short head": {"head": ZEROS[:-1]},
    "upper-case head": {"head": "sha256:" + "A" * 64},
    "head of another hash": {"head": "sha512:" + "0" * 64},
    "head with spaces": {"head": "sha256: " + "0" * 63},
    "force in text": {"force": "yes"},
    "force nil": {"force": None},
    "options as a list": {"options": []},
    "options with numbers": {"options": {"a": 1}},
    "push id that is none": {"push_id": "x"},
    "push id of 15 bytes": {"push_id": b"x" * 15},
    "push id as a number": {"push_id": 7},
    "expected head that is none": {"expected_head": "x"},
    "expected head of the other scheme": {"expected_head": "0" * 64},
    "negative count": {"n_objects": -1},
    "count in text": {"n_objects": "1"},
}  # fmt: skip


@pytest.mark.parametrize("members", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
async def test_R14_T29_a_header_with_a_wrong_member_is_refused_with_a_frame(twin, members):
    await twin.make_repository()
    await refused(twin, one_commit().frames(**members), "malformed", X)


BAD_FRAMES: dict[str, bytes] = {
    "reserved byte": b"\xc1",
    "no map": b"\x01",
    "no type": msgpack.packb({"object_id": X}),
    "unknown type": frame("Z"),
    "a second header": frame("H", version=2, branch="main", head=ZEROS, force=False),
    "a result": frame("R", push_id="x"),
    "an error": frame("X", error="x"),
    "a progress": frame("P", stage="x", done=0, total=None, message=""),
    "object without content": member(content="leave out"),
    "object with text as content": member(content="x"),
    "object with a list as content": member(content=[1]),
    "object without id": member(object_id="leave out"),
    "object with a number as id": member(object_id=1),
    "object with a list as id": member(object_id=[X]),
    "object with a short id": member(object_id=X[:-1]),
    "object with an upper-case id": member(object_id="sha256:" + X[7:].upper()),
    "object with a bare id": member(object_id=X[7:]),
    "object with raw bytes as id": member(object_id=bytes.fromhex(X[7:])),
    "object with an id of another hash": member(object_id="sha1:" + "0" * 40),
    "object with an unknown encoding": member(encoding="brotli"),
    "object with a list as encoding": member(encoding=["raw"]),
    "object with nil as encoding": member(encoding=None),
    "object with a base that has none": member(base=X),
    "delta without a base": member(encoding="delta+zlib"),
    "delta with a base that is no id": member(encoding="delta+zlib", base="x"),
    "object with records": member(commits=[]),
    "object with a member twice": b"\x84\xa4type\xa1O\xa7content\xc4\x01x\xa7content\xc4\x01x\xa8encoding\xa3raw",
    "object whose content is an ext": b"\x82\xa4type\xa1O\xa7content\xc7\x01\x05x",
    "damaged zlib": member(encoding="zlib", content=b"x"),
    "cut zlib": member(encoding="zlib", content=zlib.compress(b"x" * 100)[:-1]),
    "zlib with bytes after it": member(encoding="zlib", content=zlib.compress(b"x") + b"y"),
    "two zlib streams": member(encoding="zlib", content=zlib.compress(b"x") * 2),
    "damaged zstd": member(encoding="zstd", content=b"x"),
    "cut zstd": member(encoding="zstd", content=zstandard.compress(b"x" * 100)[:-1]),
    "zstd with bytes after it": member(encoding="zstd", content=zstandard.compress(b"x") + b"y"),
    "two zstd frames": member(encoding="zstd", content=zstandard.compress(b"x") * 2),
    "nothing as zlib": member(encoding="zlib", content=b""),
    "nothing as zstd": member(encoding="zstd", content=b""),
    "chunk without seq": frame("OC", object_id=X, encoding="raw", last=True, content=b"x"),
    "chunk without last": frame("OC", object_id=X, encoding="raw", seq=0, content=b"x"),
    "chunk with a number as last": frame("OC", object_id=X, encoding="raw", seq=0, last=1, content=b"x"),
    "chunk with a truth as seq": frame("OC", object_id=X, encoding="raw", seq=False, last=True, content=b"x"),
    "chunks that begin at 1": frame("OC", object_id=X, encoding="raw", seq=1, last=True, content=b"x"),
    "a chunk after the end": b"".join(
        frame("OC", object_id=X, encoding="raw", seq=n, last=n == 0, content=b"x" * (1 - n)) for n in range(2)
    ),
    "a chunk missing": b"".join(
        frame("OC", object_id=X, encoding="raw", seq=n, last=n == 2, content=b"") for n in (0, 2)
    ),
    "chunks of two objects mixed": b"".join(
        frame("OC", object_id=oid, encoding="raw", seq=n, last=False, content=b"") for n, oid in enumerate((X, ZEROS))
    ),
    "chunks of two encodings": b"".join(
        frame("OC", object_id=X, encoding=kind, seq=n, last=False, content=b"")
        for n, kind in enumerate(("raw", "zlib"))
    ),
    "an object between chunks": frame("OC", object_id=X, encoding="raw", seq=0, last=False, content=b"") + member(),
    "commits between chunks": frame("OC", object_id=X, encoding="raw", seq=0, last=False, content=b"") + frame("C"),
    "commits as a map": frame("C", commits={}, snapshots=[], snapshot_deltas=[]),
    "snapshots as text": frame("C", commits=[], snapshots="x", snapshot_deltas=[]),
    "an object after commits": frame("C", commits=[], snapshots=[], snapshot_deltas=[]) + member(),
    "a chunk after commits": frame("C") + frame("OC", object_id=X, encoding="raw", seq=0, last=True, content=b"x"),
    "an end without counts": frame("E"),
    "an end with a negative count": frame("E", n_objects=-1, n_commits=0),
    "an end with counts in text": frame("E", n_objects="0", n_commits="0"),
    "an end with a fraction": frame("E", n_objects=0.0, n_commits=0),
    "an end with nil": frame("E", n_objects=None, n_commits=0),
    "bytes after the end": frame("E", n_objects=0, n_commits=0) + b"\x80",
    "a second end": frame("E", n_objects=0, n_commits=0) * 2,
    "a frame of 65 members": frame("C", **{f"m{n}": 0 for n in range(64)}),
    "a member nested too deeply": b"\x82\xa4type\xa1C\xa1m" + b"\x91" * 100_000,
    "a member that is an ext": b"\x82\xa4type\xa1C\xa1m\xd4\x05\x00",
    "a member that is a timestamp": b"\x82\xa4type\xa1C\xa1m\xd6\xff\x00\x00\x00\x01",
}


@pytest.mark.parametrize("frames", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_R14_T9_T13_a_frame_that_means_nothing_is_malformed(twin, frames):
    await twin.make_repository()
    await refused(twin, around([frames]), "malformed", X)


async def test_a_stream_that_ends_after_any_whole_frame_but_the_last_is_malformed(twin):
    await twin.make_repository()
    history = two_commits()
    frames = [history.header(), *history.object_frames(), history.commit_frame()]
    for count in range(1, len(frames) + 1):
        await refused(twin, b"".join(frames[:count]), "malformed", *history.blobs)


BAD_RECORDS: dict[str, tuple[str, dict]] = {
    **{f"commit with {key} {value!r}": ("commits", {key: value}) for key, values in {
        "commit_id": ["leave out", None, 1, "x", [], X[7:], X.upper()],
        "snapshot_id": ["leave out", None, 1, "x", {}, X[7:]],
        "parent_commit_id": [1, "", "x", [], [X], X[7:], "sha256:" + "A" * 64],
        "parent2_commit_id": [True, {}, X[7:]],
        "message": ["leave out", None, 1, b"x", [], "a\0b"],
        "committed_at": ["leave out", None, 1.5, "a\0b"],
        "author": [1, [], b"x", "a\0b"],
        "signer_public_key": [1, [], "a\0b"],
        "metadata": [float("nan"), float("inf"), {"a": float("-inf")}],
    }.items() for value in values},
    **{f"snapshot with {key} {value!r}": ("snapshots", {key: value}) for key, values in {
        "snapshot_id": ["leave out", None, 1, "x", X[7:]],
        "manifest": ["leave out", None, [], "x", {"f": None}, {"f": 1}, {"f": "x"}, {"f": X[7:]}, {"f": [X]}],
        "directories": ["x", {}, [1], [None], [["x"]], ["d", "d"], 1],
        "note": [float("nan")],
    }.items() for value in values},
    **{f"delta with {key} {value!r}": ("snapshot_deltas", {key: value}) for key, values in {
        "snapshot_id": ["leave out", None, "x"],
        "parent_snapshot_id": [1, "x", [], X[7:]],
        "delta_upsert": [[], "x", {"f": None}, {"f": "x"}],
        "delta_add": [{}],
        "delta_remove": ["x", {}, [1], ["a", "a"]],
        "directories": ["x", [1]],
    }.items() for value in values},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
async def test_R14_a_record_of_the_wrong_shape_is_malformed(twin, kind, changes):
    await twin.make_repository()
    await refused(twin, with_record(kind, **changes), "malformed", X)


@pytest.mark.parametrize("kind", ["commits", "snapshots", "snapshot_deltas"])
@pytest.mark.parametrize("record", [None, 1, "x", [], b"x"], ids=repr)
async def test_a_record_that_is_no_map_is_malformed(twin, kind, record):
    await twin.make_repository()
    await refused(twin, around([member(), frame("C", **{kind: [record]})], 1), "malformed", X)


async def test_T9_a_record_nested_too_deeply_is_malformed(twin):
    await twin.make_repository()
    value: object = 1
    for _ in range(70):
        value = [value]
    await refused(twin, with_record("commits", structured_delta=value), "malformed", X)
    await refused(twin, with_record("snapshots", unknown={"a": value}), "malformed", X)

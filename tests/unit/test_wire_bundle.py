"""Bundles, the older container: read in pieces of any size, never written (protocol §3)."""

from __future__ import annotations

import itertools
import random

import msgpack
import pytest
from hypothesis import given

from tests import containers, muse
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.bundle import BundleEnd, BundleReader, looks_like_bundle
from wire.errors import Code
from wire.frames import Object, ObjectBegin, ObjectEnd, ObjectPiece, Record
from wire.limits import Limits


def bundle_of(push: muse.Push, objects: str = "objects") -> dict[str, object]:
    return {
        "commits": push.commits,
        "snapshots": push.snapshots,
        objects: [{"object_id": oid, "content": content} for oid, content in push.blobs.items()],
        "tags": [{"tag": "v1", "commit_id": push.head}],
        "branch_heads": {"main": push.head},
        "of_the_future": [1, 2],
    }


def events_of(data: bytes, sizes: list[int] | None = None, limits: Limits | None = None) -> list[object]:
    """Read a whole bundle; pieces of one object are put together."""
    reader = BundleReader(limits or Limits())
    events: list[object] = []
    for piece in cut(data, sizes or [65536]):
        for event in reader.receive_data(piece):
            if isinstance(event, ObjectPiece) and isinstance(events[-1], ObjectPiece):
                events[-1] = ObjectPiece(events[-1].content + event.content)
            else:
                events.append(event)
    events += reader.receive_data(b"")
    assert reader.finished
    return events


def of_one(**members: object) -> bytes:
    return containers.bundle({"objects": [members]})


@pytest.mark.parametrize("key", ["objects", "blobs"])
@given(sizes=SIZES)
@examples(25)
def test_a_bundle_gives_the_same_events_however_it_arrives(key, sizes):
    push = muse.random_history(5, commits=4)
    events = events_of(containers.bundle(bundle_of(push, key)), sizes)
    assert events == [
        *(Record("commits", record) for record in push.commits),
        *(Record("snapshots", record) for record in push.snapshots),
        *(Object(oid, "raw", None, content) for oid, content in push.blobs.items()),
        Record("tags", {"tag": "v1", "commit_id": push.head}),
        BundleEnd({"branch_heads": {"main": push.head}, "of_the_future": [1, 2]}),
    ]


def test_an_empty_bundle_is_complete():
    assert events_of(b"\x80") == [BundleEnd({})]
    lists = {"commits": [], "snapshots": [], "objects": [], "blobs": [], "tags": [], "snapshot_deltas": []}
    assert events_of(containers.bundle(lists)) == [BundleEnd({})]


def test_deltas_and_encoded_objects_are_passed_on():
    delta = {"snapshot_id": "s", "delta_add": {"a": "b"}, "delta_remove": ["c"], "directories": ["d"]}
    blob = {"object_id": "x", "encoding": "delta+zlib", "base": "b", "content": b"c"}
    data = containers.bundle({"snapshot_deltas": [delta], "objects": [blob]})
    assert events_of(data)[:2] == [Record("snapshot_deltas", delta), Object("x", "delta+zlib", "b", b"c")]


def test_a_bundle_is_told_from_an_mpack_by_its_first_bytes():
    for bundle in (
        b"\x80",
        b"\x8f",
        b"\xde\x00\x01",
        b"\xdf\0\0\0\x01",
        containers.bundle(bundle_of(muse.random_history(1, 2))),
    ):
        assert looks_like_bundle(bundle)
    for other in (containers.mpack([]), containers.pack([]), b"MUSE", b"", b"\x90", b"{}", b"PK", b"\xc4\x01"):
        assert not looks_like_bundle(other)


def test_a_bundle_cut_at_any_byte_is_refused_at_its_end_and_not_before():
    push = muse.Push()
    push.commit({"a": b"hello\n", "b": b""})
    data = containers.bundle(bundle_of(push))
    whole = list(itertools.chain.from_iterable(map(BundleReader().receive_data, cut(data, [1]))))
    reader = BundleReader()
    events: list[object] = []
    for byte in cut(data, [1]):
        assert not reader.finished
        with refused(Code.MALFORMED, "cut"):
            list(reader.receive_data(b""))
        events += reader.receive_data(byte)
        assert events == whole[: len(events)]
    assert reader.finished
    for size in range(0, len(data), 5):
        with refused(Code.MALFORMED, "cut"):
            events_of(data[:size])


@pytest.mark.parametrize("trailing", [b"\0", b"\x80", b"x" * 100_000])
def test_bytes_after_a_bundle_are_refused(trailing):
    data = containers.bundle({"commits": [{"a": 1}]})
    for pieces in ([data + trailing], [data, trailing], cut(data + trailing, [3])):
        reader = BundleReader()
        with refused(Code.MALFORMED, "after its end"):
            for piece in pieces:
                list(reader.receive_data(piece))


@pytest.mark.parametrize("size", [MIB, MIB + 1, 3 * MIB])
@pytest.mark.parametrize("sizes", [[65536], [700_001]])
def test_a_large_content_comes_in_pieces(size, sizes):
    content = random.Random(size).randbytes(size)
    events = events_of(of_one(object_id="x", content=content, encoding="raw"), sizes)[:-1]
    if size <= MIB:
        assert events == [Object("x", "raw", None, content)]
    else:
        assert events == [ObjectBegin(chunked=True), ObjectPiece(content), ObjectEnd("x", "raw", None)]


def test_a_large_content_is_never_held_whole():
    size = 30 * MIB
    reader, total = BundleReader(), 0
    head = b"\x81\xa7objects\x91\x82\xa9object_id\xa1x\xa7content\xc6" + size.to_bytes(4, "big")
    with memory_below(4 * MIB):
        for part in itertools.chain([head], itertools.repeat(bytes(65536), size // 65536)):
            for event in reader.receive_data(part):
                total += len(event.content) if isinstance(event, ObjectPiece) else 0
    assert total == size
    assert reader.finished


@pytest.mark.parametrize(
    "data",
    [
        b"\x90", b"\xc0", b"\x00", b"\xa1x", b"\xc1", containers.bundle({"objects": {}}),
        containers.bundle({"objects": None}),
        containers.bundle({"commits": "x"}), containers.bundle({"objects": [1]}), containers.bundle({"objects": [[]]}),
        containers.bundle({"objects": [{}]}), of_one(object_id="x"), of_one(object_id="x", content="text"),
        of_one(object_id="x", content=None), of_one(object_id="x", content=b"", encoding="gzip"),
        of_one(object_id="x", content=b"", encoding=None), of_one(object_id="x", content=b"", encoding=["raw"]),
        msgpack.packb({1: 2}), b"\x82\xa7commits\x90\xa7commits\x90",
        b"\x81\xa7objects\x91\x82\xa7content\xc4\0\xa7content\xc4\0",
        containers.bundle({f"k{n}": n for n in range(65)}), of_one(content=b"", **{f"k{n}": n for n in range(64)}),
        b"\xdf\xff\xff\xff\xff", b"\x81\xa7objects\x91\xdf\xff\xff\xff\xff",
        containers.bundle({"snapshots": [{"manifest": [1]}]}),
        b"\x81\xa1x" + b"\x91" * 200 + b"\x90",
    ],
    ids=lambda data: data.hex()[:40],
)  # fmt: skip
def test_a_bundle_of_the_wrong_shape_is_refused(data):
    with memory_below(8 * MIB), refused(Code.MALFORMED):
        events_of(data + b"\0" * 8)


def test_limits_hold():
    limits = Limits(objects_per_push=2, commits_per_push=2, object_bytes=10, record_bytes=500, mpack_bytes=3000)
    fine = {
        "objects": [{"object_id": "x", "content": b"x" * 10}] * 2,
        "commits": [{"message": "x" * 400}] * 2,
        "tags": [{}] * 2,
    }
    assert len(events_of(containers.bundle(fine), limits=limits)) == 7
    for wrong in (
        {"objects": [{"object_id": "x", "content": b"x"}] * 3}, {"blobs": [{"object_id": "x", "content": b"x" * 11}]},
        {"commits": [{}] * 3}, {"snapshots": [{}] * 3}, {"tags": [{}] * 3}, {"commits": [{"message": "x" * 501}]},
        {"snapshots": [{f"k{n}": "x" * 90 for n in range(10)}]}, {f"k{n}": "x" * 90 for n in range(10)},
        {"objects": [{"content": b"", **{f"k{n}": "x" * 90 for n in range(10)}}]},
        {"commits": [{"m": "x" * 400}] * 2, "a": 3000 * [0]},
    ):  # fmt: skip
        with refused(Code.TOO_LARGE):
            events_of(containers.bundle(wrong), limits=limits)
    for data in (b"\x81\xa7objects\xdd\xff\xff\xff\xff", b"\x81\xa7objects\x91\x81\xa7content\xc6\xff\xff\xff\xff"):
        with memory_below(4 * MIB), refused(Code.TOO_LARGE):
            events_of(data, limits=limits)


def test_a_bundle_above_the_limit_is_refused_as_it_arrives():
    data = containers.bundle({"objects": [{"object_id": "x", "content": bytes(5000)}]})
    reader = BundleReader(Limits(mpack_bytes=1000))
    with refused(Code.TOO_LARGE):
        for piece in cut(data, [100]):
            list(reader.receive_data(piece))
    assert reader._received <= 1100


def test_a_changed_byte_gives_events_or_a_refusal():
    push = muse.Push()
    push.commit({"a": b"hello\n"})
    data = containers.bundle(bundle_of(push))
    for at, bit in itertools.product(range(0, len(data), 3), (0x01, 0x20, 0x80)):
        changed = bytearray(data)
        changed[at] ^= bit
        result = outcome(events_of, bytes(changed))
        assert isinstance(result, list) or result in {Code.MALFORMED, Code.TOO_LARGE, Code.UNSAFE_PATH}

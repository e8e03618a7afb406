"""The pull parser: values of bounded size and depth out of msgpack from anybody (threat T9)."""

from __future__ import annotations

import itertools
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.errors import Code
from wire.limits import Limits
from wire.pull import FEED_BYTES, PullParser, unpack_whole

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=300),
        st.binary(max_size=300),
    ),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=20,
)  # fmt: skip

EMPTY_LISTS = b"\xdd" + struct.pack(">I", MIB // 4) + b"\x90" * (MIB // 4)
BOMBS = {
    "array header": b"\xdd\xff\xff\xff\xff",
    "map header": b"\xdf\xff\xff\xff\xff",
    "str header": b"\xdb\xff\xff\xff\xff",
    "bin header": b"\xc6\xff\xff\xff\xff",
    "array headers in one another": b"\xdd\xff\xff\xff\xff" * 100,
    "large array headers in one another": b"\xdd\x00\x0f\xff\xff" * 1000,
    "array headers of the length of the input": b"\xdd\x00\x00\x13\x88" * 1000,
    "map headers of the length of the input": b"\xdf\x00\x00\x13\x88\xa1k" * 500,
    "nested lists": b"\x91" * 100_000,
    "nested lists, complete": b"\x91" * 1000 + b"\x90",
    "nested maps": b"\x81\xa1k" * 100_000,
}
MEANINGLESS = {
    "extension type": msgpack.packb(msgpack.ExtType(5, b"data")),
    "empty extension type": b"\xc7\x00\x05",
    "timestamp": msgpack.packb(msgpack.Timestamp(1, 2)),
    "empty timestamp": b"\xc7\x00\xff",
    "huge extension header": b"\xc9\xff\xff\xff\xff\x05",
    "reserved byte": b"\xc1",
    "invalid UTF-8": b"\xa2\xff\xfe",
    "surrogate": b"\xa3\xed\xa0\x80",
    "overlong UTF-8": b"\xa2\xc0\x80",
    "duplicate key": b"\x82\xa1a\x01\xa1a\x02",
    "duplicate key deep inside": b"\x91\x81\xa1x\x91\x82\xa1a\x01\xa1a\x01",
    "integer key": b"\x81\x01\x02",
    "binary key": b"\x81\xc4\x01a\x02",
    "nil key": b"\x81\xc0\x02",
    "list key": b"\x81\x90\x02",
}


def values(data: bytes, sizes: list[int] | None = None, limits: Limits | None = None) -> list[object]:
    """Take values until the bytes are used up."""
    parser = PullParser(limits or Limits())
    found: list[object] = []
    walk = parser.value()
    for piece in cut(data, sizes or [FEED_BYTES]):
        parser.feed(piece)
        while parser.buffered:
            try:
                next(walk)
                break
            except StopIteration as stop:
                found.append(stop.value)
                walk = parser.value()
    return found


@given(st.lists(VALUES, max_size=4), SIZES)
@examples(150)
def test_values_come_out_as_they_went_in_however_they_arrive(listed, sizes):
    data = b"".join(msgpack.packb(value) for value in listed)
    assert values(data, sizes) == listed


@given(VALUES)
@examples(100)
def test_a_control_body_is_one_value(value):
    data = msgpack.packb(value)
    assert unpack_whole(data, "the body") == value
    for wrong in (data + b"\xc0", data[:-1]):
        with refused(Code.MALFORMED, "the body"):
            unpack_whole(wrong, "the body")


@pytest.mark.parametrize("data", [*MEANINGLESS.values(), *BOMBS.values(), b""], ids=[*MEANINGLESS, *BOMBS, "nothing"])
def test_a_control_body_without_meaning_is_refused(data):
    with memory_below(84 * MIB), refused(Code.MALFORMED):
        unpack_whole(data, "the body")


@pytest.mark.parametrize("data", MEANINGLESS.values(), ids=MEANINGLESS)
@pytest.mark.parametrize("sizes", [[1], [FEED_BYTES]])
def test_a_value_without_meaning_is_refused(data, sizes):
    with refused(Code.MALFORMED):
        values(data + b"\0" * 8, sizes)


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("sizes", [[7], [FEED_BYTES]])
def test_the_memory_a_bomb_reserves_is_bounded(data, sizes):
    """The decoder opens at most 1,024 arrays in one another and reserves at most 10,000 places for each: 80 MB."""
    with memory_below(84 * MIB):
        # a header alone may still wait for what it announces
        assert outcome(values, data, sizes) in [[], Code.MALFORMED, Code.TOO_LARGE]


def test_a_value_of_any_shape_is_limited_by_its_bytes():
    limits = Limits(record_bytes=1000)
    shapes = {
        "text": lambda n: "x" * n, "bytes": lambda n: b"x" * n, "list": lambda n: [7] * n,
        "texts": lambda n: ["x" * 9] * (n // 10), "map": lambda n: {f"{k:08}": 7 for k in range(n // 10)},
        "nested": lambda n: [[["x" * 8] * 10] * (n // 100), "x" * (n % 100)],
    }  # fmt: skip
    for shape in shapes.values():
        for sizes in ([1], [100], [FEED_BYTES]):
            assert values(msgpack.packb(shape(900)), sizes, limits) == [shape(900)]
            with refused(Code.TOO_LARGE):
                values(msgpack.packb(shape(1100)), sizes, limits)


def test_the_limit_of_a_value_does_not_depend_on_how_it_arrives():
    limits = Limits(record_bytes=1000)
    exact, above = msgpack.packb([b"x" * 400, b"y" * 593]), msgpack.packb([b"x" * 400, b"y" * 594])
    assert (len(exact), len(above)) == (1000, 1001)
    for sizes in ([1], [999, 1], [1000], [1001], [64, 300]):
        assert len(values(exact + exact, sizes, limits)) == 2
        with refused(Code.TOO_LARGE):
            values(above, sizes, limits)


def test_an_endless_value_is_refused_before_it_is_held():
    limits = Limits(record_bytes=MIB)
    endless = itertools.chain([b"\xdd\x00\x0f\xff\xff"], itertools.repeat(msgpack.packb("x" * 1000), 1_000_000))
    parser = PullParser(limits)
    walk = parser.value()
    with memory_below(8 * MIB), refused(Code.TOO_LARGE):
        for piece in endless:
            parser.feed(piece)
            next(walk)
    assert parser._fed < 2 * MIB


def test_the_small_members_of_one_map_share_one_allowance():
    limits = Limits(record_bytes=1000)

    def members(sizes: list[int]) -> dict[str, object]:
        parser = PullParser(limits)
        parser.feed(msgpack.packb({f"k{n:03}": b"x" * size for n, size in enumerate(sizes)}))
        walk = parser.snapshot_like()
        try:
            next(walk)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("the map is complete")

    assert len(members([50] * 15)) == 15
    with refused(Code.TOO_LARGE):
        members([50] * 20)
    with refused(Code.MALFORMED, "65 members"):
        members([1] * 65)


def test_what_is_held_for_a_value_is_bounded_however_small_its_parts_are():
    with memory_below(8 * MIB), refused(Code.TOO_LARGE, "65536 lists and maps"):
        values(EMPTY_LISTS)
    with memory_below(8 * MIB), refused(Code.TOO_LARGE, "65536 lists and maps"):
        unpack_whole(EMPTY_LISTS, "a body")
    most = msgpack.packb([[]] * (Limits().value_containers - 1))
    assert values(most + most) == [[[]] * (Limits().value_containers - 1)] * 2


def snapshot(data: bytes, limits: Limits | None = None, sizes: list[int] | None = None) -> dict[str, object]:
    parser = PullParser(limits or Limits())
    walk = parser.snapshot_like()
    for piece in cut(data, sizes or [FEED_BYTES]):
        parser.feed(piece)
        try:
            next(walk)
        except StopIteration as stop:
            assert parser.buffered == 0
            return stop.value
    raise AssertionError("the record is not complete")


@given(
    st.dictionaries(st.text(max_size=40), st.text(max_size=71), max_size=40),
    st.lists(st.text(max_size=40), max_size=40), SIZES,
)  # fmt: skip
@examples(80)
def test_a_snapshot_is_walked_entry_by_entry_however_it_arrives(manifest, paths, sizes):
    record = {
        "snapshot_id": "s", "manifest": manifest, "directories": paths, "delta_upsert": manifest, "delta_add": None,
        "delta_remove": paths, "note": {"manifest": [1, {"a": None}]},
    }  # fmt: skip
    assert snapshot(msgpack.packb(record), sizes=sizes) == record


@pytest.mark.parametrize("header", [b"\x82", b"\xde\x00\x02", b"\xdf\x00\x00\x00\x02"])
def test_every_map_header_is_understood_for_paths(header):
    assert snapshot(b"\x81\xa8manifest" + header + b"\xa1a\xa1x\xa1b\xa1y") == {"manifest": {"a": "x", "b": "y"}}


@pytest.mark.parametrize("header", [b"\x92", b"\xdc\x00\x02", b"\xdd\x00\x00\x00\x02"])
def test_every_array_header_is_understood_for_paths(header):
    assert snapshot(b"\x81\xabdirectories" + header + b"\xa1a\xa1b") == {"directories": ["a", "b"]}


@pytest.mark.parametrize(
    "record",
    [
        b"\x81\xa8manifest\x82\xa1a\xa1x\xa1a\xa1x", b"\x82\xa8manifest\x80\xa8manifest\x80", b"\x81\xa8manifest\x90",
        b"\x81\xa8manifest\x81\x01\xa1x", b"\x81\xa8manifest\x81\xa1a\x01", b"\x81\xa8manifest\x81\xa1a\xc0",
        b"\x81\xa8manifest\x81\xc4\x01a\xa1x", b"\x81\xa8manifest\xa1x", b"\x81\xabdirectories\x80",
        b"\x81\xabdirectories\x91\x01", b"\x81\xacdelta_remove\x91\xc4\x01a", b"\x81\xacdelta_remove\xa0",
        b"\x90", b"\xc0", b"\x81\xa8manifest\x81\xc7\x00\x05\xa1x", b"\x81\xa8manifest\x81\xa1\xff\xa1x",
        b"\x81\xa8manifest\xc1",
    ],
    ids=lambda record: record.hex(),
)  # fmt: skip
def test_a_snapshot_of_the_wrong_shape_is_refused(record):
    with refused(Code.MALFORMED):
        snapshot(record + b"\0" * 8)


def test_path_lists_have_limits_of_their_own():
    limits = Limits(manifest_entries=10, manifest_text_bytes=100, path_bytes=50, record_bytes=500)
    fine = {"manifest": {f"{n}" * 10: "s" for n in range(10)}}
    assert snapshot(msgpack.packb(fine), limits) == fine
    for key in ("manifest", "delta_upsert", "delta_add", "delta_remove", "directories"):
        as_map = key in {"manifest", "delta_upsert", "delta_add"}
        for paths, code in (
            ([f"{n}" for n in range(20)], Code.TOO_LARGE), ([f"{n}" * 30 for n in range(4)], Code.TOO_LARGE),
            (["x" * 51], Code.UNSAFE_PATH), (["x" * 501], Code.TOO_LARGE),
        ):  # fmt: skip
            with refused(code):
                snapshot(msgpack.packb({key: dict.fromkeys(paths, "s") if as_map else paths}), limits)
        with refused(Code.TOO_LARGE):
            snapshot(b"\x81" + msgpack.packb(key) + (b"\xdf" if as_map else b"\xdd") + b"\xff\xff\xff\xff", limits)


def test_a_manifest_may_be_much_larger_than_one_value():
    limits = Limits(record_bytes=1000)
    record = {"manifest": {f"path/{n:05}": "x" * 71 for n in range(2000)}, "note": "y" * 900}
    assert snapshot(msgpack.packb(record), limits) == record

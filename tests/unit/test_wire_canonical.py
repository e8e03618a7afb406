"""Canonical bytes of records, and JSON from peers (protocol §2, threat T9)."""

from __future__ import annotations

import datetime as dt
import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import containers
from tests.unit.chunkings import examples
from tests.unit.refusals import MIB, memory_below, refused
from wire.canonical import canonical_bytes, check_nesting, check_plain_value, parse_canonical, parse_json
from wire.errors import Code
from wire.ids import Kind
from wire.limits import Limits

KEYS = st.one_of(st.text(max_size=6), st.sampled_from(["$", "$$", "$bytes", "$$bytes", "$é", "a"]))
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=12), st.binary(max_size=12),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
RECORDS = st.dictionaries(KEYS, VALUES, max_size=5)
KINDS = st.sampled_from([Kind.COMMIT, Kind.SNAPSHOT])


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def stored(text: bytes, size: int | None = None, kind: bytes = b"commit") -> bytes:
    return b"%b %d\0" % (kind, len(text) if size is None else size) + text


def same(a: object, b: object) -> bool:
    """Equality that tells 1 from 1.0 and True, as msgpack does."""
    return msgpack.packb(a) == msgpack.packb(b)


@given(RECORDS, KINDS)
@examples(200)
def test_reading_back_is_exact(record, kind):
    found_kind, found = parse_canonical(canonical_bytes(kind, record))
    assert found_kind is kind
    assert found == record
    assert all(same(found[key], record[key]) for key in record if not isinstance(record[key], dict | list))


@given(RECORDS, KINDS)
@examples(150)
def test_the_stored_bytes_are_those_the_protocol_describes(record, kind):
    assert canonical_bytes(kind, record) == containers.canonical(kind.value, record)


@given(RECORDS)
@examples(50)
def test_the_order_in_which_a_record_came_does_not_matter(record):
    backwards = dict(reversed(record.items()))
    assert canonical_bytes(Kind.COMMIT, backwards) == canonical_bytes(Kind.COMMIT, record)


def test_a_record_from_the_wire_is_stored_as_text_one_can_read():
    record = {"b": "ü", "a": [1, None, True, 2.5], "c": {}}
    text = '{"a":[1,null,true,2.5],"b":"ü","c":{}}'.encode()
    assert canonical_bytes(Kind.COMMIT, record) == b"commit 39\0" + text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", b'{"$bytes":"AP8="}'),
        (b"", b'{"$bytes":""}'),
        ({"$bytes": "AP8="}, b'{"$$bytes":"AP8="}'),
        ({"$$bytes": 1}, b'{"$$$bytes":1}'),
        ({"$": None}, b'{"$$":null}'),
        ({"$bytes": b"a"}, b'{"$$bytes":{"$bytes":"YQ=="}}'),
        ({"$a": 1, "$b": 2}, b'{"$a":1,"$b":2}'),
        ({"a$": 1}, b'{"a$":1}'),
    ],
)
def test_byte_strings_and_dollar_keys_are_told_apart(value, text):
    data = canonical_bytes(Kind.COMMIT, {"x": value})
    assert data == stored(b'{"x":' + text + b"}")
    assert parse_canonical(data)[1] == {"x": value}


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), float("-inf"), 2**64, -(2**63) - 1, {1: 2}, {b"k": 1}, {None: 1}, {"a": {2.5: 1}},
        {1, 2}, range(3), dt.datetime(2026, 1, 2), msgpack.Timestamp(1), 1j,
    ],
    ids=ascii,
)  # fmt: skip
def test_what_has_no_stored_form_is_refused(value):
    for record in ({"x": value}, {"x": [value]}, {"x": {"y": value}}):
        with refused(Code.MALFORMED):
            canonical_bytes(Kind.COMMIT, record)
        with refused(Code.MALFORMED):
            check_plain_value(record)


@pytest.mark.parametrize("record", [{"x": "\ud800"}, {"\udfff": 1}, {"x": [{"y": "a\ud83d"}]}], ids=ascii)
def test_half_a_surrogate_pair_is_no_text(record):
    with refused(Code.MALFORMED):
        canonical_bytes(Kind.SNAPSHOT, record)


def test_nesting_is_allowed_up_to_the_limit_and_refused_above_it():
    limits = Limits(nesting_depth=5)
    assert parse_canonical(canonical_bytes(Kind.COMMIT, {"x": nested(4)}, limits))[1] == {"x": nested(4)}
    with refused(Code.MALFORMED):
        canonical_bytes(Kind.COMMIT, {"x": nested(5)}, limits)
    with refused(Code.MALFORMED):
        canonical_bytes(Kind.COMMIT, {"x": nested(100_000)})


def test_what_could_not_be_read_back_is_not_written():
    limits = Limits(nesting_depth=1000)
    deepest = {"x": nested(127)}
    assert parse_canonical(canonical_bytes(Kind.COMMIT, deepest, limits))[1] == deepest
    for record in ({"x": nested(128)}, {"x": nested(300)}):
        with refused(Code.MALFORMED):
            canonical_bytes(Kind.COMMIT, record, limits)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"commit", b"commit 2{}", b"commit 2 {}", b"tree 2\0{}", b"Commit 2\0{}", b" 2\0{}",
        b"\xff 2\0{}", b"commit \0{}", b"commit +2\0{}", b"commit 02\0{}", b"commit 2 \0{}", b"commit  2\0{}",
        b"commit 3\0{}", b"commit 1\0{}", b"commit 2\0{} ", b"commit 2\0{", stored(b"[]"), stored(b"null"),
        stored(b'"x"'), stored(b'{"$bytes":"AA=="}'), stored(b'{"a":1,"a":1}'), stored(b'{"a":NaN}'),
        stored(b'{"a":-Infinity}'), stored(b"{'a':1}"), stored(b'{"a":"\xff"}'), stored(b'{"a":"\xed\xa0\x80"}'),
        stored(b'{"a":"\\ud800"}'), stored('{"a":"ü"}'.encode("utf-16")), stored(b'{"x":{"$bytes":"A"}}'),
        stored(b'{"x":{"$bytes":"A A="}}'), stored('{"x":{"$bytes":"ü"}}'.encode()), stored(b'{"x":{"$bytes":1234}}'),
        stored(b'{"x":{"$bytes":["AAAA"]}}'), stored(b'{"x":' + b"[" * 900 + b"]" * 900 + b"}"),
        stored(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        stored(b'{"x":' + b'{"$a":' * 900 + b"0" + b"}" * 901), stored(b'{"x":' + b"9" * 5000 + b"}"),
    ],
    ids=lambda data: ascii(data[:40]),
)  # fmt: skip
def test_damaged_stored_bytes_are_refused(data):
    with refused(Code.MALFORMED):
        parse_canonical(data)


def test_stored_bytes_cut_anywhere_are_refused():
    whole = canonical_bytes(Kind.COMMIT, {"message": "first\n", "metadata": {"a": b"\0"}})
    for size in range(len(whole)):
        with refused(Code.MALFORMED):
            parse_canonical(whole[:size])


@given(VALUES.filter(lambda value: b"\xc4" not in msgpack.packb(value)))
@examples(60)
def test_json_of_a_peer_is_read_as_it_was_meant(value):
    assert parse_json(as_json(value), "it") == value


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"{}}", b"nul", b"{1:2}", b'{"a":1,"a":2}', b'[{"b":{"a":1,"a":1}}]', b"NaN", b"[Infinity]",
        b"-Infinity", b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'{"\\udc00":1}', b'["\\ude00\\ud83d"]',
        '"a"'.encode("utf-16"), '"a"'.encode("utf-32"), b'\xef\xbb\xbf"a"', b'"a\nb"', b"9" * 5000,
        b"[" * 129 + b"]" * 129, b"[" * 900 + b"]" * 900, b"[" * 1_000_000, b'{"a":' * 300 + b"1" + b"}" * 300,
    ],
    ids=lambda text: ascii(text[:40]),
)  # fmt: skip
def test_bad_json_of_a_peer_is_refused(text):
    with memory_below(16 * MIB), refused(Code.MALFORMED):
        parse_json(text, "the body")


def test_an_escaped_surrogate_pair_is_text():
    assert parse_json(b'"\\ud83d\\ude00"', "it") == "\U0001f600"


def test_nesting_of_any_value_has_a_limit():
    check_nesting(nested(128))
    check_nesting({"a": [{"b": []}]}, 4)
    for value, limit in [(nested(129), 128), ({"a": [{"b": []}]}, 3), (nested(100_000), 128), ([], 0)]:
        with refused(Code.MALFORMED):
            check_nesting(value, limit)

"""Ids: two text forms, read strictly (protocol §1, threat T13)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import muse
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import refused
from wire.errors import Code
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_any_id, parse_id, parse_ids

HEX = "0123456789abcdef" * 4
DIGEST = bytes.fromhex(HEX)
NAMERS = {Scheme.TYPED: muse.typed, Scheme.PLAIN: muse.plain}

NO_ID = [
    None, True, 7, 1.5, DIGEST, HEX.encode(), [HEX], {"id": HEX}, "", "sha256:", "sha256",
    HEX[:-1], HEX[:-2], HEX + "0", HEX + "00", HEX.upper(), "sha256:" + HEX.upper(), "SHA256:" + HEX,
    "sha256:" + HEX[:-1],
    "sha256:" + HEX + "0", "sha256:sha256:" + HEX, "sha256 " + HEX, "sha512:" + HEX, ":" + HEX, " " + HEX, HEX + " ",
    HEX + "\n", "sha256:" + HEX + "\n", "sha256: " + HEX[1:], "g" + HEX[1:], "0x" + HEX[2:], HEX[:31] + "  " + HEX[33:],
    HEX[:63] + "\0", "é" + HEX[1:], "\uff10" + HEX[1:], "\ud800" + HEX[1:], "\u0660" * 64,
]  # fmt: skip


@given(st.binary(min_size=32, max_size=32), st.sampled_from(Scheme))
@examples(50)
def test_a_formatted_id_parses_to_its_digest(digest, scheme):
    text = format_id(digest, scheme)
    assert parse_id(text, scheme) == digest
    assert parse_any_id(text) == (scheme, digest)


def test_the_text_forms_are_those_of_the_protocol():
    assert format_id(DIGEST, Scheme.PLAIN) == HEX
    assert format_id(DIGEST, Scheme.TYPED) == "sha256:" + HEX


@pytest.mark.parametrize("text", NO_ID, ids=ascii)
def test_what_is_not_exactly_an_id_is_refused(text):
    for scheme in Scheme:
        with refused(Code.MALFORMED):
            parse_id(text, scheme)
    with refused(Code.MALFORMED):
        parse_any_id(text)


@pytest.mark.parametrize("scheme", Scheme)
def test_many_ids_are_read_as_strictly_as_one(scheme):
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(50)]
    texts: list[object] = [format_id(digest, scheme) for digest in digests]
    assert parse_ids(texts, scheme) == digests
    assert parse_ids([], scheme) == []
    [other] = set(Scheme) - {scheme}
    halves = [format_id(DIGEST, scheme)[:-1], format_id(DIGEST, scheme) + "0"]  # of the right length together
    for wrong in ([format_id(DIGEST, other)], halves, *([text] for text in NO_ID)):
        assert parse_ids([*texts, *wrong, *texts], scheme) is None


def test_an_id_of_the_other_scheme_is_refused():
    with refused(Code.MALFORMED, "plain scheme"):
        parse_id(HEX, Scheme.TYPED)
    with refused(Code.MALFORMED, "typed scheme"):
        parse_id("sha256:" + HEX, Scheme.PLAIN)


def test_a_refused_id_is_shown_short_and_named():
    with refused(Code.MALFORMED) as caught:
        parse_id("\x1b" * 1_000_000, Scheme.TYPED, "expected_head")
    assert caught.value.detail.startswith("expected_head is not an id")
    assert len(caught.value.detail) < 200
    assert "\x1b" not in caught.value.detail


def test_a_deeply_nested_value_in_place_of_an_id_is_refused():
    deep: object = []
    for _ in range(5000):
        deep = [deep]
    with refused(Code.MALFORMED):
        parse_any_id(deep)


@given(st.binary(max_size=300), st.sampled_from(Kind), st.sampled_from(Scheme))
@examples(60)
def test_a_hash_is_the_one_the_mini_client_computes(content, kind, scheme):
    assert format_id(hash_bytes(kind, content, scheme), scheme) == NAMERS[scheme](kind.value, content)
    assert hash_bytes(kind, memoryview(content), scheme) == hash_bytes(kind, bytearray(content), scheme)


@given(st.binary(max_size=2000), SIZES, st.sampled_from(Scheme))
@examples(30)
def test_a_hash_in_pieces_is_the_hash_of_the_whole(content, sizes, scheme):
    hasher = hasher_for(Kind.BLOB, len(content), scheme)
    for piece in cut(content, sizes):
        hasher.update(piece)
    assert hasher.digest() == hash_bytes(Kind.BLOB, content, scheme)


@pytest.mark.parametrize(
    ("scheme", "content", "expected"),
    [
        (Scheme.TYPED, b"", "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"),
        (Scheme.PLAIN, b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (Scheme.PLAIN, b"hello\n", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
    ],
)
def test_golden_blob_ids(scheme, content, expected):
    assert hash_bytes(Kind.BLOB, content, scheme).hex() == expected
    assert muse.bare(muse.blob_id(content, NAMERS[scheme])) == expected


def test_a_typed_id_says_what_it_names_and_a_plain_one_does_not():
    assert len({hash_bytes(kind, b"same", Scheme.TYPED) for kind in Kind}) == len(Kind)
    assert {hash_bytes(kind, b"same", Scheme.PLAIN) for kind in Kind} == {hashlib.sha256(b"same").digest()}

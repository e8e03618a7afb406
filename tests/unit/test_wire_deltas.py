"""Deltas: instructions that rebuild a content from its base, and nothing else."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.containers import copy, delta, insert, varint
from tests.unit.chunkings import examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.deltas import apply_delta, delta_pieces, make_delta
from wire.errors import Code

BASE = bytes(range(256)) * 4
EDITED = st.tuples(st.binary(max_size=400), st.binary(max_size=60), st.binary(max_size=400))


@given(st.binary(max_size=600), st.binary(max_size=600))
@examples(150)
def test_a_made_delta_rebuilds_any_content_from_any_base(base, target):
    assert apply_delta(base, make_delta(base, target), len(target)) == target


@given(EDITED, st.binary(max_size=60))
@examples(100)
def test_a_made_delta_of_an_edit_is_about_as_large_as_the_edit(parts, replacement):
    head, middle, tail = parts
    base, target = head + middle + tail, head + replacement + tail
    made = make_delta(base, target)
    assert apply_delta(base, made, len(target)) == target
    assert len(made) <= len(middle) + len(replacement) + 2 * 16 + 30


def test_large_contents_share_their_ends():
    rng = random.Random(1)
    base = rng.randbytes(20 * MIB)
    target = base[: 17 * MIB] + b"something new" + base[17 * MIB + 5 :]
    made = make_delta(base, target)
    assert len(made) < 100
    assert apply_delta(base, made, len(target)) == target


def test_equal_contents_and_empty_ones():
    assert len(make_delta(BASE, BASE)) < 16
    for base, target in ((BASE, BASE), (b"", b""), (b"", BASE), (BASE, b"")):
        assert apply_delta(base, make_delta(base, target), len(target)) == target


def test_every_instruction_of_the_format_is_understood():
    made = delta(1024, 4 + 256 + 3 + 2, insert(b"new:"), copy(512, 256), b"\x91\x05\x03", insert(b"ok"))
    assert apply_delta(BASE, made, 1000) == b"new:" + BASE[:256] + BASE[5:8] + b"ok"


def test_a_copy_without_size_bytes_copies_64_kib():
    base = random.Random(2).randbytes(70_000)
    for instruction, at in ((b"\x80", 0), (b"\x81\x07", 7), (b"\x82\x01", 256), (b"\x88\0", 0)):
        assert apply_delta(base, delta(70_000, 65_536, instruction), MIB) == base[at : at + 65_536]
    with refused(Code.MALFORMED):
        apply_delta(BASE, delta(1024, 65_536, b"\x80"), MIB)


def test_every_argument_byte_of_a_copy_counts():
    base = bytes(0x10203) + bytes(range(256)) * 0x200
    made = delta(len(base), 0x102, b"\xb7\x04\x02\x01\x02\x01")
    assert apply_delta(base, made, MIB) == base[0x10204 : 0x10204 + 0x102]


@pytest.mark.parametrize(
    "made",
    [
        b"", b"\x80", b"\xff" * 20, varint(1024), delta(1023, 1, insert(b"x")), delta(1025, 1, insert(b"x")),
        delta(1024, 1), delta(1024, 2, insert(b"x")), delta(1024, 0, insert(b"x")), delta(1024, 1, insert(b"xy")),
        delta(1024, 1, b"\0"), delta(1024, 1, insert(b"x"), b"\0"), delta(1024, 2, b"\x02x"), delta(1024, 1, b"\x02x"),
        delta(1024, 1, b"\x01"),
        delta(1024, 127, b"\x7f" + b"x" * 126), delta(1024, 1, copy(1024, 1)), delta(1024, 2, copy(1023, 2)),
        delta(1024, 1, copy(1023, 2)),
        b"\x80\x88" + b"\x80" * 20 + b"\0\x01\x01x",
        delta(1024, 9, copy(2**32 - 1, 9)), delta(1024, 9, b"\xff\0\0\0"), delta(1024, 9, b"\x90"),
        delta(1024, 9, copy(0, 9)) + b"\x01y", delta(1024, 9, copy(0, 9), copy(0, 1)), delta(1024, 9, copy(0, 0)),
    ],
    ids=lambda made: made.hex(),
)  # fmt: skip
def test_a_delta_that_does_not_fit_is_refused(made):
    with refused(Code.MALFORMED):
        apply_delta(BASE, made, 1000)


def test_a_delta_cut_anywhere_is_refused():
    whole = delta(1024, 30, insert(b"0123456789"), copy(7, 10), insert(b"9876543210"))
    assert len(apply_delta(BASE, whole, 100)) == 30
    for size in range(len(whole)):
        with refused(Code.MALFORMED):
            apply_delta(BASE, whole[:size], 100)


def test_a_result_above_the_limit_is_a_bomb():
    made = delta(1024, 2048, copy(0, 1024), copy(0, 1024))
    assert apply_delta(BASE, made, 2048) == BASE + BASE
    with refused(Code.BOMB):
        apply_delta(BASE, made, 2047)
    with refused(Code.BOMB):
        apply_delta(BASE, delta(1024, 2**62), 2**31)


def test_a_delta_that_lies_about_its_result_is_stopped_at_what_it_states():
    base = bytes(MIB)
    bomb = delta(MIB, 2 * MIB, *[copy(0, MIB)] * 10_000)
    with memory_below(8 * MIB), refused(Code.MALFORMED):
        apply_delta(base, bomb, 16 * MIB)
    with memory_below(8 * MIB), refused(Code.BOMB):
        apply_delta(base, delta(MIB, 2**40, *[copy(0, MIB)] * 100), 16 * MIB)


@given(st.binary(max_size=40), st.binary(max_size=80))
@examples(300)
def test_any_bytes_give_a_result_within_the_limit_or_a_refusal(base, made):
    result = outcome(apply_delta, base, varint(len(base)) + made, 500)
    assert result in {Code.MALFORMED, Code.BOMB} or len(result) <= 500


def test_a_delta_of_too_many_instructions_is_refused_before_they_are_done():
    inserts = b"\x01\x00" * 2_000_000
    size = bytes([0x80 | 2_000_000 & 0x7F, 0x80 | 2_000_000 >> 7 & 0x7F, 2_000_000 >> 14])
    began = time.process_time()
    with refused(Code.TOO_LARGE):
        apply_delta(b"", b"\x00" + size + inserts, 1 << 24)
    assert time.process_time() - began < 1
    steps = delta_pieces(b"", b"\x00\x02\x01a\x01b", 100, 2)
    assert next(steps) == b"ab"
    with refused(Code.TOO_LARGE):
        list(delta_pieces(b"", b"\x00\x02\x01a\x01b", 100, 1))

"""Inflating under a budget: what comes out is counted, what a content says of itself is not believed (threat T8)."""

from __future__ import annotations

import random
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests import containers
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.errors import Code
from wire.inflate import inflate, inflate_stream, stated_zstd_size
from wire.limits import Limits

RLE_BLOCK = (b"\0", 128 * 1024)
CONTENTS = st.one_of(
    st.binary(max_size=600), st.tuples(st.binary(max_size=20), st.integers(0, 3000)).map(lambda t: t[0] * t[1])
)


def zstd(content: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def zstd_unstated(content: bytes) -> bytes:
    """As a streaming compressor writes it: the frame does not state its size."""
    writer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return writer.compress(content) + writer.flush()


ENCODERS = {
    "raw": [("raw", bytes)],
    "zlib": [
        ("zlib", zlib.compress), ("zlib, stored", containers.stored_zlib),
        ("zlib, best", lambda c: zlib.compress(c, 9)),
    ],
    "zstd": [
        ("zstd", zstd), ("zstd, stored", containers.stored_zstd), ("zstd, size unstated", zstd_unstated),
        ("zstd, with checksum", lambda c: zstd(c, level=19, write_checksum=True)),
        ("zstd, hand-made and unstated", lambda c: containers.zstd_frame([c])),
    ],
}  # fmt: skip
EVERY_ENCODER = [
    pytest.param(compression, encode, id=name) for compression, named in ENCODERS.items() for name, encode in named
]
COMPRESSED = [parameter for parameter in EVERY_ENCODER if parameter.values[0] != "raw"]


def streamed(compression: str, data: bytes, sizes: list[int], budget: int) -> bytes:
    return b"".join(inflate_stream(compression, cut(data, sizes), budget))


@pytest.mark.parametrize(("compression", "encode"), EVERY_ENCODER)
@given(content=CONTENTS, sizes=SIZES)
@examples(40)
def test_a_content_comes_out_as_it_went_in_however_it_arrives(compression, encode, content, sizes):
    data = encode(content)
    assert inflate(compression, data, len(content)) == content
    assert streamed(compression, data, sizes, len(content)) == content


@pytest.mark.parametrize(("compression", "encode"), EVERY_ENCODER)
def test_the_empty_content_is_a_content_like_any_other(compression, encode):
    assert inflate(compression, encode(b""), 0) == b""
    assert list(inflate_stream(compression, [b"", encode(b""), b""], 0)) == []


@pytest.mark.parametrize(("compression", "encode"), EVERY_ENCODER)
def test_one_byte_above_the_budget_is_a_bomb(compression, encode):
    data = encode(b"x" * 1000)
    assert len(inflate(compression, data, 1000)) == 1000
    with refused(Code.BOMB):
        inflate(compression, data, 999)
    with refused(Code.BOMB):
        streamed(compression, data, [7], 999)


@pytest.mark.parametrize(("compression", "encode"), COMPRESSED)
def test_a_content_cut_anywhere_is_refused(compression, encode):
    data = encode(b"some bytes, some bytes, and more bytes")
    for size in range(len(data)):
        with refused(Code.MALFORMED):
            inflate(compression, data[:size], 1000)
        with refused(Code.MALFORMED):
            streamed(compression, data[:size], [1], 1000)


@pytest.mark.parametrize(("compression", "encode"), COMPRESSED)
@pytest.mark.parametrize("content", [b"", b"x", b"x" * 5000])
def test_bytes_after_a_content_are_refused(compression, encode, content):
    data = encode(content)
    for trailing in (b"\0", b"x" * 300, data):
        with refused(Code.MALFORMED):
            inflate(compression, data + trailing, 100_000)
        for pieces in ([data, trailing], [data + trailing], cut(data + trailing, [1]), [data, b"", trailing]):
            with refused(Code.MALFORMED):
                b"".join(inflate_stream(compression, pieces, 100_000))


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"x\x9c", b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfd", b"not compressed at all, surely", b"\xff" * 500],
)
def test_what_is_not_compressed_is_refused(compression, data):
    with refused(Code.MALFORMED):
        inflate(compression, data, 1000)
    with refused(Code.MALFORMED):
        streamed(compression, data, [3], 1000)


@pytest.mark.parametrize(("compression", "encode"), COMPRESSED)
def test_a_damaged_content_never_raises_anything_but_a_refusal(compression, encode):
    rng = random.Random(compression)
    data = encode(b"the quick brown fox " * 40)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        result = outcome(inflate, compression, bytes(damaged), 2000)
        assert result in {Code.MALFORMED, Code.BOMB} or len(result) <= 2000  # not every content has a checksum


@pytest.mark.parametrize("compression", ["", "gzip", "delta+zlib", "RAW", "zstd ", "\x1b[0m"])
def test_an_unknown_encoding_is_refused(compression):
    with refused(Code.MALFORMED):
        inflate(compression, b"x", 10)


def test_a_zlib_bomb_is_stopped_at_its_budget():
    bomb = zlib.compress(b"\0" * (60 * MIB), 9)
    for pieces in ([bomb], cut(bomb, [1]), cut(bomb, [4096])):
        with memory_below(4 * MIB), refused(Code.BOMB):
            for _ in inflate_stream("zlib", pieces, 20 * MIB):
                pass


def test_a_zlib_bomb_behind_a_stored_start_is_stopped():
    compressor = zlib.compressobj(0)
    data = compressor.compress(b"harmless" * 100) + compressor.flush(zlib.Z_SYNC_FLUSH)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data += bomb.compress(b"\0" * (100 * MIB)) + bomb.flush()
    with memory_below(8 * MIB), refused(Code.BOMB):
        inflate("zlib", data, MIB)


@pytest.mark.parametrize("stated", [None, 0, 1, 1000, 4 * MIB, 2**40, 2**63, 2**64 - 1])
def test_a_zstd_bomb_is_stopped_whatever_it_states(stated):
    bomb = containers.zstd_frame([RLE_BLOCK] * 2000, stated=stated)  # 250 MiB out of 8 KB
    for inflater in (
        lambda: inflate("zstd", bomb, 5 * MIB),
        lambda: b"".join(inflate_stream("zstd", [bomb], 5 * MIB)),
        lambda: b"".join(inflate_stream("zstd", cut(bomb, [100]), 5 * MIB)),
    ):
        with memory_below(24 * MIB):
            assert outcome(inflater) in {Code.BOMB, Code.MALFORMED}


@pytest.mark.parametrize(
    ("stated", "block"), [(100, (b"a", 99)), (100, (b"a", 101)), (0, (b"a", 1)), (5, b""), (3 * MIB, b"tiny")]
)
def test_a_zstd_frame_that_misstates_its_size_is_refused(stated, block):
    frame = containers.zstd_frame([block], stated=stated)
    with memory_below(8 * MIB), refused(Code.MALFORMED):
        inflate("zstd", frame, 4 * MIB)
    with memory_below(8 * MIB), refused(Code.MALFORMED):
        streamed("zstd", frame, [5], 4 * MIB)


@pytest.mark.parametrize("stated", [1, 5, 300_000, 33_554_432, 2**40])
def test_an_empty_last_block_does_not_hide_a_misstated_size(stated):
    for blocks in ([b""], [b"abc", b""], [b"", b""]):
        frame = containers.zstd_frame(blocks, stated=stated)
        for size in (1, 7, 1000):
            with refused(Code.MALFORMED):
                streamed("zstd", frame, [size], 50 * MIB)


def test_a_stated_size_above_the_budget_is_refused_before_anything_is_inflated():
    with memory_below(MIB), refused(Code.BOMB):
        inflate("zstd", containers.zstd_frame([b"x"], stated=2**40), MIB)


@pytest.mark.parametrize("window_log", [24, 27, 31])
def test_a_huge_zstd_window_is_refused(window_log):
    for stated in (None, 3):
        frame = containers.zstd_frame([b"abc"], window_log=window_log, stated=stated)
        for inflater in (lambda data: inflate("zstd", data, 100), lambda data: streamed("zstd", data, [2], 100)):
            with memory_below(MIB), refused(Code.BOMB):
                inflater(frame)


def test_the_window_limit_is_inclusive_and_a_setting():
    frame = containers.zstd_frame([b"abc"], window_log=23)
    assert inflate("zstd", frame, 100) == b"abc"
    with refused(Code.BOMB):
        inflate("zstd", frame, 100, Limits(zstd_window_bytes=4 * MIB))


def test_many_zstd_frames_are_not_one_content():
    frames = [containers.stored_zstd(b"x"), containers.zstd_frame([b"y"]), zstd(b"z" * 10)]
    for first in frames:
        for second in [*frames, b"\x50\x2a\x4d\x18\x04\0\0\0abcd"]:
            with refused(Code.MALFORMED):
                inflate("zstd", first + second, 1000)
            with refused(Code.MALFORMED):
                streamed("zstd", first + second, [9], 1000)


def test_a_skippable_frame_is_not_a_content():
    skippable = b"\x50\x2a\x4d\x18\xff\xff\xff\xffabcd"
    for data in (skippable, b"\x50\x2a\x4d\x18\0\0\0\0" + zstd(b"x")):
        with refused(Code.MALFORMED):
            inflate("zstd", data, 1000)


def test_a_dictionary_nobody_has_is_refused():
    for stated in (None, 3):
        with refused(Code.MALFORMED):
            inflate("zstd", containers.zstd_frame([b"abc"], dictionary=7, stated=stated), 100)
    with refused(Code.MALFORMED):
        inflate("zlib", b"\x78\xbb\x00\x00\x00\x01" + zlib.compress(b"abc")[2:], 100)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_a_bomb_is_refused_without_reading_on(compression):
    data = {"zlib": zlib.compress(b"\0" * (50 * MIB), 9), "zstd": containers.zstd_frame([RLE_BLOCK] * 4000)}[
        compression
    ]
    taken = 0

    def pieces():
        nonlocal taken
        for piece in cut(data, [256]):
            taken += len(piece)
            yield piece

    with refused(Code.BOMB):
        for _ in inflate_stream(compression, pieces(), MIB):
            pass
    assert taken < len(data) // 4


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_a_large_content_is_inflated_over_bounded_memory(compression):
    size = 64 * MIB
    data = {"zlib": zlib.compress(b"\0" * size, 1), "zstd": zstd_unstated(b"\0" * size)}[compression]
    total = 0
    with memory_below(24 * MIB):
        for piece in inflate_stream(compression, cut(data, [65536]), size):
            total += len(piece)
    assert total == size


def test_a_stated_size_is_read_from_the_header_alone():
    assert stated_zstd_size(containers.zstd_frame([b"x"], stated=1)[:14]) == 1
    assert stated_zstd_size(containers.zstd_frame([b"x"])) is None
    assert stated_zstd_size(zstd(b"x" * 70_000)) == 70_000
    for head in (b"", b"\x28\xb5\x2f\xfd", zlib.compress(b"x"), containers.zstd_frame([b"x"], stated=1)[:9]):
        with refused(Code.MALFORMED):
            stated_zstd_size(head)

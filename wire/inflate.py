"""Inflating zlib and zstd contents under a byte budget, never by trust in a stated size.

zstandard ignores ``max_output_size`` when a frame states its own size, so the header is read first, the window
is capped, and what comes out is counted. One content is exactly one frame: bytes after it are refused.
Precedent for the caps: threat T8.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator

import zstandard

from wire.errors import Code, Refusal, malformed, shown
from wire.limits import DEFAULT_LIMITS, Limits

ENCODINGS = frozenset({"raw", "zlib", "zstd", "delta+zlib", "delta+zstd"})
_SINGLE_SHOT_BYTES = 4 * 1024 * 1024
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_FEED_BYTES = 256
"""A zstd block makes at most 128 KiB out of 4 bytes: 256 bytes of input make at most 8 MiB at once."""
_ZSTD_HEADER_BYTES = 18
"""RFC 8878 §3.1.1: magic number and the longest frame header."""
_ZLIB_STEP_BYTES = 256 * 1024


def inflate(compression: str, content: bytes, budget: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Inflate a small content held in memory.

    Args:
        compression: ``raw``, ``zlib`` or ``zstd`` (the part after ``delta+``).
        content: the encoded bytes.
        budget: the most bytes that may come out.
        limits: the limits in force.

    Raises:
        Refusal: ``bomb`` when more than ``budget`` would come out, ``malformed`` when the bytes are damaged.
    """
    if compression == "raw":
        if len(content) > budget:
            raise _bomb(budget)
        return content
    if compression == "zstd":
        stated = stated_zstd_size(content, limits)
        if stated is not None:
            if stated > budget:
                raise _bomb(budget)
            if 0 < stated <= _SINGLE_SHOT_BYTES:  # of a frame that states 0 zstandard does not look at the rest
                return _single_shot(content)
    return b"".join(inflate_stream(compression, [content], budget, limits))


def inflate_stream(
    compression: str, pieces: Iterable[bytes], budget: int, limits: Limits = DEFAULT_LIMITS
) -> Iterator[bytes]:
    """Inflate a content of any size piece by piece; raises like :func:`inflate`."""
    if compression == "raw":
        source: Iterator[bytes] = iter(pieces)
    elif compression == "zlib":
        source = _zlib(pieces)
    elif compression == "zstd":
        source = _zstd(pieces, limits)
    else:
        raise malformed(f"unknown encoding {shown(compression)}")
    total = 0
    for piece in source:
        total += len(piece)
        if total > budget:
            raise _bomb(budget)
        if piece:
            yield piece


def stated_zstd_size(head: bytes, limits: Limits = DEFAULT_LIMITS) -> int | None:
    """Read a zstd frame header: the stated content size or ``None``; refuses windows above the limit."""
    if not head.startswith(_ZSTD_MAGIC):
        raise malformed("a zstd content does not start with a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError:
        raise malformed("a zstd content has a damaged frame header") from None
    if parameters.window_size > limits.zstd_window_bytes:
        raise Refusal(
            Code.BOMB, f"a zstd frame asks for a window of {parameters.window_size} bytes, "
            f"the limit is {limits.zstd_window_bytes}",
        )  # fmt: skip
    size = parameters.content_size
    return None if size in {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR} else size


def _single_shot(content: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise malformed(f"a zstd content is damaged: {_reason(error)}") from None


def _zlib(pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    try:
        for piece in pieces:
            if inflater.eof and piece:
                raise malformed("a zlib content has bytes after its end")
            yield inflater.decompress(piece, _ZLIB_STEP_BYTES)
            while inflater.unconsumed_tail:
                yield inflater.decompress(inflater.unconsumed_tail, _ZLIB_STEP_BYTES)
        while not inflater.eof:  # output may still be pending behind the step limit
            piece = inflater.decompress(b"", _ZLIB_STEP_BYTES)
            if not piece:
                raise malformed("a zlib content is cut")
            yield piece
    except zlib.error:
        raise malformed("a zlib content is damaged") from None
    if inflater.unused_data:
        raise malformed("a zlib content has bytes after its end")


def _zstd(pieces: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    inflater = zstandard.ZstdDecompressor(max_window_size=limits.zstd_window_bytes).decompressobj()
    source = iter(pieces)
    head = b""
    while len(head) < _ZSTD_HEADER_BYTES and (piece := next(source, None)) is not None:
        head += piece
    stated = stated_zstd_size(head, limits)
    made = 0
    try:
        for piece in itertools.chain([head], source):
            for part in _feed_zstd(inflater, piece):
                made += len(part)
                yield part
    except zstandard.ZstdError as error:
        raise malformed(f"a zstd content is damaged: {_reason(error)}") from None
    if not inflater.eof:
        raise malformed("a zstd content is cut")
    if stated is not None and made != stated:  # zstd itself does not look when the last block is empty
        raise malformed(f"a zstd content states {stated} bytes and has {made}")


def _feed_zstd(inflater: zstandard.ZstdDecompressionObj, piece: bytes) -> Iterator[bytes]:
    for start in range(0, len(piece), _ZSTD_FEED_BYTES):
        if inflater.eof:
            raise malformed("a zstd content has bytes after its end")
        yield inflater.decompress(piece[start : start + _ZSTD_FEED_BYTES])
    if inflater.eof and inflater.unused_data:
        raise malformed("a zstd content has bytes after its end")


def _bomb(budget: int) -> Refusal:
    return Refusal(Code.BOMB, f"a content inflates to more than the {budget} bytes allowed here")


def _reason(error: Exception) -> str:
    return str(error).partition(": ")[2] or str(error)

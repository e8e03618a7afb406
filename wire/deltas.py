"""Deltas between two object contents, as carried by the ``delta+zlib`` and ``delta+zstd`` encodings.

The protocol names the encodings and leaves the inner form open; ours is the copy/insert instruction stream that
git packs use (git's ``pack-format`` page), because every host already has a reader for it:

* two little-endian base-128 numbers: size of the base, size of the result;
* then instructions: a byte with the top bit set copies from the base (bits 0-3 say which of 4 offset bytes
  follow, bits 4-6 which of 3 size bytes; a size of 0 means 65,536); a byte 1-127 inserts that many bytes; 0 is
  reserved and refused.
"""

from __future__ import annotations

from collections.abc import Generator

from wire.errors import Code, Refusal, malformed
from wire.limits import DEFAULT_LIMITS

_COPY = 0x80
_MAX_INSERT = 127
_MAX_COPY = 0xFFFFFF
_DEFAULT_COPY = 0x10000
_MIN_COPY = 16


_PIECE_BYTES = 256 * 1024

Buffer = bytes | bytearray


def result_size(delta: Buffer, limit: int) -> int:
    """Read the size a delta's result is stated to have; raises like :func:`delta_pieces`."""
    _, at = _read_size(delta, 0)
    size, _ = _read_size(delta, at)
    if size > limit:
        raise Refusal(Code.BOMB, f"a delta makes {size} bytes, the limit is {limit}")
    return size


def delta_pieces(
    base: Buffer, delta: Buffer, limit: int, instructions: int = DEFAULT_LIMITS.delta_instructions
) -> Generator[Buffer, None, int]:
    """Rebuild a content from its base, piece by piece; returns how many instructions it took.

    Raises:
        Refusal: ``malformed`` for a delta that does not fit the base, ``bomb`` for a result above ``limit`` bytes,
            ``too_large`` for more than ``instructions``.
    """
    base_size, at = _read_size(delta, 0)
    stated, at = _read_size(delta, at)
    if base_size != len(base):
        raise malformed(f"a delta was made for a base of {base_size} bytes, this one has {len(base)}")
    if stated > limit:
        raise Refusal(Code.BOMB, f"a delta makes {stated} bytes, the limit is {limit}")
    result, made, count = bytearray(), 0, 0
    while at < len(delta):
        op = delta[at]
        at += 1
        count += 1
        if count > instructions:
            raise Refusal(Code.TOO_LARGE, f"a delta has more than the {instructions} instructions allowed here")
        source: Buffer
        if op & _COPY:
            start, size, at = _read_copy(delta, at, op)
            source = base
            if start + size > len(base):
                raise malformed("a delta copies from beyond its base")
        elif op:
            start, size, source = at, op, delta
            at += op
            if at > len(delta):
                raise malformed("a delta is cut")
        else:
            raise malformed("a delta has the reserved instruction 0")
        made += size
        if made > stated:
            raise malformed("a delta makes more bytes than it states")
        result += source[start : start + size]
        if len(result) >= _PIECE_BYTES:
            yield result
            result = bytearray()
    if made != stated:
        raise malformed("a delta makes fewer bytes than it states")
    if result:
        yield result
    return count


def apply_delta(base: Buffer, delta: Buffer, limit: int) -> bytes:
    """Rebuild a content from its base; raises like :func:`delta_pieces`."""
    return b"".join(delta_pieces(base, delta, limit))


def make_delta(base: bytes, target: bytes) -> bytes:
    """Describe ``target`` by what it shares with ``base`` at both ends; small edits give small deltas."""
    shortest = min(len(base), len(target))
    head = _common(base, target, shortest)
    tail = _common(base[::-1], target[::-1], shortest - head)
    out = bytearray(_size(len(base)) + _size(len(target)))
    _copy(out, base, 0, head)
    _insert(out, target[head : len(target) - tail])
    _copy(out, base, len(base) - tail, tail)
    return bytes(out)


def _common(a: bytes, b: bytes, most: int) -> int:
    low, high = 0, most
    while low < high:  # the longest equal prefix, by bisection over memcmp
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _copy(out: bytearray, base: bytes, offset: int, size: int) -> None:
    if size < _MIN_COPY:
        _insert(out, base[offset : offset + size])
        return
    while size:
        step = min(size, _MAX_COPY)
        op, arguments = _COPY, bytearray()
        for bit, value in enumerate([*offset.to_bytes(4, "little"), *step.to_bytes(3, "little")]):
            if value:
                op |= 1 << bit
                arguments.append(value)
        out.append(op)
        out += arguments
        offset, size = offset + step, size - step


def _insert(out: bytearray, content: bytes) -> None:
    for start in range(0, len(content), _MAX_INSERT):
        piece = content[start : start + _MAX_INSERT]
        out.append(len(piece))
        out += piece


def _size(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_size(delta: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(delta) or shift > 63:
            raise malformed("a delta has a damaged header")
        byte = delta[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _read_copy(delta: Buffer, at: int, op: int) -> tuple[int, int, int]:
    fields = bytearray(7)
    for bit in range(7):
        if op & (1 << bit):
            if at >= len(delta):
                raise malformed("a delta is cut")
            fields[bit] = delta[at]
            at += 1
    size = int.from_bytes(fields[4:], "little") or _DEFAULT_COPY
    return int.from_bytes(fields[:4], "little"), size, at

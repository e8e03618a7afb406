"""Plain random mutation of corpus files: flips, cuts, splices, and the numbers and tokens decoders trip over."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

MOST_BYTES = 20_000
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
TOKENS = [
    b"\0", b"\x80", b"\x81", b"\x90", b"\x91", b"\xa0", b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xc4\x00",
    b"\xc7\x00\x05",
    b"\xca\x7f\x80\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd4\xff\x00",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\x91" * 40, b"\x81\xa1k" * 40, b"\xa4type", b"\xa1H", b"\xa1O", b"\xa2OC", b"\xa1C",
    b"\xa1E",
    b"\xa1P", b"\xa1X", b"\xa1R", b"\xa7content", b"\xa8encoding", b"\xa4base", b"\xa3seq", b"\xa4last", b"\xa7commits",
    b"\xa9snapshots", b"\xafsnapshot_deltas", b"\xa8manifest", b"\xabdirectories", b"\xacdelta_remove",
    b"\xacdelta_upsert",
    b"\xa4zlib", b"\xa4zstd", b"\xa3raw", b"MUSE\x01", b"MUSI\x01", b"sha256:", b"\x28\xb5\x2f\xfd", b"\x78\x9c",
    b"null",
    b"true", b"[", b"]", b"{", b"}", b'"', b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"-0", b"[[" * 40, b'{"a":' * 40,
    b'{"$bytes":"AA=="}', b'{"$":1}', b"..", b"/", b"//", b"\\", b":", b".git", b".muse", b"\xe2\x80\x8c", b"CON",
    b"GIT~1",
    b"\n", b"\xff", b"\xed\xa0\x80", b"e\xcc\x81", b"\xef\xbb\xbf", b".lock", b"@{",
]  # fmt: skip


def mutate(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Change a file of the corpus in one to six places."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        rng.choice(_MUTATIONS)(rng, data, corpus)
    return bytes(data[:MOST_BYTES])


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(len(data) + 1)


def _range(rng: random.Random, data: bytearray) -> slice:
    start = _place(rng, data)
    return slice(start, start + rng.choice([1, 2, 4, 8, 30, 200]))


def _flip_a_bit(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_a_byte(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _insert_random_bytes(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 40]))


def _insert_a_token(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = _place(rng, data)
    token = rng.choice(TOKENS)
    data[at : at + rng.choice([0, len(token)])] = token


def _write_a_number(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = _place(rng, data)
    form, mask = rng.choice([("B", 0xFF), (">H", 0xFFFF), (">I", 2**32 - 1), ("<I", 2**32 - 1), ("<Q", 2**64 - 1)])
    number = struct.pack(form, rng.choice(NUMBERS) & mask)
    data[at : at + len(number)] = number


def _remove(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    del data[_range(rng, data)]


def _repeat(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    part = _range(rng, data)
    data[part.start : part.start] = data[part] * rng.choice([1, 2, 10])


def _move(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    part = _range(rng, data)
    moved = data[part]
    del data[part]
    at = _place(rng, data)
    data[at:at] = moved


def _cut(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


def _splice(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = rng.choice(corpus)
    at, start = _place(rng, data), rng.randrange(len(other) + 1)
    data[at : at + rng.choice([0, 100, len(data)])] = other[start : start + rng.choice([10, 200, len(other)])]


_MUTATIONS: list[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = [
    _flip_a_bit, _flip_a_bit, _set_a_byte, _insert_random_bytes, _insert_a_token, _insert_a_token, _write_a_number,
    _remove,
    _repeat, _move, _cut, _splice,
]  # fmt: skip

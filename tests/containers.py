"""The stored and transported forms of protocol §2 and §3, written from the protocol page and the RFCs alone.

Like ``tests.muse`` this shares no code with the server. Compressed contents are put together by hand, so that the
same bytes come out on every machine and so that a frame can lie about itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

import msgpack

OBJECTS, COMMITS, SNAPSHOTS, TAGS, OBJECTS_ZSTD = 1, 2, 3, 4, 5
ZSTD_BLOCK_BYTES = 128 * 1024


def sealed(data: bytes) -> bytes:
    """Put the SHA-256 footer under a file."""
    return data + hashlib.sha256(data).digest()


def long_id(object_id: str) -> bytes:
    return b"sha256:" + object_id.removeprefix("sha256:").encode()


def pack(objects: Iterable[tuple[str, bytes]]) -> bytes:
    listed = list(objects)
    body = b"".join(long_id(oid) + struct.pack("<Q", len(content)) + content for oid, content in listed)
    return sealed(b"MUSE\x01" + struct.pack("<Q", len(listed)) + body)


def pack_index(objects: Iterable[tuple[str, bytes]]) -> bytes:
    offset, rows = 13, []
    for oid, content in objects:
        offset += 71 + 8
        rows.append(long_id(oid) + struct.pack("<QQ", offset, len(content)))
        offset += len(content)
    return sealed(b"MUSI\x01" + struct.pack("<Q", len(rows)) + b"".join(sorted(rows)))


def record_section(records: Sequence[object]) -> bytes:
    packed = [msgpack.packb(record, use_bin_type=True) for record in records]
    return struct.pack("<Q", len(packed)) + b"".join(struct.pack("<Q", len(data)) + data for data in packed)


def mpack(sections: Sequence[tuple[int, bytes]]) -> bytes:
    offset = 6 + 17 * len(sections)
    table = b""
    for kind, data in sections:
        table += struct.pack("<BQQ", kind, offset, len(data))
        offset += len(data)
    return mpack_of_table(table, b"".join(data for _, data in sections))


def mpack_of_table(table: bytes, body: bytes) -> bytes:
    """An mpack whose table says what the test likes."""
    return sealed(b"MUSE\x01" + bytes([len(table) // 17]) + table + body)


def bundle(members: Mapping[str, object]) -> bytes:
    return msgpack.packb(members, use_bin_type=True)


def canonical(kind: str, record: Mapping[str, object]) -> bytes:
    text = json.dumps(_jsonable(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return f"{kind} {len(text)}\0".encode() + text


def _jsonable(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.standard_b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Mapping):
        escape = "$" if len(value) == 1 and next(iter(value)).startswith("$") else ""
        return {escape + key: _jsonable(item) for key, item in value.items()}
    return value


def delta(base_size: int, result_size: int, *instructions: bytes) -> bytes:
    return varint(base_size) + varint(result_size) + b"".join(instructions)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def insert(content: bytes) -> bytes:
    assert 1 <= len(content) <= 127
    return bytes([len(content)]) + content


def copy(offset: int, size: int) -> bytes:
    """A copy instruction with all seven argument bytes."""
    return b"\xff" + struct.pack("<I", offset) + struct.pack("<I", size)[:3]


def stored_zlib(content: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks (RFC 1951)."""
    blocks = [content[at : at + 65535] for at in range(0, len(content), 65535)] or [b""]
    out = b"\x78\x01"
    for number, block in enumerate(blocks):
        size = len(block)
        out += struct.pack("<BHH", number == len(blocks) - 1, size, size ^ 0xFFFF) + block
    return out + struct.pack(">I", zlib.adler32(content))


def zstd_frame(
    blocks: Iterable[bytes | tuple[bytes, int]], *, stated: int | None = None, window_log: int = 17,
    dictionary: int | None = None,
) -> bytes:  # fmt: skip
    """A zstd frame (RFC 8878) of raw blocks, and of run-length blocks given as ``(byte, times)``."""
    descriptor = (0 if stated is None else 0b1100_0000) | (0 if dictionary is None else 0b01)
    out = b"\x28\xb5\x2f\xfd" + bytes([descriptor, (window_log - 10) << 3])
    if dictionary is not None:
        out += bytes([dictionary])
    if stated is not None:
        out += struct.pack("<Q", stated)
    listed = list(blocks) or [b""]
    for number, block in enumerate(listed):
        last = number == len(listed) - 1
        kind, size, data = (0, len(block), block) if isinstance(block, bytes) else (1, block[1], block[0])
        out += struct.pack("<I", last | kind << 1 | size << 3)[:3] + data
    return out


def stored_zstd(content: bytes) -> bytes:
    """A zstd frame that states its size."""
    return zstd_frame(
        [content[at : at + ZSTD_BLOCK_BYTES] for at in range(0, len(content), ZSTD_BLOCK_BYTES)], stated=len(content)
    )

"""Arrays as statements take them, written in PostgreSQL's binary form in one step.

psycopg dumps a list element by element; a push passes hundreds of thousands of ids. An id costs a tenth this way.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_INT8, _BYTEA = 20, 17
_INT8_ARRAY, _BYTEA_ARRAY = 1016, 1001
"""Object ids of PostgreSQL's own types; they never change."""
_NULL = b"\xff\xff\xff\xff"
_HEAD = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_EMPTY = struct.Struct(">iiI")


@dataclass(frozen=True, slots=True)
class Byteas:
    """A ``bytea[]``; ``None`` is NULL."""

    values: Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class Int8s:
    """A ``bigint[]``; ``None`` is NULL."""

    values: Sequence[int | None]


def pack_byteas(values: Sequence[bytes | None]) -> bytes:
    """Write a ``bytea[]`` in binary form."""
    if not values:
        return _EMPTY.pack(0, 0, _BYTEA)
    parts = [_HEAD.pack(1, None in values, _BYTEA, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def pack_int8s(values: Sequence[int | None]) -> bytes:
    """Write a ``bigint[]`` in binary form."""
    if not values:
        return _EMPTY.pack(0, 0, _INT8)
    head = _HEAD.pack(1, None in values, _INT8, len(values), 1)
    if None in values:
        return head + b"".join(_NULL if v is None else struct.pack(">iq", 8, v) for v in values)
    numbers: list[int] = [8] * (2 * len(values))
    numbers[1::2] = values  # type: ignore[assignment]
    return head + struct.pack(f">{'iq' * len(values)}", *numbers)


class _ByteasDumper(Dumper):
    format = Format.BINARY
    oid = _BYTEA_ARRAY

    def dump(self, obj: Byteas) -> bytes:
        return pack_byteas(obj.values)


class _Int8sDumper(Dumper):
    format = Format.BINARY
    oid = _INT8_ARRAY

    def dump(self, obj: Int8s) -> bytes:
        return pack_int8s(obj.values)


psycopg.adapters.register_dumper(Byteas, _ByteasDumper)
psycopg.adapters.register_dumper(Int8s, _Int8sDumper)

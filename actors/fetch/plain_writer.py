"""The one map that answers a fetch of the public 0.1.x client, written into a spool as msgpack or as JSON.

It never becomes larger than what that client takes; of a large content only a piece is in memory.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass

import msgpack

from actors.spool import Spool
from wire.errors import Code, Refusal

ANSWER_MOST_BYTES = 64 * 1024 * 1024
"""What that client takes in one answer."""
_BASE64_INPUT = 3
"""Bytes that are encoded together: only the last piece may end in between."""


@dataclass(slots=True)
class PlainWriter:
    """Writes the map member by member; ``members`` are how many there will be. Contents are base64 in JSON."""

    spool: Spool
    packed: bool
    members: int
    first: bool = True
    first_item: bool = True

    async def begin(self) -> None:
        """Begin the map."""
        await self._raw(msgpack.Packer().pack_map_header(self.members) if self.packed else b"{")

    async def open_list(self, key: str, count: int) -> None:
        """Begin a member that is a list of ``count`` items."""
        if self.packed:
            await self._raw(msgpack.packb(key) + msgpack.Packer().pack_array_header(count))
        else:
            await self._raw(("" if self.first else ",").encode() + json.dumps(key).encode() + b":[")
        self.first, self.first_item = False, True

    async def close_list(self) -> None:
        """End the list."""
        if not self.packed:
            await self._raw(b"]")

    async def item(self, value: Mapping[str, object]) -> None:
        """Write an item of the list."""
        await self._next_item()
        await self._raw(msgpack.packb(value, use_bin_type=True) if self.packed else _json(value))

    async def large_object(self, object_id: str, path: str, size: int, pieces: AsyncIterable[bytes]) -> None:
        """Write an item with a content of ``size`` bytes that comes in pieces."""
        if self.spool.size + size > ANSWER_MOST_BYTES:
            raise answer_too_large()
        await self._next_item()
        if self.packed:
            head = msgpack.Packer().pack_map_header(3)
            head += b"".join(map(msgpack.packb, ("object_id", object_id, "content")))
            await self._raw(head + b"\xc6" + size.to_bytes(4, "big"))
            async for piece in pieces:
                await self._raw(piece)
            await self._raw(msgpack.packb("path") + msgpack.packb(path))
            return
        await self._raw(b'{"object_id":' + _json(object_id) + b',"content":"')
        left = b""
        async for piece in pieces:
            data = left + piece
            whole = len(data) - len(data) % _BASE64_INPUT
            await self._raw(base64.b64encode(data[:whole]))
            left = data[whole:]
        await self._raw(base64.b64encode(left) + b'","path":' + _json(path) + b"}")

    async def member(self, key: str, value: Mapping[str, object]) -> None:
        """Write a member that is a map."""
        if self.packed:
            await self._raw(msgpack.packb(key) + msgpack.packb(value))
        else:
            await self._raw(("" if self.first else ",").encode() + json.dumps(key).encode() + b":" + _json(value))
        self.first = False

    async def end(self) -> None:
        """End the map."""
        if not self.packed:
            await self._raw(b"}")

    async def _next_item(self) -> None:
        if not self.packed and not self.first_item:
            await self._raw(b",")
        self.first_item = False

    async def _raw(self, data: bytes) -> None:
        if self.spool.size + len(data) > ANSWER_MOST_BYTES:
            raise answer_too_large()
        await self.spool.append(data)


def answer_too_large() -> Refusal:
    """Say which client takes more."""
    most = ANSWER_MOST_BYTES // (1024 * 1024)
    return Refusal(
        Code.TOO_LARGE,
        f"this fetch is larger than the {most} MiB that a client of version 0.1 takes: use a newer client, which "
        "fetches packs of any size",
        limit=ANSWER_MOST_BYTES,
    )


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=_as_text).encode("utf-8", "replace")


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)

"""Bodies that are long lists of ids: read within a bound all of them share, parsed in bulk, off the loop when large."""

from __future__ import annotations

import itertools
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import msgpack
import trio

from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import is_msgpack, read_body
from museworkd.http.services import HttpServices
from storage.rows import Repository
from wire.errors import Code, Refusal, malformed
from wire.ids import DIGEST_BYTES, Scheme, format_id, parse_any_id, parse_id
from wire.limits import DEFAULT_LIMITS, KIB, MIB
from wire.pull import unpack_whole

A = TypeVarTuple("A")
T = TypeVar("T")

ID_LISTS_MIB = 24
"""Bodies of all connections together. What is decoded of one takes up some eight times as much for a while. They have
slots of their own, so that one that arrives slowly keeps no other request waiting."""
IDS_MOST = 50_000
"""Protocol §6: ids of one request."""
_IN_LOOP_BYTES = 256 * KIB
"""Bodies up to this size are decoded in the loop: some milliseconds."""
IN_LOOP_IDS = 2_000
"""The same, in ids."""
_MEMBERS = 64
_ROOM_S = 10.0
_ITEMS_MOST = 2 * IDS_MOST + 1_000
"""Elements of a body: ids, and a size for each."""
_PREFIX = format_id(bytes(DIGEST_BYTES), Scheme.TYPED)[: -2 * DIGEST_BYTES]


@dataclass(slots=True)
class IdListBody:
    """A body's members. Those of a msgpack body are decoded when they are asked for: often the sizes never are."""

    decoded: dict[str, object] = field(default_factory=dict)
    encoded: dict[str, memoryview] = field(default_factory=dict)

    async def member(self, name: str) -> object:
        """Give a member, ``None`` when it is not there; raises ``malformed``."""
        data = self.encoded.pop(name, None)
        if data is not None:
            large = len(data) > _IN_LOOP_BYTES
            self.decoded[name] = await off_loop(large, unpack_whole, bytes(data), name, DEFAULT_LIMITS, _ITEMS_MOST)
        return self.decoded.get(name)


@asynccontextmanager
async def id_list_body(services: HttpServices, exchange: Exchange) -> AsyncIterator[IdListBody]:
    """Read a body; what it takes of the memory all of them share is given back after the block."""
    taken: list[int] = []
    try:
        body = await _read(services, exchange, taken)
        kind = exchange.headers.get("content-type", "")
        if is_msgpack(kind) and body:
            yield IdListBody(encoded=_members(body))
        else:
            yield IdListBody(await off_loop(len(body) > _IN_LOOP_BYTES, read_body, body, kind, _ITEMS_MOST))
    finally:
        services.id_lists.release(sum(taken))


async def _read(services: HttpServices, exchange: Exchange, taken: list[int]) -> bytes:
    """Read a body, taking room for each MiB when it comes: who sends slowly keeps nobody else waiting."""
    most = services.settings.id_list_bytes
    stated = exchange.headers.get("content-length", "0")
    pieces: list[bytes] = []
    size = 0
    while True:
        if size > most or (stated.isdigit() and int(stated[:18]) > most):
            raise Refusal(Code.TOO_LARGE, f"the body of this request has at most {most} bytes")
        while size > len(taken) * MIB:
            with trio.move_on_after(_ROOM_S) as waiting:
                taken.append(await services.id_lists.acquire(1))
            if waiting.cancelled_caught:
                raise Refusal(Code.BUSY, "too many long lists at once: try again")
        piece = await exchange.body_piece()
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)


def _members(body: bytes) -> dict[str, memoryview]:
    """Find out where the members of a map are, without decoding them."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(body))
    unpacker.feed(body)
    found: dict[str, memoryview] = {}
    try:
        count = unpacker.read_map_header()
        if count > _MEMBERS:
            raise malformed(f"the body has {count} members")
        for _ in range(count):
            start = unpacker.tell()
            unpacker.skip()
            key, start = unpack_whole(body[start : unpacker.tell()], "a member's name"), unpacker.tell()
            unpacker.skip()
            if not isinstance(key, str) or key in found:
                raise malformed("a member's name is no text or comes twice")
            found[key] = memoryview(body)[start : unpacker.tell()]
    except (ValueError, msgpack.UnpackException):
        raise malformed("the body is not a map in valid msgpack") from None
    if unpacker.tell() != len(body):
        raise malformed("bytes follow the body's map")
    return found


async def parse_ids(repository: Repository, value: object) -> tuple[Scheme, dict[bytes, str]]:
    """Read ``object_ids``: of the repository's scheme, or while it has none all of one; each is given once.

    Raises:
        Refusal: ``malformed``, or ``too_large`` for too many.
    """
    if not isinstance(value, list):
        raise malformed("object_ids is not a list of ids")
    if len(value) > IDS_MOST:
        raise Refusal(Code.TOO_LARGE, f"{len(value)} ids at once, the limit is {IDS_MOST}", limit=IDS_MOST)
    scheme = repository.scheme or (parse_any_id(value[0], "object_ids[0]")[0] if value else Scheme.TYPED)
    return scheme, await off_loop(len(value) > IN_LOOP_IDS, _parse, value, scheme)


def parse_sizes(wanted: Mapping[str, object], stated: object, most: int) -> dict[str, int]:
    """Read the sizes of objects; raises ``malformed``, or ``too_large`` above ``most``."""
    if not isinstance(stated, dict | None):
        raise malformed("sizes is not a map of ids to sizes")
    sizes: dict[str, int] = {}
    for text in wanted:
        size = (stated or {}).get(text)
        if type(size) is not int or size < 0:
            raise malformed(f"sizes has no number of bytes for {text}")
        if size > most:
            raise Refusal(Code.TOO_LARGE, f"object {text} has {size} bytes, the limit is {most}", limit=most)
        sizes[text] = size
    return sizes


def _parse(texts: Sequence[object], scheme: Scheme) -> dict[bytes, str]:
    prefix = _PREFIX if scheme is Scheme.TYPED else ""
    try:
        raw = _digests("".join(texts), len(texts), prefix)  # type: ignore[arg-type]
    except TypeError:
        raw = None
    if raw is None or {len(text) for text in texts} != {len(prefix) + 2 * DIGEST_BYTES}:  # type: ignore[arg-type]
        return {parse_id(text, scheme, f"object_ids[{at}]"): str(text) for at, text in enumerate(texts)}  # says which
    found = zip(struct.iter_unpack(f"{DIGEST_BYTES}s", raw), texts, strict=True)
    return {object_id: text for (object_id,), text in found}  # type: ignore[misc]


def _digests(joined: str, count: int, prefix: str) -> bytes | None:
    """Read ids that stand one after another; ``None`` when they are not ``count`` ids with this prefix."""
    if prefix:
        first, *parts = joined.split(prefix)
        if first or {len(part) for part in parts} - {2 * DIGEST_BYTES}:
            return None
        joined = "".join(parts)
    try:
        raw = bytes.fromhex(joined)
    except ValueError:
        return None
    # fromhex also takes upper case and spaces
    return raw if len(raw) == count * DIGEST_BYTES and raw.hex() == joined else None


def neighbours(ids: Iterable[bytes], most: int) -> list[list[bytes]]:
    """Divide ids into batches of up to ``most``, each of ids that lie close together."""
    heads: list[list[bytes]] = [[] for _ in range(256)]
    for object_id in ids:
        heads[object_id[0]].append(object_id)
    ordered = list(itertools.chain.from_iterable(heads))
    return [ordered[at : at + most] for at in range(0, len(ordered), most)]


async def off_loop(large: bool, function: Callable[[*A], T], *arguments: *A) -> T:
    """Run a function, in a worker thread when it is much work."""
    return await trio.to_thread.run_sync(function, *arguments) if large else function(*arguments)

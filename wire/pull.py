"""A pull parser over msgpack bytes that arrive in pieces, with every limit of the C decoder set.

Frames and bundles are maps whose large members (an object's content, a manifest) must never be held whole. So
the map is walked token by token: small values come out of the C decoder at once, byte strings can be taken in
pieces, and the long lists of records and paths are walked element by element. All walking is written as
generators that yield when bytes run out, which keeps this layer free of I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgpack

from wire.canonical import check_nesting, unique_map
from wire.errors import Code, Refusal, malformed, shown
from wire.limits import DEFAULT_LIMITS, KIB, Limits
from wire.path_map import PathMap

T = TypeVar("T")
Walk = Generator[None, None, T]
"""A step of parsing: yields whenever it needs more bytes, returns its result."""

FEED_BYTES = 64 * KIB
"""Feed at most this much at a time; the buffer is sized for one value and one feed."""
MAP_MEMBERS = 64
"""Members of a frame or record map: the widest record of protocol §1 has 24."""
SHORT_TEXT_CHARS = 128
"""Ids, encodings and types: the longest has 71."""
LARGE_MAP_ENTRIES = 16_384
"""Maps of paths above this size are kept as bytes (see ``wire.path_map``)."""
_PATH_BYTES, _ENTRY_BYTES = 112, 320
"""What Python spends on a path in a list, and on a path with its id in a map, besides the path itself."""
_BIN_HEADER_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_NIL = 0xC0


@dataclass(slots=True)
class OpenMap:
    """A map that is walked member by member."""

    count: int
    keys: set[str] = field(default_factory=set)
    small_bytes: int = 0
    """Bytes its keys and small members took so far: ``record_bytes`` in all."""


class PullParser:
    """Take msgpack tokens from bytes fed in pieces; useless after the first error."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        value_bytes = limits.record_bytes
        self.limits = limits
        self._fed = 0
        self.weight = 0
        """What the values taken so far cost in memory, estimated from above; to be reset by the caller."""
        self._containers = _Containers(limits.value_containers)
        self._unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=True, list_hook=self._containers.list,
            object_pairs_hook=self._containers.map, ext_hook=_refuse_extension,
            max_buffer_size=value_bytes + 2 * FEED_BYTES, max_str_len=value_bytes, max_bin_len=value_bytes,
            max_array_len=value_bytes, max_map_len=value_bytes // 2, max_ext_len=0,
        )  # fmt: skip

    def feed(self, data: bytes | memoryview) -> None:
        """Add at most :data:`FEED_BYTES` bytes, after every token of the earlier ones was taken."""
        try:
            self._unpacker.feed(data)
            self._fed += len(data)
        except msgpack.BufferFull:
            raise self._too_large() from None

    @property
    def consumed(self) -> int:
        """Bytes taken so far."""
        return int(self._unpacker.tell())

    @property
    def buffered(self) -> int:
        """Bytes fed and not yet taken."""
        return self._fed - self.consumed

    def open_map(self, what: str) -> Walk[OpenMap]:
        """Take the header of a map whose members are then taken with :meth:`key` and :meth:`member`."""
        count: int = yield from self._take(self._unpacker.read_map_header)
        if count > MAP_MEMBERS:
            raise malformed(f"{what} has {count} members")
        return OpenMap(count)

    def array_header(self) -> Walk[int]:
        """Take an array's header: the number of elements."""
        count: int = yield from self._take(self._unpacker.read_array_header)
        return count

    def value(self, taken: int = 0) -> Walk[object]:
        """Take one whole small value; ``taken`` bytes of its allowance are used up already."""
        start, most = self.consumed, self.limits.record_bytes - taken
        self._containers.count = self._containers.weight = 0
        value: object
        while True:
            try:
                value = self._unpacker.unpack()
                break
            except msgpack.OutOfData:  # the decoder keeps what it has built so far: count what went in
                if self._fed - start > most:
                    raise self._too_large() from None
                yield
            except _DECODE_ERRORS as error:
                raise self._damaged(error) from None
        if self.consumed - start > most:
            raise self._too_large()
        self.weight += self._containers.weight + self.consumed - start + _TEXT_BYTES
        check_nesting(value)
        return value

    def short_text(self, opened: OpenMap, what: str) -> Walk[str | None]:
        """Take a member that is a short text or nil: nothing longer is ever kept of it."""
        value = yield from self.member(opened)
        if value is not None and not isinstance(value, str):
            raise malformed(f"{what} is not text")
        if value is not None and len(value) > SHORT_TEXT_CHARS:
            raise malformed(f"{what} is a text of {len(value)} characters: {shown(value, 40)}")
        return value

    def key(self, opened: OpenMap) -> Walk[str]:
        """Take a member's key; refuses one that is not text or that this map had already."""
        key = yield from self.member(opened)
        if not isinstance(key, str):
            raise malformed("a map key is not text")
        if key in opened.keys:
            raise malformed(f"a map has the key {shown(key, 40)} twice")
        opened.keys.add(key)
        return key

    def member(self, opened: OpenMap) -> Walk[object]:
        """Take a member's small value."""
        start = self.consumed
        value = yield from self.value(opened.small_bytes)
        opened.small_bytes += self.consumed - start
        return value

    def binary_header(self) -> Walk[int]:
        """Take the header of a byte string whose bytes are then taken with :meth:`piece`."""
        kind = (yield from self.exactly(1))[0]
        width = _BIN_HEADER_BYTES.get(kind)
        if width is None:
            raise malformed("a content is not a byte string")
        return int.from_bytes((yield from self.exactly(width)), "big")

    def piece(self, most: int) -> Walk[bytes]:
        """Take between 1 and ``most`` bytes of a byte string."""
        while True:
            data = self._unpacker.read_bytes(most)
            if data:
                return bytes(data)
            yield

    def binary(self, most: int, what: str) -> Walk[bytes]:
        """Take a whole byte string of at most ``most`` bytes."""
        size = yield from self.binary_header()
        if size > most:
            raise Refusal(Code.TOO_LARGE, f"{what} has {size} bytes, the limit is {most}")
        return (yield from self.exactly(size))

    def member_list(self, most: int, what: str) -> Walk[int]:
        """Take the header of a list of records."""
        count = yield from self.array_header()
        if count > most:
            raise Refusal(Code.TOO_LARGE, f"{what} has {count} entries, the limit is {most}")
        return count

    def snapshot_like(self) -> Walk[dict[str, object]]:
        """Take a snapshot or delta record; its path maps and lists are walked entry by entry."""
        record: dict[str, object] = {}
        opened = yield from self.open_map("a record")
        for _ in range(opened.count):
            key = yield from self.key(opened)
            if key in {"manifest", "delta_upsert", "delta_add"}:
                record[key] = yield from self._path_map(key)
            elif key in {"delta_remove", "directories"}:
                record[key] = yield from self._path_list(key)
            else:
                record[key] = yield from self.member(opened)
        return record

    def _path_map(self, what: str) -> Walk[Mapping[str, object] | None]:
        count = yield from self._container(what, fixed=0x80, wide=0xDE)
        if count is None:
            return None
        unpack, size, path_most = self._unpacker.unpack, 0, self.limits.path_bytes
        text_most = self.limits.manifest_text_bytes
        large = PathMap() if count > LARGE_MAP_ENTRIES else None
        result: dict[str, object] = {}
        before = self.weight
        for _ in range(count):
            try:
                path = unpack()
            except msgpack.OutOfData:
                path = yield from self.value()
            except _DECODE_ERRORS as error:
                raise self._damaged(error) from None
            try:
                oid = unpack()
            except msgpack.OutOfData:
                oid = yield from self.value()
            except _DECODE_ERRORS as error:
                raise self._damaged(error) from None
            if not isinstance(path, str):
                raise malformed(f"a path in {what} is not text")
            if not isinstance(oid, str) or len(oid) > SHORT_TEXT_CHARS:
                raise malformed(f"an object id in {what} is not an id")
            size += length if (length := len(path)) <= path_most else self._path_size(path)
            if size > text_most:
                raise Refusal(Code.TOO_LARGE, f"{what} has more than {text_most} bytes of paths")
            if large is not None:
                large.add(path, oid)
            else:
                result[path] = oid
        self.weight = before + (size + count * _ENTRY_BYTES if large is None else large.held_bytes)
        if len(result) != count if large is None else not large.finish():
            raise malformed(f"{what} names a path twice")
        return result if large is None else large

    def _path_list(self, what: str) -> Walk[list[object] | None]:
        count = yield from self._container(what, fixed=0x90, wide=0xDC)
        if count is None:
            return None
        if what == "directories" and count > self.limits.manifest_directories:
            raise Refusal(
                Code.TOO_LARGE, f"{what} has {count} entries, the limit is {self.limits.manifest_directories}"
            )
        result: list[object] = []
        size, before = 0, self.weight
        for _ in range(count):
            path = yield from self.value()
            if not isinstance(path, str):
                raise malformed(f"a path in {what} is not text")
            size += self._path_size(path)
            if size > self.limits.manifest_text_bytes:
                raise Refusal(Code.TOO_LARGE, f"{what} has more than {self.limits.manifest_text_bytes} bytes of paths")
            result.append(path)
        self.weight = before + size + count * _PATH_BYTES
        return result

    def _path_size(self, path: str) -> int:
        if len(path) > self.limits.path_bytes:
            raise Refusal(Code.UNSAFE_PATH, f"a path of {len(path)} characters, the limit is {self.limits.path_bytes}")
        return len(path)

    def _container(self, what: str, *, fixed: int, wide: int) -> Walk[int | None]:
        """Take the header of a map or array that may also be nil; ``None`` for nil."""
        first = (yield from self.exactly(1))[0]
        if first == _NIL:
            return None
        if first & 0xF0 == fixed:
            return first & 0x0F
        if first not in {wide, wide + 1}:
            raise malformed(f"{what} has the wrong type")
        count = int.from_bytes((yield from self.exactly(2 if first == wide else 4)), "big")
        if count > self.limits.manifest_entries:
            raise Refusal(Code.TOO_LARGE, f"{what} has {count} entries, the limit is {self.limits.manifest_entries}")
        return count

    def exactly(self, count: int) -> Walk[bytes]:
        """Take exactly ``count`` raw bytes."""
        parts: list[bytes] = []
        while count:
            part = yield from self.piece(count)
            if len(part) == count and not parts:
                return part
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _take(self, read: Callable[[], T]) -> Walk[T]:
        while True:
            try:
                return read()
            except msgpack.OutOfData:
                yield
            except _DECODE_ERRORS as error:
                raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> Refusal:
        if "exceeds max_" in str(error) and "ext" not in str(error):
            return self._too_large()
        return malformed(f"the msgpack bytes are damaged ({type(error).__name__})")

    def _too_large(self) -> Refusal:
        return Refusal(Code.TOO_LARGE, f"one value of a record is larger than {self.limits.record_bytes} bytes")


_DECODE_ERRORS = (msgpack.FormatError, msgpack.StackError, msgpack.ExtraData, ValueError, TypeError, OverflowError)


_LIST_BYTES, _TEXT_BYTES, _MEMBER_BYTES = 56, 64, 224
"""What Python spends on a list, on a short text with its place in a list, and on a member of a map."""


class _Containers:
    """Count the lists and maps of a value while they are built: a one-byte list takes 64 bytes of memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0
        self.weight = 0
        self.items_left: int | None = None
        """Elements of all lists and maps together that may still come, where that is bounded."""

    def list(self, items: list[object]) -> list[object]:
        self._add(_LIST_BYTES + len(items) * _TEXT_BYTES)
        self._spend(len(items))
        return items

    def map(self, pairs: Sequence[tuple[object, object]]) -> dict[str, object]:
        self._add(_LIST_BYTES + len(pairs) * _MEMBER_BYTES)
        self._spend(len(pairs))
        return unique_map(pairs)

    def _spend(self, items: int) -> None:
        if self.items_left is not None:
            self.items_left -= items
            if self.items_left < 0:
                raise malformed("a value has too many elements")

    def _add(self, weight: int) -> None:
        self.count += 1
        self.weight += weight
        if self.count > self._most:
            raise Refusal(Code.TOO_LARGE, f"one value has more than {self._most} lists and maps")


SMALL_RECORD_BYTES = 16 * KIB
"""Records up to this size are decoded in one step: what that can cost in memory is bounded by their bytes."""


def decode_record(
    pieces: Iterator[bytes], size: int, *, snapshot_like: bool, limits: Limits = DEFAULT_LIMITS
) -> tuple[object, int]:
    """Decode one record of ``size`` bytes that are at hand, in pieces of at most :data:`FEED_BYTES`.

    Returns:
        The record, and what it costs in memory, in bytes, estimated from above.

    Raises:
        Refusal: as :class:`PullParser` does, or ``malformed`` when the record does not fill its bytes.
    """
    if size <= min(
        SMALL_RECORD_BYTES, limits.record_bytes, limits.manifest_entries, limits.manifest_directories,
        limits.manifest_text_bytes,
    ):  # fmt: skip
        data = b"".join(pieces)
        found = _decode_small(data, limits)
        if found is not None and (not snapshot_like or _few_members(found[0])):
            return found
        pieces = iter([data])  # the careful way says what is wrong
    parser = PullParser(limits)
    walk: Walk[object] = parser.snapshot_like() if snapshot_like else parser.value()
    fed = 0
    while True:
        try:
            next(walk)
        except StopIteration as stop:
            if fed != size or parser.buffered:
                raise malformed("a record does not fill its stated length") from None
            return stop.value, parser.weight
        piece = next(pieces, b"")
        if not piece:
            raise malformed("a record is longer than its stated length")
        fed += len(piece)
        parser.feed(piece)


def _few_members(record: object) -> bool:
    return isinstance(record, dict) and len(record) <= MAP_MEMBERS


def _decode_small(data: bytes, limits: Limits) -> tuple[object, int] | None:
    """Decode in one step; ``None`` for whatever is not plain."""
    containers = _Containers(limits.value_containers)
    try:
        value: object = msgpack.unpackb(
            data, raw=False, strict_map_key=True, list_hook=containers.list, object_pairs_hook=containers.map,
            ext_hook=_refuse_extension, max_str_len=len(data), max_bin_len=len(data), max_array_len=len(data),
            max_map_len=len(data), max_ext_len=0,
        )  # fmt: skip
        if containers.count > 1:
            check_nesting(value)
    except (Refusal, *_DECODE_ERRORS):
        return None
    return value, containers.weight + len(data) + _TEXT_BYTES


def _refuse_extension(_code: int, _data: bytes) -> object:
    raise malformed("msgpack extension types have no meaning here")


def unpack_whole(data: bytes, what: str, limits: Limits = DEFAULT_LIMITS, most_items: int | None = None) -> object:
    """Decode one small, complete msgpack value (a control body, a member of one).

    With ``most_items``, a value with more elements than that is refused: a byte of it can take a
    hundred of memory.
    """
    containers = _Containers(limits.value_containers)
    most = len(data) if most_items is None else min(len(data), most_items)
    containers.items_left = most
    try:
        value: object = msgpack.unpackb(
            data, raw=False, strict_map_key=True, list_hook=containers.list, object_pairs_hook=containers.map,
            ext_hook=_refuse_extension, max_str_len=len(data), max_bin_len=len(data), max_array_len=most,
            max_map_len=most, max_ext_len=0,
        )  # fmt: skip
    except _DECODE_ERRORS as error:
        if "exceeds max_array_len" in str(error) or "exceeds max_map_len" in str(error):
            raise malformed(f"{what} has more than {most} elements") from None
        raise malformed(f"{what} is not valid msgpack") from None
    check_nesting(value)
    return value

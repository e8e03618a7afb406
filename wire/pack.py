"""Pack files and pack indexes (protocol §3): the stored and transported form of many objects.

A pack is ``MUSE``, version, object count, then per object its id text, length and content, then a SHA-256 of
all before. Reading is a push parser over pieces of any size; writing gives the bytes to append. Neither holds
more than one piece. The index (``.idx``) maps an id to where its content lies in the pack.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme, format_id, parse_id
from wire.limits import DEFAULT_LIMITS, Limits

PACK_MAGIC = b"MUSE"
INDEX_MAGIC = b"MUSI"
VERSION = 1
PACK_HEADER_BYTES = 13
RECORD_HEADER_BYTES = 79
INDEX_RECORD_BYTES = 87
FOOTER_BYTES = 32
ID_TEXT_BYTES = 71
_PIECE_BYTES = 256 * 1024
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class PackObjectBegin:
    """An object's record header: its content follows in pieces."""

    object_id: bytes
    offset: int
    """Of the content, in bytes from the start of the pack."""
    size: int


@dataclass(frozen=True, slots=True)
class PackPiece:
    """The next bytes of the current object's content."""

    content: bytes


@dataclass(frozen=True, slots=True)
class PackObjectEnd:
    """The current object is complete."""


@dataclass(frozen=True, slots=True)
class PackObject:
    """A small object that had arrived whole, in place of the three events above; see :func:`walk_pack`."""

    object_id: bytes
    offset: int
    """As in :class:`PackObjectBegin`."""
    content: memoryview


@dataclass(frozen=True, slots=True)
class PackEnd:
    """The pack is complete and its footer matches."""

    count: int
    digest: bytes = field(default=b"", compare=False)
    """SHA-256 of the whole pack, footer included: its id."""


@dataclass(frozen=True, slots=True)
class PackRun:
    """Small objects that lie one behind the other and had arrived whole; their ids have not been looked at.

    See :func:`walk_pack`.
    """

    offset: int
    """Of the first record header, in bytes from the start of the pack."""
    data: bytes
    """Record headers and contents, as they lie there."""
    contents: list[tuple[int, int]]
    """Where each content begins in ``data``, and its length; its record header stands before it."""

    def id_text_at(self, start: int) -> bytes:
        """Give the id text of the content that begins at ``start``: whatever stands there."""
        return self.data[start - RECORD_HEADER_BYTES : start - _U64.size]


PackEvent = PackObjectBegin | PackPiece | PackObjectEnd | PackObject | PackRun | PackEnd


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where one object's content lies in a pack."""

    object_id: bytes
    offset: int
    size: int


class ByteQueue:
    """Bytes that arrived and were not taken yet; taking is by exact count or by piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self.taken = 0
        """Bytes taken in all: the offset of the next byte."""

    def __len__(self) -> int:
        return len(self._buffer) - self._start

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def number_at(self, offset: int) -> int:
        """Read a u64 that lies ``offset`` bytes behind the front, without taking it."""
        number: int = _U64.unpack_from(self._buffer, self._start + offset)[0]
        return number

    def records_at_front(self, most: int, whole_bytes: int) -> list[tuple[int, int]]:
        """Find up to ``most`` records of a pack that are here whole, from the front, none above ``whole_bytes``.

        Returns:
            Where each content begins, from the front, and its length; nothing is taken.
        """
        buffer, start, end = self._buffer, self._start, len(self._buffer)
        found: list[tuple[int, int]] = []
        at = start + RECORD_HEADER_BYTES
        while at <= end and len(found) < most:
            (size,) = _U64.unpack_from(buffer, at - _U64.size)
            if size > whole_bytes or at + size > end:
                break
            found.append((at - start, size))
            at += size + RECORD_HEADER_BYTES
        return found

    def take(self, count: int) -> bytes:
        """Take up to ``count`` bytes from the front."""
        part = bytes(memoryview(self._buffer)[self._start : self._start + count])
        self._start += len(part)
        self.taken += len(part)
        return part


def take_exactly(queue: ByteQueue, count: int) -> Generator[None, None, bytes]:
    """Take exactly ``count`` (small) bytes; yields while they have not all arrived."""
    while len(queue) < count:
        yield
    return queue.take(count)


def walk_pack(
    queue: ByteQueue, limits: Limits = DEFAULT_LIMITS, whole_bytes: int = -1, *, runs: bool = False
) -> Generator[PackEvent | None, None, None]:
    """Parse one pack out of a queue; yields ``None`` when it needs more bytes.

    Offsets are counted from where the pack starts in the queue, so that a pack inside a wire mpack parses the
    same way. Objects of up to ``whole_bytes`` that are in the queue whole are given by one :class:`PackObject` each,
    three times as fast; others by their beginning, pieces and end. With ``runs`` as many of the small ones as there are
    come in one :class:`PackRun`: then the caller, who hashes them, has to hold their ids against what stands there.
    """
    origin = queue.taken
    digest = hashlib.sha256()
    header = yield from take_exactly(queue, PACK_HEADER_BYTES)
    digest.update(header)
    if header[:4] != PACK_MAGIC:
        raise malformed("a pack does not start with MUSE")
    if header[4] != VERSION:
        raise malformed(f"a pack of version {header[4]} is unknown")
    (count,) = _U64.unpack_from(header, 5)
    if count > limits.objects_per_push:
        raise Refusal(Code.TOO_LARGE, f"a pack of {count} objects, the limit is {limits.objects_per_push}")
    most = min(whole_bytes, limits.object_bytes)
    to_come = count
    while to_come:
        if runs and (contents := queue.records_at_front(to_come, most)):
            offset = queue.taken - origin
            data = queue.take(sum(contents[-1]))
            digest.update(data)
            to_come -= len(contents)
            yield PackRun(offset, data, contents)
            continue
        to_come -= 1
        there = len(queue) - RECORD_HEADER_BYTES
        if there >= 0 and (size := queue.number_at(ID_TEXT_BYTES)) <= min(there, whole_bytes):
            offset = queue.taken - origin + RECORD_HEADER_BYTES
            record = queue.take(RECORD_HEADER_BYTES + size)
            digest.update(record)
            yield PackObject(
                read_record_header(record, offset, limits).object_id, offset, memoryview(record)[RECORD_HEADER_BYTES:]
            )
            continue
        head = yield from take_exactly(queue, RECORD_HEADER_BYTES)
        digest.update(head)
        begin = read_record_header(head, queue.taken - origin, limits)
        yield begin
        left = begin.size
        while left:
            piece = queue.take(min(left, _PIECE_BYTES))
            if not piece:
                yield None
                continue
            digest.update(piece)
            left -= len(piece)
            yield PackPiece(piece)
        yield PackObjectEnd()
    footer = yield from take_exactly(queue, FOOTER_BYTES)
    if footer != digest.digest():
        raise malformed("a pack's footer does not match its bytes")
    digest.update(footer)
    yield PackEnd(count, digest.digest())


class PackReader:
    """Push parser over a whole pack file."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._queue = ByteQueue()
        self._steps = walk_pack(self._queue, limits)
        self.finished = False

    def receive_data(self, data: bytes) -> Iterator[PackEvent]:
        """Take the next bytes and give the events they complete; empty ``data`` ends the file."""
        if not data:
            if not self.finished:
                raise malformed("a pack is cut")
            return
        self._queue.append(data)
        if not self.finished:
            while (event := next(self._steps)) is not None:
                yield event
                if isinstance(event, PackEnd):
                    self.finished = True
                    break
        if self.finished and len(self._queue):
            raise malformed("a pack has bytes after its footer")


class PackWriter:
    """Write a pack piece by piece: :meth:`begin`, then per object head and content, then :meth:`finish`."""

    def __init__(self, count: int, *, keep_entries: bool = True) -> None:
        self._count = count
        self._written = 0
        self._keep_entries = keep_entries
        self._digest = hashlib.sha256()
        self._offset = 0
        self.entries: list[IndexEntry] = []
        """What :func:`write_index` needs; empty when the caller keeps its own list."""

    def begin(self) -> bytes:
        """Give the pack header."""
        return self._emit(pack_header(self._count))

    def head(self, object_id: bytes, size: int, *, counted: bool = True) -> bytes:
        """Give one record header; the caller passes exactly ``size`` bytes to :meth:`content` after it.

        One that is not ``counted`` is passed to :meth:`content` together with them.
        """
        head = record_header(object_id, size)
        self._written += 1
        if self._keep_entries:
            self.entries.append(IndexEntry(object_id, self._offset + len(head), size))
        return self._emit(head) if counted else head

    def content(self, piece: bytes) -> bytes:
        """Count a piece of content and give it back."""
        return self._emit(piece)

    def finish(self) -> bytes:
        """Give the footer; raises ``ValueError`` when the announced count was not kept."""
        if self._written != self._count:
            raise ValueError(f"{self._written} objects written, {self._count} announced")
        return self._digest.digest()

    def _emit(self, data: bytes) -> bytes:
        self._digest.update(data)
        self._offset += len(data)
        return data


def pack_header(count: int) -> bytes:
    """Give the first bytes of a pack of ``count`` objects."""
    return PACK_MAGIC + bytes([VERSION]) + _U64.pack(count)


def record_header(object_id: bytes, size: int) -> bytes:
    """Give what stands before an object's ``size`` content bytes."""
    return id_text(object_id) + _U64.pack(size)


def id_text(object_id: bytes) -> bytes:
    """Write an id as a pack does: always 71 characters, the prefix included, in both schemes."""
    return format_id(object_id, Scheme.TYPED).encode("ascii")


def pack_size(sizes: Iterable[int]) -> int:
    """Compute a pack's length in bytes from its objects' sizes."""
    return PACK_HEADER_BYTES + FOOTER_BYTES + sum(RECORD_HEADER_BYTES + size for size in sizes)


def write_index(entries: Iterable[IndexEntry]) -> bytes:
    """Write a ``.idx`` for a pack; an object that is in the pack twice is listed once."""
    unique = {entry.object_id: entry for entry in entries}
    out = bytearray(INDEX_MAGIC + bytes([VERSION]) + _U64.pack(len(unique)))
    for _, entry in sorted(unique.items()):
        out += id_text(entry.object_id) + _U64.pack(entry.offset) + _U64.pack(entry.size)
    out += hashlib.sha256(out).digest()
    return bytes(out)


class PackIndex:
    """A ``.idx`` file in memory (or mapped); look-ups by bisection.

    Raises:
        Refusal: ``malformed`` when the bytes are not a sound index.
    """

    def __init__(self, data: bytes | memoryview, *, verify: bool = True) -> None:
        view = memoryview(data)
        if len(view) < PACK_HEADER_BYTES + FOOTER_BYTES or view[:4] != INDEX_MAGIC or view[4] != VERSION:
            raise malformed("not a pack index")
        self._count: int = _U64.unpack_from(view, 5)[0]
        if len(view) != PACK_HEADER_BYTES + self._count * INDEX_RECORD_BYTES + FOOTER_BYTES:
            raise malformed("a pack index is cut or padded")
        if verify and hashlib.sha256(view[:-FOOTER_BYTES]).digest() != view[-FOOTER_BYTES:]:
            raise malformed("a pack index's footer does not match its bytes")
        self._view = view

    def __len__(self) -> int:
        return self._count

    def find(self, object_id: bytes) -> IndexEntry | None:
        """Look one object up."""
        wanted = id_text(object_id)
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._id_at(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return self._entry(low) if low < self._count and self._id_at(low) == wanted else None

    def __iter__(self) -> Iterator[IndexEntry]:
        return (self._entry(at) for at in range(self._count))

    def _id_at(self, at: int) -> bytes:
        start = PACK_HEADER_BYTES + at * INDEX_RECORD_BYTES
        return bytes(self._view[start : start + ID_TEXT_BYTES])

    def _entry(self, at: int) -> IndexEntry:
        start = PACK_HEADER_BYTES + at * INDEX_RECORD_BYTES + ID_TEXT_BYTES
        (offset,) = _U64.unpack_from(self._view, start)
        (size,) = _U64.unpack_from(self._view, start + 8)
        return IndexEntry(_parse_id_text(self._id_at(at)), offset, size)


def read_record_header(head: bytes | memoryview, offset: int, limits: Limits) -> PackObjectBegin:
    """Read what stands before a content that lies at ``offset``; more bytes may follow it.

    Raises:
        Refusal: ``malformed``, ``too_large``.
    """
    (size,) = _U64.unpack_from(head, ID_TEXT_BYTES)
    if size > limits.object_bytes:
        raise Refusal(Code.TOO_LARGE, f"an object of {size} bytes in a pack, the limit is {limits.object_bytes}")
    return PackObjectBegin(_parse_id_text(bytes(head[:ID_TEXT_BYTES])), offset, size)


def _parse_id_text(text: bytes) -> bytes:
    try:
        return parse_id(text.decode("ascii"), Scheme.TYPED, "a pack's object id")
    except UnicodeDecodeError:
        raise malformed("a pack's object id is not ASCII") from None

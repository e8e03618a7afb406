"""Wire MPacks (protocol §3): one file with everything a push or fetch carries.

``MUSE``, version, section count, a table of (type, offset, length), the sections, a SHA-256 of all before. The
reader is a push parser that walks the sections in file order and hands object contents on in pieces; the
writer is told every section's length first, so that it never has to go back. A pack file shares the magic; the
two are told apart by what they are expected to be, not by content.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import msgpack

from wire.errors import Code, Refusal, malformed
from wire.limits import DEFAULT_LIMITS, Limits
from wire.pack import FOOTER_BYTES, PACK_MAGIC, VERSION, ByteQueue, PackEvent, take_exactly, walk_pack
from wire.pull import FEED_BYTES, SMALL_RECORD_BYTES, PullParser, decode_record

MEDIA_TYPE = "application/x-muse-pack"
HEADER_BYTES = 6
TABLE_ENTRY_BYTES = 17
_ENTRY = struct.Struct("<BQQ")
_U64 = struct.Struct("<Q")
_SECTIONS_MAX = 255
HEAD_MOST_BYTES = HEADER_BYTES + _SECTIONS_MAX * TABLE_ENTRY_BYTES
"""Header and table are no longer."""


class Section(enum.IntEnum):
    """Section types."""

    OBJECTS = 1
    COMMITS = 2
    SNAPSHOTS = 3
    TAGS = 4
    OBJECTS_ZSTD = 5


@dataclass(frozen=True, slots=True)
class SectionBegin:
    """A section begins; ``count`` is its number of records (``None`` for object sections)."""

    section: Section
    count: int | None
    offset: int
    """Of the section, from the start of the file."""
    length: int


@dataclass(frozen=True, slots=True)
class MPackRecord:
    """One decoded record of a COMMITS, SNAPSHOTS or TAGS section."""

    section: Section
    record: object


@dataclass(frozen=True, slots=True)
class MPackEnd:
    """The file is complete and its footer matches; ``digest`` is the SHA-256 of all bytes: the mpack id."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class MPackRecordBegin:
    """A record that is not decoded: its bytes follow in :class:`MPackRecordPiece`."""

    section: Section
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class MPackRecordPiece:
    """The next bytes of a record that is not decoded."""

    content: bytes


MPackEvent = SectionBegin | PackEvent | MPackRecord | MPackRecordBegin | MPackRecordPiece | MPackEnd


class MPackReader:
    """Push parser over a wire mpack; memory is bounded by one record.

    Args:
        limits: the limits in force.
        decode: whether records are decoded; else their bytes are handed on, for a second reading.
        whole_bytes: objects up to this size may come in one event each (see :func:`wire.pack.walk_pack`).
        runs: such objects come many at a time, and the caller holds their ids against what it hashes.
    """

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, *, decode: bool = True, whole_bytes: int = -1, runs: bool = False
    ) -> None:
        self._limits = limits
        self._decode = decode
        self._whole_bytes = whole_bytes
        self._runs = runs
        self._queue = ByteQueue()
        self._covered = hashlib.sha256()
        self._tail = b""
        self._steps = self._walk()
        self._received = 0
        self.finished = False

    def receive_data(self, data: bytes) -> Iterator[MPackEvent]:
        """Take the next bytes and give the events they complete; empty ``data`` ends the file.

        Raises:
            Refusal: ``malformed``, ``too_large`` or whatever a record's bytes deserve.
        """
        if not data:
            if not self.finished:
                raise malformed("an mpack is cut")
            return
        self._received += len(data)
        if self._received > self._limits.mpack_bytes:
            raise Refusal(Code.TOO_LARGE, f"an mpack has more than {self._limits.mpack_bytes} bytes")
        if len(data) >= FOOTER_BYTES:  # the footer is not covered by itself: keep the last 32 bytes back
            self._covered.update(self._tail)
            self._covered.update(memoryview(data)[:-FOOTER_BYTES])
            self._tail = data[-FOOTER_BYTES:]
        else:
            held = self._tail + data
            self._covered.update(held[:-FOOTER_BYTES])
            self._tail = held[-FOOTER_BYTES:]
        self._queue.append(data)
        while not self.finished:
            event = next(self._steps)
            if event is None:
                return
            yield event
        if len(self._queue):
            raise malformed("an mpack has bytes after its footer")

    def _walk(self) -> Generator[MPackEvent | None, None, None]:
        queue = self._queue
        header = yield from take_exactly(queue, HEADER_BYTES)
        if header[:4] != PACK_MAGIC or header[4] != VERSION:
            raise malformed("not an mpack of version 1")
        table = yield from take_exactly(queue, header[5] * TABLE_ENTRY_BYTES)
        for section, offset, length in _sections(table, queue.taken):
            yield from self._skip_to(offset)
            if section in {Section.OBJECTS, Section.OBJECTS_ZSTD}:
                yield SectionBegin(section, None, offset, length)
                yield from walk_pack(queue, self._limits, self._whole_bytes, runs=self._runs)
            else:
                yield from self._records(section, offset, length)
            if queue.taken != offset + length:
                raise malformed(f"the {section.name} section does not have the length its table entry states")
        footer = yield from take_exactly(queue, FOOTER_BYTES)
        if len(queue):
            raise malformed("an mpack has bytes after its footer")
        if footer != self._covered.digest():
            raise malformed("an mpack's footer does not match its bytes")
        self.finished = True
        self._covered.update(footer)
        yield MPackEnd(self._covered.digest())

    def _skip_to(self, offset: int) -> Generator[None, None, None]:
        while self._queue.taken < offset:
            if not self._queue.take(offset - self._queue.taken):
                yield

    def _records(self, section: Section, offset: int, length: int) -> Generator[MPackEvent | None, None, None]:
        (count,) = _U64.unpack((yield from take_exactly(self._queue, 8)))
        most = self._limits.commits_per_push
        if count > most:
            raise Refusal(Code.TOO_LARGE, f"the {section.name} section has {count} records, the limit is {most}")
        yield SectionBegin(section, count, offset, length)
        for _ in range(count):
            (size,) = _U64.unpack((yield from take_exactly(self._queue, 8)))
            if section is not Section.SNAPSHOTS and size > self._limits.record_bytes:
                raise Refusal(Code.TOO_LARGE, f"a record of {size} bytes, the limit is {self._limits.record_bytes}")
            if self._decode and size <= SMALL_RECORD_BYTES:
                data = yield from take_exactly(self._queue, size)
                like = section is Section.SNAPSHOTS
                yield MPackRecord(
                    section, decode_record(iter([data]), size, snapshot_like=like, limits=self._limits)[0]
                )
                continue
            if self._decode:
                yield MPackRecord(section, (yield from self._record(section, size)))
                continue
            yield MPackRecordBegin(section, size)
            while size:
                while not len(self._queue):
                    yield None
                piece = self._queue.take(size)
                size -= len(piece)
                yield MPackRecordPiece(piece)

    def _record(self, section: Section, size: int) -> Generator[None, None, object]:
        parser = PullParser(self._limits)
        walk = parser.snapshot_like() if section is Section.SNAPSHOTS else parser.value()
        fed = 0
        while True:
            try:
                next(walk)
            except StopIteration as stop:
                record: object = stop.value
                break
            if fed == size:
                raise malformed("a record is longer than its stated length")
            while not len(self._queue):
                yield
            piece = self._queue.take(min(size - fed, FEED_BYTES))
            fed += len(piece)
            parser.feed(piece)
        if fed != size or parser.buffered:
            raise malformed("a record does not fill its stated length")
        return record


class MPackWriter:
    """Write a wire mpack: :meth:`begin` with every section's length, then the sections' bytes in order."""

    def __init__(self, sections: Iterable[tuple[Section, int]]) -> None:
        self._sections = list(sections)
        self._expected = sum(length for _, length in self._sections)
        self._written = 0
        self._covered = hashlib.sha256()

    def begin(self) -> bytes:
        """Give header and table."""
        head = PACK_MAGIC + bytes([VERSION, len(self._sections)])
        offset = HEADER_BYTES + TABLE_ENTRY_BYTES * len(self._sections)
        for section, length in self._sections:
            head += _ENTRY.pack(section, offset, length)
            offset += length
        self._covered.update(head)
        return head

    def content(self, piece: bytes) -> bytes:
        """Count section bytes and give them back."""
        self._written += len(piece)
        self._covered.update(piece)
        return piece

    def finish(self) -> bytes:
        """Give the footer; raises ``ValueError`` when the sections do not have the stated lengths."""
        if self._written != self._expected:
            raise ValueError(f"{self._written} section bytes written, {self._expected} stated")
        footer = self._covered.digest()
        self._covered.update(footer)
        return footer

    def digest(self) -> bytes:
        """Give the SHA-256 of the whole file, once it is finished: the mpack id."""
        return self._covered.digest()


def find_section(head: bytes, wanted: Section) -> tuple[int, int] | None:
    """Find a section by the first :data:`HEAD_MOST_BYTES` of an mpack: its offset and its length.

    Raises:
        Refusal: ``malformed``.
    """
    if head[:4] != PACK_MAGIC or len(head) < HEADER_BYTES or head[4] != VERSION:
        raise malformed("not an mpack of version 1")
    end = HEADER_BYTES + head[5] * TABLE_ENTRY_BYTES
    if len(head) < end:
        raise malformed("an mpack is cut")
    found = {section: (offset, length) for section, offset, length in _sections(head[HEADER_BYTES:end], end)}
    return found.get(wanted)


def record_section_head(count: int) -> bytes:
    """Give the first bytes of a COMMITS, SNAPSHOTS or TAGS section."""
    return _U64.pack(count)


def record_bytes(record: object) -> bytes:
    """Encode one record of such a section, its length included."""
    packed = cast("bytes", msgpack.packb(record, use_bin_type=True))
    return _U64.pack(len(packed)) + packed


def record_head(size: int) -> bytes:
    """Give what stands before a record of ``size`` bytes that is written piece by piece."""
    return _U64.pack(size)


def _sections(table: bytes, start: int) -> list[tuple[Section, int, int]]:
    """Read the table; sections must be of known type, apart from one another, and come once each."""
    found: list[tuple[Section, int, int]] = []
    for kind, offset, length in _ENTRY.iter_unpack(table):
        try:
            found.append((Section(kind), offset, length))
        except ValueError:
            raise malformed(f"unknown mpack section type {kind}") from None
    found.sort(key=lambda entry: entry[1])
    if len({section for section, _, _ in found}) != len(found):
        raise malformed("an mpack has a section twice")
    for _, offset, length in found:
        if offset < start:
            raise malformed("mpack sections overlap")
        start = offset + length
    return found

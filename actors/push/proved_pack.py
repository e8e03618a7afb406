"""Proving an uploaded mpack or bundle: every object hashed against its id in one pass over the bytes.

What is proved is noted in spools, 49 bytes for each object, so that a pack of half a million objects costs no memory.
Contents that lie raw in the mpack stay where they are, to be read by byte range; those that came compressed, or in a
bundle, are written into a pack of their own, for what is stored is stored raw (protocol §2).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgpack

from actors.push.pack_file import PackFile
from actors.spool import Spool, SpoolDirectory
from storage.rows import StoredBlob
from wire.bundle import BundleEnd, BundleReader, looks_like_bundle
from wire.errors import Code, Refusal, malformed
from wire.frames import INLINE_BYTES, Event, Object, ObjectBegin, ObjectEnd, ObjectPiece, Record
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_id
from wire.inflate import inflate, inflate_stream
from wire.limits import Limits
from wire.mpack import (
    MPackEnd,
    MPackEvent,
    MPackReader,
    MPackRecordBegin,
    MPackRecordPiece,
    Section,
    SectionBegin,
)
from wire.pack import PackObject, PackObjectBegin, PackObjectEnd, PackPiece
from wire.path_map import MAP_HEAD, PathMap
from wire.pull import FEED_BYTES, decode_record

_ENTRY = struct.Struct("<?32sQQ")
"""Whether it lies in the pack of our own, id, offset, size."""
_RECORD_KINDS = {Section.COMMITS: b"C", Section.SNAPSHOTS: b"S", Section.TAGS: b"T"}
_KINDS = {b"C": "commits", b"S": "snapshots", b"D": "snapshot_deltas", b"T": "tags"}
_KINDS_OF_LISTS = {name: kind for kind, name in _KINDS.items()}
_RECORD_HEAD = struct.Struct("<cQ")


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass(slots=True)
class _Current:
    """The object whose content is arriving."""

    object_id: bytes
    offset: int
    size: int
    hasher: _Hasher | None
    """``None`` while it is compressed: a typed id begins with the length, which is not known yet."""
    encoded: Spool | None = None


class PackProver:
    """Take an upload's bytes in order, in worker threads, and say what is proved.

    Args:
        scheme: of the repository's ids.
        spools: where notes, and what has to be written anew, go.
        limits: the limits in force.
        expected: SHA-256 that the whole upload must have.
    """

    def __init__(self, scheme: Scheme, spools: SpoolDirectory, limits: Limits, expected: bytes) -> None:
        self._scheme = scheme
        self._spools = spools
        self._limits = limits
        self._expected = expected
        self._mpack: MPackReader | None = None
        self._bundle: BundleReader | None = None
        self._whole = hashlib.sha256()
        """Of a bundle; an mpack's reader has it."""
        self._section: SectionBegin | None = None
        self._current: _Current | None = None
        self._entries = spools.new()
        self._records = spools.new()
        self._own: PackFile | None = None
        self._inflated = 0
        self.objects = 0
        self.commits = 0
        self.objects_in_place = 0
        """Objects that stay in the uploaded file itself."""

    def take(self, data: bytes) -> None:
        """Take the next bytes, ``b""`` at the end; blocking.

        Raises:
            Refusal: ``malformed``, ``bad_object_hash``, ``bomb``, ``too_large``.
        """
        if self._mpack is None and self._bundle is None and data:
            if looks_like_bundle(data):
                self._bundle = BundleReader(self._limits)
            else:
                self._mpack = MPackReader(self._limits, decode=False, whole_bytes=INLINE_BYTES)
        if self._bundle is not None:
            self._whole.update(data)
            for event in self._bundle.receive_data(data):
                self._take_bundle(event)
            if not data:
                self._check_whole(self._whole.digest())
        elif self._mpack is not None:
            for mpack_event in self._mpack.receive_data(data):
                self._take_mpack(mpack_event)
        else:
            raise malformed("the upload is empty")

    def _check_whole(self, digest: bytes) -> None:
        if digest != self._expected:
            raise Refusal(Code.BAD_OBJECT_HASH, "the upload's bytes do not hash to its mpack_key")

    def finish(self) -> tuple[bytes, Path] | None:
        """Complete the pack of our own, if there is one: its id and its file; blocking."""
        return None if self._own is None else self._own.finish()

    def close(self) -> None:
        """Let go of what is open."""
        if self._own is not None:
            self._own.close()

    def blobs(self, own: bytes | None, most: int) -> Iterator[list[StoredBlob]]:
        """Give where every object lies, at most ``most`` at once; blocking."""
        packs = {False: self._expected, True: own}
        for at in range(0, self._entries.size, most * _ENTRY.size):
            block = self._entries.read(at, min(most * _ENTRY.size, self._entries.size - at))
            yield [
                StoredBlob(object_id, size, packs[is_own], offset)
                for is_own, object_id, offset, size in _ENTRY.iter_unpack(block)
            ]

    def records(self) -> Iterator[Record]:
        """Give the records, in the order they came in; blocking.

        Snapshots come before the commits of one bundle, whose lists may stand in any order.
        """
        with self._records.open() as file:
            while head := file.read(_RECORD_HEAD.size):
                kind, size = _RECORD_HEAD.unpack(head)
                record, weight = decode_record(
                    _read_pieces(file, size), size, snapshot_like=kind in b"SD", limits=self._limits
                )
                if kind == b"S" and isinstance(record, dict) and record.get("manifest") is None:
                    kind = b"D"
                yield Record(_KINDS[kind], record, weight)

    def _take_mpack(self, event: MPackEvent) -> None:
        match event:
            case PackObject(object_id, offset, whole):
                self._take_object(object_id, offset, whole)
            case PackPiece(content):
                self._take_piece(content)
            case PackObjectBegin():
                self._begin(event)
            case PackObjectEnd():
                self._end()
            case MPackRecordBegin(section, size):
                self._note_head(_RECORD_KINDS[section], size)
            case MPackRecordPiece(content):
                self._records.add(content)
            case SectionBegin():
                self._section = event
            case MPackEnd(digest):
                self._check_whole(digest)

    def _take_object(self, object_id: bytes, offset: int, content: memoryview) -> None:
        """Take a small object that is there whole."""
        assert self._section is not None
        self._count()
        if self._section.section is not Section.OBJECTS:
            self._admit_small(object_id, "zstd", bytes(content))
            return
        self._spend(len(content))
        if hash_bytes(Kind.BLOB, content, self._scheme) != object_id:
            raise self._bad_hash(object_id)
        self.objects_in_place += 1
        self._entries.add(_ENTRY.pack(False, object_id, self._section.offset + offset, len(content)))

    def _begin(self, begin: PackObjectBegin) -> None:
        assert self._section is not None
        self._count()
        if self._section.section is Section.OBJECTS:
            self._spend(begin.size)
            hasher = hasher_for(Kind.BLOB, begin.size, self._scheme)
            self._current = _Current(begin.object_id, self._section.offset + begin.offset, begin.size, hasher)
        else:
            self._current = _Current(begin.object_id, 0, begin.size, None, Spool(self._spools))

    def _take_piece(self, content: bytes) -> None:
        current = self._current
        assert current is not None
        if current.hasher is not None:
            current.hasher.update(content)
        elif current.encoded is not None:
            current.encoded.add(content)

    def _end(self) -> None:
        current, self._current = self._current, None
        assert current is not None
        if current.hasher is None:
            assert current.encoded is not None
            self._admit_encoded(current.object_id, "zstd", current.encoded)
            return
        if current.hasher.digest() != current.object_id:
            raise self._bad_hash(current.object_id)
        self.objects_in_place += 1
        self._entries.add(_ENTRY.pack(False, current.object_id, current.offset, current.size))

    def _take_bundle(self, event: Event | BundleEnd) -> None:
        match event:
            case Object(object_id, encoding, base, content):
                self._count()
                self._admit_small(parse_id(object_id, self._scheme, "object_id"), _plain(encoding, base), content)
            case ObjectBegin():
                self._current = _Current(b"", 0, 0, None, Spool(self._spools))
            case ObjectPiece(content):
                self._take_piece(content)
            case ObjectEnd(object_id, encoding, base):
                current, self._current = self._current, None
                assert current is not None
                assert current.encoded is not None
                self._count()
                known = parse_id(object_id, self._scheme, "object_id")
                self._admit_encoded(known, _plain(encoding, base), current.encoded)
            case Record(kind, record):
                self._note_record(_KINDS_OF_LISTS[kind], record)
            case _:
                pass

    def _admit_small(self, object_id: bytes, encoding: str, encoded: bytes) -> None:
        """Inflate, prove and write into the pack of our own; by way of the disk if it gets large."""
        budget = self._budget()
        try:
            content = inflate(encoding, encoded, min(budget, INLINE_BYTES), self._limits)
        except Refusal as refusal:
            if refusal.code is not Code.BOMB or budget <= INLINE_BYTES:
                raise
            spool = Spool(self._spools)
            spool.add(encoded)
            self._admit_large(object_id, encoding, spool)
            return
        self._spend(len(content))
        if hash_bytes(Kind.BLOB, content, self._scheme) != object_id:
            raise self._bad_hash(object_id)
        own = self._own = self._own or PackFile(self._spools)
        offset = own.add(object_id, len(content), [content])
        self._entries.add(_ENTRY.pack(True, object_id, offset, len(content)))

    def _admit_encoded(self, object_id: bytes, encoding: str, encoded: Spool) -> None:
        if encoded.in_memory:
            self._admit_small(object_id, encoding, encoded.whole())
        else:
            self._admit_large(object_id, encoding, encoded)

    def _budget(self) -> int:
        return min(self._limits.object_bytes, self._limits.inflated_push_bytes - self._inflated)

    def _admit_large(self, object_id: bytes, encoding: str, encoded: Spool) -> None:
        budget = self._budget()
        own = self._own = self._own or PackFile(self._spools)
        path, size = self._spools.new_path(), 0
        try:
            with path.open("wb") as file:
                for piece in inflate_stream(encoding, encoded.pieces(), budget, self._limits):
                    file.write(piece)
                    size += len(piece)
            self._spend(size)
            hasher = hasher_for(Kind.BLOB, size, self._scheme)
            for piece in file_pieces(path):
                hasher.update(piece)
            if hasher.digest() != object_id:
                raise self._bad_hash(object_id)
            offset = own.add(object_id, size, file_pieces(path))
        finally:
            path.unlink()
            encoded.discard()
        self._entries.add(_ENTRY.pack(True, object_id, offset, size))

    def _note_record(self, kind: bytes, record: object) -> None:
        pieces = list(packed_record(record))
        self._note_head(kind, sum(map(len, pieces)))
        for piece in pieces:
            self._records.add(piece)

    def _note_head(self, kind: bytes, size: int) -> None:
        if kind == b"C":
            self.commits += 1
            if self.commits > self._limits.commits_per_push:
                raise Refusal(Code.TOO_LARGE, f"a push has at most {self._limits.commits_per_push} commits")
        self._records.add(_RECORD_HEAD.pack(kind, size))

    def _count(self) -> None:
        self.objects += 1
        if self.objects > self._limits.objects_per_push:
            raise Refusal(Code.TOO_LARGE, f"a push has at most {self._limits.objects_per_push} objects")

    def _spend(self, size: int) -> None:
        most = self._limits
        if size > most.object_bytes:
            raise Refusal(Code.TOO_LARGE, f"an object of {size} bytes, the limit is {most.object_bytes}")
        self._inflated += size
        if self._inflated > most.inflated_push_bytes:
            raise Refusal(Code.BOMB, f"a push has more than {most.inflated_push_bytes} bytes of objects")

    def _bad_hash(self, object_id: bytes) -> Refusal:
        shown = format_id(object_id, self._scheme)
        return Refusal(Code.BAD_OBJECT_HASH, f"object {shown} does not hash to its id", id=shown)


def packed_record(record: object) -> Iterator[bytes]:
    """Write a record as it came, maps of paths included that are kept as bytes."""
    if not isinstance(record, dict) or not any(isinstance(value, PathMap) for value in record.values()):
        yield msgpack.packb(record, use_bin_type=True)
        return
    yield MAP_HEAD + len(record).to_bytes(4, "big")
    for key, value in record.items():
        yield msgpack.packb(key)
        if isinstance(value, PathMap):
            yield from value.pieces()
        else:
            yield msgpack.packb(value, use_bin_type=True)


def _read_pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, FEED_BYTES))):
        yield piece
        size -= len(piece)


def file_pieces(path: Path) -> Iterator[bytes]:
    """Read a file in pieces; blocking."""
    with path.open("rb") as file:
        while piece := file.read(256 * 1024):
            yield piece


def _plain(encoding: str, base: object) -> str:
    if encoding.startswith("delta+") or base is not None:
        raise malformed("a bundle's objects are not deltas")
    return encoding

"""The older container (protocol §3): one msgpack map of commits, snapshots, objects and tags.

It is accepted wherever an mpack is, told apart by the first bytes, and never produced. Contents come out in
pieces, like those of a pack, so that a bundle of any size is read over bounded memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from wire.errors import Code, Refusal, malformed, shown
from wire.frames import SHORT_MEMBERS, Event, Object, ObjectBegin, ObjectEnd, ObjectPiece, Record
from wire.inflate import ENCODINGS
from wire.limits import DEFAULT_LIMITS, MIB, Limits
from wire.pack import PACK_MAGIC
from wire.pull import FEED_BYTES, PullParser

_INLINE_BYTES = MIB
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class BundleEnd:
    """The bundle is complete; ``members`` are its small top-level members (branch_heads, …)."""

    members: dict[str, object]


def looks_like_bundle(head: bytes) -> bool:
    """Tell a bundle from an mpack by its first bytes: a msgpack map instead of ``MUSE``."""
    return not head.startswith(PACK_MAGIC) and bool(head) and (head[0] & 0xF0 == 0x80 or head[0] in {0xDE, 0xDF})


class BundleReader:
    """Push parser over a bundle."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._parser = PullParser(limits)
        self._steps = self._walk()
        self._received = 0
        self.finished = False

    def receive_data(self, data: bytes) -> Iterator[Event | BundleEnd]:
        """Take the next bytes and give the events they complete; empty ``data`` ends the bundle."""
        if not data:
            if not self.finished:
                raise malformed("a bundle is cut")
            return
        self._received += len(data)
        if self._received > self._limits.mpack_bytes:
            raise Refusal(Code.TOO_LARGE, f"a bundle has more than {self._limits.mpack_bytes} bytes")
        view = memoryview(data)
        for at in range(0, len(view), FEED_BYTES):
            if self.finished:
                raise malformed("a bundle has bytes after its end")
            self._parser.feed(view[at : at + FEED_BYTES])
            while not self.finished and (event := next(self._steps)) is not None:
                yield event
        if self.finished and self._parser.buffered:
            raise malformed("a bundle has bytes after its end")

    def _walk(self) -> Generator[Event | BundleEnd | None, None, None]:
        members: dict[str, object] = {}
        yield from self._bundle(members)
        self.finished = True
        yield BundleEnd(members)

    def _bundle(self, members: dict[str, object]) -> Generator[Event | None, None, None]:
        """Walk the map itself; what is small goes to ``members``."""
        parser = self._parser
        opened = yield from parser.open_map("a bundle")
        for _ in range(opened.count):
            key = yield from parser.key(opened)
            if key in {"objects", "blobs"}:
                for _ in range((yield from parser.member_list(self._limits.objects_per_push, key))):
                    yield from self._object()
            elif key in {"commits", "snapshots", "snapshot_deltas", "tags"}:
                yield from self._records(key)
            else:
                members[key] = yield from parser.member(opened)

    def _records(self, key: str) -> Generator[Event | None, None, None]:
        parser = self._parser
        for _ in range((yield from parser.member_list(self._limits.commits_per_push, key))):
            parser.weight = 0
            walk = parser.value() if key in {"commits", "tags"} else parser.snapshot_like()
            record: object = yield from walk
            yield Record(key, record, parser.weight)

    def _object(self) -> Generator[Event | None, None, None]:
        parser = self._parser
        members: dict[str, object] = {}
        spilled = False
        opened = yield from parser.open_map("an object")
        for _ in range(opened.count):
            key = yield from parser.key(opened)
            if key in SHORT_MEMBERS:
                members[key] = yield from parser.short_text(opened, key)
                continue
            if key != "content":
                members[key] = yield from parser.member(opened)
                continue
            size = yield from parser.binary_header()
            if size > self._limits.object_bytes:
                raise Refusal(Code.TOO_LARGE, f"an object of {size} bytes, the limit is {self._limits.object_bytes}")
            if size <= _INLINE_BYTES:
                members[key] = yield from parser.exactly(size)
                continue
            spilled = True
            yield ObjectBegin(chunked=True)
            while size:
                piece = yield from parser.piece(min(size, _PIECE_BYTES))
                size -= len(piece)
                yield ObjectPiece(piece)
        encoding = members.get("encoding", "raw")
        if not isinstance(encoding, str) or encoding not in ENCODINGS:
            raise malformed(f"unknown encoding {shown(encoding, 40)}")
        if spilled:
            yield ObjectEnd(members.get("object_id"), encoding, members.get("base"))
        elif isinstance(content := members.get("content"), bytes):
            yield Object(members.get("object_id"), encoding, members.get("base"), content)
        else:
            raise malformed("an object of a bundle has no content")

"""The frames of a push or fetch stream as a sans-IO state machine (protocol §5).

Theory of operation. Bytes go in with :meth:`FrameReader.receive_data`, which only buffers; events come out of
:meth:`FrameReader.next_event`, which answers ``NEED_DATA`` when it has to see more. Contents are handed on in
pieces as they arrive, records one by one, so a reader holds at most one small value and one feed whatever the
size of a frame. Which frame may follow which is a table (:data:`TRANSITIONS`), one for each direction; the
writer obeys the same table. After a refusal the reader is dead.

    client → server:  H O* (OC…)* C* E        server → client:  P* (X | R)
    answers to a fetch (protocol §8): the same as a client sends, or blobs alone; an X may come instead of any frame
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import msgpack

from wire.errors import Code, Refusal, malformed, shown
from wire.inflate import ENCODINGS
from wire.limits import DEFAULT_LIMITS, Limits
from wire.pull import FEED_BYTES, PullParser, Walk

VERSION: Final = 2
INLINE_BYTES: Final = 1024 * 1024
"""Contents up to this size arrive as one :class:`Object`; larger ones in pieces."""
PIECE_BYTES: Final = 256 * 1024


class Grammar(enum.Enum):
    """One direction of a stream."""

    PUSH = "push"
    """What a client sends."""
    ANSWER = "answer"
    """What a server answers to a push."""
    FETCH = "fetch"
    """What ``fetch/stream`` answers."""
    OBJECTS = "objects"
    """What ``fetch/objects`` answers: blobs without a header."""


TRANSITIONS: Final[Mapping[Grammar, Mapping[str, Mapping[str, str]]]] = {
    Grammar.PUSH: {
        "start": {"H": "objects"},
        "objects": {"O": "objects", "OC": "chunks", "C": "commits", "E": "done"},
        "chunks": {"OC": "chunks"},
        "commits": {"C": "commits", "E": "done"},
        "done": {},
    },
    Grammar.ANSWER: {
        "start": {"P": "start", "X": "done", "R": "done"},
        "done": {},
    },
    Grammar.FETCH: {
        "start": {"H": "objects"},
        "objects": {"O": "objects", "OC": "chunks", "C": "commits", "E": "done", "X": "done"},
        "chunks": {"OC": "chunks", "X": "done"},
        "commits": {"C": "commits", "E": "done", "X": "done"},
        "done": {},
    },
    Grammar.OBJECTS: {
        "start": {"O": "objects", "OC": "chunks", "E": "done"},
        "objects": {"O": "objects", "OC": "chunks", "E": "done", "X": "done"},
        "chunks": {"OC": "chunks", "X": "done"},
        "done": {},
    },
}
"""grammar → state → frame type → next state. The last ``OC`` of an object returns to ``objects``."""


@dataclass(frozen=True, slots=True)
class Header:
    """``H``: opens a push; all members but version, branch and head are optional."""

    branch: object
    head: object
    members: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Object:
    """``O`` with a content that is held whole."""

    object_id: object
    encoding: str
    base: object
    content: bytes


@dataclass(frozen=True, slots=True)
class ObjectBegin:
    """A large object begins; pieces follow."""

    chunked: bool
    """Whether it travels by ``OC``."""


@dataclass(frozen=True, slots=True)
class ObjectPiece:
    """The next bytes of a large object's encoded content."""

    content: bytes


@dataclass(frozen=True, slots=True)
class ObjectEnd:
    """A large object is complete."""

    object_id: object
    encoding: str
    base: object


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a ``C`` frame; ``kind`` is ``commits``, ``snapshots`` or ``snapshot_deltas``."""

    kind: str
    record: object
    weight: int = field(default=0, compare=False)
    """What it costs in memory, estimated from above."""


@dataclass(frozen=True, slots=True)
class CommitPackEnd:
    """A ``C`` frame is complete."""


@dataclass(frozen=True, slots=True)
class End:
    """``E``: what the sender says it sent."""

    n_objects: int
    n_commits: int
    members: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Progress:
    """``P``."""

    stage: str
    done: int
    total: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """``X``: the error envelope of protocol §11."""

    members: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Result:
    """``R``."""

    members: Mapping[str, object]


class NeedData(enum.Enum):
    """The type of :data:`NEED_DATA`."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA

ObjectEvent = Object | ObjectBegin | ObjectPiece | ObjectEnd
Event = Header | ObjectEvent | Record | CommitPackEnd | End | Progress | Failure | Result

SHORT_MEMBERS = frozenset({"type", "object_id", "base", "encoding"})
"""What is kept of an object besides its content: short texts, refused as anything else when they are read."""
_RECORD_LISTS = frozenset({"commits", "snapshots", "snapshot_deltas"})


class FrameReader:
    """Turn the bytes of one direction of a stream into events."""

    def __init__(self, grammar: Grammar, limits: Limits = DEFAULT_LIMITS) -> None:
        self._grammar = grammar
        self._limits = limits
        self._parser = PullParser(limits)
        self._pending: deque[memoryview] = deque()
        self._steps = self._walk()
        self._state = "start"
        self._chunk: _ChunkState | None = None
        self._dead = False
        self.objects = 0
        """Objects completed so far."""

    @property
    def finished(self) -> bool:
        """Whether the last frame of the grammar has been read."""
        return self._state == "done"

    def receive_data(self, data: bytes) -> None:
        """Buffer bytes; parse nothing yet. An empty ``data`` means the peer has ended the stream.

        Raises:
            Refusal: ``malformed`` when the stream ends before its last frame or goes on after it.
        """
        if not data and not self.finished:
            self._dead = True
            raise malformed("the stream ended before its last frame")
        if data and self.finished:
            self._dead = True
            raise malformed("the stream goes on after its last frame")
        view = memoryview(data)
        self._pending.extend(view[at : at + FEED_BYTES] for at in range(0, len(view), FEED_BYTES))

    def next_event(self) -> Event | NeedData:
        """Give the next event, or ``NEED_DATA``.

        Raises:
            Refusal: with the code of what is wrong; the reader is useless afterwards.
        """
        if self._dead:
            raise malformed("the stream was already refused")
        try:
            return self._advance()
        except Refusal:
            self._dead = True
            raise

    def _advance(self) -> Event | NeedData:
        while True:
            if self.finished:
                if self._pending or self._parser.buffered:
                    raise malformed("the stream goes on after its last frame")
                return NEED_DATA
            event = next(self._steps)
            if event is not None:
                return event
            if not self._pending:
                return NEED_DATA
            self._parser.feed(self._pending.popleft())

    def _walk(self) -> Generator[Event | None, None, None]:
        while True:
            yield from self._frame()

    def _frame(self) -> Generator[Event | None, None, None]:
        parser = self._parser
        members: dict[str, object] = {}
        opened = yield from parser.open_map("a frame")
        spilled = False
        for _ in range(opened.count):
            key = yield from parser.key(opened)
            if key == "content" and self._grammar is not Grammar.ANSWER:
                spilled = yield from self._content(members)
            elif key in _RECORD_LISTS and self._grammar is not Grammar.ANSWER:
                yield from self._records(key)
            elif key in SHORT_MEMBERS:
                members[key] = yield from parser.short_text(opened, key)
            else:
                members[key] = yield from parser.member(opened)
        kind = members.get("type")
        if kind != "C" and opened.keys & _RECORD_LISTS:
            raise malformed("record lists belong into C frames")
        if kind not in ("O", "OC") and "content" in opened.keys:
            raise malformed("a content belongs into O and OC frames")
        yield from self._close(kind, members, spilled)

    def _content(self, members: dict[str, object]) -> Generator[Event | None, None, bool]:
        """Take an object's content; a large one is spilled as events before the frame is complete."""
        parser, limits = self._parser, self._limits
        size = yield from parser.binary_header()
        if not TRANSITIONS[self._grammar][self._state].keys() & {"O", "OC"}:
            raise self._unexpected("O")
        if size > limits.object_frame_bytes:
            raise Refusal(
                Code.TOO_LARGE, f"a content of {size} bytes in one frame, the limit is {limits.object_frame_bytes}"
            )
        if size <= INLINE_BYTES:
            members["content"] = yield from parser.exactly(size)
            return False
        if self._state == "chunks":
            raise Refusal(Code.TOO_LARGE, f"a chunk of {size} bytes, the limit is {limits.object_chunk_bytes}")
        yield ObjectBegin(chunked=False)
        while size:
            piece = yield from parser.piece(min(size, PIECE_BYTES))
            size -= len(piece)
            yield ObjectPiece(piece)
        return True

    def _records(self, key: str) -> Generator[Event | None, None, None]:
        if "C" not in TRANSITIONS[self._grammar][self._state]:
            raise self._unexpected("C")
        parser = self._parser
        most = self._limits.commits_per_push
        for _ in range((yield from parser.member_list(most, key))):
            parser.weight = 0
            walk: Walk[object] = parser.value() if key == "commits" else parser.snapshot_like()
            record = yield from walk
            yield Record(key, record, parser.weight)

    def _close(self, kind: object, members: dict[str, object], spilled: bool) -> Iterator[Event]:
        """Check a complete frame against the grammar and make its events."""
        following = TRANSITIONS[self._grammar][self._state].get(kind) if isinstance(kind, str) else None
        if following is None:
            raise self._unexpected(kind)
        self._state = following
        match kind:
            case "H":
                yield _header(members)
            case "O":
                yield self._object(members, spilled)
            case "OC":
                yield from self._object_chunk(members)
            case "C":
                yield CommitPackEnd()
            case "E":
                yield End(_count(members, "n_objects"), _count(members, "n_commits"), members)
            case "P":
                yield _progress(members)
            case "X":
                yield Failure(members)
            case _:
                yield Result(members)

    def _object(self, members: dict[str, object], spilled: bool) -> Event:
        self._count_object()
        encoding = _encoding(members)
        if spilled:
            return ObjectEnd(members.get("object_id"), encoding, members.get("base"))
        content = members.get("content")
        if not isinstance(content, bytes):
            raise malformed("an O frame has no content")
        return Object(members.get("object_id"), encoding, members.get("base"), content)

    def _object_chunk(self, members: dict[str, object]) -> Iterator[Event]:
        content, seq, last = members.get("content"), members.get("seq"), members.get("last")
        if not isinstance(content, bytes):
            raise Refusal(Code.TOO_LARGE, f"an OC content has at most {self._limits.object_chunk_bytes} bytes")
        if len(content) > self._limits.object_chunk_bytes:
            raise Refusal(Code.TOO_LARGE, f"an OC content has at most {self._limits.object_chunk_bytes} bytes")
        if not isinstance(last, bool) or type(seq) is not int:
            raise malformed("an OC frame needs seq and last")
        named = (members.get("object_id"), _encoding(members), members.get("base"))
        chunk = self._chunk
        if chunk is None:
            chunk = self._chunk = _ChunkState(*named)
            yield ObjectBegin(chunked=True)
        if seq != chunk.next_seq or named != (chunk.object_id, chunk.encoding, chunk.base):
            raise malformed("OC frames of one object must follow one another with seq 0, 1, 2 …")
        chunk.next_seq += 1
        yield ObjectPiece(content)
        if last:
            self._count_object()
            self._chunk = None
            self._state = "objects"
            yield ObjectEnd(*named)

    def _count_object(self) -> None:
        self.objects += 1
        if self.objects > self._limits.objects_per_push:
            raise Refusal(Code.TOO_LARGE, f"a push has at most {self._limits.objects_per_push} objects")

    def _unexpected(self, kind: object) -> Refusal:
        return malformed(f"a frame of type {shown(kind, 20)} cannot come in state {self._state!r}")


@dataclass(slots=True)
class _ChunkState:
    object_id: object
    encoding: str
    base: object
    next_seq: int = 0


class FrameWriter:
    """Write the frames of one direction, in an order the table allows."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._state = "start"

    def send(self, kind: str, members: Mapping[str, object]) -> bytes:
        """Encode one frame; raises ``ValueError`` when the grammar does not allow it here."""
        self._advance(kind, last=members.get("last") is True)
        return cast("bytes", msgpack.packb({"type": kind, **members}, use_bin_type=True))

    def send_records(self, lists: Mapping[str, Sequence[bytes]]) -> bytes:
        """Encode a ``C`` frame from records that are msgpack already."""
        self._advance("C")
        packer = msgpack.Packer(use_bin_type=True, autoreset=False)
        packer.pack_map_header(len(lists) + 1)
        packer.pack("type")
        packer.pack("C")
        out = bytearray(packer.bytes())
        for key, records in lists.items():
            packer.reset()
            packer.pack(key)
            packer.pack_array_header(len(records))
            out += packer.bytes()
            for record in records:
                out += record
        return bytes(out)

    def send_records_head(self, key: str, count: int) -> bytes:
        """Encode a ``C`` frame of one list up to its records; the caller sends ``count`` msgpack records after it."""
        self._advance("C")
        packer = msgpack.Packer(use_bin_type=True, autoreset=False)
        packer.pack_map_header(2)
        for text in ("type", "C", key):
            packer.pack(text)
        packer.pack_array_header(count)
        return bytes(packer.bytes())

    def send_object_head(self, members: Mapping[str, object], size: int) -> bytes:
        """Encode an ``O`` frame up to its content; the caller sends exactly ``size`` content bytes after it."""
        self._advance("O")
        packer = msgpack.Packer(use_bin_type=True, autoreset=False)
        packer.pack_map_header(len(members) + 2)
        for key, value in [("type", "O"), *members.items()]:
            packer.pack(key)
            packer.pack(value)
        packer.pack("content")
        return bytes(packer.bytes()) + b"\xc6" + size.to_bytes(4, "big")

    def _advance(self, kind: str, *, last: bool = False) -> None:
        following = TRANSITIONS[self._grammar][self._state].get(kind)
        if following is None:
            raise ValueError(f"frame {kind} in state {self._state}")
        self._state = "objects" if following == "chunks" and last else following


def _header(members: Mapping[str, object]) -> Header:
    if members.get("version") != VERSION:
        raise malformed(f"the stream's version is {shown(members.get('version'), 20)}, this server speaks {VERSION}")
    return Header(members.get("branch"), members.get("head"), members)


def _encoding(members: Mapping[str, object]) -> str:
    encoding = members.get("encoding", "raw")
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise malformed(f"unknown encoding {shown(encoding, 40)}")
    if encoding.startswith("delta+") != (members.get("base") is not None):
        raise malformed("a base belongs to a delta encoding, and only there")
    return encoding


def _count(members: Mapping[str, object], key: str) -> int:
    value = members.get(key)
    if type(value) is not int or value < 0:
        raise malformed(f"{key} is not a count")
    return value


def _progress(members: Mapping[str, object]) -> Progress:
    stage, message, total = members.get("stage"), members.get("message", ""), members.get("total")
    if not isinstance(stage, str) or not isinstance(message, str):
        raise malformed("a P frame needs a stage")
    if total is not None and type(total) is not int:
        raise malformed("total is not a count")
    return Progress(stage, _count(members, "done"), total, message)

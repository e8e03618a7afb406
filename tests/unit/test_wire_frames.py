"""Frames: one grammar for each direction, the same events however the bytes arrive (protocol §5, faults F29, F31)."""

from __future__ import annotations

import itertools
import random
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import muse
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.errors import Code, Refusal
from wire.frames import (
    INLINE_BYTES,
    NEED_DATA,
    CommitPackEnd,
    End,
    Failure,
    FrameReader,
    FrameWriter,
    Grammar,
    Header,
    Object,
    ObjectBegin,
    ObjectEnd,
    ObjectPiece,
    Progress,
    Record,
    Result,
)
from wire.limits import Limits

PUSH, ANSWER, FETCH, OBJECTS = Grammar.PUSH, Grammar.ANSWER, Grammar.FETCH, Grammar.OBJECTS
frame = muse.frame

H = frame("H", version=2, branch="main", head=None)
O = frame("O", object_id="o", encoding="raw", content=b"x")
C = frame("C", commits=[], snapshots=[], snapshot_deltas=[])
E = frame("E", n_objects=0, n_commits=0)
P = frame("P", stage="verify", done=1, total=None, message="")
X = frame("X", error="malformed", detail="no", request_id="r", retryable=False)
R = frame("R", push_id="p", branch="main", head="h", commits_written=1)


def chunk(seq: int, last: bool = False, content: bytes = b"piece", **members: object) -> bytes:
    return frame(
        "OC", **{"object_id": "big", "encoding": "raw", "seq": seq, "last": last, "content": content, **members}
    )


FRAMES = {"H": H, "O": O, "C": C, "E": E, "P": P, "X": X, "R": R}


def drain(reader: FrameReader, events: list[object] | None = None) -> list[object]:
    """Take all events there are; pieces that follow one another are put together."""
    events = [] if events is None else events
    while (event := reader.next_event()) is not NEED_DATA:
        if isinstance(event, ObjectPiece) and events and isinstance(events[-1], ObjectPiece):
            event = ObjectPiece(events.pop().content + event.content)
        events.append(event)
    return events


def read(
    data: bytes, sizes: list[int] | None = None, grammar: Grammar = PUSH, limits: Limits | None = None
) -> list[object]:
    """Read a stream that ends after ``data``."""
    reader = FrameReader(grammar, limits or Limits())
    events: list[object] = []
    for piece in cut(data, sizes or [65536]):
        reader.receive_data(piece)
        drain(reader, events)
    reader.receive_data(b"")
    assert drain(reader) == []
    assert reader.finished
    return events


def accepted(data: bytes, grammar: Grammar = PUSH) -> bool:
    """Whether these frames may stand at the beginning of a stream."""
    reader = FrameReader(grammar)

    def read_all():
        for one in msgpack_values(data):
            reader.receive_data(one)
            drain(reader)

    code = outcome(read_all)
    assert code in {None, Code.MALFORMED}
    return code is None


def msgpack_values(data: bytes) -> list[bytes]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data)
    ends = [0, *(unpacker.tell() for _ in unpacker)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def small_push() -> muse.Push:
    push = muse.Push()
    push.commit({"a.txt": b"hello\n", "empty": b""})
    push.commit({"a.txt": b"hello again\n", "empty": b""}, message="zwei ü")
    return push


def small_stream() -> bytes:
    """Every frame of the push direction, in a stream short enough to be cut everywhere."""
    push = small_push()
    plain = muse.make_commit(muse.blob_id(b""), message="m")
    return b"".join([
        push.header(push_id="p", options={"k": "v"}, n_objects=4),
        *push.object_frames(),
        frame("O", object_id="z", encoding="zlib", content=zlib.compress(b"zzz")),
        frame("O", object_id="d", encoding="delta+zstd", base="z", content=b"?"),
        chunk(0, content=b"first "), chunk(1, content=b""), chunk(2, last=True, content=b"last"),
        frame("C", commits=[plain], snapshots=push.snapshots[:1]),
        frame("C", snapshot_deltas=[{"snapshot_id": "s", "delta_upsert": {"a": "b"}, "delta_remove": ["c"]}]),
        frame("E", n_objects=5, n_commits=1, body_sha256=b"\0" * 32),
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@given(sizes=SIZES)
@examples(15)
def test_a_push_gives_the_same_events_however_it_arrives(seed, sizes):
    push = muse.random_history(seed, commits=5)
    expected: list[object] = [
        Object(oid, "raw", None, content) for oid, content in push.blobs.items()
    ]  # fmt: skip
    expected += [Record("commits", record) for record in push.commits]
    expected += [Record("snapshots", record) for record in push.snapshots]
    events = read(push.frames(), sizes)
    header, *rest, pack_end, end = events
    assert isinstance(header, Header)
    assert (header.branch, header.head) == ("main", push.head)
    assert rest == expected
    assert (pack_end, end.n_objects, end.n_commits) == (CommitPackEnd(), len(push.blobs), len(push.commits))


@given(SIZES)
@examples(60)
def test_every_frame_gives_the_same_events_however_it_arrives(sizes):
    assert read(small_stream(), sizes) == read(small_stream())


def test_a_push_cut_at_any_byte_is_refused_at_its_end_and_not_before():
    data = small_stream()
    whole = read(data)
    for size in range(len(data)):
        reader = FrameReader(PUSH)
        events: list[object] = []
        if size:
            reader.receive_data(data[:size])
            events = drain(reader)
        if events and isinstance(events[-1], ObjectPiece):  # more of this content may be missing
            assert whole[len(events) - 1].content.startswith(events.pop().content)
        assert events == whole[: len(events)]
        assert not reader.finished
        with refused(Code.MALFORMED, "ended before its last frame"):
            reader.receive_data(b"")
        with refused(Code.MALFORMED):
            reader.next_event()


def test_an_answer_cut_at_any_byte_is_refused_at_its_end_and_not_before():
    data = P + frame("P", stage="heartbeat", done=3, total=9, message="still here") + R
    for size in range(len(data)):
        reader = FrameReader(ANSWER)
        if size:
            reader.receive_data(data[:size])
            assert all(isinstance(event, Progress) for event in drain(reader))
        with refused(Code.MALFORMED):
            reader.receive_data(b"")


BEGINNINGS = {
    "at the start": (PUSH, b"", {"H"}),
    "after the header": (PUSH, H, {"O", "OC first", "C", "E"}),
    "after an object": (PUSH, H + O, {"O", "OC first", "C", "E"}),
    "within a chunked object": (PUSH, H + chunk(0), {"OC next"}),
    "after a chunked object": (PUSH, H + chunk(0) + chunk(1, last=True), {"O", "OC first", "C", "E"}),
    "after a chunked object of one frame": (PUSH, H + chunk(0, last=True), {"O", "OC first", "C", "E"}),
    "after a commit pack": (PUSH, H + C, {"C", "E"}),
    "after commit packs": (PUSH, H + O + C + C, {"C", "E"}),
    "after the end": (PUSH, H + E, set()),
    "at the start of an answer": (ANSWER, b"", {"P", "X", "R"}),
    "after progress": (ANSWER, P + P, {"P", "X", "R"}),
    "after an error": (ANSWER, X, set()),
    "after a result": (ANSWER, P + R, set()),
    "at the start of a fetch": (FETCH, b"", {"H"}),
    "after the header of a fetch": (FETCH, H + O, {"O", "OC first", "C", "E", "X"}),
    "within a chunked object of a fetch": (FETCH, H + chunk(0), {"OC next", "X"}),
    "after a commit pack of a fetch": (FETCH, H + C, {"C", "E", "X"}),
    "after an error of a fetch": (FETCH, H + X, set()),
    "at the start of objects": (OBJECTS, b"", {"O", "OC first", "E"}),
    "after an object of objects": (OBJECTS, O, {"O", "OC first", "E", "X"}),
    "within a chunked object of objects": (OBJECTS, chunk(0), {"OC next", "X"}),
    "after the end of objects": (OBJECTS, O + E, set()),
}


@pytest.mark.parametrize(("grammar", "beginning", "allowed"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_each_frame_is_accepted_only_where_the_grammar_has_it(grammar, beginning, allowed):
    for name, data in {**FRAMES, "OC first": chunk(0), "OC next": chunk(1)}.items():
        assert accepted(beginning, grammar)
        assert accepted(beginning + data, grammar) == (name in allowed), name


@pytest.mark.parametrize("kind", ["Z", "h", "", "O ", None, 5, True, b"O", [], ["O"], {}, {"O": 1}], ids=ascii)
@pytest.mark.parametrize(
    ("grammar", "beginning"), [(PUSH, b""), (PUSH, H), (PUSH, H + chunk(0)), (PUSH, H + C), (ANSWER, b"")]
)
def test_a_frame_of_no_known_type_is_refused(grammar, beginning, kind):
    for data in (frame(kind), frame(kind, content=b"x"), frame(kind, commits=[])):
        assert not accepted(beginning + data, grammar)
    assert not accepted(beginning + msgpack.packb({}), grammar)
    assert not accepted(beginning + msgpack.packb({"branch": "main"}), grammar)


@pytest.mark.parametrize(
    "data", [b"\x00", b"\x90", b"\xc0", b"\xa1H", b"\xc4\x00", b"\x91\x80", b"\xc1", b"\xff", b"MUSE"]
)
def test_what_is_not_a_map_is_not_a_frame(data):
    with refused(Code.MALFORMED):
        read(data + b"\0" * 8)


def test_members_may_come_in_any_order():
    rng = random.Random(3)
    for members in msgpack_values(small_stream()):
        unpacked = list(msgpack.unpackb(members).items())
        rng.shuffle(unpacked)
        shuffled = msgpack.packb(dict(unpacked))
        start = b"" if dict(unpacked)["type"] == "H" else H
        if dict(unpacked)["type"] in {"O", "C"}:
            assert read(start + shuffled + E)[1:-1]
    # a content that comes before the frame has said what it is
    content_first = msgpack.packb({"content": b"abc", "encoding": "raw", "object_id": "x", "type": "O"})
    assert read(H + content_first + E)[1] == Object("x", "raw", None, b"abc")


def test_a_frame_with_a_key_twice_is_refused():
    for data in (
        b"\x84\xa4type\xa1H\xa7version\x02\xa6branch\xa1a\xa6branch\xa1b",
        b"\x82\xa4type\xa1H\xa4type\xa1H",
    ):
        with refused(Code.MALFORMED, "twice"):
            read(data + E)
    nested = b"\x83\xa4type\xa1H\xa7version\x02\xa7options\x82\xa1a\xa1x\xa1a\xa1y"
    record = b"\x82\xa4type\xa1C\xa7commits\x91\x82\xa1a\x01\xa1a\x02"
    for data in (nested, H + record, H + O[:1].replace(b"\x84", b"\x85") + O[1:] + b"\xa7content\xc4\x00"):
        with refused(Code.MALFORMED, "twice"):
            read(data + E)


def test_a_frame_has_a_bounded_number_of_members():
    with refused(Code.MALFORMED, "members"):
        read(frame("H", version=2, **{f"k{n}": n for n in range(64)}))
    for header in (b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with memory_below(4 * MIB), refused(Code.MALFORMED, "members"):
            read(header + b"\xa4type")


def test_the_version_must_be_the_one_spoken_here():
    for version in (None, 1, 3, "2", [2], 2.5):
        with refused(Code.MALFORMED, "version"):
            read(frame("H", version=version, branch="main", head=None))
    with refused(Code.MALFORMED, "version"):
        read(frame("H", branch="main", head=None))


def test_a_header_keeps_every_member():
    members = {
        "version": 2,
        "branch": "b",
        "head": "h",
        "force": True,
        "expected_head": None,
        "options": {"a": "b"},
        "x": [1],
    }
    header = read(frame("H", **members) + E)[0]
    assert header == Header("b", "h", {"type": "H", **members})


@pytest.mark.parametrize("encoding", ["gzip", "", "RAW", "delta", "delta+raw", None, 5, ["raw"], {}], ids=ascii)
def test_an_unknown_encoding_is_refused(encoding):
    for data in (frame("O", object_id="x", encoding=encoding, content=b""), chunk(0, encoding=encoding)):
        with refused(Code.MALFORMED, "encoding"):
            read(H + data)


def test_an_object_without_encoding_is_raw():
    assert read(H + frame("O", object_id="x", content=b"c") + E)[1] == Object("x", "raw", None, b"c")


@pytest.mark.parametrize("encoding", ["delta+zlib", "delta+zstd"])
def test_a_delta_has_a_base_and_nothing_else_has_one(encoding):
    assert read(H + frame("O", object_id="x", encoding=encoding, base="b", content=b"c") + E)[1].base == "b"
    for members in ({"encoding": encoding}, {"encoding": encoding, "base": None}, {"encoding": "zlib", "base": "b"}):
        with refused(Code.MALFORMED, "base"):
            read(H + frame("O", object_id="x", content=b"c", **members))


@pytest.mark.parametrize("content", ["text", None, 5, ["c"], {"c": 1}], ids=ascii)
def test_a_content_is_a_byte_string(content):
    for data in (frame("O", object_id="x", encoding="raw", content=content), chunk(0, content=content)):
        with refused(Code.MALFORMED):
            read(H + data + b"\0" * 8)


def test_records_and_contents_belong_into_frames_of_their_own():
    counts = {"n_objects": 0, "n_commits": 0}
    for key in ("commits", "snapshots", "snapshot_deltas"):
        assert accepted(H + frame("C", **{key: []}))
        for data in (
            frame("H", version=2, **{key: []}), H + frame("O", object_id="x", content=b"", **{key: []}),
            H + frame("E", **counts, **{key: []}), H + frame("E", **{key: []}, **counts),
            H + frame("OC", object_id="x", seq=0, last=True, content=b"", **{key: []}),
        ):  # fmt: skip
            assert not accepted(data)
        assert not accepted(frame("R", **{key: []}), ANSWER)
    for data in (
        frame("H", version=2, content=b""),
        H + frame("C", content=b""),
        H + frame("E", content=b"", **counts),
    ):
        assert not accepted(data)
    assert not accepted(frame("R", content=b""), ANSWER)


def test_an_object_needs_a_content():
    with refused(Code.MALFORMED):
        read(H + frame("O", object_id="x", encoding="raw"))
    with pytest.raises(Refusal):
        read(H + frame("OC", object_id="x", encoding="raw", seq=0, last=True))


@pytest.mark.parametrize("header", [b"\xc4\x03", b"\xc5\x00\x03", b"\xc6\x00\x00\x00\x03"])
def test_every_byte_string_header_is_understood(header):
    data = b"\x83\xa4type\xa1O\xa9object_id\xa1x\xa7content" + header + b"abc"
    assert read(H + data + E)[1] == Object("x", "raw", None, b"abc")


@given(st.integers(0, 40), SIZES)
@examples(30)
def test_chunks_of_an_object_follow_one_another(count, sizes):
    data = b"".join(chunk(n, last=n == count, content=b"%d," % n) for n in range(count + 1))
    content = b"".join(b"%d," % n for n in range(count + 1))
    assert read(H + data + O + E, sizes)[1:4] == [
        ObjectBegin(chunked=True), ObjectPiece(content), ObjectEnd("big", "raw", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(1)], [chunk(-1)], [chunk(0), chunk(0)], [chunk(0), chunk(2)], [chunk(0), chunk(1), chunk(1)],
        [chunk(0, last=True), chunk(1, last=True)], [chunk(0), chunk(1, object_id="other")],
        [chunk(0), chunk(1, encoding="zlib")], [chunk(0), chunk(0, object_id="other")], [chunk(0), O], [chunk(0), C],
        [chunk(0), E], [chunk(0), H],
        [chunk(0, encoding="delta+zlib", base="a"), chunk(1, encoding="delta+zlib", base="b")],
        [chunk(0, encoding="delta+zlib")], [chunk(0, base="a")],
    ],
)  # fmt: skip
def test_chunks_out_of_order_are_refused(chunks):
    with refused(Code.MALFORMED):
        read(H + b"".join(chunks) + E)


@pytest.mark.parametrize(
    "members",
    [
        {"seq": None},
        {"seq": "0"},
        {"seq": 0.0},
        {"seq": True},
        {"seq": False},
        {"last": None},
        {"last": 1},
        {"last": "true"},
    ],
    ids=ascii,
)
def test_a_chunk_needs_a_number_and_a_flag(members):
    with refused(Code.MALFORMED):
        read(
            H + frame("OC", **{"object_id": "x", "encoding": "raw", "seq": 0, "last": True, "content": b"", **members})
        )


def test_a_chunk_has_a_limit():
    limits = Limits(object_chunk_bytes=100)
    assert read(H + chunk(0, last=True, content=b"x" * 100) + E, limits=limits)
    with refused(Code.TOO_LARGE):
        read(H + chunk(0, last=True, content=b"x" * 101) + E, limits=limits)
    for beginning in (H, H + chunk(0)):
        with refused(Code.TOO_LARGE):
            read(beginning + chunk(len(beginning) > len(H), content=b"x" * (MIB + 1)))


@pytest.mark.parametrize("size", [INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 3 * INLINE_BYTES])
@pytest.mark.parametrize("sizes", [[65536], [1_000_000], [30_011]])
def test_a_large_content_comes_in_pieces(size, sizes):
    content = random.Random(size).randbytes(size)
    data = H + frame("O", object_id="x", encoding="raw", content=content) + E
    events = read(data, sizes)[1:-1]
    if size <= INLINE_BYTES:
        assert events == [Object("x", "raw", None, content)]
    else:
        assert events == [ObjectBegin(chunked=False), ObjectPiece(content), ObjectEnd("x", "raw", None)]


def test_a_large_content_is_never_held_whole():
    writer = FrameWriter(PUSH)
    size = 40 * MIB
    head = writer.send("H", {"version": 2, "branch": "m", "head": None})
    head += writer.send_object_head({"object_id": "x", "encoding": "raw"}, size)
    reader = FrameReader(PUSH)
    total, last = 0, None
    with memory_below(4 * MIB):
        for piece in itertools.chain([head], itertools.repeat(bytes(65536), size // 65536)):
            reader.receive_data(piece)
            while (event := reader.next_event()) is not NEED_DATA:
                total += len(event.content) if isinstance(event, ObjectPiece) else 0
                last = event
    assert total == size
    assert last == ObjectEnd("x", "raw", None)
    assert reader.objects == 1


def test_a_content_above_the_limit_of_a_frame_is_refused_by_its_header():
    limits = Limits(object_frame_bytes=1000)
    assert read(H + frame("O", object_id="x", content=b"x" * 1000) + E, limits=limits)
    with refused(Code.TOO_LARGE):
        read(H + frame("O", object_id="x", content=b"x" * 1001) + E, limits=limits)
    reader = FrameReader(PUSH)
    reader.receive_data(H + b"\x83\xa4type\xa1O\xa9object_id\xa1x\xa7content\xc6\xff\xff\xff\xff")
    with memory_below(4 * MIB), refused(Code.TOO_LARGE):
        drain(reader)


def test_objects_are_counted_and_limited():
    limits = Limits(objects_per_push=3)
    reader = FrameReader(PUSH, limits)
    reader.receive_data(H + O + chunk(0) + chunk(1, last=True) + O)
    drain(reader)
    assert reader.objects == 3
    reader.receive_data(O)
    with refused(Code.TOO_LARGE):
        drain(reader)


@pytest.mark.parametrize("key", ["commits", "snapshots", "snapshot_deltas"])
def test_records_of_one_frame_are_limited(key):
    limits = Limits(commits_per_push=3)
    assert len(read(H + frame("C", **{key: [{}] * 3}) + E, limits=limits)) == 6
    with refused(Code.TOO_LARGE):
        read(H + frame("C", **{key: [{}] * 4}) + E, limits=limits)
    for header in (b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff"):
        with memory_below(4 * MIB), refused(Code.TOO_LARGE):
            read(H + b"\x82\xa4type\xa1C" + msgpack.packb(key) + header, limits=limits)


@pytest.mark.parametrize("key", ["commits", "snapshots", "snapshot_deltas"])
@pytest.mark.parametrize("value", [None, {}, "x", 5, b""], ids=ascii)
def test_records_come_in_lists(key, value):
    with refused(Code.MALFORMED):
        read(H + frame("C", **{key: value}) + E)


def test_a_record_has_a_limit_but_a_frame_of_records_has_none():
    limits = Limits(record_bytes=1000)
    records = [{"commit_id": str(n), "message": "x" * 900} for n in range(50)]
    events = read(H + frame("C", commits=records, note="y" * 900) + E, limits=limits)
    assert [event.record for event in events[1:-2]] == records
    with refused(Code.TOO_LARGE):
        read(H + frame("C", commits=[{"message": "x" * 1001}]) + E, limits=limits)
    with refused(Code.TOO_LARGE):
        read(H + frame("C", commits=[{"metadata": {str(n): "x" * 90 for n in range(20)}}]) + E, limits=limits)


def test_small_members_of_a_frame_are_limited_together():
    limits = Limits(record_bytes=1000)
    assert read(frame("H", version=2, branch="m", options={"a": "x" * 800}) + E, limits=limits)
    for extra in ({"options": {"a": "x" * 1001}}, {f"k{n}": "x" * 90 for n in range(20)}):
        with refused(Code.TOO_LARGE):
            read(frame("H", version=2, branch="m", **extra) + E, limits=limits)
    data = frame("H", version=2, **{f"k{n}": b"x" * (MIB // 2) for n in range(60)})
    with memory_below(8 * MIB), refused(Code.TOO_LARGE):
        read(data)


def test_a_manifest_larger_than_a_record_passes_entry_by_entry():
    limits = Limits(record_bytes=1000)
    record = {
        "snapshot_id": "s",
        "manifest": {f"path/{n:05}": "sha256:" + "0" * 64 for n in range(500)},
        "directories": [],
    }
    assert read(H + frame("C", snapshots=[record]) + E, limits=limits)[1] == Record("snapshots", record)
    for key in ("manifest", "delta_upsert"):
        with refused(Code.TOO_LARGE):
            read(H + frame("C", snapshots=[{key: record["manifest"]}]) + E, limits=Limits(manifest_entries=499))


@pytest.mark.parametrize("count", [None, -1, "1", 1.0, True, [1], 2**64 - 1], ids=ascii)
def test_counts_are_numbers(count):
    for key in ("n_objects", "n_commits"):
        data = frame("E", **{"n_objects": 0, "n_commits": 0, key: count})
        if count == 2**64 - 1:
            assert isinstance(read(H + data)[1], End)
        else:
            with refused(Code.MALFORMED, key):
                read(H + data)


def test_the_end_keeps_every_member():
    members = {"n_objects": 3, "n_commits": 2, "body_sha256": b"\1" * 32, "sig": "s"}
    assert read(H + frame("E", **members))[1] == End(3, 2, {"type": "E", **members})


@pytest.mark.parametrize("trailing", [b"\0", H, E, b"\x80", b"x" * 100_000])
def test_bytes_after_the_last_frame_are_refused(trailing):
    for grammar, data in ((PUSH, H + E), (ANSWER, R), (ANSWER, X)):
        reader = FrameReader(grammar)
        reader.receive_data(data)
        drain(reader)
        reader.receive_data(b"")
        with refused(Code.MALFORMED, "goes on"):
            reader.receive_data(trailing)
        reader = FrameReader(grammar)
        reader.receive_data(data + trailing)
        with refused(Code.MALFORMED, "goes on"):
            drain(reader)


def test_a_reader_that_refused_stays_dead():
    reader = FrameReader(PUSH)
    reader.receive_data(O)
    for _ in range(3):
        with refused(Code.MALFORMED):
            reader.next_event()
    reader.receive_data(H)
    with refused(Code.MALFORMED):
        reader.next_event()


@pytest.mark.parametrize("place", ["a member", "a record", "a snapshot", "a manifest"])
@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5000, b"\x81\xa1a" * 5000, b"\xc9\xff\xff\xff\xff\x01", b"\xc7\x04\x05abcd",
        b"\xd6\xff\0\0\0\0", b"\xa2\xff\xfe", b"\xc1",
        b"\x82\xa1a\x01\xa1a\x01", b"\x81\x01\x01", b"\xdb\x00\x20\x00\x01", b"\x91" * 200 + b"\x90",
    ],
    ids=lambda bomb: bomb[:6].hex() + f"-{len(bomb)}",
)  # fmt: skip
def test_msgpack_bombs_are_refused_wherever_they_stand(place, bomb):
    data = {
        "a member": b"\x82\xa4type\xa1H\xa1x" + bomb,
        "a record": H + b"\x82\xa4type\xa1C\xa7commits\x91" + bomb,
        "a snapshot": H + b"\x82\xa4type\xa1C\xa9snapshots\x91\x81\xa1x" + bomb,
        "a manifest": H + b"\x82\xa4type\xa1C\xa9snapshots\x91\x81\xa8manifest\x81\xa1p" + bomb,
    }[place]
    with memory_below(16 * MIB), pytest.raises(Refusal) as caught:
        read(data + b"\0" * 100)
    assert caught.value.code in {Code.MALFORMED, Code.TOO_LARGE}


def test_progress_errors_and_results_are_read():
    data = P + frame("P", stage="heartbeat", done=0) + frame("P", stage="store", done=5, total=9, message="ü")
    assert read(data + R, grammar=ANSWER) == [
        Progress("verify", 1, None, ""), Progress("heartbeat", 0, None, ""), Progress("store", 5, 9, "ü"),
        Result({"type": "R", "push_id": "p", "branch": "main", "head": "h", "commits_written": 1}),
    ]  # fmt: skip
    failure = {"error": "missing_objects", "detail": "d", "request_id": "r", "retryable": False, "missing": ["a"] * 100}
    assert read(frame("X", **failure), grammar=ANSWER) == [Failure({"type": "X", **failure})]


@pytest.mark.parametrize(
    "members",
    [
        {"stage": None},
        {"stage": 5},
        {"done": None},
        {"done": -1},
        {"done": 1.5},
        {"total": "9"},
        {"message": 5},
        {"message": b"x"},
    ],
    ids=ascii,
)
def test_progress_of_the_wrong_shape_is_refused(members):
    with refused(Code.MALFORMED):
        read(frame("P", **{"stage": "s", "done": 1, "total": 2, "message": "", **members}) + R, grammar=ANSWER)


def test_a_written_frame_is_the_one_the_mini_client_writes():
    push, writer = small_push(), FrameWriter(PUSH)
    out = writer.send("H", {"version": 2, "branch": "main", "head": push.head, "force": False})
    for oid, content in push.blobs.items():
        out += writer.send("O", {"object_id": oid, "encoding": "raw", "content": content})
    lists = {"commits": push.commits, "snapshots": push.snapshots, "snapshot_deltas": []}
    out += writer.send_records({key: [msgpack.packb(r) for r in records] for key, records in lists.items()})
    out += writer.send("E", {"n_objects": len(push.blobs), "n_commits": len(push.commits)})
    assert out == push.frames()


def test_a_written_records_head_is_followed_by_exactly_its_records():
    writer = FrameWriter(PUSH)
    data = writer.send("H", {"version": 2, "branch": "m", "head": None})
    data += writer.send_records_head("commits", 2) + msgpack.packb({"a": 1}) + msgpack.packb({"b": 2})
    data += writer.send("E", {"n_objects": 0, "n_commits": 2})
    assert [event.record for event in read(data) if isinstance(event, Record)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError, match="C"):
        writer.send_records_head("commits", 1)


def test_a_written_object_head_is_followed_by_exactly_its_content():
    writer = FrameWriter(PUSH)
    data = writer.send("H", {"version": 2, "branch": "m", "head": None})
    data += writer.send_object_head({"object_id": "x", "encoding": "delta+zlib", "base": "b"}, 3) + b"abc"
    data += writer.send_object_head({"object_id": "empty", "encoding": "raw"}, 0)
    data += writer.send("E", {"n_objects": 2, "n_commits": 0})
    assert read(data)[1:3] == [Object("x", "delta+zlib", "b", b"abc"), Object("empty", "raw", None, b"")]
    assert muse.unpack_frames(data)[1] == {
        "type": "O", "object_id": "x", "encoding": "delta+zlib", "base": "b", "content": b"abc"
    }  # fmt: skip


@pytest.mark.parametrize(("grammar", "beginning", "allowed"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_writer_keeps_to_the_same_grammar(grammar, beginning, allowed):
    frames = {**FRAMES, "OC": chunk(0)}
    for name, data in frames.items():
        writer = FrameWriter(grammar)
        for members in map(msgpack.unpackb, msgpack_values(beginning)):
            writer.send(members.pop("type"), members)
        members = msgpack.unpackb(data)
        kind = members.pop("type")
        if name in allowed or f"{name} first" in allowed or f"{name} next" in allowed:
            writer.send(kind, members)
        else:
            with pytest.raises(ValueError, match=kind):
                writer.send(kind, members)


@pytest.mark.parametrize("key", ["object_id", "base", "encoding", "type"])
@pytest.mark.parametrize("value", [[[]] * 1_000, {"a": 1}, 7, b"x", "x" * 200], ids=str)
def test_what_is_kept_of_an_object_is_short_text(key, value):
    members = {"type": "O", "object_id": "x", "encoding": "raw", "base": None, "content": b"", key: value}
    with refused(Code.MALFORMED):
        read(H + msgpack.packb(members))


def test_a_record_says_what_it_costs_in_memory():
    def weight_of(**fields: object) -> int:
        events = read(H + frame("C", commits=[{"commit_id": "x", **fields}]) + frame("E", n_objects=0, n_commits=1))
        return next(event for event in events if isinstance(event, Record)).weight

    assert weight_of() < 2_000
    assert 100_000 <= weight_of(message="m" * 100_000) < 110_000
    assert weight_of(structured_delta=[[]] * 10_000) > 10_000 * 56
    assert weight_of(structured_delta=["ab"] * 10_000) > 10_000 * 51

"""Packs and pack indexes: bytes in any pieces, and nothing that does not add up (protocol §3)."""

from __future__ import annotations

import hashlib
import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import containers, muse
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.errors import Code
from wire.ids import parse_any_id
from wire.limits import Limits
from wire.pack import (
    ByteQueue,
    IndexEntry,
    PackEnd,
    PackIndex,
    PackObjectBegin,
    PackObjectEnd,
    PackPiece,
    PackReader,
    PackRun,
    PackWriter,
    id_text,
    pack_size,
    walk_pack,
    write_index,
)

CONTENTS = st.lists(st.binary(max_size=300), max_size=8)


def named(contents: list[bytes]) -> list[tuple[str, bytes]]:
    return [(muse.blob_id(content), content) for content in contents]


def digest(text: str) -> bytes:
    return parse_any_id(text)[1]


def events_of(data: bytes, sizes: list[int] | None = None, limits: Limits | None = None) -> list[object]:
    reader = PackReader(limits or Limits())
    events = [event for piece in cut(data, sizes or [65536]) for event in reader.receive_data(piece)]
    events += reader.receive_data(b"")
    assert reader.finished
    return events


def objects_of(events: list[object]) -> list[tuple[bytes, int, bytes]]:
    """Give ``(digest, offset, content)`` of the objects; checks that the events are in order."""
    found = []
    *events, end = events
    for event in events:
        if isinstance(event, PackObjectBegin):
            begin, content = event, b""
        elif isinstance(event, PackPiece):
            assert event.content
            content += event.content
        else:
            assert event == PackObjectEnd()
            assert len(content) == begin.size
            found.append((begin.object_id, begin.offset, content))
    assert end == PackEnd(len(found))
    return found


def write(contents: list[tuple[str, bytes]]) -> tuple[bytes, PackWriter]:
    writer = PackWriter(len(contents))
    out = writer.begin()
    for oid, content in contents:
        out += writer.head(digest(oid), len(content))
        for piece in cut(content, [100]):
            out += writer.content(piece)
    return out + writer.finish(), writer


@given(CONTENTS, SIZES)
@examples(80)
def test_a_pack_gives_the_same_objects_however_it_arrives(contents, sizes):
    objects = named(contents)
    data = containers.pack(objects)
    found = objects_of(events_of(data, sizes))
    assert [(oid, content) for oid, _, content in found] == [(digest(oid), content) for oid, content in objects]
    assert all(data[offset : offset + len(content)] == content for _, offset, content in found)


@given(CONTENTS, SIZES, st.integers(-1, 300))
@examples(80)
def test_runs_give_the_same_objects_however_they_arrive(contents, sizes, whole_bytes):
    """Small objects many at a time, and what is larger or cut in two as before; the id is what stands there."""
    objects = named(contents)
    data = containers.pack(objects)
    queue, found, end = ByteQueue(), [], None
    steps = walk_pack(queue, Limits(), whole_bytes, runs=True)
    for piece in cut(data, sizes):
        queue.append(piece)
        while end is None and (event := next(steps)) is not None:
            match event:
                case PackRun():
                    assert all(size <= whole_bytes for _, size in event.contents)
                    for at, size in event.contents:
                        found.append((event.id_text_at(at).decode(), event.offset + at, event.data[at : at + size]))
                case PackObjectBegin():
                    found.append((f"sha256:{event.object_id.hex()}", event.offset, b""))
                case PackPiece(content):
                    found[-1] = (*found[-1][:2], found[-1][2] + content)
                case PackEnd():
                    end = event
    assert [(oid, content) for oid, _, content in found] == objects
    assert all(data[offset : offset + len(content)] == content for _, offset, content in found)
    assert end == PackEnd(len(objects))
    assert end.digest == hashlib.sha256(data).digest()


def test_a_run_is_larger_than_no_limit():
    """An object above the limit is refused, however many small ones stand before it."""
    data = containers.pack(named([b"a", b"bb", b"c" * 200]))
    queue = ByteQueue()
    queue.append(data)
    steps = walk_pack(queue, Limits(object_bytes=100), 1_000, runs=True)
    assert [size for _, size in next(steps).contents] == [1, 2]
    with refused(Code.TOO_LARGE):
        next(steps)


@given(CONTENTS)
@examples(50)
def test_a_written_pack_is_the_one_the_protocol_describes(contents):
    objects = named(contents)
    data, _ = write(objects)
    assert data == containers.pack(objects)
    assert len(data) == pack_size(len(content) for content in contents)


@given(st.lists(st.binary(max_size=300), max_size=8, unique=True))
@examples(50)
def test_a_written_index_is_the_one_the_protocol_describes(contents):
    _, writer = write(named(contents))
    assert write_index(writer.entries) == containers.pack_index(named(contents))


def test_a_pack_of_nothing_and_one_of_an_empty_object():
    assert events_of(containers.pack([])) == [PackEnd(0)]
    assert objects_of(events_of(containers.pack(named([b""])))) == [(digest(muse.blob_id(b"")), 92, b"")]


def test_ids_of_both_schemes_are_written_with_71_characters():
    plain = muse.blob_id(b"x", muse.plain)
    data, _ = write([(plain, b"x")])
    assert data == containers.pack([(plain, b"x")])
    assert id_text(digest(plain)) == b"sha256:" + plain.encode()


def test_a_pack_cut_at_any_byte_is_refused_at_its_end_and_not_before():
    data = containers.pack(named([b"hello\n", b"", b"more"]))
    whole = events_of(data, [1])
    for size in range(len(data)):
        reader = PackReader()
        events = [event for piece in cut(data[:size], [1]) for event in reader.receive_data(piece)]
        assert events == whole[: len(events)]
        with refused(Code.MALFORMED, "cut"):
            list(reader.receive_data(b""))


def test_any_changed_byte_is_noticed():
    data = containers.pack(named([b"hello\n", b"", b"more"]))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x20
        assert outcome(events_of, bytes(changed)) in {Code.MALFORMED, Code.TOO_LARGE}


@pytest.mark.parametrize("trailing", [b"\0", b"MUSE", b"x" * 100])
def test_bytes_after_the_footer_are_refused(trailing):
    data = containers.pack(named([b"x"]))
    for pieces in ([data + trailing], [data, trailing], cut(data + trailing, [7])):
        reader = PackReader()
        with refused(Code.MALFORMED):
            for piece in pieces:
                list(reader.receive_data(piece))


def raw_pack(*records: bytes, count: int | None = None, head: bytes = b"MUSE\x01") -> bytes:
    return containers.sealed(head + struct.pack("<Q", len(records) if count is None else count) + b"".join(records))


def raw_record(oid: bytes, content: bytes, size: int | None = None) -> bytes:
    return oid + struct.pack("<Q", len(content) if size is None else size) + content


HEX = b"ab" * 32


@pytest.mark.parametrize(
    "data",
    [
        raw_pack(head=b"MUSI\x01"), raw_pack(head=b"muse\x01"), raw_pack(head=b"MUSE\x00"), raw_pack(head=b"MUSE\x02"),
        b"PACK" + bytes(50), raw_pack(count=1), raw_pack(raw_record(b"sha256:" + HEX, b"x"), count=0),
        raw_pack(raw_record(b"sha256:" + HEX, b"x"), count=2), raw_pack(raw_record(b"sha256:" + HEX.upper(), b"x")),
        raw_pack(raw_record(HEX + b"\0" * 7, b"x")), raw_pack(raw_record(b"sha512:" + HEX, b"x")),
        raw_pack(raw_record(b"sha256:" + b"\xff" * 64, b"x")), raw_pack(raw_record(b"sha256:" + b"\0" * 64, b"x")),
        raw_pack(raw_record(b"sha256:" + HEX, b"xyz", size=2)), raw_pack(raw_record(b"sha256:" + HEX, b"xyz", size=4)),
        raw_pack(raw_record(b"sha256:" + HEX, b"x"))[:-1] + b"\0", raw_pack()[:-32] + bytes(32),
    ],
)  # fmt: skip
def test_a_damaged_pack_is_refused(data):
    with refused(Code.MALFORMED):
        events_of(data)


def test_counts_and_sizes_above_the_limits_are_refused_by_the_header():
    limits = Limits(objects_per_push=2, object_bytes=10)
    assert len(objects_of(events_of(containers.pack(named([b"x" * 10, b"y"])), limits=limits))) == 2
    with refused(Code.TOO_LARGE):
        events_of(containers.pack(named([b"x", b"y", b"z"])), limits=limits)
    with refused(Code.TOO_LARGE):
        events_of(containers.pack(named([b"x" * 11])), limits=limits)
    for huge in (2**33, 2**63, 2**64 - 1):
        with memory_below(MIB), refused(Code.TOO_LARGE):
            events_of(raw_pack(count=huge))
        with memory_below(MIB), refused(Code.TOO_LARGE):
            events_of(raw_pack(raw_record(b"sha256:" + HEX, b"x", size=huge)))


def test_a_large_object_is_never_held_whole():
    size = 30 * MIB
    writer = PackWriter(1)
    parts = itertools.chain(
        [writer.begin() + writer.head(digest(muse.blob_id(b"")), size)],
        (writer.content(bytes(65536)) for _ in range(size // 65536)),
    )
    reader, total = PackReader(), 0
    with memory_below(4 * MIB):
        for part in parts:
            for event in reader.receive_data(part):
                total += len(event.content) if isinstance(event, PackPiece) else 0
    assert total == size
    assert list(reader.receive_data(writer.finish())) == [PackEnd(1)]


def test_a_writer_keeps_the_count_it_announced():
    for announced, written in ((0, 1), (2, 1)):
        writer = PackWriter(announced)
        writer.begin()
        for _ in range(written):
            writer.head(bytes(32), 0)
        with pytest.raises(ValueError, match="announced"):
            writer.finish()


def test_a_writer_need_not_keep_its_entries():
    writer = PackWriter(1, keep_entries=False)
    out = writer.begin() + writer.head(bytes(32), 1) + writer.content(b"x")
    assert len(out + writer.finish()) == pack_size([1])
    assert writer.entries == []


@given(CONTENTS, st.lists(st.binary(min_size=32, max_size=32), max_size=4))
@examples(60)
def test_an_index_finds_every_object_of_its_pack_and_no_other(contents, others):
    objects = list(dict(named(contents)).items())
    data, writer = write(objects)
    index = PackIndex(write_index(writer.entries))
    assert len(index) == len(objects)
    assert sorted(entry.object_id for entry in index) == [entry.object_id for entry in index]
    for oid, content in objects:
        entry = index.find(digest(oid))
        assert data[entry.offset : entry.offset + entry.size] == content
    known = {digest(oid) for oid, _ in objects}
    assert all(index.find(other) is None for other in others if other not in known)


def test_an_object_that_is_in_a_pack_twice_is_listed_once():
    objects = named([b"same", b"other", b"same"])
    data, writer = write(objects)
    index = PackIndex(write_index(writer.entries))
    assert len(index) == 2
    entry = index.find(digest(objects[0][0]))
    assert data[entry.offset : entry.offset + entry.size] == b"same"


def test_an_index_of_many_objects_is_searched_by_bisection(monkeypatch):
    rng = random.Random(4)
    entries = [IndexEntry(rng.randbytes(32), n, 1) for n in range(5000)]
    index = PackIndex(write_index(entries))
    looks = 0
    id_at = PackIndex._id_at

    def counted(self, at):
        nonlocal looks
        looks += 1
        return id_at(self, at)

    monkeypatch.setattr(PackIndex, "_id_at", counted)
    for entry in rng.sample(entries, 50):
        assert index.find(entry.object_id) == entry
    assert looks < 50 * 20


def test_an_index_may_be_a_view_and_skip_its_footer_when_it_was_verified_before():
    data = containers.pack_index(named([b"x"]))
    assert PackIndex(memoryview(data)).find(digest(muse.blob_id(b"x"))) == IndexEntry(digest(muse.blob_id(b"x")), 92, 1)
    torn = data[:-1] + bytes([data[-1] ^ 1])
    assert len(PackIndex(torn, verify=False)) == 1
    with refused(Code.MALFORMED):
        PackIndex(torn)


def test_an_index_cut_or_padded_at_any_byte_is_refused():
    data = containers.pack_index(named([b"x", b"y"]))
    for size in range(len(data)):
        with refused(Code.MALFORMED):
            PackIndex(data[:size])
    for wrong in (data + b"\0", data + bytes(87)):
        with refused(Code.MALFORMED):
            PackIndex(wrong)


def test_any_changed_byte_of_an_index_is_noticed():
    data = containers.pack_index(named([b"x", b"y"]))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x20
        with refused(Code.MALFORMED):
            PackIndex(bytes(changed))


@pytest.mark.parametrize("count", [2, 2**32, 2**63, 2**64 - 1])
def test_an_index_with_a_false_count_is_refused(count):
    body = containers.pack_index(named([b"x"]))[13:-32]
    with memory_below(MIB), refused(Code.MALFORMED):
        PackIndex(containers.sealed(b"MUSI\x01" + struct.pack("<Q", count) + body))


def test_an_index_with_an_entry_that_is_no_id_is_refused_when_it_is_read():
    row = b"md5:" + b"0" * 67 + struct.pack("<QQ", 92, 1)
    index = PackIndex(containers.sealed(b"MUSI\x01" + struct.pack("<Q", 1) + row))
    with refused(Code.MALFORMED):
        list(index)
    assert index.find(bytes(32)) is None

"""Wire mpacks: every section, in pieces of any size, and a table that cannot lie (protocol §3)."""

from __future__ import annotations

import hashlib
import itertools
import struct

import msgpack
import pytest
from hypothesis import given

from tests import containers, muse
from tests.containers import COMMITS, OBJECTS, OBJECTS_ZSTD, SNAPSHOTS, TAGS
from tests.unit.chunkings import SIZES, cut, examples
from tests.unit.refusals import MIB, memory_below, outcome, refused
from wire.errors import Code
from wire.ids import parse_any_id
from wire.inflate import inflate
from wire.limits import Limits
from wire.mpack import (
    MPackEnd,
    MPackReader,
    MPackRecord,
    MPackWriter,
    Section,
    SectionBegin,
    record_bytes,
    record_section_head,
)
from wire.pack import PackEnd, PackObjectBegin, PackPiece, PackWriter


def history() -> muse.Push:
    push = muse.Push()
    push.commit({"a.txt": b"hello\n", "empty": b""})
    push.commit({"a.txt": b"hello again\n", "empty": b""}, message="zwei ü")
    return push


def sections_of(push: muse.Push) -> list[tuple[int, bytes]]:
    tags = [{"tag_id": "t", "commit_id": push.head, "tag": "v1"}]
    compressed = [(oid, containers.stored_zstd(content)) for oid, content in push.blobs.items()]
    return [
        (OBJECTS, containers.pack(push.blobs.items())),
        (COMMITS, containers.record_section(push.commits)),
        (SNAPSHOTS, containers.record_section(push.snapshots)),
        (TAGS, containers.record_section(tags)),
        (OBJECTS_ZSTD, containers.pack(compressed)),
    ]


def events_of(data: bytes, sizes: list[int] | None = None, limits: Limits | None = None) -> list[object]:
    """Read a whole file; pieces of one object are put together."""
    reader = MPackReader(limits or Limits())
    events: list[object] = []
    for piece in cut(data, sizes or [65536]):
        for event in reader.receive_data(piece):
            if isinstance(event, PackPiece) and isinstance(events[-1], PackPiece):
                events[-1] = PackPiece(events[-1].content + event.content)
            else:
                events.append(event)
    events += reader.receive_data(b"")
    assert reader.finished
    return events


def records_of(events: list[object], section: Section) -> list[object]:
    return [event.record for event in events if isinstance(event, MPackRecord) and event.section is section]


@given(SIZES)
@examples(60)
def test_an_mpack_with_every_section_is_read_however_it_arrives(sizes):
    push = history()
    data = containers.mpack(sections_of(push))
    events = events_of(data, sizes)
    assert records_of(events, Section.COMMITS) == push.commits
    assert records_of(events, Section.SNAPSHOTS) == push.snapshots
    assert records_of(events, Section.TAGS) == [{"tag_id": "t", "commit_id": push.head, "tag": "v1"}]
    assert events[-1] == MPackEnd(hashlib.sha256(data).digest())
    assert [event.count for event in events if isinstance(event, PackEnd)] == [3, 3]
    assert events == events_of(data)


def test_objects_come_out_with_their_offsets_and_compressed_ones_as_they_are():
    push = history()
    data = containers.mpack(sections_of(push))
    events = events_of(data)
    expected: list[object] = []
    for oid, content in push.blobs.items():
        expected += [(parse_any_id(oid)[1], content)]
    found: dict[Section, list[tuple[bytes, bytes]]] = {}
    for at, event in enumerate(events):
        if isinstance(event, SectionBegin):
            begin = event
        elif isinstance(event, PackObjectBegin):
            content = events[at + 1].content if event.size else b""
            start = begin.offset + event.offset
            assert data[start : start + event.size] == content
            found.setdefault(begin.section, []).append((event.object_id, content))
    assert found[Section.OBJECTS] == expected
    assert [(oid, inflate("zstd", content, 100)) for oid, content in found[Section.OBJECTS_ZSTD]] == expected


def test_a_section_says_where_it_lies():
    sections = sections_of(history())
    begins = [event for event in events_of(containers.mpack(sections)) if isinstance(event, SectionBegin)]
    offset = 6 + 17 * 5
    for begin, (kind, data) in zip(begins, sections, strict=True):
        assert (begin.section.value, begin.offset, begin.length) == (kind, offset, len(data))
        assert begin.count == (None if kind in {OBJECTS, OBJECTS_ZSTD} else struct.unpack("<Q", data[:8])[0])
        offset += len(data)


def test_an_mpack_without_sections_is_complete():
    data = containers.mpack([])
    assert events_of(data) == [MPackEnd(hashlib.sha256(data).digest())]


def test_sections_are_read_in_file_order_whatever_the_order_of_the_table():
    sections = sections_of(history())
    data = containers.mpack(sections)
    table = data[6 : 6 + 17 * 5]
    rows = [table[at : at + 17] for at in range(0, len(table), 17)]
    shuffled = containers.mpack_of_table(b"".join(reversed(rows)), data[6 + len(table) : -32])
    assert events_of(shuffled)[:-1] == events_of(data)[:-1]


def test_an_mpack_cut_at_any_byte_is_refused_at_its_end_and_not_before():
    push = history()
    data = containers.mpack(sections_of(push)[:3])
    whole = list(itertools.chain.from_iterable(map(MPackReader().receive_data, cut(data, [1]))))
    reader = MPackReader()
    events: list[object] = []
    for size in range(0, len(data), 7):
        with refused(Code.MALFORMED, "cut"):
            events_of(data[:size])
    for byte in cut(data, [1]):
        assert not reader.finished
        with refused(Code.MALFORMED, "cut"):
            list(reader.receive_data(b""))
        events += reader.receive_data(byte)
        assert events == whole[: len(events)]
    assert reader.finished


def test_any_changed_byte_is_noticed():
    data = containers.mpack(sections_of(history())[1:4])
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x20
        assert outcome(events_of, bytes(changed)) in {Code.MALFORMED, Code.TOO_LARGE}


@pytest.mark.parametrize("trailing", [b"\0", b"MUSE", b"x" * 100])
def test_bytes_after_the_footer_are_refused(trailing):
    data = containers.mpack(sections_of(history())[1:2])
    for pieces in ([data + trailing], [data, trailing], cut(data + trailing, [11])):
        reader = MPackReader()
        with refused(Code.MALFORMED):
            for piece in pieces:
                list(reader.receive_data(piece))


EMPTY_PACK = containers.pack([])
EMPTY_LIST = containers.record_section([])
RECORD = containers.record_section([{"a": 1}])


def tabled(*entries: tuple[int, int, int], body: bytes) -> bytes:
    return containers.mpack_of_table(b"".join(struct.pack("<BQQ", *entry) for entry in entries), body)


AT = 6 + 17
AT2 = 6 + 2 * 17
TABLES = {
    "unknown section": tabled((6, AT, 8), body=EMPTY_LIST),
    "section 0": tabled((0, AT, 8), body=EMPTY_LIST),
    "section 255": tabled((255, AT, 8), body=EMPTY_LIST),
    "the same section twice": tabled((2, AT2, 8), (2, AT2 + 8, 8), body=EMPTY_LIST * 2),
    "the same bytes twice": tabled((2, AT2, 8), (3, AT2, 8), body=EMPTY_LIST),
    "overlapping by one byte": tabled((2, AT2, 9), (3, AT2 + 8, 8), body=EMPTY_LIST * 2),
    "one inside another": tabled((2, AT2, 16), (3, AT2 + 4, 8), body=EMPTY_LIST * 2),
    "over the header": tabled((2, 0, 8), body=EMPTY_LIST),
    "over the table": tabled((2, AT - 1, 8), body=EMPTY_LIST),
    "over the footer": tabled((2, AT, 40), body=EMPTY_LIST),
    "beyond the end": tabled((2, 10_000, 8), body=EMPTY_LIST),
    "at the end of the address space": tabled((2, 2**64 - 1, 8), body=EMPTY_LIST),
    "of the size of the address space": tabled((2, AT, 2**64 - 1), body=EMPTY_LIST),
    "wrapping round": tabled((2, AT2, 2**64 - 1), (3, AT2 + 8, 8), body=EMPTY_LIST * 2),
    "length 0": tabled((2, AT, 0), body=EMPTY_LIST),
    "length too short": tabled((2, AT, len(RECORD) - 1), body=RECORD),
    "length too long": tabled((2, AT, len(RECORD) + 1), body=RECORD + b"\0"),
    "pack shorter than its section": tabled((1, AT, len(EMPTY_PACK) + 8), body=EMPTY_PACK + bytes(8)),
    "pack longer than its section": tabled((1, AT, len(EMPTY_PACK) - 1), body=EMPTY_PACK),
    "bytes between the last section and the footer": tabled((2, AT, 8), body=EMPTY_LIST + b"\0"),
    "more sections than said": b"MUSE\x01\x01" + containers.mpack([(2, EMPTY_LIST), (3, EMPTY_LIST)])[6:],
    "a table without end": containers.sealed(b"MUSE\x01\xff" + b"\x02" * 100),
}


@pytest.mark.parametrize("data", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("sizes", [[1], [65536]])
def test_a_table_that_does_not_fit_the_file_is_refused(data, sizes):
    with memory_below(2 * MIB), refused(Code.MALFORMED):
        events_of(data, sizes)


@pytest.mark.parametrize(
    "data",
    [
        b"MUSE\x00\x00",
        b"MUSE\x02\x00",
        b"MUSI\x01\x00",
        b"muse\x01\x00",
        b"PK\x03\x04\x00\x00",
        b"\x80\x00\x00\x00\x00\x00",
    ],
)
def test_what_is_no_mpack_is_refused(data):
    with refused(Code.MALFORMED):
        events_of(containers.sealed(data))
    with refused(Code.MALFORMED):
        events_of(containers.pack([]))


def test_a_wrong_footer_is_refused():
    data = containers.mpack([(COMMITS, RECORD)])
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:-32] + bytes(32)):
        with refused(Code.MALFORMED, "footer"):
            events_of(wrong)
    broken_pack = EMPTY_PACK[:-1] + b"\0"
    with refused(Code.MALFORMED, "footer"):
        events_of(containers.mpack([(OBJECTS, broken_pack)]))


def section(count: int, *records: tuple[int, bytes]) -> bytes:
    return struct.pack("<Q", count) + b"".join(struct.pack("<Q", size) + data for size, data in records)


@pytest.mark.parametrize("kind", [COMMITS, SNAPSHOTS, TAGS])
@pytest.mark.parametrize(
    "data",
    [
        section(2, (4, b"\x81\xa1a\x01")), section(0, (4, b"\x81\xa1a\x01")), section(1, (3, b"\x81\xa1a\x01")),
        section(1, (5, b"\x81\xa1a\x01\xc0")), section(1, (0, b"")), section(1, (1, b"\x81")),
        section(1, (8, b"\x81\xa1a\x01" * 2)), section(2, (2, b"\x81\xa1"), (2, b"a\x01")), section(1, (1, b"\xc1")),
        section(1, (7, b"\x82\xa1a\x01\xa1a\x01")), section(1, (4, b"\x81\x01\xa1a")), section(1, (3, b"\xc7\x00\x05")),
        section(1, (300, b"\x91" * 299 + b"\x90")), section(1, (5, b"\x81\xa1a\xa1\xff")), section(1, (2**63, b"\x80")),
    ],
    ids=lambda data: data.hex()[:40],
)  # fmt: skip
def test_records_that_do_not_fill_their_section_are_refused(kind, data):
    with memory_below(4 * MIB):
        assert outcome(events_of, containers.mpack([(kind, data)])) in {Code.MALFORMED, Code.TOO_LARGE}


def test_counts_and_sizes_above_the_limits_are_refused_by_their_headers():
    limits = Limits(commits_per_push=2, objects_per_push=2, object_bytes=10, record_bytes=1000)
    commits = [{"message": "x" * 900}] * 2
    assert (
        records_of(
            events_of(containers.mpack([(COMMITS, containers.record_section(commits))]), limits=limits), Section.COMMITS
        )
        == commits
    )
    for too_large in (
        (COMMITS, containers.record_section([{}] * 3)), (SNAPSHOTS, containers.record_section([{}] * 3)),
        (TAGS, section(2**64 - 1)), (COMMITS, section(1, (2**64 - 1, b"\x80"))), (TAGS, section(1, (1001, b"\x80"))),
        (COMMITS, containers.record_section([{"message": "x" * 1000}])),
        (SNAPSHOTS, containers.record_section([{"note": "x" * 1000}])),
        (SNAPSHOTS, containers.record_section([{str(n): "x" * 90 for n in range(20)}])),
        (OBJECTS, containers.pack([(muse.blob_id(b"x"), b"x")] * 3)),
        (OBJECTS, containers.pack([(muse.blob_id(b""), b"x" * 11)])),
        (OBJECTS_ZSTD, containers.pack([(muse.blob_id(b""), b"x" * 11)])),
    ):  # fmt: skip
        with memory_below(4 * MIB), refused(Code.TOO_LARGE):
            events_of(containers.mpack([too_large]), limits=limits)


def test_a_snapshot_may_be_larger_than_a_record():
    limits = Limits(record_bytes=1000)
    record = {"snapshot_id": "s", "manifest": {f"path/{n:05}": "sha256:" + "0" * 64 for n in range(500)}}
    data = containers.mpack([(SNAPSHOTS, containers.record_section([record]))])
    assert records_of(events_of(data, limits=limits), Section.SNAPSHOTS) == [record]
    with refused(Code.TOO_LARGE):
        events_of(data, limits=Limits(manifest_entries=499))


def test_a_file_above_the_limit_is_refused_as_it_arrives():
    data = containers.mpack(sections_of(history()))
    assert events_of(data, limits=Limits(mpack_bytes=len(data)))
    reader = MPackReader(Limits(mpack_bytes=1000))
    with refused(Code.TOO_LARGE):
        for piece in cut(data, [100]):
            list(reader.receive_data(piece))
    assert reader._received <= 1100


def test_a_large_object_is_never_held_whole():
    size = 30 * MIB
    inner = PackWriter(1)
    length = 13 + 79 + size + 32
    writer = MPackWriter([(Section.OBJECTS, length)])

    def parts():
        yield writer.begin()
        yield writer.content(inner.begin() + inner.head(bytes(32), size))
        for _ in range(size // 65536):
            yield writer.content(inner.content(bytes(65536)))
        yield writer.content(inner.finish())
        yield writer.finish()

    reader = MPackReader()
    last: list[object] = []
    with memory_below(4 * MIB):
        for part in parts():
            for event in reader.receive_data(part):
                last = [*last[-1:], event]
    assert isinstance(last[0], PackEnd)
    assert isinstance(last[1], MPackEnd)


def test_a_written_mpack_is_the_one_the_protocol_describes():
    push = history()
    pack = containers.pack(push.blobs.items())
    commits = record_section_head(2) + b"".join(record_bytes(record) for record in push.commits)
    snapshots = record_section_head(2) + b"".join(record_bytes(record) for record in push.snapshots)
    sections = [(Section.OBJECTS, pack), (Section.COMMITS, commits), (Section.SNAPSHOTS, snapshots)]
    writer = MPackWriter([(kind, len(data)) for kind, data in sections])
    out = writer.begin()
    for _, data in sections:
        for piece in cut(data, [100]):
            out += writer.content(piece)
    out += writer.finish()
    assert out == containers.mpack(sections_of(push)[:3])


def test_a_writer_keeps_the_lengths_it_announced():
    for written in (b"x", b"xyz"):
        writer = MPackWriter([(Section.TAGS, 2)])
        writer.begin()
        writer.content(written)
        with pytest.raises(ValueError, match="stated"):
            writer.finish()


def test_records_are_written_as_msgpack_with_their_length():
    record = {"a": b"\0", "b": ["ü", None]}
    data = record_bytes(record)
    assert data[:8] == struct.pack("<Q", len(data) - 8)
    assert msgpack.unpackb(data[8:]) == record

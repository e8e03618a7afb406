"""The golden files: a history in every form, read from bytes that are checked in."""

from __future__ import annotations

import itertools

import pytest

from tests import containers, muse
from tests.golden import make
from tests.unit.chunkings import cut
from wire.bundle import BundleEnd, BundleReader
from wire.canonical import canonical_bytes, parse_canonical
from wire.deltas import apply_delta
from wire.frames import (
    NEED_DATA,
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
from wire.ids import Kind, Scheme, format_id, hash_bytes, parse_any_id, parse_id
from wire.inflate import inflate
from wire.manifest import check_id, empty
from wire.mpack import MPackReader, MPackRecord, MPackWriter, Section, SectionBegin, record_bytes, record_section_head
from wire.pack import PackIndex, PackObjectBegin, PackPiece, PackReader, PackWriter, write_index
from wire.records import Snapshot, parse_commit, parse_snapshot_either, parse_tag

SCHEMES = {"typed": (Scheme.TYPED, muse.typed), "plain": (Scheme.PLAIN, muse.plain)}
BOTH = pytest.mark.parametrize("scheme_name", SCHEMES)


def golden(name: str) -> bytes:
    return (make.HERE / name).read_bytes()


def digest(text: str) -> bytes:
    return parse_any_id(text)[1]


class Received:
    """What a stream or file brought, checked as a server would."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.blobs: dict[str, bytes] = {}
        self.commits: list[dict] = []
        self.snapshots: list[dict] = []
        self.tags: list[dict] = []

    def blob(self, object_id: object, encoding: str, base: object, data: bytes) -> None:
        content = inflate(encoding.removeprefix("delta+"), data, 10_000)
        if encoding.startswith("delta+"):
            content = apply_delta(self.blobs[base], content, 10_000)
        assert hash_bytes(Kind.BLOB, content, self.scheme) == parse_id(object_id, self.scheme)
        self.blobs[object_id] = content

    def record(self, kind: str, record: dict) -> None:
        {"commits": self.commits, "tags": self.tags}.get(kind, self.snapshots).append(record)

    def check_is(self, history: make.History, *, tags: bool = True) -> None:
        assert self.blobs == history.blobs
        assert self.commits == history.commits
        assert self.snapshots == [history.full, history.delta]
        assert self.tags == (history.tags if tags else [])
        manifests = {None: empty()}
        for record in self.snapshots:
            snapshot = parse_snapshot_either(record, self.scheme)
            if isinstance(snapshot, Snapshot):
                manifest = empty().apply(snapshot.manifest, (), snapshot.directories)
            else:
                base = manifests[snapshot.parent_snapshot_id]
                manifest = base.apply(snapshot.upsert, snapshot.remove, snapshot.directories)
            check_id(manifest, snapshot.snapshot_id, self.scheme)
            manifests[snapshot.snapshot_id] = manifest
            assert {format_id(blob, self.scheme) for blob in manifest.blobs()} <= set(self.blobs)
        for record in self.commits:
            assert parse_commit(record, self.scheme).snapshot_id in manifests
        for record in self.tags:
            assert parse_tag(record, self.scheme).tag == "v1"


def frame_events(data: bytes, grammar: Grammar) -> list[object]:
    reader = FrameReader(grammar)
    events: list[object] = []
    for piece in cut(data, [97]):
        reader.receive_data(piece)
        events += itertools.takewhile(lambda event: event is not NEED_DATA, iter(reader.next_event, None))
    assert reader.finished
    return events


def test_the_files_are_what_the_script_makes():
    files = make.build()
    assert {path.name for path in make.HERE.iterdir() if path.suffix not in {".py", ""}} == set(files)
    for name, content in files.items():
        assert golden(name) == content, name


@BOTH
def test_a_push_stream_brings_the_history(scheme_name):
    scheme, name = SCHEMES[scheme_name]
    received, parts = Received(scheme), b""
    header, *events, end = frame_events(golden(f"{scheme_name}-push.frames"), Grammar.PUSH)
    assert isinstance(header, Header)
    assert (end.n_objects, end.n_commits) == (5, 3)
    assert isinstance(end, End)
    for event in events:
        match event:
            case Object(object_id, encoding, base, content):
                received.blob(object_id, encoding, base, content)
            case ObjectBegin():
                parts = b""
            case ObjectPiece(content):
                parts += content
            case ObjectEnd(object_id, encoding, base):
                received.blob(object_id, encoding, base, parts)
            case Record(kind, record):
                received.record(kind, record)
    history = make.History(name)
    assert header.head == history.head
    received.check_is(history, tags=False)


@BOTH
def test_an_answer_stream_brings_progress_and_a_result(scheme_name):
    progress, heartbeat, result = frame_events(golden(f"{scheme_name}-answer.frames"), Grammar.ANSWER)
    assert progress == Progress("objects", 2, 5, "")
    assert heartbeat == Progress("heartbeat", 5, None, "waiting for the store")
    assert isinstance(result, Result)
    assert result.members["timings_ms"] == {"receive": 1.5, "commit": 0.25}


def test_a_failure_stream_brings_the_error():
    _, failure = frame_events(golden("failure.frames"), Grammar.ANSWER)
    assert isinstance(failure, Failure)
    assert failure.members["error"] == "missing_objects"
    assert len(failure.members["missing"]) == 3


@BOTH
def test_a_pack_and_its_index_bring_the_blobs(scheme_name):
    scheme, name = SCHEMES[scheme_name]
    data, index = golden(f"{scheme_name}-blobs.mpack"), PackIndex(golden(f"{scheme_name}-blobs.idx"))
    found: dict[bytes, bytes] = {}
    for event in itertools.chain.from_iterable(map(PackReader().receive_data, cut(data, [61]))):
        if isinstance(event, PackObjectBegin):
            current = event.object_id
            found[current] = b""
            entry = index.find(current)
            assert (entry.offset, entry.size) == (event.offset, event.size)
        elif isinstance(event, PackPiece):
            found[current] += event.content
    assert found == {digest(oid): content for oid, content in make.History(name).blobs.items()}
    assert {format_id(oid, scheme) for oid in found} == set(make.History(name).blobs)
    for entry in index:
        assert data[entry.offset : entry.offset + entry.size] == found[entry.object_id]


@BOTH
def test_an_mpack_brings_the_history(scheme_name):
    scheme, name = SCHEMES[scheme_name]
    received = Received(scheme)
    objects: list[list] = []
    for event in itertools.chain.from_iterable(
        map(MPackReader().receive_data, cut(golden(f"{scheme_name}-all-sections.mpack"), [61]))
    ):
        match event:
            case SectionBegin(section):
                encoding = "zstd" if section is Section.OBJECTS_ZSTD else "raw"
            case PackObjectBegin(object_id):
                objects.append([format_id(object_id, scheme), encoding, b""])
            case PackPiece(content):
                objects[-1][2] += content
            case MPackRecord(section, record):
                received.record(section.name.lower(), record)
    for object_id, encoding, content in objects:
        received.blob(object_id, encoding, None, content)
    received.check_is(make.History(name))


@BOTH
def test_a_bundle_brings_the_history(scheme_name):
    scheme, name = SCHEMES[scheme_name]
    received = Received(scheme)
    data = golden(f"{scheme_name}.bundle")
    for event in itertools.chain.from_iterable(map(BundleReader().receive_data, cut(data, [61]))):
        match event:
            case Object(object_id, encoding, base, content):
                received.blob(object_id, encoding, base, content)
            case Record(kind, record):
                received.record(kind, record)
            case BundleEnd(members):
                assert members == {"branch_heads": {"main": make.History(name).head}}
    received.check_is(make.History(name))


@BOTH
def test_canonical_bytes_give_the_records_and_the_records_the_bytes(scheme_name):
    scheme, name = SCHEMES[scheme_name]
    history = make.History(name)
    for file_name, kind, record in (
        ("commit", Kind.COMMIT, history.commits[1]), ("snapshot", Kind.SNAPSHOT, history.full),
        ("snapshot-delta", Kind.SNAPSHOT, history.delta),
    ):  # fmt: skip
        data = golden(f"{scheme_name}-{file_name}.canonical")
        assert parse_canonical(data) == (kind, record)
        assert canonical_bytes(kind, record) == data
    assert parse_commit(history.commits[1], scheme).canonical == golden(f"{scheme_name}-commit.canonical")


@BOTH
def test_the_same_pack_and_index_are_written(scheme_name):
    blobs = make.History(SCHEMES[scheme_name][1]).blobs
    writer = PackWriter(len(blobs))
    out = writer.begin()
    for oid, content in blobs.items():
        out += writer.head(digest(oid), len(content)) + writer.content(content)
    assert out + writer.finish() == golden(f"{scheme_name}-blobs.mpack")
    assert write_index(writer.entries) == golden(f"{scheme_name}-blobs.idx")


@BOTH
def test_the_same_mpack_is_written(scheme_name):
    history = make.History(SCHEMES[scheme_name][1])
    blobs = list(history.blobs.items())

    def section(records: list[dict]) -> bytes:
        return record_section_head(len(records)) + b"".join(map(record_bytes, records))

    sections = [
        (Section.OBJECTS, containers.pack(blobs[:3])),
        (Section.OBJECTS_ZSTD, containers.pack([(oid, containers.stored_zstd(content)) for oid, content in blobs[3:]])),
        (Section.SNAPSHOTS, section([history.full, history.delta])),
        (Section.COMMITS, section(history.commits)),
        (Section.TAGS, section(history.tags)),
    ]
    writer = MPackWriter([(kind, len(data)) for kind, data in sections])
    out = writer.begin() + b"".join(writer.content(data) for _, data in sections) + writer.finish()
    assert out == golden(f"{scheme_name}-all-sections.mpack")


@pytest.mark.parametrize(
    ("file_name", "grammar"),
    [
        ("typed-push.frames", Grammar.PUSH), ("plain-push.frames", Grammar.PUSH),
        ("typed-answer.frames", Grammar.ANSWER), ("plain-answer.frames", Grammar.ANSWER), ("failure.frames",
        Grammar.ANSWER),
    ],
)  # fmt: skip
def test_the_same_frames_are_written(file_name, grammar):
    writer = FrameWriter(grammar)
    data = golden(file_name)
    frames = muse.unpack_frames(data)
    assert b"".join(writer.send(members.pop("type"), members) for members in frames) == data

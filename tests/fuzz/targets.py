"""One function per decoder: takes any bytes, raises nothing but a refusal, and disagrees with itself on nothing.

A target gives bytes to a decoder in the ways a peer can, at once and in pieces, and asks for the same outcome. An
``AssertionError`` from here is a finding just as an ``IndexError`` from the decoder is.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator

from tests import containers, muse
from wire.bundle import BundleReader, looks_like_bundle
from wire.canonical import canonical_bytes, parse_canonical, parse_json
from wire.deltas import apply_delta, make_delta
from wire.errors import Code, Refusal
from wire.frames import NEED_DATA, FrameReader, Grammar, ObjectPiece
from wire.ids import Kind, Scheme, format_id, parse_any_id, parse_id
from wire.inflate import inflate, inflate_stream
from wire.limits import Limits
from wire.manifest import Manifest, empty
from wire.mpack import MPackReader
from wire.pack import PackIndex, PackPiece, PackReader
from wire.paths import PathPolicy, check_branch_name, check_path
from wire.pull import unpack_whole
from wire.records import (
    delta_record,
    parse_commit,
    parse_snapshot,
    parse_snapshot_delta,
    parse_snapshot_either,
    parse_tag,
    snapshot_record,
)
from wire.signatures import check_signature

LIMITS = Limits(
    object_frame_bytes=50_000, object_bytes=60_000, object_chunk_bytes=5_000, mpack_bytes=200_000, objects_per_push=40,
    commits_per_push=40, manifest_entries=60, manifest_text_bytes=4_000, delta_bytes=20_000, zstd_window_bytes=1 << 20,
    record_bytes=8_000,
)  # fmt: skip
"""Small, so that small inputs come near them."""
BASE = bytes(range(256)) * 2

Outcome = tuple[str, object]


def settle(function: Callable[..., object], *arguments: object) -> Outcome:
    """Run a decoder: ``("given", result)`` or ``("refused", code)``."""
    try:
        return "given", function(*arguments)
    except Refusal as refusal:
        code, body = refusal.code, refusal.body("r")
    assert isinstance(code, Code)
    assert body["error"] == code.text
    return "refused", code


def agree(one: Outcome, other: Outcome) -> Outcome:
    """Two ways to decode the same bytes: both give the same, or both refuse (of two faults, either may be told)."""
    assert one[0] == other[0], (one, other)
    same = one[1] == other[1] or repr(one[1]) == repr(other[1])  # NaN is not equal to itself
    assert one[0] == "refused" or same, (one, other)
    return one


def finish(outcome: Outcome) -> object:
    """End a target the way its decoder ended."""
    if outcome[0] == "refused":
        assert isinstance(outcome[1], Code)
        raise Refusal(outcome[1], "as decoded")
    return outcome[1]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def some_size(data: bytes) -> int:
    """A length of pieces that depends on the data alone."""
    return 1 + zlib.crc32(data) % 97


def joined(events: Iterator[object], kind: type) -> list[object]:
    """Put together the pieces that follow one another."""
    result: list[object] = []
    for event in events:
        if isinstance(event, kind) and result and isinstance(result[-1], kind):
            result[-1] = kind(result[-1].content + event.content)
        else:
            result.append(event)
    return result


def frame_events(grammar: Grammar, data: bytes, size: int) -> Iterator[object]:
    reader = FrameReader(grammar, LIMITS)
    for piece in pieces(data, size):
        reader.receive_data(piece)
        yield from itertools.takewhile(lambda event: event is not NEED_DATA, iter(reader.next_event, None))
    reader.receive_data(b"")


def read_frames(grammar: Grammar, data: bytes, size: int) -> list[object]:
    return joined(frame_events(grammar, data, size), ObjectPiece)


def target_frames_push(data: bytes) -> object:
    return finish(agree(*(settle(read_frames, Grammar.PUSH, data, size) for size in (1 << 20, some_size(data)))))


def target_frames_answer(data: bytes) -> object:
    return finish(agree(*(settle(read_frames, Grammar.ANSWER, data, size) for size in (1 << 20, some_size(data)))))


def read_file(reader_type: type, piece_type: type, data: bytes, size: int) -> list[object]:
    reader = reader_type(LIMITS)
    parts = itertools.chain(pieces(data, size), [b""])
    return joined(itertools.chain.from_iterable(map(reader.receive_data, parts)), piece_type)


def target_pack(data: bytes) -> object:
    for whole in (containers.sealed(data[:-32]), data):  # a file is also worth reading when its footer is right
        result = agree(*(settle(read_file, PackReader, PackPiece, whole, size) for size in (1 << 20, some_size(data))))
    return finish(result)


def target_mpack(data: bytes) -> object:
    for whole in (containers.sealed(data[:-32]), data):
        result = agree(*(settle(read_file, MPackReader, PackPiece, whole, size) for size in (1 << 20, some_size(data))))
    return finish(result)


def target_bundle(data: bytes) -> object:
    result = agree(*(settle(read_file, BundleReader, ObjectPiece, data, size) for size in (1 << 20, some_size(data))))
    assert result[0] == "refused" or looks_like_bundle(data)
    return finish(result)


def read_index(data: bytes, verify: bool) -> list[object]:
    index = PackIndex(data, verify=verify)
    entries = list(index)
    for entry in entries:
        found = index.find(entry.object_id)
        assert found is None or found.object_id == entry.object_id
    return [*entries, index.find(bytes(32)), len(index)]


def target_idx(data: bytes) -> object:
    settle(read_index, containers.sealed(data[:-32]), True)
    settle(read_index, data, False)
    return finish(settle(read_index, data, True))


def target_canonical(data: bytes) -> object:
    kind, record = parse_canonical(data)
    again = settle(canonical_bytes, kind, record)
    if again[0] == "given":
        assert parse_canonical(again[1]) == (kind, record)
    return record


def target_body_msgpack(data: bytes) -> object:
    return unpack_whole(data, "the body")


def target_body_json(data: bytes) -> object:
    return parse_json(data, "the body")


def target_inflate(data: bytes) -> object:
    for encoding in ("raw", "zlib", "zstd"):
        result = agree(
            settle(inflate, encoding, data, 40_000, LIMITS),
            settle(
                lambda name: b"".join(inflate_stream(name, pieces(data, some_size(data)), 40_000, LIMITS)), encoding
            ),
        )
        assert result[0] == "refused" or len(result[1]) <= 40_000
    return finish(result)


def target_deltas(data: bytes) -> object:
    assert apply_delta(BASE, make_delta(BASE, data), len(data)) == data
    assert apply_delta(data, make_delta(data, BASE), len(BASE)) == BASE
    result = apply_delta(BASE, data, LIMITS.delta_bytes)
    assert len(result) <= LIMITS.delta_bytes
    return result


def read_commit(record: object, scheme: Scheme) -> object:
    commit = parse_commit(record, scheme, LIMITS)
    assert parse_canonical(commit.canonical) == (Kind.COMMIT, commit.raw)
    check_signature(commit, scheme)
    return commit


def with_its_id(record: object, name: Callable[[str, bytes], str]) -> object:
    """Give a commit record the id it should have, so that a change of its fields is looked at behind the id."""
    try:
        return {**record, "commit_id": muse.commit_id(record, name)}
    except (TypeError, KeyError, AttributeError, ValueError):
        return record


def read_snapshot(record: object, scheme: Scheme) -> object:
    snapshot = parse_snapshot_either(record, scheme, LIMITS)
    if hasattr(snapshot, "manifest"):
        assert parse_snapshot(snapshot_record(snapshot, scheme), scheme, LIMITS) == snapshot
        manifest = empty().apply(snapshot.manifest, (), snapshot.directories, LIMITS)
    else:
        assert parse_snapshot_delta(delta_record(snapshot, scheme), scheme, LIMITS) == snapshot
        manifest = empty().apply(snapshot.upsert, snapshot.remove, snapshot.directories, LIMITS)
    ids = {path: format_id(blob, scheme) for path, blob in manifest.items()}
    name = muse.typed if scheme is Scheme.TYPED else muse.plain
    assert format_id(manifest.snapshot_id(scheme), scheme) == muse.snapshot_id(ids, manifest.directories, name)
    return manifest.text_bytes


def target_records(data: bytes) -> object:
    record = parse_json(data, "a record") if data[:1] == b"{" else unpack_whole(data, "a record")
    for scheme, name in ((Scheme.TYPED, muse.typed), (Scheme.PLAIN, muse.plain)):
        settle(read_commit, record, scheme)
        settle(read_commit, with_its_id(record, name), scheme)
        settle(read_snapshot, record, scheme)
        settle(parse_tag, record, scheme, LIMITS)
        for parse in (parse_snapshot, parse_snapshot_delta):
            result = settle(parse, record, scheme, LIMITS)
    return finish(result)


def step_by_step(paths: list[str], policy: PathPolicy) -> Manifest:
    manifest = empty(policy)
    for path in paths:
        manifest = manifest.apply({path: bytes(32)}, (), (), LIMITS)
    return manifest


def target_names(data: bytes) -> object:
    """Each line is a path and a branch name; all lines together are a manifest."""
    lines = list(dict.fromkeys(data.decode("utf-8", "surrogateescape").split("\n")))
    for policy in PathPolicy:
        alone = [settle(check_path, line, policy, LIMITS)[0] for line in lines]
        together = settle(empty(policy).apply, dict.fromkeys(lines, bytes(32)), (), (), LIMITS)
        in_turn = settle(step_by_step, lines, policy)
        assert together[0] == in_turn[0]
        if together[0] == "given":
            assert set(alone) == {"given"}
            assert list(together[1].items()) == list(in_turn[1].items())
            assert together[1].snapshot_id(Scheme.PLAIN) == in_turn[1].snapshot_id(Scheme.PLAIN)
    for line in lines:
        settle(check_branch_name, line, LIMITS)
    return finish(settle(check_branch_name, lines[0], LIMITS))


def target_ids(data: bytes) -> object:
    for text in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1"), data):
        result = settle(parse_any_id, text)
        if result[0] == "given":
            scheme, digest = result[1]
            assert format_id(digest, scheme) == text
        for scheme in Scheme:
            same = settle(parse_id, text, scheme)
            assert (same[0] == "given") == (result[0] == "given" and result[1][0] is scheme)
    return finish(settle(parse_any_id, data.decode("utf-8", "surrogateescape")))


TARGETS: dict[str, Callable[[bytes], object]] = {
    name.removeprefix("target_"): function for name, function in sorted(globals().items()) if name.startswith("target_")
}

"""Pushes ready to be sent: whole bodies of ``push/stream``, made before anything is measured.

Many clients at once would measure the clients. What is sent is what our client sends: the same frames, contents
compressed as it does, snapshots as changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from actors.spool import Spool, SpoolDirectory
from bench.workloads import BRANCH, Shape, write_git
from museworkd.client.compression import Compressor
from museworkd.client.git_import import import_git
from museworkd.client.outgoing import COMMIT, DELTA, FULL, find_outgoing, framed_records
from museworkd.client.progress import Quiet
from museworkd.client.push_stream import COMMIT_FRAME_BYTES
from museworkd.client.repository import LocalRepository
from wire.frames import VERSION, FrameWriter, Grammar
from wire.ids import format_id

_LISTS = {FULL: "snapshots", DELTA: "snapshot_deltas", COMMIT: "commits"}


@dataclass(frozen=True, slots=True)
class Body:
    """One push."""

    head: str
    commits: int
    objects: int
    frames: bytes


def make_bodies(shape: Shape, count: int, place: Path) -> list[Body]:
    """Make pushes of a shape, no two with a content in common."""
    return [_make(replace(shape, name=f"{shape.name} {number}"), place) for number in range(count)]


def _make(shape: Shape, place: Path) -> Body:
    place.mkdir(parents=True)
    try:
        return trio.run(_import, write_git(shape, place / "git", quickly=True), place)
    finally:
        shutil.rmtree(place)


async def _import(source: Path, place: Path) -> Body:
    with LocalRepository.fresh(place / "muse") as repository:
        await import_git(source, repository, Quiet())
        async with SpoolDirectory(place, "spool") as spools:
            return await _body(repository, spools)


async def _body(repository: LocalRepository, spools: SpoolDirectory) -> Body:
    head = repository.branches()[BRANCH]
    outgoing = await find_outgoing(repository, head, set(), spools)
    shown = format_id(head, repository.scheme)
    counts = {"n_objects": len(outgoing.blobs), "n_commits": outgoing.commits}
    writer, compressor = FrameWriter(Grammar.PUSH), Compressor()
    header = {"version": VERSION, "branch": BRANCH, "head": shown, "force": False}
    frames = bytearray(writer.send("H", {**header, **counts, "n_bytes": outgoing.blob_bytes}))
    for blob in outgoing.blobs:
        encoding, content = compressor.encode(repository.files.read(blob))
        named = {"object_id": format_id(blob.object_id, repository.scheme)}
        frames += writer.send("O", {**named, "encoding": encoding, "content": content})
    for spool in (outgoing.snapshots, outgoing.records):
        for lists in grouped(spool):
            frames += writer.send_records(lists)
    frames += writer.send("E", counts)
    return Body(shown, outgoing.commits, len(outgoing.blobs), bytes(frames))


def grouped(spool: Spool) -> Iterator[dict[str, list[bytes]]]:
    """Group records into frames of one kind each, in their order."""
    kind, records, size = b"", list[bytes](), 0
    for tag, packed in framed_records(spool):
        if records and (tag != kind or size + len(packed) > COMMIT_FRAME_BYTES):
            yield {_LISTS[kind]: records}
            records, size = [], 0
        kind = tag
        records.append(packed)
        size += len(packed)
    if records:
        yield {_LISTS[kind]: records}

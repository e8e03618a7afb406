"""Pushing by one file (protocol §7): built on disk, uploaded where it broke off, unpacked by the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import trio

from actors.push.pack_file import PackFile
from actors.spool import Spool, SpoolDirectory
from museworkd.client.compression import SAMPLE_BYTES, Compressor
from museworkd.client.delivery import Delivery
from museworkd.client.outgoing import framed_records
from museworkd.client.presigning import is_resumable
from museworkd.client.progress import Phase
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api
from museworkd.client.uploading import FileSource, Uploader
from museworkd.client.verdicts import settled
from storage.layout import Place
from wire.ids import Scheme, format_id
from wire.mpack import MEDIA_TYPE, MPackWriter, Section, record_section_head
from wire.pack import PackWriter, pack_size

_PIECE_BYTES = 256 * 1024
_WHOLE_BYTES = 4 * 1024 * 1024
"""Contents up to this size may be compressed; larger ones are mostly compressed already."""


@dataclass(slots=True)
class MpackFile:
    """A built mpack."""

    path: Path
    size: int
    mpack_id: bytes
    objects: int


@dataclass(slots=True)
class _Split:
    """Which contents travel as they are, and those that travel compressed."""

    raw: list[Place] = field(default_factory=list)
    packed: PackFile | None = None


class MpackWay:
    """Build, upload and unpack; another attempt goes on with the same file."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._built: MpackFile | None = None
        self.said_everything = False

    async def send(self, *, again: bool) -> Mapping[str, object]:  # noqa: ARG002 - the upload knows where it was
        """Send and give the server's result; see ``Sending``."""
        delivery = self._delivery
        built = self._built = self._built or await self._build()
        key = format_id(built.mpack_id, Scheme.TYPED)
        async with Api(delivery.remote) as api:
            told = await api.post("push/mpack-presign", {"mpack_key": key, "size_bytes": built.size})
            url = told.get("upload_url")
            with delivery.meter.phase("Uploading", built.size) as phase:
                if isinstance(url, str):
                    async with Uploader(MEDIA_TYPE, resuming=True, meter=delivery.meter) as uploader:
                        try:
                            source = FileSource(built.path, built.size)
                            await uploader.upload(url, source, phase, resumable=is_resumable(told))
                        finally:
                            delivery.sent_bytes += uploader.sent_bytes
            self.said_everything = True
            with delivery.meter.phase("Unpacking at the server", built.objects):
                members = {"mpack_key": key, "declared_objects_count": built.objects, **delivery.header}
                answer: Mapping[str, object] = await api.post("push/unpack-mpack", members)
                if answer.get("status") == "pending":
                    answer = await settled(api, delivery.push_id)
        return answer

    async def _build(self) -> MpackFile:
        delivery, outgoing = self._delivery, self._delivery.outgoing
        with delivery.meter.phase("Packing", len(outgoing.blobs)) as phase:
            return await trio.to_thread.run_sync(
                _build, delivery.repository, outgoing.blobs, outgoing.snapshots, outgoing.records, delivery.spools,
                phase,
            )  # fmt: skip


def _build(
    repository: LocalRepository, blobs: list[Place], snapshots: Spool, commits: Spool, spools: SpoolDirectory,
    phase: Phase,
) -> MpackFile:  # fmt: skip
    split = _split(repository, blobs, spools, phase)
    sections: list[tuple[Section, int]] = [(Section.OBJECTS, pack_size(place.size for place in split.raw))]
    packed_path: Path | None = None
    if split.packed is not None:
        _, packed_path = split.packed.finish()
        sections.append((Section.OBJECTS_ZSTD, packed_path.stat().st_size))
    listed = {Section.SNAPSHOTS: snapshots, Section.COMMITS: commits}
    counts = {section: _measure(spool) for section, spool in listed.items()}
    sections += [(section, size) for section, (_, size) in counts.items()]
    path = spools.new_path()
    writer = MPackWriter(sections)
    with path.open("wb") as file:
        file.write(writer.begin())
        for piece in _joined(_raw_pack(repository, split.raw)):
            file.write(writer.content(piece))
        if packed_path is not None:
            for piece in _file_pieces(packed_path):
                file.write(writer.content(piece))
        for section, spool in listed.items():
            file.write(writer.content(record_section_head(counts[section][0])))
            for piece in _joined(_records(spool)):
                file.write(writer.content(piece))
        file.write(writer.finish())
    return MpackFile(path, path.stat().st_size, writer.digest(), len(blobs))


def _split(repository: LocalRepository, blobs: Iterable[Place], spools: SpoolDirectory, phase: Phase) -> _Split:
    """Compress what that pays for."""
    split, compressor = _Split(), Compressor()
    for place in blobs:
        phase.advance()
        if place.size <= _WHOLE_BYTES and compressor.pays(repository.files.sample(place, SAMPLE_BYTES), place.size):
            content = compressor.compress(repository.files.read(place))
            split.packed = split.packed or PackFile(spools)
            split.packed.add(place.object_id, len(content), [content])
        else:
            split.raw.append(place)
    return split


def _raw_pack(repository: LocalRepository, places: list[Place]) -> Iterator[bytes]:
    writer = PackWriter(len(places), keep_entries=False)
    yield writer.begin()
    for place in places:
        if place.size <= _PIECE_BYTES:
            yield writer.content(writer.head(place.object_id, place.size, counted=False) + repository.files.read(place))
            continue
        yield writer.head(place.object_id, place.size)
        for piece in repository.files.pieces(place):
            yield writer.content(piece)
    yield writer.finish()


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that hashing and writing them costs little."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _measure(spool: Spool) -> tuple[int, int]:
    """Give the number of framed records and the size of their section."""
    count, size = 0, 8
    for packed in _records(spool):
        count, size = count + 1, size + len(packed)
    return count, size


def _records(spool: Spool) -> Iterator[bytes]:
    """Give the records of a section, each after its length."""
    return (len(packed).to_bytes(8, "little") + packed for _, packed in framed_records(spool))


def _file_pieces(path: Path) -> Iterator[bytes]:
    file: BinaryIO
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece

"""Taking a downloaded mpack into a repository: it is read once, every byte is proved, then it is linked in at once.

Objects that came raw are kept as the pack they came in; those that came compressed are inflated into a pack of their
own, on disk. A mpack may have both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from museworkd.client.blob_packs import PackBuilder, copy_pack, room_in
from museworkd.client.errors import IntegrityError
from museworkd.client.ingest import HistoryIntake
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.progress import Phase
from museworkd.client.repository import LocalRepository
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_id
from wire.inflate import inflate, inflate_stream, stated_zstd_size
from wire.mpack import MPackEnd, MPackReader, MPackRecord, Section, SectionBegin
from wire.pack import PackEnd, PackObjectBegin, PackObjectEnd, PackPiece, PackRun, id_text
from wire.records import parse_commit, parse_snapshot_either, parse_tag

WHOLE_BYTES = 4 * 1024 * 1024
"""A compressed content is inflated in memory up to this size; a larger one is inflated into its pack."""
TAG_BYTES = 1024
_WHOLE_BYTES = 256 * 1024
"""Objects up to this size are taken from the file in one piece, many of them at a time."""
_READ_BYTES = 1024 * 1024
_ZSTD_HEAD_BYTES = 18


@dataclass(slots=True)
class FetchReport:
    """What a fetch brought."""

    branches: dict[str, str] = field(default_factory=dict)
    """Remote branch → head, for those that changed."""
    pruned: list[str] = field(default_factory=list)
    """Remote branches that are gone and were forgotten."""
    default_branch: str = "main"
    commits: int = 0
    """Commits that were not here before."""
    blobs: int = 0
    received_bytes: int = 0
    shallow: int = 0
    """Commits whose parents are not here, afterwards."""


class PackIntake:
    """Read a downloaded mpack and link it into the repository."""

    def __init__(
        self,
        repository: LocalRepository,
        path: Path,
        expected: bytes,
        shallow: object,
        report: FetchReport,
        phase: Phase,
    ) -> None:
        self._repository = repository
        self._path = path
        self._expected = expected
        self._report = report
        self._phase = phase
        self._scheme = repository.scheme
        self._history = HistoryIntake(repository.index, repository.scheme)
        self._entries: list[tuple[bytes, int, int]] = []
        """Blob id, offset and size of what came raw."""
        self._pack_id = b""
        """Of the pack those are in."""
        self._new: set[bytes] = set()
        self._commits: set[bytes] = set()
        self._section_at: dict[Section, tuple[int, int]] = {}
        self._inflated: PackBuilder | None = None
        self._room = room_in(repository.packs)
        """What compressed contents may inflate to, all together."""
        self._tags: dict[str, bytes] = {}
        listed = shallow if isinstance(shallow, list) else []
        self._shallow = {parse_id(commit_id, self._scheme, "shallow") for commit_id in listed}

    async def run(self) -> dict[str, bytes]:
        """Take everything in: blobs, then snapshots, then commits, as they stand in the file; gives the tags."""
        index = self._repository.index
        try:
            with index.transaction():
                for event in self._events():
                    if isinstance(event, MPackRecord):
                        await self._record(event)
                self._report.blobs = len(self._new) - await self._held_blobs()
                self._report.commits = len(self._commits) - len(await index.held_commits(0, list(self._commits)))
                if self._report.blobs:
                    self._keep_blobs()
                self._history.write()
                index.set_shallow(commit_id for commit_id in self._shallow if index.has_commit(commit_id))
                if index.shallow():
                    index.deepen()
                for tag, commit_id in self._tags.items():
                    if not index.has_commit(commit_id):
                        shown = format_id(commit_id, self._scheme)
                        raise IntegrityError(f"the tag {tag!a} names commit {shown}, which did not come")
        finally:
            if self._inflated is not None:
                self._inflated.abandon()
        return self._tags

    async def _held_blobs(self) -> int:
        """Count what came and was here before."""
        index = self._repository.index
        return len(await index.places(self._scheme, list(self._new))) if index.has_blobs else 0

    def _events(self) -> Iterator[object]:
        reader = MPackReader(CLIENT_LIMITS, whole_bytes=_WHOLE_BYTES, runs=True)
        section = Section.OBJECTS
        current: PackObjectBegin | None = None
        hasher = hashlib.sha256()
        with self._path.open("rb") as file:
            while not reader.finished:
                for event in reader.receive_data(file.read(_READ_BYTES)):
                    match event:
                        case MPackRecord():
                            yield event
                        case PackRun():
                            if section is Section.OBJECTS_ZSTD:
                                self._inflate_run(event)
                            else:
                                self._blobs(event)
                            self._phase.advance(len(event.contents))
                        case PackObjectBegin():
                            current = event
                            hasher = hasher_for(Kind.BLOB, event.size, self._scheme)
                        case PackPiece(piece):
                            if section is Section.OBJECTS:
                                hasher.update(piece)
                        case PackObjectEnd():
                            assert current is not None
                            if section is Section.OBJECTS_ZSTD:
                                self._inflate(current)
                            else:
                                self._blob(current, hasher.digest())
                            self._phase.advance()
                        case SectionBegin():
                            section = event.section
                            self._section_at[section] = (event.offset, event.length)
                        case PackEnd() if section is Section.OBJECTS:
                            self._pack_id = event.digest
                        case MPackEnd(digest) if digest != self._expected:
                            raise IntegrityError("the downloaded pack does not hash to its id")
                        case _:
                            pass

    def _blobs(self, run: PackRun) -> None:
        """Prove small raw blobs: the id that stands before each has to be the one its content has."""
        typed, content_of, data_at = self._scheme is Scheme.TYPED, memoryview(run.data), run.offset
        sha256, add, new = hashlib.sha256, self._entries.append, self._new.add
        for at, size in run.contents:
            hasher = sha256(b"blob %d\0" % size if typed else b"")
            hasher.update(content_of[at : at + size])
            blob_id = hasher.digest()
            if id_text(blob_id) != run.id_text_at(at):
                raise _wrong_blob(_blob_id(run.id_text_at(at)))
            add((blob_id, data_at + at, size))
            new(blob_id)

    def _blob(self, blob: PackObjectBegin, digest: bytes) -> None:
        if digest != blob.object_id:
            raise _wrong_blob(blob.object_id)
        self._entries.append((blob.object_id, blob.offset, blob.size))
        self._new.add(blob.object_id)

    def _inflate_run(self, run: PackRun) -> None:
        """Inflate small compressed contents."""
        for at, size in run.contents:
            blob = PackObjectBegin(_blob_id(run.id_text_at(at)), run.offset + at, size)
            self._inflate(blob, run.data[at : at + size])

    def _inflate(self, blob: PackObjectBegin, whole: bytes | None = None) -> None:
        """Inflate one content, at hand or whole in the file: small ones in memory, others into their pack."""
        if self._inflated is None:
            self._inflated = PackBuilder(self._repository.packs)
        head = next(self._compressed(blob), b"") if whole is None else whole
        budget = min(CLIENT_LIMITS.object_bytes, self._room)
        size = stated_zstd_size(head[:_ZSTD_HEAD_BYTES], CLIENT_LIMITS)
        if size is not None and max(size, blob.size) <= WHOLE_BYTES:
            compressed = b"".join(self._compressed(blob)) if whole is None else whole
            content = inflate("zstd", compressed, min(size, budget), CLIENT_LIMITS)
            size, digest = len(content), hash_bytes(Kind.BLOB, content, self._scheme)
            self._inflated.add(blob.object_id, size, [content])
        else:
            size, digest = self._inflate_to_disk(self._inflated, blob, size, budget)
        if digest != blob.object_id:
            raise _wrong_blob(blob.object_id)
        self._room -= size
        self._new.add(blob.object_id)

    def _inflate_to_disk(
        self, pack: PackBuilder, blob: PackObjectBegin, size: int | None, budget: int
    ) -> tuple[int, bytes]:
        if size is None:  # it has to be known before the first byte is hashed or written
            size = sum(map(len, inflate_stream("zstd", self._compressed(blob), budget, CLIENT_LIMITS)))
        hasher = hasher_for(Kind.BLOB, size, self._scheme)

        def hashed() -> Iterator[bytes]:
            for piece in inflate_stream("zstd", self._compressed(blob), min(size, budget), CLIENT_LIMITS):
                hasher.update(piece)
                yield piece

        pack.add(blob.object_id, size, hashed())
        return size, hasher.digest()

    def _compressed(self, blob: PackObjectBegin) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._section_at[Section.OBJECTS_ZSTD][0] + blob.offset)
            left = blob.size
            while left:
                piece = file.read(min(left, _READ_BYTES))
                if not piece:
                    raise IntegrityError("the downloaded pack is cut")
                left -= len(piece)
                yield piece

    async def _record(self, event: MPackRecord) -> None:
        match event.section:
            case Section.SNAPSHOTS:
                added = await self._history.snapshot(parse_snapshot_either(event.record, self._scheme, CLIENT_LIMITS))
                for blob_id in added:
                    if blob_id not in self._new and self._repository.index.place(blob_id) is None:
                        raise IntegrityError(f"blob {blob_id.hex()} is named by a snapshot and did not come")
            case Section.COMMITS:
                commit = parse_commit(event.record, self._scheme, CLIENT_LIMITS)
                self._history.commit(commit, shallow=commit.commit_id in self._shallow)
                self._commits.add(commit.commit_id)
                self._phase.advance()
            case _:
                tag = parse_tag(event.record, self._scheme, CLIENT_LIMITS)
                if not tag.tag.isprintable() or len(tag.tag.encode()) > TAG_BYTES:
                    raise IntegrityError(f"a tag of the server has no name that a tag can have: {tag.tag[:40]!a}")
                self._tags[tag.tag] = tag.commit_id

    def _keep_blobs(self) -> None:
        """Cut the raw objects out of the file, and keep what was inflated beside them."""
        index = self._repository.index
        if self._entries:
            copy_pack(self._repository.packs, self._path, *self._section_at[Section.OBJECTS], self._pack_id)
            index.add_pack(self._pack_id, self._entries)
        if self._inflated is not None:
            entries = self._inflated.entries
            inflated_id = self._inflated.finish()
            if inflated_id is not None:
                index.add_pack(inflated_id, ((e.object_id, e.offset, e.size) for e in entries))


def _blob_id(text: bytes) -> bytes:
    return parse_id(text.decode("ascii", "replace"), Scheme.TYPED, "a pack's object id")


def _wrong_blob(blob_id: bytes) -> IntegrityError:
    return IntegrityError(f"blob {blob_id.hex()} does not hash to its id")

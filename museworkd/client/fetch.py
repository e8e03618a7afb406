"""Fetching and cloning: download a pack, prove every byte of it, then link it in; refs are moved last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from museworkd.client.blob_packs import PackBuilder, keep_pack
from museworkd.client.errors import ClientError, IntegrityError, TransferError
from museworkd.client.ingest import CLIENT_LIMITS, HistoryIntake
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository, is_vacant
from museworkd.client.transport import Api, Remote, download
from wire.errors import Refusal
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_id
from wire.inflate import inflate
from wire.mpack import MPackEnd, MPackReader, MPackRecord, Section, SectionBegin
from wire.pack import IndexEntry, PackObjectBegin, PackObjectEnd, PackPiece
from wire.paths import check_branch_name
from wire.records import parse_commit, parse_snapshot_either, parse_tag

HAVE_MOST = 500
"""Newest commits offered to the server; it walks on from there."""
RESUMES = 5
_READ_BYTES = 1024 * 1024


@dataclass(slots=True)
class FetchReport:
    """What a fetch brought."""

    branches: dict[str, str] = field(default_factory=dict)
    """Remote branch → head, for those that changed."""
    default_branch: str = "main"
    commits: int = 0
    """Commits that were not here before."""
    blobs: int = 0
    received_bytes: int = 0
    shallow: int = 0
    """Commits whose parents are not here, afterwards."""


async def fetch(
    repository: LocalRepository, remote: Remote, meter: Meter, *, name: str = "origin", depth: int | None = None
) -> FetchReport:
    """Bring everything the remote's branches have and this repository lacks.

    A shallow repository lacks what lies beyond its cut: without ``depth`` all of that is brought, with it so much that
    each branch has its newest ``depth`` commits.

    Raises:
        ClientError: refused. TransferError: the connection was lost. IntegrityError: what came is not whole.
    """
    report = FetchReport()
    async with Api(remote) as api:
        refs = await api.get("refs")
        heads = _branch_heads(refs, repository.scheme)
        report.default_branch = str(refs.get("default_branch", "main"))
        wanted = list(dict.fromkeys(head for head in heads.values() if _lacks(repository, head, depth)))
        if wanted:
            have = _whole(repository) if repository.index.shallow() else _newest(repository)
            body: dict[str, object] = {
                "want": [format_id(i, repository.scheme) for i in wanted],
                "have": [format_id(i, repository.scheme) for i in have],
            }
            if depth is not None:
                body["depth"] = depth
            with meter.phase("Asking the server") as phase:
                answer = await api.post("fetch/mpack", body)
                phase.note(f"{answer.get('commit_count')} commits, {answer.get('object_count')} blobs")
            await _take(repository, answer, report, meter)
    for head in heads.values():
        if not repository.index.has_commit(head):
            raise IntegrityError(f"the server did not send commit {format_id(head, repository.scheme)}")
    report.shallow = len(repository.index.shallow())
    known = repository.remote_branches(name)
    for branch, head in heads.items():
        if known.get(branch) != head:
            repository.set_remote_branch(name, branch, head)
            report.branches[branch] = format_id(head, repository.scheme)
    for branch in known.keys() - heads.keys():
        repository.set_remote_branch(name, branch, None)
    return report


async def clone(remote: Remote, target: Path, meter: Meter, *, depth: int | None = None) -> FetchReport:
    """Make a new repository with everything the remote has; a failed clone leaves nothing behind.

    Raises:
        ClientError: the target is not empty, or the server refuses.
    """
    if not is_vacant(target):
        raise ClientError(f"{target} exists and is not {'empty' if target.is_dir() else 'a directory'}")
    async with Api(remote) as api:
        refs = await api.get("refs")
    with LocalRepository.fresh(target, str(refs.get("domain", "code"))) as repository:
        repository.set_remote("origin", remote.url)
        report = await fetch(repository, remote, meter, depth=depth)
        for branch, head in repository.remote_branches("origin").items():
            repository.set_branch(branch, head)
        branches = repository.branches()
        if report.default_branch in branches or not branches:
            repository.set_head_branch(report.default_branch)
        else:
            repository.set_head_branch(next(iter(branches)))
        return report


async def _take(repository: LocalRepository, answer: Mapping[str, object], report: FetchReport, meter: Meter) -> None:
    url, size = answer.get("mpack_url"), answer.get("size_bytes")
    if url is None:
        return
    if not isinstance(url, str) or type(size) is not int:
        raise IntegrityError("the server's fetch answer has no mpack_url or size_bytes")
    expected = parse_id(answer.get("mpack_id"), Scheme.TYPED, "mpack_id")
    path = repository.directory / f".incoming-{os.getpid()}"
    try:
        with meter.phase("Receiving", size) as phase:
            await _download(url, path, size, expected, phase)
        report.received_bytes = size
        with meter.phase("Verifying", _count(answer, "commit_count") + _count(answer, "object_count")) as phase:
            await _Intake(repository, path, answer, report, phase).run()
    except Refusal as refusal:
        raise IntegrityError(f"what the server sent is refused ({refusal.code.text}): {refusal.detail}") from refusal
    finally:
        path.unlink(missing_ok=True)


async def _download(url: str, path: Path, size: int, expected: bytes, phase: Phase) -> None:
    """Download with resumption, then check the whole against its hash."""
    failures = 0
    with path.open("w+b") as file:
        while file.tell() < size:
            before = file.tell()
            try:
                async with download(url, before) as (start, pieces):
                    file.seek(start)
                    async for piece in pieces:
                        file.write(piece)
                        phase.advance(len(piece))
                if file.tell() < size:
                    raise TransferError("the download ended early")
            except TransferError:
                failures = failures + 1 if file.tell() <= before else 0
                if failures > RESUMES:
                    raise
        if file.tell() != size:
            raise IntegrityError(f"the server announced {size} bytes and sent {file.tell()}")
        file.seek(0)
        if hashlib.file_digest(file, "sha256").digest() != expected:
            raise IntegrityError("the downloaded pack does not hash to its id")
        os.fsync(file.fileno())


class _Intake:
    """Read a downloaded mpack once, proving everything, and link it into the repository."""

    def __init__(
        self, repository: LocalRepository, path: Path, answer: Mapping[str, object], report: FetchReport, phase: Phase
    ) -> None:
        self._repository = repository
        self._path = path
        self._report = report
        self._phase = phase
        self._scheme = repository.scheme
        self._history = HistoryIntake(repository.index, repository.scheme)
        self._entries: list[IndexEntry] = []
        self._new: set[bytes] = set()
        self._pack_at: tuple[int, int] | None = None
        self._inflated: PackBuilder | None = None
        shallow = answer.get("shallow")
        listed = shallow if isinstance(shallow, list) else []
        self._shallow = {parse_id(commit_id, self._scheme, "shallow") for commit_id in listed}

    async def run(self) -> None:
        """Take everything in: blobs, then snapshots, then commits, as they stand in the file."""
        index = self._repository.index
        with index.transaction():
            for event in self._events():
                if isinstance(event, MPackRecord):
                    await self._record(event)
            self._report.blobs = sum(index.place(blob_id) is None for blob_id in self._new)
            pack_id = self._keep_blobs() if self._report.blobs else None
            if pack_id is not None:
                index.add_pack(pack_id, ((e.object_id, e.offset, e.size) for e in self._entries))
            elif self._inflated is not None:
                self._inflated.abandon()
            index.set_shallow(self._shallow)
            self._history.write()
            if index.shallow():
                index.deepen()

    def _events(self) -> Iterator[object]:
        reader = MPackReader(CLIENT_LIMITS)
        section = Section.OBJECTS
        current: PackObjectBegin | None = None
        content = bytearray()
        hasher = hashlib.sha256()
        with self._path.open("rb") as file:
            while not reader.finished:
                for event in reader.receive_data(file.read(_READ_BYTES)):
                    match event:
                        case SectionBegin():
                            section = event.section
                            if section is Section.OBJECTS:
                                self._pack_at = (event.offset, event.length)
                        case PackObjectBegin():
                            current = event
                            content.clear()
                            hasher = hasher_for(Kind.BLOB, event.size, self._scheme)
                        case PackPiece(piece) if section is Section.OBJECTS_ZSTD:
                            content += piece
                        case PackPiece(piece):
                            hasher.update(piece)
                        case PackObjectEnd():
                            assert current is not None
                            if section is Section.OBJECTS_ZSTD:
                                self._inflate(current.object_id, bytes(content))
                            else:
                                self._blob(current, hasher.digest())
                            self._phase.advance()
                        case MPackEnd():
                            pass
                        case _:
                            yield event

    def _blob(self, blob: PackObjectBegin, digest: bytes) -> None:
        if digest != blob.object_id:
            raise IntegrityError(f"blob {blob.object_id.hex()} does not hash to its id")
        self._entries.append(IndexEntry(blob.object_id, blob.offset, blob.size))
        self._new.add(blob.object_id)

    def _inflate(self, blob_id: bytes, compressed: bytes) -> None:
        content = inflate("zstd", compressed, CLIENT_LIMITS.object_bytes)
        if hash_bytes(Kind.BLOB, content, self._scheme) != blob_id:
            raise IntegrityError(f"blob {blob_id.hex()} does not hash to its id")
        if self._inflated is None:
            self._inflated = PackBuilder(self._repository.packs)
        self._inflated.add(blob_id, len(content), [content])
        self._new.add(blob_id)

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
                self._report.commits += not self._repository.index.has_commit(commit.commit_id)
                self._phase.advance()
            case _:
                tag = parse_tag(event.record, self._scheme, CLIENT_LIMITS)
                self._repository.set_tag(tag.tag, tag.commit_id)

    def _keep_blobs(self) -> bytes | None:
        """Cut the objects out of the file: the received pack is kept as a pack."""
        if self._inflated is not None:
            self._entries = self._inflated.entries
            return self._inflated.finish()
        if self._pack_at is None or not self._entries:
            return None
        offset, length = self._pack_at
        path = self._repository.packs / f".new-{os.getpid()}"
        whole = hashlib.sha256()
        with self._path.open("rb") as source, path.open("wb") as target:
            source.seek(offset)
            left = length
            while left:
                piece = source.read(min(left, _READ_BYTES))
                if not piece:
                    raise IntegrityError("the downloaded pack is cut")
                whole.update(piece)
                target.write(piece)
                left -= len(piece)
            target.flush()
            os.fsync(target.fileno())
        return keep_pack(self._repository.packs, path, whole.digest())


def _branch_heads(refs: Mapping[str, object], scheme: Scheme) -> dict[str, bytes]:
    heads = refs.get("branch_heads")
    if not isinstance(heads, dict):
        raise IntegrityError("the server's refs have no branch heads")
    try:
        return {check_branch_name(name): parse_id(head, scheme) for name, head in heads.items()}
    except Refusal as refusal:
        raise ClientError(f"this client cannot read the server's repository: {refusal.detail}") from refusal


def _lacks(repository: LocalRepository, head: bytes, depth: int | None) -> bool:
    """Tell whether a branch's history is not here, or not as deep as is asked for."""
    index = repository.index
    if not index.has_commit(head):
        return True
    shallow = index.shallow()
    if not shallow:
        return False
    seen, waiting, cut = {head}, [head], False
    while waiting:
        commit_id = waiting.pop()
        cut = cut or commit_id in shallow
        facts = index.facts(commit_id)
        for parent in facts.parents if facts is not None else ():
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return cut and (depth is None or len(seen) < depth)


def _whole(repository: LocalRepository) -> list[bytes]:
    """Offer only commits whose whole history is here: the server leaves out what lies below an offered one."""
    return repository.index.whole_commits()[-HAVE_MOST:]


def _newest(repository: LocalRepository) -> list[bytes]:
    """Offer what the server most likely knows: every head there is, then the newest commits."""
    heads = [*repository.branches().values()]
    for remote in repository.remotes():
        heads += repository.remote_branches(remote).values()
    found = list(dict.fromkeys(head for head in heads if repository.index.has_commit(head)))
    return found[:HAVE_MOST]


def _count(answer: Mapping[str, object], key: str) -> int:
    value = answer.get(key)
    return value if isinstance(value, int) else 0

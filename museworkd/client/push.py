"""Pushing by stream: what the server's branches lack, snapshots as deltas, contents compressed where it pays."""

from __future__ import annotations

import contextlib
import enum
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack
import trio

from actors.fetch.contents import ContentWriter
from actors.fetch.plan import FetchPlan
from actors.history import range_of
from actors.spool import Spool, SpoolDirectory
from museworkd.client.compression import Compressor
from museworkd.client.errors import ClientError, TransferError
from museworkd.client.ingest import CLIENT_LIMITS
from museworkd.client.progress import Meter, Phase
from museworkd.client.push_mpack import push_by_mpack
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api, Duplex, Remote, open_duplex, printable, refusal_error, refused
from storage.layout import Place
from wire.errors import Refusal
from wire.frames import VERSION, Failure, FrameReader, FrameWriter, Grammar, NeedData, Progress, Result
from wire.graph import CommitFacts
from wire.ids import format_id, parse_id

MEDIA_TYPE = "application/x-muse-packstream"
CHUNKED_FROM_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
COMMIT_FRAME_BYTES = 150 * 1024
"""Protocol §5: keep ``C`` frames below 200 KB."""
MPACK_FROM_OBJECTS = 500
MPACK_FROM_BYTES = 50 * 1000 * 1000
"""Protocol §5, §6: from here on one file goes faster than a stream of frames."""
_SEND_BYTES = 128 * 1024
_FULL, _DELTA, _COMMIT = b"S", b"D", b"C"
_LISTS = {_FULL: "snapshots", _DELTA: "snapshot_deltas", _COMMIT: "commits"}
_FRAME_HEAD_BYTES = 9


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push of one branch came to."""

    branch: str
    head: str
    up_to_date: bool
    commits: int
    blobs: int
    sent_bytes: int
    result: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """Everything one push sends, prepared."""

    commits: int
    snapshots: Spool
    records: Spool
    blobs: list[Place]

    @property
    def blob_bytes(self) -> int:
        return sum(place.size for place in self.blobs)

    @property
    def large(self) -> bool:
        """Whether it is worth a file of its own."""
        return len(self.blobs) >= MPACK_FROM_OBJECTS or self.blob_bytes >= MPACK_FROM_BYTES


class Way(enum.Enum):
    """How a push travels."""

    AUTO = "auto"
    STREAM = "stream"
    MPACK = "mpack"


@dataclass(frozen=True, slots=True)
class Lease:
    """Force-with-lease: what the server's branch must be at; ``None``: it must not exist."""

    expected: bytes | None


async def push(
    repository: LocalRepository, remote: Remote, branch: str, meter: Meter, *,
    force: bool = False, lease: Lease | None = None, push_id: uuid.UUID | None = None, way: Way = Way.AUTO,
) -> PushReport:  # fmt: skip
    """Push one branch to the branch of the same name.

    Args:
        repository: where to push from.
        remote: where to push to.
        branch: the branch.
        meter: shows progress.
        force: move the branch even if that loses commits there.
        lease: move it only if it is where we believe it to be.
        push_id: repeat a push under the same id.
        way: how the bytes travel.

    Raises:
        ClientError: refused; ``code`` is the server's stable code.
        TransferError: the connection was lost; sending again is safe.
    """
    scheme = repository.scheme
    head = repository.branches().get(branch)
    if head is None:
        raise ClientError(f"there is no branch {branch!r} here")
    async with Api(remote) as api:
        remote_heads = _heads(await api.get("refs"), repository)
    if remote_heads.get(branch) == head and lease is None:
        return PushReport(branch, format_id(head, scheme), True, 0, 0, 0, {})
    with tempfile.TemporaryDirectory(prefix="museworkd-push-") as directory:
        async with SpoolDirectory(Path(directory), "spool") as spools:
            with meter.phase("Counting objects") as phase:
                outgoing = await _prepare(repository, head, set(remote_heads.values()), spools)
                phase.advance(len(outgoing.blobs) + outgoing.commits)
            header: dict[str, object] = {
                "branch": branch, "head": format_id(head, scheme), "force": force,
                "push_id": str(push_id or uuid.uuid4()),
            }  # fmt: skip
            if lease is not None:
                header["expected_head"] = None if lease.expected is None else format_id(lease.expected, scheme)
            if way is Way.MPACK or (way is Way.AUTO and outgoing.large):
                result, sent = await push_by_mpack(
                    repository, remote, outgoing.blobs, outgoing.snapshots, outgoing.records, header, spools, meter
                )
            else:
                counts = {
                    "n_objects": len(outgoing.blobs), "n_commits": outgoing.commits, "n_bytes": outgoing.blob_bytes,
                }  # fmt: skip
                sender = _Sender(repository, outgoing, {"version": VERSION, **header, **counts})
                result, sent = await _exchange(remote, sender, meter), sender.sent_bytes
    return PushReport(branch, format_id(head, scheme), False, outgoing.commits, len(outgoing.blobs), sent, result)


def _heads(refs: Mapping[str, object], repository: LocalRepository) -> dict[str, bytes]:
    heads = refs.get("branch_heads")
    if not isinstance(heads, dict):
        raise ClientError("the server's refs have no branch heads")
    try:
        return {str(name): parse_id(head, repository.scheme) for name, head in heads.items()}
    except Refusal as refusal:
        raise ClientError(f"the server's repository cannot take this push: {refusal.detail}") from refusal


async def _prepare(
    repository: LocalRepository, head: bytes, remote_heads: set[bytes], spools: SpoolDirectory
) -> _Outgoing:
    index, scheme = repository.index, repository.scheme
    known = [commit_id for commit_id in remote_heads if index.has_commit(commit_id)]
    walk = await range_of(index, scheme, [head], known)
    commits = tuple(reversed(walk.found))
    boundary: list[CommitFacts] = [fact for i in walk.boundary() if (fact := index.facts(i)) is not None]
    outgoing = _Outgoing(len(commits), spools.new(), spools.new(), [])
    contents = ContentWriter(index, 0, scheme, FetchPlan(commits, tuple(boundary), ()), CLIENT_LIMITS)

    async def snapshot(record: Mapping[str, object]) -> None:
        await outgoing.snapshots.append(_framed(_FULL if "manifest" in record else _DELTA, record))

    async def commit(record: Mapping[str, object]) -> None:
        await outgoing.records.append(_framed(_COMMIT, record))

    await contents.run(snapshot, commit)
    for part in contents.blobs.parts(500):
        places = await index.places(scheme, part)
        for blob_id in part:
            if blob_id not in places:
                raise ClientError(f"blob {blob_id.hex()} is missing here: run `museworkd verify`")
            outgoing.blobs.append(places[blob_id])
    outgoing.blobs.sort(key=lambda place: (place.pack_id or b"", place.offset))
    return outgoing


def _framed(tag: bytes, record: Mapping[str, object]) -> bytes:
    packed: bytes = msgpack.packb(record, use_bin_type=True)
    return tag + len(packed).to_bytes(8, "little") + packed


def _unframed(spool: Spool) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < spool.size:
        head = spool.read(at, _FRAME_HEAD_BYTES)
        size = int.from_bytes(head[1:], "little")
        yield head[:1], spool.read(at + _FRAME_HEAD_BYTES, size)
        at += _FRAME_HEAD_BYTES + size


async def _exchange(remote: Remote, sender: _Sender, meter: Meter) -> Mapping[str, object]:
    """Send and listen at once; the server's last word ends the sending."""
    answer: Mapping[str, object] | ClientError | None = None
    with meter.phase("Sending", len(sender.outgoing.blobs) + sender.outgoing.commits) as phase:
        async with open_duplex(remote, "push/stream", MEDIA_TYPE) as duplex, trio.open_nursery() as nursery:

            async def send() -> None:
                # a server that refuses early closes before everything is sent: its answer says why, not this
                with contextlib.suppress(TransferError):
                    await sender.run(duplex, phase)

            nursery.start_soon(send)
            try:
                answer = await _listen(duplex, phase)
            except ClientError as error:
                answer = error
            nursery.cancel_scope.cancel()
        phase.note("")  # what the server said on the way is no result
    assert answer is not None
    if isinstance(answer, ClientError):
        raise answer
    return answer


async def _listen(duplex: Duplex, phase: Phase) -> Mapping[str, object]:
    await duplex.response()
    if duplex.status != 200:
        raise refused(duplex.status, duplex.content_type, await duplex.receive_all())
    reader = FrameReader(Grammar.ANSWER, CLIENT_LIMITS)
    try:
        while piece := await duplex.receive():
            reader.receive_data(piece)
            while not isinstance(event := reader.next_event(), NeedData):
                match event:
                    case Progress(stage, done, total, message):
                        phase.note(printable(f"{stage} {done}{'' if total is None else f'/{total}'} {message}".strip()))
                    case Failure(members):
                        raise refusal_error(members)
                    case Result(members):
                        return members
                    case _:
                        raise AssertionError(event)
    except Refusal as refusal:
        raise TransferError(f"the server's answer cannot be read: {refusal.detail}") from refusal
    raise TransferError("the server ended its answer without a result; the push may be sent again")


class _Sender:
    """Write a push's frames."""

    def __init__(self, repository: LocalRepository, outgoing: _Outgoing, header: Mapping[str, object]) -> None:
        self._repository = repository
        self.outgoing = outgoing
        self._header = header
        self._writer = FrameWriter(Grammar.PUSH)
        self._compressor = Compressor()
        self._buffer = bytearray()
        self.sent_bytes = 0

    async def run(self, duplex: Duplex, phase: Phase) -> None:
        """Send everything."""
        await self._put(duplex, self._writer.send("H", self._header))
        for place in self.outgoing.blobs:
            await self._send_object(duplex, place)
            phase.advance()
        for lists in self._record_frames(self.outgoing.snapshots):
            await self._put(duplex, self._writer.send_records(lists))
        for lists in self._record_frames(self.outgoing.records):
            await self._put(duplex, self._writer.send_records(lists))
            phase.advance(sum(map(len, lists.values())))
        counts = {"n_objects": len(self.outgoing.blobs), "n_commits": self.outgoing.commits}
        await self._put(duplex, self._writer.send("E", counts))
        await self._flush(duplex)
        await duplex.end()

    async def _send_object(self, duplex: Duplex, place: Place) -> None:
        named = {"object_id": format_id(place.object_id, self._repository.scheme)}
        if place.size <= CHUNKED_FROM_BYTES:
            encoding, content = self._compressor.encode(self._repository.files.read(place))
            await self._put(duplex, self._writer.send("O", {**named, "encoding": encoding, "content": content}))
            return
        left = place.size
        for number, piece in enumerate(self._repository.files.pieces(place)):
            left -= len(piece)
            chunk = {**named, "encoding": "raw", "seq": number, "last": not left, "content": piece}
            await self._put(duplex, self._writer.send("OC", chunk))

    def _record_frames(self, spool: Spool) -> Iterator[dict[str, list[bytes]]]:
        """Group records into frames; within one, full snapshots stand before the deltas that may build on them."""
        lists: dict[str, list[bytes]] = {}
        size = 0
        for tag, packed in _unframed(spool):
            key = _LISTS[tag]
            full_after_delta = tag == _FULL and "snapshot_deltas" in lists
            if lists and (size + len(packed) > COMMIT_FRAME_BYTES or full_after_delta):
                yield lists
                lists, size = {}, 0
            lists.setdefault(key, []).append(packed)
            size += len(packed)
        if lists:
            yield lists

    async def _put(self, duplex: Duplex, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _SEND_BYTES:
            await self._flush(duplex)

    async def _flush(self, duplex: Duplex) -> None:
        self.sent_bytes += len(self._buffer)
        data, self._buffer = bytes(self._buffer), bytearray()
        await duplex.send(data)

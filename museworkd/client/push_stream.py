"""Pushing by stream (protocol §5): frames out, progress in, both at once; contents compressed where it pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import trio

from actors.spool import Spool
from museworkd.client.compression import Compressor
from museworkd.client.connection import Connection
from museworkd.client.delivery import Delivery
from museworkd.client.errors import ClientError, IntegrityError, TransferError, printable
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.outgoing import COMMIT, DELTA, FULL, framed_records
from museworkd.client.presigning import stored_of
from museworkd.client.progress import Phase
from museworkd.client.transport import answered, open_duplex, refusal_error
from storage.layout import Place
from wire.errors import Refusal
from wire.frames import VERSION, Failure, FrameReader, FrameWriter, Grammar, NeedData, Progress, Result
from wire.ids import format_id

MEDIA_TYPE = "application/x-muse-packstream"
CHUNKED_FROM_BYTES = 4 * 1024 * 1024
COMMIT_FRAME_BYTES = 150 * 1024
"""Protocol §5: keep ``C`` frames below 200 KB."""
_SEND_BYTES = 128 * 1024
_LISTS = {FULL: "snapshots", DELTA: "snapshot_deltas", COMMIT: "commits"}


class StreamWay:
    """Send one push as a stream; another attempt leaves out what the server has taken in already."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.said_everything = False

    async def send(self, *, again: bool) -> Mapping[str, object]:
        """Send and give the server's result; see ``Sending``."""
        blobs: Sequence[Place] = self._delivery.outgoing.blobs
        if again:
            stored = await stored_of(self._delivery, blobs)
            self._delivery.spare(stored)
            blobs = [place for place in blobs if place.object_id not in stored]
        return await self.send_frames(blobs)

    async def send_frames(self, blobs: Sequence[Place]) -> Mapping[str, object]:
        """Send these blobs and all records, and listen at once; the server's last word ends the sending."""
        self.said_everything = False
        delivery, outgoing = self._delivery, self._delivery.outgoing
        sender = _Sender(delivery, blobs)
        answer: Mapping[str, object] | ClientError | None = None
        try:
            with delivery.meter.phase("Sending", len(blobs) + outgoing.commits) as phase:
                async with (
                    open_duplex(delivery.remote, "push/stream", MEDIA_TYPE) as duplex,
                    trio.open_nursery() as nursery,
                ):

                    async def send() -> None:
                        nonlocal answer
                        try:
                            await sender.run(duplex, phase)
                            self.said_everything = True
                        except TransferError:
                            pass  # a server that refuses early closes before everything is sent: its answer says why
                        except ClientError as error:
                            answer = error
                            nursery.cancel_scope.cancel()

                    nursery.start_soon(send)
                    try:
                        answer = await _listen(duplex, phase)
                    except ClientError as error:
                        answer = error
                    nursery.cancel_scope.cancel()
                phase.note("")  # what the server said on the way is no result
        finally:
            delivery.sent_bytes += sender.sent_bytes
        assert answer is not None
        if isinstance(answer, ClientError):
            raise answer
        return answer


async def _listen(duplex: Connection, phase: Phase) -> Mapping[str, object]:
    await duplex.response()
    if duplex.status != 200:
        raise await answered(duplex)
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
        raise IntegrityError(f"the server's answer cannot be read: {refusal.detail}") from refusal
    raise TransferError("the server ended its answer without a result; the push may be sent again")


class _Sender:
    """Write a push's frames."""

    def __init__(self, delivery: Delivery, blobs: Sequence[Place]) -> None:
        self._repository = delivery.repository
        self._outgoing = delivery.outgoing
        self._blobs = blobs
        self._header = {
            "version": VERSION, **delivery.header, "n_objects": len(blobs), "n_commits": delivery.outgoing.commits,
            "n_bytes": sum(place.size for place in blobs),
        }  # fmt: skip
        self._writer = FrameWriter(Grammar.PUSH)
        self._compressor = Compressor()
        self._buffer = bytearray()
        self.sent_bytes = 0

    async def run(self, duplex: Connection, phase: Phase) -> None:
        """Send everything."""
        await self._put(duplex, self._writer.send("H", self._header))
        for place in self._blobs:
            await self._send_object(duplex, place)
            phase.advance()
        for lists in self._record_frames(self._outgoing.snapshots):
            await self._put(duplex, self._writer.send_records(lists))
        for lists in self._record_frames(self._outgoing.records):
            await self._put(duplex, self._writer.send_records(lists))
            phase.advance(sum(map(len, lists.values())))
        counts = {"n_objects": len(self._blobs), "n_commits": self._outgoing.commits}
        await self._put(duplex, self._writer.send("E", counts))
        last, self._buffer = bytes(self._buffer), bytearray()
        await duplex.end(last)
        self.sent_bytes += len(last)

    async def _send_object(self, duplex: Connection, place: Place) -> None:
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
        for tag, packed in framed_records(spool):
            key = _LISTS[tag]
            full_after_delta = tag == FULL and "snapshot_deltas" in lists
            if lists and (size + len(packed) > COMMIT_FRAME_BYTES or full_after_delta):
                yield lists
                lists, size = {}, 0
            lists.setdefault(key, []).append(packed)
            size += len(packed)
        if lists:
            yield lists

    async def _put(self, duplex: Connection, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _SEND_BYTES:
            await self._flush(duplex)

    async def _flush(self, duplex: Connection) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        await duplex.send(data)
        self.sent_bytes += len(data)

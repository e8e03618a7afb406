"""Pushing by presigned objects (protocol §6): many uploads at once, confirmed in batches meanwhile, then the records.

::

    presign ──▶ 64 x PUT ──▶ confirm ──▶ the stream of records, without objects
    5,000 a      keep-alive    1,000 a
    request                    request; a rejected one is uploaded once more

Between the stages are short channels, so URLs are asked for no sooner than they can be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from museworkd.client.delivery import Delivery
from museworkd.client.errors import ClientError, IntegrityError, TransferError, printable
from museworkd.client.presigning import PRESIGN_BYTES, PRESIGN_OBJECTS, batches, ids_of, parse_server_id, presign
from museworkd.client.progress import Phase
from museworkd.client.push_stream import StreamWay
from museworkd.client.transport import Api
from museworkd.client.uploading import BlobSource, Uploader
from storage.layout import Place
from wire.ids import format_id

UPLOADS_AT_ONCE = 64
CONFIRM_OBJECTS = 1_000
CONFIRM_BYTES = 256 * 1024 * 1024
"""The server reads and hashes what is confirmed before it answers."""
_MEDIA_TYPE = "application/octet-stream"
_Wanted = tuple[Place, str, bool]
"""A blob, its URL, and whether the upload can be taken up again."""


class PresignedWay:
    """Upload blob by blob; another attempt leaves out what is confirmed."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._records = StreamWay(delivery)
        self._confirmed: set[bytes] = set()
        self._uploaded: set[bytes] = set()

    @property
    def said_everything(self) -> bool:
        """See ``Sending``."""
        return self._records.said_everything

    async def send(self, *, again: bool) -> Mapping[str, object]:
        """Send and give the server's result; see ``Sending``."""
        self._records.said_everything = False
        delivery = self._delivery
        left = [place for place in delivery.outgoing.blobs if place.object_id not in self._confirmed]
        total = len(delivery.outgoing.blobs)
        with delivery.meter.phase("Uploading", sum(place.size for place in left)) as phase:
            round_ = _Round(delivery, self._confirmed, self._uploaded, phase, total, again=again)
            try:
                rejected = await round_.run(left)
                if rejected:
                    rejected = await round_.run(rejected)
            finally:
                delivery.sent_bytes += round_.sent_bytes
        if rejected:
            place = rejected[0]
            reason = round_.reasons.get(place.object_id, "")
            raise ClientError(
                f"the server rejects {len(rejected)} objects, the first is "
                f"{format_id(place.object_id, delivery.repository.scheme)}: {reason}"
            )
        return await self._records.send_frames([])


class _Round:
    """One passage of blobs through the stages."""

    def __init__(
        self, delivery: Delivery, confirmed: set[bytes], uploaded: set[bytes], phase: Phase, total: int, *, again: bool
    ) -> None:
        self._delivery = delivery
        self._confirmed = confirmed
        self._uploaded = uploaded
        self._phase = phase
        self._total = total
        self._again = again
        self._rejected: list[Place] = []
        self.reasons: dict[bytes, str] = {}
        self.sent_bytes = 0

    async def run(self, places: Sequence[Place]) -> list[Place]:
        """Upload and confirm; gives what the server rejects."""
        self._rejected = []
        by_now = [place for place in places if place.object_id in self._uploaded]
        missing = [place for place in places if place.object_id not in self._uploaded]
        urls_in, urls = trio.open_memory_channel[_Wanted](UPLOADS_AT_ONCE)
        done_in, done = trio.open_memory_channel[Place](UPLOADS_AT_ONCE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._presign, missing, urls_in)
                nursery.start_soon(self._confirm, done)
                async with urls, done_in:
                    for _ in range(min(UPLOADS_AT_ONCE, len(missing))):
                        nursery.start_soon(self._upload, urls.clone(), done_in.clone())
                    for place in by_now:
                        self._phase.advance(place.size)
                        await done_in.send(place)
        except BaseExceptionGroup as group:
            raise _worst(group) from group
        return self._rejected

    async def _presign(self, places: Sequence[Place], urls: trio.MemorySendChannel[_Wanted]) -> None:
        async with urls, Api(self._delivery.remote) as api:
            for part in batches(places, PRESIGN_OBJECTS, PRESIGN_BYTES):
                told = await presign(api, self._delivery, part)
                for place in part:
                    if place.object_id in told.stored:
                        self._phase.advance(place.size)
                if self._again:
                    self._delivery.spare(told.stored)
                self._count(told.stored)
                for place in part:
                    if place.object_id in told.urls:
                        await urls.send((place, told.urls[place.object_id], told.resumable))

    async def _upload(self, urls: trio.MemoryReceiveChannel[_Wanted], done: trio.MemorySendChannel[Place]) -> None:
        files = self._delivery.repository.files
        async with urls, done, Uploader(_MEDIA_TYPE, resuming=self._again) as uploader:
            try:
                async for place, url, resumable in urls:
                    await uploader.upload(url, BlobSource(files, place), self._phase, resumable=resumable)
                    self._uploaded.add(place.object_id)
                    await done.send(place)
            finally:
                self.sent_bytes += uploader.sent_bytes

    async def _confirm(self, done: trio.MemoryReceiveChannel[Place]) -> None:
        async with done, Api(self._delivery.remote) as api:
            waiting: list[Place] = []
            size = 0
            async for place in done:
                waiting.append(place)
                size += place.size
                if len(waiting) >= CONFIRM_OBJECTS or size >= CONFIRM_BYTES:
                    await self._confirm_batch(api, waiting)
                    waiting, size = [], 0
            if waiting:
                await self._confirm_batch(api, waiting)

    async def _confirm_batch(self, api: Api, places: Sequence[Place]) -> None:
        scheme = self._delivery.repository.scheme
        answer = await api.post(
            "push/confirm", {"object_ids": [format_id(place.object_id, scheme) for place in places]}
        )
        confirmed, rejected = answer.get("confirmed"), answer.get("rejected")
        if not isinstance(confirmed, list) or not isinstance(rejected, list):
            raise IntegrityError("the server's answer has no confirmed or rejected")
        there = ids_of(confirmed, scheme)
        for entry in rejected:
            if isinstance(entry, dict):
                said = f"{entry.get('error')}: {entry.get('detail')}"
                self.reasons[parse_server_id(entry.get("object_id"), scheme)] = printable(said)[:500]
        self._count({place.object_id for place in places} & there)
        again = [place for place in places if place.object_id not in there]
        self._uploaded -= {place.object_id for place in again}
        self._rejected += again

    def _count(self, blob_ids: set[bytes]) -> None:
        self._confirmed |= blob_ids
        self._phase.note(f"{len(self._confirmed)}/{self._total} objects")


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Choose what to tell: an interruption, then what cannot be mended by sending again."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            found.append(error)
    return min(found, key=lambda error: isinstance(error, Exception) + isinstance(error, TransferError))

"""From frames to recorded blobs: the stages decode → admit → put → record of one push.

Between the stages are short channels, so a slow store slows the client down instead of filling memory. A batch
is at most 64 objects or 2 MiB; a push has a few of them under way, all pushes together share a bound.

The contents of a small push are not put into the store: they are kept until the last of them has come, and go into the
index with their rows (see ``actors.push.kept`` and ``storage.content_cache``).

What is left behind if the process dies: after a put, whole objects in the store that no row names; after a
record, rows that belong to the push alone. Both are used when the push is sent again, or collected. Of the last up to
64 objects the rows wait for the push's last transaction (see ``actors.push.finish``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from actors.push.admit import Admitted, Admitter, LargeObject
from actors.push.context import (
    BATCH_BYTES,
    BATCH_OBJECTS,
    BATCHES_PER_PUSH,
    Attempt,
    ClientGone,
    Counts,
    PushServices,
    Timings,
)
from actors.push.kept import ROWS_BYTES
from actors.spool import SpoolDirectory
from storage.layout import loose_key
from storage.rows import NOTHING_KNOWN, StoredBlob
from wire.errors import Refusal
from wire.frames import Event, Object, ObjectBegin, ObjectEnd, ObjectPiece

_OBJECT_BYTES = 1024
"""What an object costs while it waits, besides its content: its id, its base's id, the containers around them."""
Parcel = Sequence[Object] | LargeObject
NextEvent = Callable[[], Awaitable[Event]]


@dataclass(frozen=True, slots=True)
class ObjectStages:
    """Run the object part of a push."""

    services: PushServices
    attempt: Attempt
    spools: SpoolDirectory
    counts: Counts
    timings: Timings
    progress: Callable[[str, int, int | None], None]

    async def run(self, next_event: NextEvent) -> Event:
        """Take object events until another kind comes; gives that one, after every object was stored.

        Of a push that is cut, what has arrived is recorded as well: the next attempt need not bring it again.
        """
        parcels_in, parcels = trio.open_memory_channel[Parcel](2)
        batches_in, batches = trio.open_memory_channel[list[Admitted]](0)
        settled = Settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._admit, parcels, batches_in, settled)
            for _ in range(BATCHES_PER_PUSH):
                nursery.start_soon(self._put_and_record, batches.clone(), settled)
            batches.close()
            with parcels_in:
                try:
                    following: Event | Refusal | ClientGone = await self._decode(next_event, parcels_in)
                except (Refusal, ClientGone) as end:
                    following = end  # what is wrong with an earlier object is told first
        if isinstance(following, Refusal | ClientGone):
            await self._spill()
            await self._record(self.attempt.unrecorded.take_blobs())
            raise following
        await self._take_kept()
        return following

    async def _decode(self, next_event: NextEvent, parcels: trio.MemorySendChannel[Parcel]) -> Event:
        waiting: list[Object] = []
        size = 0
        while True:
            try:
                event = await next_event()
            except (Refusal, ClientGone):
                if waiting:
                    await parcels.send(waiting)
                raise
            if isinstance(event, Object):
                waiting.append(event)
                size += len(event.content) + _OBJECT_BYTES
                if len(waiting) < BATCH_OBJECTS and size < BATCH_BYTES // 2:
                    continue
            if waiting:
                await parcels.send(waiting)
                waiting, size = [], 0
            if isinstance(event, Object):
                continue
            if not isinstance(event, ObjectBegin):
                return event
            await parcels.send(await self._spool_large(event, next_event))

    async def _spool_large(self, begin: ObjectBegin, next_event: NextEvent) -> LargeObject:
        limits = self.services.limits
        most = limits.object_bytes if begin.chunked else limits.object_frame_bytes
        spool = self.spools.new()
        while True:
            event = await next_event()
            match event:
                case ObjectPiece(content):
                    Admitter.check_encoded_size(spool.size + len(content), most)
                    await spool.append(content)
                case ObjectEnd(object_id, encoding, base):
                    return LargeObject(object_id, encoding, base, spool, most)
                case _:
                    raise AssertionError(event)

    async def _admit(
        self,
        parcels: trio.MemoryReceiveChannel[Parcel],
        batches: trio.MemorySendChannel[list[Admitted]],
        settled: Settled,
    ) -> None:
        batch: list[Admitted] = []
        size = 0

        async def flush() -> None:
            nonlocal batch, size
            if batch:
                full, batch, size = batch, [], 0
                settled.enter()
                await batches.send(full)

        async def barrier() -> None:
            await flush()
            await settled.wait()
            await self._record(self.attempt.unrecorded.take_blobs())

        admitter = Admitter(self.services, self.attempt, self.spools, self.counts, barrier)
        async with parcels, batches:
            async for parcel in parcels:
                for item in [parcel] if isinstance(parcel, LargeObject) else parcel:
                    with self.timings.measure("admit"):
                        blob = await admitter.admit(item)
                    batch.append(blob)
                    size += blob.size
                    if len(batch) >= BATCH_OBJECTS or size >= BATCH_BYTES:
                        await flush()
                await trio.lowlevel.checkpoint()
            await flush()

    async def _put_and_record(self, batches: trio.MemoryReceiveChannel[list[Admitted]], settled: Settled) -> None:
        async with batches:
            async for batch in batches:
                async with self.services.batches.hold(1):
                    await self._store(batch)
                settled.leave()

    async def _store(self, batch: list[Admitted]) -> None:
        services, scheme, ticket = self.services, self.attempt.plan.scheme, self.attempt.ticket
        unique = {blob.object_id: blob for blob in batch}
        known = NOTHING_KNOWN
        if not self.attempt.first:
            known = await services.index.known_blobs(ticket.repo, scheme, list(unique), ticket.number)
        new = [blob for blob in unique.values() if blob.object_id not in known.held]
        unstored = [blob for blob in new if blob.object_id not in known.sent]
        if not self.attempt.kept.keep({blob.object_id: blob.content for blob in unstored}):
            await self._spill()
            with self.timings.measure("put"):
                await self._put(unstored)
        await self._note([blob for blob in new if blob.object_id not in self.attempt.kept])
        self.attempt.brought(unique)
        self.counts.blobs_received += len(batch)
        self.progress("objects", self.counts.blobs_received, self.attempt.plan.announced_objects)

    async def _note(self, stored: Sequence[Admitted]) -> None:
        """Take note of rows to record, and record them when they are many."""
        unrecorded = self.attempt.unrecorded
        unrecorded.blobs += [StoredBlob(blob.object_id, blob.size) for blob in stored]
        if len(unrecorded.blobs) > BATCH_OBJECTS or sum(blob.size for blob in unrecorded.blobs) > BATCH_BYTES:
            await self._record(unrecorded.take_blobs())

    async def _spill(self) -> None:
        """Put what was kept into the store: the push is not a small one, or is cut."""
        kept = [Admitted(object_id, len(content), content) for object_id, content in self.attempt.kept.spill().items()]
        for at in range(0, len(kept), BATCH_OBJECTS):
            with self.timings.measure("put"):
                await self._put(kept[at : at + BATCH_OBJECTS])
            await self._note(kept[at : at + BATCH_OBJECTS])

    async def _take_kept(self) -> None:
        """Let what was kept go into the index: the last rows in the push's last transaction, the others before."""
        unrecorded = self.attempt.unrecorded
        for part in self.attempt.kept.rows(BATCH_OBJECTS, ROWS_BYTES):
            if unrecorded.blobs:
                await self._record(unrecorded.take_blobs())
            unrecorded.blobs += part

    async def _record(self, blobs: list[StoredBlob]) -> None:
        if blobs:
            with self.timings.measure("record"):
                written = await self.services.index.record_blobs(self.attempt.ticket, self.attempt.plan.scheme, blobs)
            self.counts.blobs_written += written  # of several workers at once: read after the wait, not before

    async def _put(self, blobs: list[Admitted]) -> None:
        store, scheme = self.services.store, self.attempt.plan.scheme
        small = [(loose_key(b.object_id, scheme), b.content) for b in blobs if isinstance(b.content, bytes)]
        if small:
            await store.put_batch(small)
        for blob in blobs:
            if isinstance(blob.content, Path):
                await store.put_file(loose_key(blob.object_id, scheme), blob.content)


class Settled:
    """Counts batches that are not recorded yet."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = trio.Event()

    def enter(self) -> None:
        """A batch begins."""
        self._open += 1

    def leave(self) -> None:
        """A batch is recorded."""
        self._open -= 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        """Wait until every batch is recorded."""
        while self._open:
            await self._changed.wait()

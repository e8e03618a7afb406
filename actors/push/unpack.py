"""The unpack actor: an uploaded mpack or bundle becomes an accepted push (protocol §7).

It belongs to the supervisor, not to the request that started it: a client that polls, or comes back, finds its
verdict under the push id. Steps, and what is left if the process dies after each:

1. the upload is copied under a key of this attempt, out of reach of whoever still may write to the staging key —
   a copy nobody names; collected;
2. every byte is read once: the pack's hash, every object's id, where each lies — nothing new;
3. the pack is put in its place (contents that came compressed: in a pack of their own) — a pack no row names;
   collected, or put there again by the retry;
4. rows of the push for every object, then its snapshots — seen by nobody else, found again by the retry;
5. the finish all pushes share (see ``actors.push.finish``);
6. upload and copy are removed — left over, they expire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass

import structlog
import trio

from actors.actor import Actor
from actors.opaque import shown_refusal, verdict_as_sent
from actors.push.context import (
    OWN_BLOBS,
    Attempt,
    Counts,
    PushPlan,
    PushRequest,
    PushServices,
    Timings,
    mpack_reservation,
)
from actors.push.finish import Finish
from actors.push.observed import observation
from actors.push.proved_pack import PackProver
from actors.push.record_pack import RecordPack
from actors.push.records import RecordStage
from actors.push.verdicts import first_verdict, keep_refusal
from actors.refusals import refusal_for
from actors.spool import SpoolDirectory
from storage.errors import IndexUnavailable, ObjectMissing, StorageError
from storage.layout import incoming_key, pack_key, staged_mpack_key
from storage.rows import NOTHING_KNOWN, PushRecord, PushState, PushTicket
from wire.errors import Code, Refusal
from wire.frames import Record
from wire.ids import Scheme, format_id

log = structlog.get_logger("push")

_ANOTHERS = Code.PUSH_SUPERSEDED
"""After it the upload belongs to the attempt that took over."""
_ABOUT_THE_BRANCH = frozenset(
    (Code.NON_FAST_FORWARD, Code.HEAD_MOVED, Code.PROTECTED_BRANCH, Code.COUNT_MISMATCH, Code.MISSING_PARENTS)
)
"""Refusals after which the same upload may be wanted again, by a push with other words."""
ROWS_AT_ONCE = 1_000
"""Objects per transaction: some 20 ms each."""
_TAKE_BYTES = 1024 * 1024
_RECORDS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Upload:
    """What is to be unpacked."""

    mpack_id: bytes
    declared_objects: int | None


class UnpackActor(Actor[None]):
    """One push by mpack. It takes no messages; ``done`` is set when ``verdict`` is there."""

    def __init__(self, services: PushServices, request: PushRequest, plan: PushPlan, upload: Upload) -> None:
        super().__init__(f"unpack {request.request_id}", mailbox_size=0)
        self._services = services
        self._request = request
        self._plan = plan
        self._upload = upload
        self.ticket: PushTicket | None = None
        self.done = trio.Event()
        self.verdict: Mapping[str, object] | Refusal | None = None
        self._proved = False
        """Whether the upload is what its key says: a damaged one may be sent again under the same push id."""

    async def handle(self, message: None) -> None:
        """There are no messages."""

    def tick(self, quiet_s: float) -> None:
        """Nobody listens while it works; the clock only renews the lease."""

    async def run(self) -> None:
        """Unpack; the verdict is kept in the index and here."""
        self._services.heartbeats.add(self)
        try:
            self.verdict = await self._as_sent(await self._to_verdict())
        except BaseException:
            self.verdict = Refusal(Code.INTERNAL, "the server made a mistake; its log has the details")
            raise
        finally:
            self._services.heartbeats.remove(self)
            self.done.set()

    async def _as_sent(self, verdict: Mapping[str, object] | Refusal) -> Mapping[str, object] | Refusal:
        index, repository = self._services.index, self._request.repository
        if isinstance(verdict, Refusal):
            return await shown_refusal(index, repository, verdict)
        return await verdict_as_sent(index, repository, verdict)

    async def _to_verdict(self) -> Mapping[str, object] | Refusal:
        began = trio.current_time()
        try:
            verdict: Mapping[str, object] | Refusal = await self._attempt()
        except Exception as error:
            refusal = refusal_for(error)
            if refusal is None:
                raise
            verdict = await self._anothers(refusal) or refusal
            if verdict is refusal:
                await keep_refusal(
                    self._services, self._request, self.ticket, refusal, received=self._proved, polled=True
                )
        shown = verdict.body("") if isinstance(verdict, Refusal) else verdict
        seconds = trio.current_time() - began
        self._services.observe(observation("mpack", shown, seconds))
        log.info(
            "push", request_id=self._request.request_id, repository=str(self._request.repository.repo_id),
            kind="X" if isinstance(verdict, Refusal) else "R", way="mpack", seconds=round(seconds, 3),
            **{k: v for k, v in shown.items() if k not in {"request_id", "missing"}},
        )  # fmt: skip
        return verdict

    async def _anothers(self, refusal: Refusal) -> Mapping[str, object] | None:
        """Give the verdict of another attempt that was accepted and took the upload with it, if that is what it is."""
        if refusal.code is not Code.NOT_FOUND or self.ticket is None:
            return None
        try:
            found = await self._services.index.find_push(self._request.repository.number, self._plan.push_id)
        except IndexUnavailable:
            return None
        if found is None or found.state is not PushState.ACCEPTED:
            return None
        await self._services.journal.settle()
        return first_verdict(found, self._request.handle)

    async def _attempt(self) -> Mapping[str, object]:
        services, request, plan = self._services, self._request, self._plan
        begun = await services.index.begin_push(
            request.repository.number, plan.push_id, request.handle, plan.branch, services.environment.now(),
            services.lease_s,
        )  # fmt: skip
        if isinstance(begun, PushRecord):
            await services.journal.settle()  # whoever was answered first may not have waited until it was
            return first_verdict(begun, request.handle)
        self.ticket = begun
        attempt = await Attempt.begun(services, request, plan, begun)
        timings, counts = Timings(), Counts()
        staged = staged_mpack_key(begun.repo, self._upload.mpack_id)
        incoming = incoming_key(begun.number, begun.attempt)
        try:
            async with SpoolDirectory(services.spool_dir, f"push-{begun.number}-{begun.attempt}") as spools:
                prover = PackProver(plan.scheme, spools, services.limits, self._upload.mpack_id)
                with closing(prover):
                    with timings.measure("read"):
                        await self._prove(prover, staged, incoming)
                    self._proved = True
                    self._check_count(prover)
                    with timings.measure("put"):
                        own = await self._place(prover, incoming)
                # from here what the push records counts, and no longer what was announced
                await services.index.release_bytes(begun.repo, mpack_reservation(self._upload.mpack_id))
                pack = RecordPack(spools)
                records = RecordStage(services, request, attempt, pack, counts, timings)
                await trio.to_thread.run_sync(_note_own, prover, own, attempt)
                async with trio.open_nursery() as nursery:  # the index writes rows while snapshots are rebuilt
                    records.blobs_recorded = trio.Event()
                    nursery.start_soon(self._record, prover, own, attempt, counts, timings, records.blobs_recorded)
                    await records.build_on_branch()
                    await self._take_records(prover, records)
                finish = Finish(
                    services, request, records.named, pack, records.commits, records.snapshots.keys(), counts, timings,
                    _unseen, records.tip, records.tagged, self._packs(prover, own),
                )  # fmt: skip
                verdict = await finish.run()
        except BaseException as error:
            refusal = refusal_for(error) if isinstance(error, Exception) else None
            kept = self._proved and refusal is not None and refusal.code in _ABOUT_THE_BRANCH
            if refusal is None or refusal.code.retryable or refusal.code is _ANOTHERS or kept:
                await self._clean([incoming])  # the next try finds the upload, or another one that runs
            else:
                await self._clean([staged, incoming])  # what is reserved expires with the URL: until then it takes more
            raise
        await self._clean([staged, incoming])
        return verdict

    async def _prove(self, prover: PackProver, staged: str, incoming: str) -> None:
        store = self._services.store
        try:
            await store.copy(staged, incoming)
        except ObjectMissing:
            shown = format_id(self._upload.mpack_id, Scheme.TYPED)
            raise Refusal(Code.NOT_FOUND, f"no upload {shown} waits here: upload it first", id=shown) from None
        waiting: list[bytes] = []
        size = 0
        async with store.stream(incoming) as pieces:
            async for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                if size >= _TAKE_BYTES:
                    await trio.to_thread.run_sync(prover.take, b"".join(waiting))
                    waiting, size = [], 0
        if waiting:
            await trio.to_thread.run_sync(prover.take, b"".join(waiting))
        await trio.to_thread.run_sync(prover.take, b"")

    def _check_count(self, prover: PackProver) -> None:
        declared = self._upload.declared_objects
        if declared is not None and declared != prover.objects:
            raise Refusal(Code.COUNT_MISMATCH, f"{declared} objects were declared, the upload holds {prover.objects}")

    async def _place(self, prover: PackProver, incoming: str) -> bytes | None:
        store = self._services.store
        if prover.objects_in_place:
            await store.copy(incoming, pack_key(self._upload.mpack_id))
        own = await trio.to_thread.run_sync(prover.finish)
        if own is None:
            return None
        pack_id, path = own
        await store.put_file(pack_key(pack_id), path)
        return pack_id

    def _packs(self, prover: PackProver, own: bytes | None) -> list[bytes]:
        """Give the packs of blobs that were put in their places."""
        return [*([self._upload.mpack_id] if prover.objects_in_place else []), *([] if own is None else [own])]

    async def _record(
        self, prover: PackProver, own: bytes | None, attempt: Attempt, counts: Counts, timings: Timings,
        recorded: trio.Event,
    ) -> None:  # fmt: skip
        index, ticket, scheme = self._services.index, attempt.ticket, attempt.plan.scheme
        batches = prover.blobs(own, ROWS_AT_ONCE)
        while (batch := await trio.to_thread.run_sync(next, batches, None)) is not None:
            unique = {blob.object_id: blob for blob in batch}
            known = NOTHING_KNOWN
            if not attempt.first:
                known = await index.known_blobs(ticket.repo, scheme, list(unique))
            new = [blob for blob in unique.values() if blob.object_id not in known.held]
            if new:
                with timings.measure("record"):
                    written = await index.record_blobs(ticket, scheme, new)
                counts.blobs_written += written
            counts.blobs_received += len(batch)
        recorded.set()

    async def _take_records(self, prover: PackProver, records: RecordStage) -> None:
        given = prover.records()
        while batch := await trio.to_thread.run_sync(_some, given):
            for record in batch:
                await records.take(record)
        await records.close()

    async def _clean(self, keys: list[str]) -> None:
        with trio.CancelScope(shield=True), suppress(StorageError):  # what stays is collected
            await self._services.store.delete(keys)


def _note_own(prover: PackProver, own: bytes | None, attempt: Attempt) -> None:
    """Take note of what the push brings, before it is recorded; blocking."""
    for batch in prover.blobs(own, ROWS_AT_ONCE):
        attempt.brought(blob.object_id for blob in batch)
        if len(attempt.own_blobs) >= OWN_BLOBS:
            return


def _some(given: Iterator[Record]) -> list[Record]:
    """Take records by number and by what they cost; blocking."""
    batch: list[Record] = []
    weight = 0
    for record in given:
        batch.append(record)
        weight += record.weight
        if len(batch) >= _RECORDS_AT_ONCE or weight >= _TAKE_BYTES:
            break
    return batch


def _unseen(_stage: str, _done: int, _total: int | None) -> None:
    """Progress nobody sees."""

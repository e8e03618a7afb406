"""The push actor: one nursery per push, from the first frame to the verdict.

Its mailbox takes the request's body as it arrives (a short one: a slow push slows its client); its answers leave
through a bounded channel. The actor belongs to the supervisor, not to the connection: when the client goes away
while the last transaction runs, the push is finished all the same, and a repetition gets its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from actors.actor import Actor
from actors.opaque import verdict_as_sent
from actors.push.context import Attempt, ClientGone, Counts, PushRequest, PushServices, Timings
from actors.push.finish import Finish
from actors.push.header import parse_header
from actors.push.objects import ObjectStages
from actors.push.observed import PushObservation, observation
from actors.push.record_pack import RecordPack
from actors.push.records import RecordStage
from actors.push.verdicts import first_verdict, keep_refusal
from actors.refusals import refusal_for
from actors.spool import SpoolDirectory
from storage.rows import PushRecord, PushTicket
from wire.errors import Code, Refusal
from wire.frames import CommitPackEnd, End, Event, FrameReader, FrameWriter, Grammar, Header, NeedData, Record

log = structlog.get_logger("push")

BODY_CHUNKS = 4
"""Body pieces waiting in the mailbox, of at most 64 KiB each."""
ANSWERS = 16
PROGRESS_EVERY_S = 0.25
ANSWER_TIMEOUT_S = 30.0


class PushActor(Actor[bytes | None]):
    """One push by stream. Messages: pieces of the body, ``b""`` at its end, ``None`` when the client is gone."""

    def __init__(self, services: PushServices, request: PushRequest) -> None:
        super().__init__(f"push {request.request_id}", mailbox_size=BODY_CHUNKS)
        self._services = services
        self._request = request
        self._reader = FrameReader(Grammar.PUSH, services.limits)
        self._writer = FrameWriter(Grammar.ANSWER)
        self._out, self.answers = trio.open_memory_channel[bytes](ANSWERS)
        self._began = self._last_said_s = trio.current_time()
        self._done = False
        self._complete = False
        self._interruption: Refusal | ClientGone | None = None
        self._waiting = trio.CancelScope()
        self.ticket: PushTicket | None = None
        self.at_door: Refusal | None = None
        """A refusal before the first frame was understood: a plain HTTP status (protocol §5)."""

    def interrupt(self, reason: Refusal | ClientGone) -> None:
        """End a push whose body is not complete: it arrives too slowly, or nobody sends it any more."""
        self._interruption = self._interruption or reason
        self._waiting.cancel()

    async def handle(self, message: bytes | None) -> None:
        """Messages are taken by the stages themselves."""

    async def run(self) -> None:
        """Take the push to its verdict and say it."""
        with self._out:  # whatever happens, nobody waits for more
            try:
                header = await self._first_frame()
            except ClientGone:
                return
            except Refusal as refusal:
                self.at_door = refusal
                return
            except Exception:
                self.at_door = _mistake()
                raise
            self._services.heartbeats.add(self)
            try:
                await self._run(header)
            except ClientGone:
                self._services.observe(PushObservation("stream", "cut", trio.current_time() - self._began))
                log.info("push cut", request_id=self._request.request_id, received=self._reader.objects)
            finally:
                self._services.heartbeats.remove(self)

    async def _run(self, header: Header) -> None:
        began = trio.current_time()
        self._say("P", {"stage": "receiving", "done": 0, "total": None, "message": ""})
        kind, members = await self._to_verdict(header)
        members = await verdict_as_sent(self._services.index, self._request.repository, members)
        await self._last_word(kind, members)
        seconds = trio.current_time() - began
        self._services.observe(observation("stream", members, seconds))
        log.info(
            "push", request_id=self._request.request_id, repository=str(self._request.repository.repo_id),
            kind=kind, way="stream", seconds=round(seconds, 3),
            **{k: v for k, v in members.items() if k not in {"request_id", "missing"}},
        )  # fmt: skip

    def tick(self, quiet_s: float) -> None:
        """Send a heartbeat frame when nothing was said for a while (see ``actors.heartbeat``)."""
        if trio.current_time() - self._last_said_s >= quiet_s:
            self._say("P", {"stage": "heartbeat", "done": self._reader.objects, "total": None, "message": ""})

    async def _to_verdict(self, header: Header) -> tuple[str, Mapping[str, object]]:
        try:
            return await self._attempt(header)
        except ClientGone:
            raise
        except BaseExceptionGroup as group:
            cancelled, others = group.split(trio.Cancelled)
            if cancelled is None or others is None or not (_is_gone(others) or refusal_for(others)):
                return await self._told(group)
            raise cancelled from None  # the server stops; what the stages ran into meanwhile is part of that
        except Exception as error:  # noqa: BLE001 - every failure has its answer, and a bug is raised again
            return await self._told(error)

    async def _told(self, error: BaseException) -> tuple[str, Mapping[str, object]]:
        """Give a failure its answer; a bug is told as one and raised."""
        refusal = refusal_for(error)
        if refusal is None:
            if _is_gone(error):
                raise ClientGone from None
            if isinstance(error, Exception):
                await self._last_word("X", _mistake().body(self._request.request_id))
            raise error
        await keep_refusal(self._services, self._request, self.ticket, refusal, received=self._complete, polled=False)
        return "X", refusal.body(self._request.request_id)

    async def _attempt(self, header: Header) -> tuple[str, Mapping[str, object]]:
        services, request = self._services, self._request
        plan = parse_header(header, request, services.environment, services.limits)
        begun = await services.index.begin_push(
            request.repository.number, plan.push_id, request.handle, plan.branch, services.environment.now(),
            services.lease_s,
        )  # fmt: skip
        if isinstance(begun, PushRecord):
            await services.journal.settle()  # whoever was answered first may not have waited until it was
            return "R", first_verdict(begun, request.handle)
        self.ticket = begun
        attempt = await Attempt.begun(services, request, plan, begun)
        timings, counts = Timings(), Counts()
        async with SpoolDirectory(services.spool_dir, f"push-{begun.number}-{begun.attempt}") as spools, attempt.kept:
            stages = ObjectStages(services, attempt, spools, counts, timings, self._progress)
            pack = RecordPack(spools)
            records = RecordStage(services, request, attempt, pack, counts, timings)
            async with trio.open_nursery() as nursery:  # objects arrive while the index is asked
                nursery.start_soon(records.build_on_branch)
                event = await stages.run(self._next_event)
            end = await self._take_records(event, records)
            await self._check_end(end, counts, records)
            finish = Finish(
                services, request, records.named, pack, records.commits, records.snapshots.keys(), counts, timings,
                self._progress, records.tip,
            )  # fmt: skip
            return "R", await finish.run()

    async def _first_frame(self) -> Header:
        event = await self._next_event()
        assert isinstance(event, Header), event
        return event

    async def _take_records(self, event: Event, records: RecordStage) -> End:
        while True:
            match event:
                case Record():
                    await records.take(event)
                case CommitPackEnd():
                    self._progress("records", records.received, None)
                case End():
                    await records.close()
                    return event
                case _:
                    raise AssertionError(event)
            event = await self._next_event()

    async def _check_end(self, end: End, counts: Counts, records: RecordStage) -> None:
        sent = (self._reader.objects, counts.commits_received)
        if (end.n_objects, end.n_commits) != sent:
            raise Refusal(
                Code.COUNT_MISMATCH,
                f"the end frame counts {end.n_objects} objects and {end.n_commits} commits, "
                f"{sent[0]} and {sent[1]} were received",
            )
        self._reader.next_event()  # refuses bytes that follow the last frame
        self._complete = True
        self._progress("finishing", len(records.commits), len(records.commits))

    async def _next_event(self) -> Event:
        while True:
            event = self._reader.next_event()
            if not isinstance(event, NeedData):
                return event
            chunk = None
            if self._interruption is None:
                with trio.CancelScope() as self._waiting:
                    chunk = await self.next_message()
            if self._interruption is not None:
                raise self._interruption
            if chunk is None:
                raise ClientGone
            self._reader.receive_data(chunk)

    def _progress(self, stage: str, done: int, total: int | None) -> None:
        if trio.current_time() - self._last_said_s >= PROGRESS_EVERY_S:
            self._say("P", {"stage": stage, "done": done, "total": total, "message": ""})

    def _say(self, kind: str, members: Mapping[str, object]) -> None:
        """Send a frame if there is room: progress is worth nothing to a client that does not read."""
        if self._done:
            return
        self._last_said_s = trio.current_time()
        try:
            self._out.send_nowait(self._writer.send(kind, members))
        except (trio.WouldBlock, trio.BrokenResourceError):
            pass

    async def _last_word(self, kind: str, members: Mapping[str, object]) -> None:
        self._done = True
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            try:
                await self._out.send(self._writer.send(kind, members))
            except trio.BrokenResourceError:
                pass  # nobody listens any more; the verdict is kept under the push id


def _mistake() -> Refusal:
    return Refusal(Code.INTERNAL, "the server made a mistake; its log has the details")


def _is_gone(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_gone(inner) for inner in error.exceptions)
    return isinstance(error, ClientGone)

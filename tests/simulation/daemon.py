"""A daemon of a simulated deployment: the real actors over gated ports, and nothing of HTTP.

Killing it cancels everything it does at once and lets nothing of what follows reach a port; stopping it holds every
call at its gate until it goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from actors.fetch.assemble import FETCHES_AT_ONCE, FetchServices
from actors.heartbeat import HeartbeatClock, Heartbeats
from actors.jobs.handler import JobServices
from actors.jobs.work import JobWork
from actors.push.actor import PushActor
from actors.push.confirm import ConfirmSlots
from actors.push.context import ClientGone, PushRequest, PushServices
from actors.refusals import refusal_for
from actors.supervisor import Child, Draining, Supervisor
from storage.errors import IndexUnavailable
from storage.objects.faulty import FaultyStore
from storage.objects.limited import LimitedStore
from storage.objects.retrying import RetryingStore
from storage.objects.verifying import VerifyingStore
from storage.slots import Slots
from tests.simulation import work
from tests.simulation.clockwork import SimulatedEnvironment
from tests.simulation.ports import GatedIndex, GatedStore
from wire.errors import Code, Refusal

HEARTBEAT_S = 240.0
"""Longer than in service: each tick is work, and time is free here."""
_DRAIN_S = 20.0
_BODY_PIECES = 2
_ANSWERS = 4


class Cut(Exception):
    """The connection ended before the answer was there."""


class Daemon:
    """One process of the deployment. ``world`` is the run it is part of."""

    def __init__(self, world: Any, name: str, spool_dir: Path, dies_at: int | None) -> None:
        self.world = world
        self.name = name
        self.weather = world.weather
        self.dead = False
        self.up = trio.Event()
        self._scope: trio.CancelScope | None = None
        self.calls = 0
        self._dies_at = dies_at
        self._going: trio.Event | None = None
        self.spool_dir = spool_dir
        skew_s = world.draw("skew", name).uniform(-2, 2) if "skew" in world.weather.kinds else 0.0
        self.environment = SimulatedEnvironment(world.draw("environment", name), skew_s)
        self.limited = LimitedStore(FaultyStore(GatedStore(world.store, self), self._store_fault))
        self.store = VerifyingStore(RetryingStore(self.limited, self.environment))
        self.index: Any = GatedIndex(world.index, self, world.witness)
        self.heartbeats = Heartbeats()
        self.supervisor = Supervisor()
        limits = world.limits
        self.push = PushServices(self.index, self.store, self.environment, self.heartbeats, spool_dir, limits)
        self.fetch = FetchServices(self.index, self.store, self.environment, spool_dir, limits, Slots(FETCHES_AT_ONCE))
        self.confirm = ConfirmSlots()
        services = JobServices(self.index, self.store, self.environment, spool_dir, limits, self.fetch, work.SETTINGS)
        registry = work.registry_of(world, self)
        self.types = registry.types()
        self.work = JobWork(services, self.supervisor, registry, name)
        self.requests = 0
        """Under way."""

    def children(self) -> list[Child]:
        """Give the permanent actors of a daemon."""
        clock = Child("heartbeat", lambda: HeartbeatClock(self.heartbeats, self.index, self.environment, HEARTBEAT_S))
        types = self.world.plan.types
        return [clock, *(self.work.children(work.cron_of(types)) if types else [])]

    async def run(self) -> None:
        """Live until killed."""
        try:
            async with trio.open_nursery() as self.nursery:
                self._scope = self.nursery.cancel_scope
                if self.dead:
                    self._scope.cancel()
                await self.nursery.start(self.supervisor.run, self.children())
                self.world.trace.say(self.name, "is up")
                self.up.set()
                await trio.sleep_forever()
        except BaseException as error:
            if not self.dead:
                if isinstance(error, Exception):
                    self.world.violated("I8", f"daemon {self.name} fell: {error!r}", error)
                raise
        finally:
            self.dead = True
            shutil.rmtree(self.spool_dir, ignore_errors=True)

    def kill(self, why: str) -> None:
        """End it as SIGKILL does."""
        if not self.dead:
            self.world.trace.say(self.name, f"is killed {why}")
            self.dead = True
            self.go_on()
            if self._scope is not None:
                self._scope.cancel()

    async def drain(self) -> None:
        """End it as SIGTERM does."""
        self.world.trace.say(self.name, "drains")
        await self.supervisor.drain(_DRAIN_S)
        try:
            await self.work.give_back()
        except IndexUnavailable:
            pass
        self.kill("after it was drained")

    def stop(self) -> None:
        """Hold it as SIGSTOP does."""
        self._going = self._going or trio.Event()

    def go_on(self) -> None:
        """Let it go on as SIGCONT does."""
        if self._going is not None:
            self._going.set()
            self._going = None

    async def enter(self, call: str, gone: Exception) -> None:
        """See ``ports.Gate``."""
        self.calls += 1
        if self.calls == self._dies_at and not self.weather.calm and self.calls % 2:
            self.kill(f"before {call}")
        await self._wait(gone)
        self.world.trace.say(self.name, call)

    async def leave(self, call: str, gone: Exception) -> None:
        """See ``ports.Gate``."""
        if self.calls == self._dies_at and not self.weather.calm and not self.calls % 2:
            self.kill(f"after {call}")
        await self._wait(gone)

    async def _wait(self, gone: Exception) -> None:
        if self._going is not None:
            await self._going.wait()
        if self.dead:
            await trio.lowlevel.checkpoint()
            raise gone

    def _store_fault(self, call: Any) -> Any:
        return None if self.dead else self.weather.of_store(call)

    async def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Let it do something for a client, who waits for what comes of it.

        Raises:
            Cut: the connection ended; it may have been done or not.
            Refusal: that was the answer.
        """
        if self.dead or not self.up.is_set():
            await trio.lowlevel.checkpoint()
            raise Cut
        outcome = _Outcome()
        self.requests += 1
        self.nursery.start_soon(self._serve, function, arguments, outcome)
        await outcome.done.wait()
        if outcome.refusal is not None:
            self.see(outcome.refusal)
            raise outcome.refusal
        if not outcome.answered or self.weather.strikes("cuts"):
            raise Cut
        return outcome.answer

    async def _serve(self, function: Callable[..., Awaitable[Any]], arguments: Any, outcome: _Outcome) -> None:
        try:
            outcome.answer = await function(*arguments)
            outcome.answered = True
        except Cut:
            pass
        except Exception as error:
            outcome.refusal = refusal_for(error)
            if outcome.refusal is None and not self.dead:
                self.world.violated("I8", f"a request failed: {error!r}", error)
                outcome.refusal = Refusal(Code.INTERNAL, repr(error))
        finally:
            self.requests -= 1
            outcome.done.set()

    def see(self, refusal: Refusal | None) -> None:
        """Take note of what a client was told: nothing is damaged unless the weather does it."""
        damaged = refusal is not None and refusal.code in {Code.STORE_DAMAGED, Code.INTERNAL}
        if damaged and not self.dead and not self.world.may_be_damaged:
            self.world.violated("I1", f"told by {self.name}: {refusal}")

    def connect(self, request: PushRequest) -> Connection:
        """Begin a push by stream."""
        connection = Connection()
        if self.dead or not self.up.is_set():
            connection.close()
        else:
            self.nursery.start_soon(self._serve_push, request, connection)
        return connection

    async def _serve_push(self, request: PushRequest, connection: Connection) -> None:
        """Do what the route does: the body in, the frames out, both at once."""
        self.requests += 1
        try:
            actor = PushActor(self.push, request)
            await self.supervisor.start(actor)
            try:
                async with actor.answers, trio.open_nursery() as nursery:
                    nursery.start_soon(_feed, connection, actor)
                    async for frame in actor.answers:
                        await connection.answer(frame)
                    nursery.cancel_scope.cancel()
            finally:
                actor.interrupt(ClientGone())
            connection.at_door = actor.at_door
        except Draining as error:
            connection.at_door = refusal_for(error)
        finally:
            self.requests -= 1
            connection.close()


class _Outcome:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Any = None
        self.answered = False
        self.refusal: Refusal | None = None


class Connection:
    """Bytes both ways between a client and a daemon."""

    def __init__(self) -> None:
        self._send, self.body = trio.open_memory_channel[bytes](_BODY_PIECES)
        self._answer, self.answers = trio.open_memory_channel[bytes](_ANSWERS)
        self.at_door: Refusal | None = None

    async def send(self, piece: bytes) -> None:
        """Send of the body; ``b""`` is its end. What nobody takes any more is dropped."""
        try:
            await self._send.send(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """End it from the client's side."""
        self._send.close()
        self.answers.close()

    async def answer(self, frame: bytes) -> None:
        """Send to the client, if there still is one."""
        try:
            await self._answer.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """End it from the daemon's side."""
        self.body.close()
        self._answer.close()


async def _feed(connection: Connection, actor: PushActor) -> None:
    """Pass the body on; one that ends without its end was cut."""
    try:
        async for piece in connection.body:
            await actor.post(piece)
            if not piece:
                return
        await actor.post(None)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass

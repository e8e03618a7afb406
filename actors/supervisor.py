"""The supervisor: owns every actor, restarts what should live, and ends everything in order.

Restart policies are Erlang's: a *permanent* child is started again whenever it ends, a *transient* one when it
crashed, a *temporary* one never. When more restarts than the intensity allows happen within the period, the
fault is not one a restart mends, and the supervisor itself gives up.

A question of the watchdog (``actors.watchdog``) goes the way of every request: through the supervisor's own loop, to
every permanent child, and back.

Draining: new temporary actors are refused, the running ones may finish until the deadline, then everything is
cancelled.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from actors.actor import Actor, ActorStatistics

log = structlog.get_logger("supervisor")

RESTARTS_MOST = 5
RESTART_PERIOD_S = 10.0
RESTART_DELAY_S = 0.1
_START_REQUESTS = 64


class Restart(enum.Enum):
    """What happens when a child ends."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True)
class Child:
    """How to make an actor, and what to do when it ends."""

    name: str
    make: Callable[[], Actor[Any]]
    restart: Restart = Restart.PERMANENT


@dataclass(frozen=True, slots=True)
class SupervisorStatistics:
    """A look at the tree."""

    children: tuple[ActorStatistics, ...]
    restarts: int
    draining: bool


@dataclass(frozen=True, slots=True)
class _Round:
    """A question from the watchdog on its way through the tree."""

    limit_s: float
    silent: list[Actor[Any]]
    done: trio.Event


class Draining(Exception):
    """No new actors are taken."""


class GaveUp(Exception):
    """A child keeps crashing."""


class Supervisor:
    """Run children in one nursery; see the module for the rules."""

    def __init__(self, restarts_most: int = RESTARTS_MOST, restart_period_s: float = RESTART_PERIOD_S) -> None:
        self._restarts_most = restarts_most
        self._restart_period_s = restart_period_s
        self._recent: deque[float] = deque()
        self._restarts = 0
        self._running: dict[int, Actor[Any]] = {}
        self._permanent: dict[int, Actor[Any]] = {}
        self._temporaries = 0
        self._idle = trio.Event()
        self._requests, self._accepted = trio.open_memory_channel[Child | _Round](_START_REQUESTS)
        self.draining = False
        self.silent: tuple[str, ...] = ()
        """Permanent actors that the watchdog has given up on."""

    async def run(self, children: list[Child], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run ``children`` and whatever is started later, until cancelled.

        Raises:
            GaveUp: (in a group) a child was restarted too often.
        """
        async with trio.open_nursery() as nursery:
            for child in children:
                nursery.start_soon(self._keep, child)
            task_status.started()
            async for request in self._accepted:
                if isinstance(request, _Round):
                    nursery.start_soon(self._ask_all, request)
                else:
                    nursery.start_soon(self._keep, request)

    async def start(self, actor: Actor[Any]) -> None:
        """Start a temporary actor.

        Raises:
            Draining: the supervisor takes no new actors.
        """
        if self.draining:
            raise Draining
        self._temporaries += 1
        self._idle = trio.Event()
        try:
            await self._requests.send(Child(actor.name, lambda: actor, Restart.TEMPORARY))
        except BaseException:
            self._one_temporary_less()
            raise

    async def drain(self, deadline_s: float) -> bool:
        """Refuse new actors and wait for the temporary ones; gives whether all ended in time."""
        self.draining = True
        if self._temporaries:
            with trio.move_on_after(deadline_s):
                await self._idle.wait()
        return self._temporaries == 0

    async def round_trip(self, limit_s: float) -> list[Actor[Any]] | None:
        """Ask every permanent actor for a sign of life; gives those that had none within ``limit_s`` seconds.

        ``None``: the supervisor itself had none.
        """
        asked = _Round(limit_s, [], trio.Event())
        with trio.move_on_after(2 * limit_s):
            await self._requests.send(asked)
            await asked.done.wait()
            return asked.silent
        return None

    def statistics(self) -> SupervisorStatistics:
        """Give a look at the tree."""
        return SupervisorStatistics(
            tuple(actor.statistics() for actor in self._running.values()), self._restarts, self.draining
        )

    async def _keep(self, child: Child) -> None:
        try:
            while True:
                crashed = await self._run_once(child)
                if child.restart is Restart.TEMPORARY or (child.restart is Restart.TRANSIENT and not crashed):
                    return
                self._count_restart(child)
                await trio.sleep(RESTART_DELAY_S)
        finally:
            if child.restart is Restart.TEMPORARY:
                self._one_temporary_less()

    async def _run_once(self, child: Child) -> bool:
        actor = child.make()
        self._running[id(actor)] = actor
        if child.restart is Restart.PERMANENT:
            self._permanent[id(actor)] = actor
        try:
            await actor.live()
        except Exception:  # whatever a child dies of, it is the supervisor that decides what follows
            log.exception("actor crashed", actor=child.name, restart=child.restart.value)
            return True
        finally:
            del self._running[id(actor)]
            self._permanent.pop(id(actor), None)
        return False

    async def _ask_all(self, asked: _Round) -> None:
        async with trio.open_nursery() as nursery:
            for actor in list(self._permanent.values()):
                nursery.start_soon(self._ask, actor, asked)
        asked.done.set()

    async def _ask(self, actor: Actor[Any], asked: _Round) -> None:
        with trio.move_on_after(asked.limit_s) as waiting:
            await actor.round_trip()
        if waiting.cancelled_caught and id(actor) in self._permanent:  # one that has ended lives again soon
            asked.silent.append(actor)

    def _count_restart(self, child: Child) -> None:
        now = trio.current_time()
        self._restarts += 1
        self._recent.append(now)
        while self._recent and now - self._recent[0] > self._restart_period_s:
            self._recent.popleft()
        if len(self._recent) > self._restarts_most:
            raise GaveUp(f"{child.name} was restarted {len(self._recent)} times in {self._restart_period_s} s")

    def _one_temporary_less(self) -> None:
        self._temporaries -= 1
        if not self._temporaries:
            self._idle.set()

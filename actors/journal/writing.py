"""Writing out what was decided: a permanent actor of every daemon, and how others wait for it.

Steps, and what is left if the process dies after each:

1. entries are read from the outbox, where the transactions that decided them have left them — nothing new;
2. they are put into the store as one segment — entries that are written out once more, by whoever comes next: their
   numbers say that they are the same;
3. the outbox forgets them.

Several daemons may write the same entries. Facts that are decided while a segment is on its way share the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from actors.actor import Actor
from actors.journal.joining import join
from storage.environment import Environment
from storage.errors import DeploymentMismatch, StorageError
from storage.journal import SEGMENT_BYTES, SEGMENT_ENTRIES, Deployment, Journal, write_segment
from storage.object_store import ObjectStore

log = structlog.get_logger("journal")

LOOK_EVERY_S = 1.0
"""For what was decided beside this daemon, by a command."""
SETTLE_S = 2.0
"""How long an answer waits for its facts to be in the store; they are durable in the index meanwhile."""
_PAUSE_S, _PAUSE_MOST_S = 0.5, 15.0


class Settling(Protocol):
    """Where those wait who have decided something."""

    async def settle(self) -> bool:
        """Wait until what was decided is in the store, within a bound; gives whether it is."""


class NoJournal:
    """Of an index that keeps no outbox."""

    async def settle(self) -> bool:
        """There is nothing to wait for."""
        await trio.lowlevel.checkpoint()
        return True


class JournalOffice:
    """What the writers of a daemon, one after the other, and those who wait for them share."""

    def __init__(self, journal: Journal, store: ObjectStore, environment: Environment) -> None:
        self._journal = journal
        self._store = store
        self._environment = environment
        self._deployment: Deployment | None = None
        self._waiting: list[trio.Event] = []
        self.wake: Callable[[], None] | None = None
        """Wakes the writer, if there is one."""

    async def settle(self) -> bool:
        """See ``Settling``."""
        if self.wake is None:
            await trio.lowlevel.checkpoint()
            return False
        done = trio.Event()
        self._waiting.append(done)
        self.wake()
        with trio.move_on_after(SETTLE_S):
            await done.wait()
        if not done.is_set():
            log.warning("what was decided is not in the store yet: it follows", seconds=SETTLE_S)
            if done in self._waiting:
                self._waiting.remove(done)
        return done.is_set()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    async def write_out(self) -> int:
        """Write out all there is; gives how many entries. Whoever waited when it began need not wait any more.

        Raises:
            DeploymentMismatch: index and store do not belong together.
            StorageError: index or store cannot do it now.
        """
        waiting, count = list(self._waiting), 0
        if self._deployment is None:
            self._deployment = await join(self._journal, self._store, self._environment)
        while True:
            outbox = await self._journal.outbox(self._deployment, SEGMENT_ENTRIES, SEGMENT_BYTES)
            entries, key = outbox.entries, ""
            if entries:
                key, content = write_segment(self._deployment, entries)
                await self._store.put_batch([(key, content)])
                count += len(entries)
            if not outbox.more:
                for done in waiting:
                    done.set()
                    if done in self._waiting:
                        self._waiting.remove(done)
            if entries:
                await self._journal.written_out(self._deployment, [entry.number for entry in entries], key)
            if not outbox.more:
                return count


class JournalWriter(Actor[None]):
    """Write out for ever."""

    def __init__(self, office: JournalOffice) -> None:
        super().__init__("journal", mailbox_size=0)
        self._office = office

    async def run(self) -> None:
        """Write out what there is, whenever somebody waits for it and now and then.

        Once index and store do not belong together it writes nothing any more: what is decided stays in the outbox,
        for whoever joins the two next.
        """
        self._office.wake = self.wake
        pause_s = _PAUSE_S
        try:
            while True:
                error = await self._write_out()
                if error is None:
                    pause_s = _PAUSE_S
                    await self.rest(0.0 if self._office.awaited else LOOK_EVERY_S)
                    continue
                if isinstance(error, DeploymentMismatch):
                    log.error("nothing is written out by this daemon any more: stop it", error=str(error))
                    self._office.wake = None
                    while True:
                        await self.rest(_PAUSE_MOST_S)
                log.warning("what was decided is not written out", error=str(error), again_in_s=pause_s)
                await self.rest(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
        finally:
            self._office.wake = None

    async def handle(self, message: None) -> None:
        """The writer takes no messages."""

    async def _write_out(self) -> StorageError | None:
        """Write out in a task of its own: while the store hangs, the watchdog is answered all the same."""
        ended: list[StorageError | None] = []

        async def work() -> None:
            try:
                await self._office.write_out()
                ended.append(None)
            except StorageError as error:
                ended.append(error)
            self.wake()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            while not ended:
                await self.rest(LOOK_EVERY_S)
        return ended[0]

"""Collectors of a simulated deployment, with less patience than those in service have."""

from __future__ import annotations

from typing import Any

import trio

from actors.collect.collector import Wishes, collect
from actors.collect.report import Report
from actors.heartbeat import LEASE_S
from storage.layout import loose_key, pack_key
from tests.simulation.daemon import Cut, Daemon
from wire.errors import Refusal

_EVERY_S = 90.0
_LOOKS, _LOOK_S = 30, 3.0
_LAST_S = 5 * LEASE_S
_LAST_TURNS = 3


class Collector:
    """Collects through any daemon, again and again. ``world`` is the run it is part of."""

    def __init__(self, world: Any, name: str) -> None:
        self._world = world
        self._name = name
        self._rng = world.draw("collector", name)

    async def run(self) -> None:
        """Collect now and then while the weather is bad: one run marks, a later one deletes."""
        while not self._world.weather.calm:
            await trio.sleep(self._rng.expovariate(1 / _EVERY_S))
            for _ in range(_LOOKS):  # best in the middle of something
                if self._world.weather.calm or any(len(daemon.heartbeats) for daemon in self._world.daemons):
                    break
                await trio.sleep(_LOOK_S)
            wishes = Wishes(keep_s=self._rng.choice([0.0, 0.0, 60.0]), orphan_s=self._rng.choice([0.0, 50.0]))
            try:
                await self._collect(wishes)
            except (Cut, Refusal) as error:
                self._world.trace.say(self._name, repr(error))

    async def collect_all(self) -> None:
        """Collect everything there is to collect, in calm weather, and look whether it is gone."""
        left: list[str] = []
        for _ in range(_LAST_TURNS):  # what came back while its tombstone stood waits for another turn
            await self._collect(Wishes(keep_s=0.0, orphan_s=0.0, wait=True), patience_s=_LAST_S)
            left = self._needless()
            if not left:
                return
        self._world.violated("I7", f"nobody needs {left}, and it is not collected")

    async def _collect(self, wishes: Wishes, patience_s: float = LEASE_S) -> None:
        daemon: Daemon = self._world.some_daemon(self._rng)

        async def collected() -> Report:
            limits = self._world.limits
            return await collect(daemon.index, daemon.store, daemon.environment, wishes, limits)

        with trio.move_on_after(patience_s):
            report = await daemon.call(collected)
            self._world.trace.say(self._name, f"{report.counts()}")
            return
        raise Cut

    def _needless(self) -> list[str]:
        """Give the keys of objects and packs that no row names, and rows that no repository holds."""
        rows = self._world.index.tables.blobs.items()
        places = {pack_key(r.pack_id) if r.pack_id else loose_key(r.object_id, s) for (s, _), r in rows}
        tables = self._world.index.tables
        gone = {number: scheme for number, (_, scheme) in tables.collection.deleted.items()}
        schemes = {**gone, **{number: r.scheme for number, r in tables.repositories.items()}}
        held = {(schemes[push.repo], i) for push in tables.pushes.values() for i in push.blobs
                if push.repo not in gone or not push.accepted}  # fmt: skip
        held |= {(scheme, i) for _, scheme, i in tables.held_blobs}
        unheld = [f"row of {i.hex()}" for s, i in tables.blobs if not {(s, i), (None, i)} & held]
        return unheld + [
            k for k in self._world.store.contents() if k.startswith(("objects/", "packs/")) and k not in places
        ]

"""Permanent actors that keep house."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

import structlog
import trio

from actors.actor import Actor
from museworkd.http.uploads import Uploads
from storage.environment import Environment
from storage.errors import IndexUnavailable, StorageError
from storage.index import Holdings
from storage.layout import fetch_pack_id
from storage.object_store import ObjectStore
from storage.postgres.embedded import EmbeddedPostgres
from storage.prebuilt import Prebuilt

log = structlog.get_logger("keeper")

LOOK_EVERY_S = 1.0
SWEEP_EVERY_S = 600.0
UNFINISHED_S = 86_400.0
"""What was half put a day ago is not being put any more."""
_DELETE_BATCH = 500
_FORGET_BATCH = 1_000
_EXPIRING = ("fetch", "staging")
"""Prefixes of keys that are caches or waiting rooms, never the truth."""


class EmbeddedKeeper(Actor[None]):
    """Start the embedded PostgreSQL again when it has died; it recovers by itself."""

    def __init__(self, embedded: EmbeddedPostgres) -> None:
        super().__init__("embedded postgres", mailbox_size=0)
        self._embedded = embedded

    async def run(self) -> None:
        """Look after it for ever."""
        while True:
            await self.rest(LOOK_EVERY_S)
            try:
                if await trio.to_thread.run_sync(self._embedded.alive):
                    continue
                log.error("the embedded PostgreSQL has died, starting it again")
                await trio.to_thread.run_sync(self._embedded.start)
            except (IndexUnavailable, OSError) as error:  # no file descriptor to look with, perhaps: look again
                log.error("it cannot be looked after", error=str(error))

    async def handle(self, message: None) -> None:
        """The keeper takes no messages."""


class Expiring(Holdings, Prebuilt, Protocol):
    """The parts of the index that keep what expires."""


class ExpiryKeeper(Actor[None]):
    """Delete what has its time: fetch packs, uploads nobody came back for, holdings no push has claimed."""

    def __init__(
        self, store: ObjectStore, index: Expiring, uploads: Uploads, environment: Environment, keep_s: float
    ) -> None:
        super().__init__("expired", mailbox_size=0)
        self._store = store
        self._index = index
        self._uploads = uploads
        self._environment = environment
        self._keep_s = keep_s

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                deleted = await self.sweep()
            except StorageError as error:
                log.warning("expired files not swept", error=str(error))
            else:
                if deleted:
                    log.info("swept expired files", count=deleted)
            await self.rest(SWEEP_EVERY_S)

    async def sweep(self) -> int:
        """Delete what has expired; gives how many."""
        limit = self._environment.now().timestamp() - self._keep_s
        while await self._index.forget_prebuilt(dt.datetime.fromtimestamp(limit, dt.UTC), _FORGET_BATCH):
            pass
        count = await trio.to_thread.run_sync(self._uploads.sweep, limit)
        for prefix in _EXPIRING:
            expired: list[str] = []
            async for stored in self._store.scan(prefix):
                self.answer()
                if stored.modified < limit:
                    expired.append(stored.key)
                if len(expired) >= _DELETE_BATCH:
                    count += await self._delete(expired)
                    expired = []
            count += await self._delete(expired)
        while forgotten := await self._index.forget_held(self._environment.now(), _FORGET_BATCH):
            count += forgotten
        return count + await self._store.sweep_temporary(UNFINISHED_S)

    async def _delete(self, keys: list[str]) -> int:
        """Delete what no clone made ahead is named by."""
        packs = {pack_id: key for key in keys if (pack_id := fetch_pack_id(key)) is not None}
        kept = {packs[pack_id] for pack_id in await self._index.kept_prebuilt(list(packs))} if packs else set()
        gone = [key for key in keys if key not in kept]
        await self._store.delete(gone)
        return len(gone)

    async def handle(self, message: None) -> None:
        """The keeper takes no messages."""

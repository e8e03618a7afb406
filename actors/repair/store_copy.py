"""Copying one object store into another while daemons work with the first.

Keys are immutable but one, and content-addressed but few; so a pass lists both stores and copies what the target lacks
or has with another size, and each pass has only to copy what came since the one before. What a key promises is hashed
on its way. A pass may be cut anywhere: a put is whole or not there, and the next pass goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
import trio

from actors.repair.listings import BUCKETS, Listing
from actors.spool import SpoolDirectory
from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing
from storage.layout import content_matches, parse_journal_key, verifier
from storage.object_store import ObjectStore
from wire.limits import MIB

SMALL_BYTES = 2 * MIB
"""Larger contents go by way of a local file."""
BATCH_KEYS, BATCH_BYTES = 64, 4 * MIB
AT_ONCE = 8
"""Batches, or large contents, on their way at a time."""
NAMED = 100
"""Damaged keys that are named."""
_ADDRESSED = ("objects/", "packs/", "records/", "fetch/")

log = structlog.get_logger("migrate-store")


@dataclass(slots=True)
class Pass:
    """What one pass has done; sizes in bytes."""

    keys: int = 0
    """That the source has."""
    there: int = 0
    """Already in the target."""
    copied: int = 0
    bytes: int = 0
    gone: int = 0
    """Deleted from the source meanwhile."""
    damaged: int = 0
    """Not copied: the source's bytes are not what the key promises."""
    damaged_keys: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, object]:
        """Give it as a value."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """Copies from one store to another."""

    source: ObjectStore
    target: ObjectStore
    environment: Environment
    spool_dir: Path
    verify: bool = False
    """Whether what is in the target already is read and hashed, too."""

    async def run(self, advance: Callable[[], None]) -> Pass:
        """Make one pass.

        Raises:
            StoreUnavailable, StoreFull: it cannot go on now; what was copied stays.
        """
        done = Pass()
        async with SpoolDirectory(self.spool_dir, f"copy-{self.environment.uuid().hex}") as spools:
            had, has = Listing(spools), Listing(spools)
            await had.take_all(self.target, advance)
            await has.take_all(self.source, advance)
            done.keys = has.keys
            slots = trio.CapacityLimiter(AT_ONCE)
            async with trio.open_nursery() as nursery:
                for number in range(BUCKETS):
                    await self._bucket(await has.bucket(number), await had.bucket(number), done, nursery, slots, spools)
                    advance()
        return done

    async def _bucket(
        self, wanted: dict[str, int], there: dict[str, int], done: Pass, nursery: trio.Nursery,
        slots: trio.CapacityLimiter, spools: SpoolDirectory,
    ) -> None:  # fmt: skip
        """Start copying what the target lacks of some keys; waits while enough is on its way."""
        batch: list[str] = []
        size = 0
        for key, length in wanted.items():
            if there.get(key) == length and await self._is_same(key, length):
                done.there += 1
                continue
            if length > SMALL_BYTES:
                await _start(nursery, slots, self._large, key, done, spools)
                continue
            batch.append(key)
            size += length
            if len(batch) >= BATCH_KEYS or size >= BATCH_BYTES:
                await _start(nursery, slots, self._small, batch, done)
                batch, size = [], 0
        if batch:
            await _start(nursery, slots, self._small, batch, done)

    async def _is_same(self, key: str, length: int) -> bool:
        """Tell whether the target's content of that size is the source's."""
        if parse_journal_key(key) is None and not key.startswith((*_ADDRESSED, "staging/")):
            try:  # the one object that is written over
                return await self.source.get(key, SMALL_BYTES) == await self.target.get(key, SMALL_BYTES)
            except (ObjectMissing, ValueError):
                return False
        if not self.verify:
            return True
        check = verifier(key, length)
        try:
            async with self.target.stream(key) as pieces:
                async for piece in pieces:
                    check.update(piece)
        except (ObjectMissing, ObjectDamaged):
            return False
        return check.matches()

    async def _small(self, keys: Sequence[str], done: Pass) -> None:
        items: list[tuple[str, bytes]] = []
        for key in keys:
            try:
                content = await self.source.get(key, 2 * SMALL_BYTES)
            except (ObjectMissing, ValueError):  # deleted, or another one by now: the next pass
                done.gone += 1
                continue
            except ObjectDamaged:
                self._damaged(key, done)
                continue
            if await trio.to_thread.run_sync(_is_promised, key, content):
                items.append((key, content))
            else:
                self._damaged(key, done)
        if items:
            await self.target.put_batch(items)
            done.copied += len(items)
            done.bytes += sum(len(content) for _, content in items)

    async def _large(self, key: str, done: Pass, spools: SpoolDirectory) -> None:
        spool = spools.new()
        try:
            check = verifier(key, await self.source.size(key))
            async with self.source.stream(key) as pieces:
                async for piece in pieces:
                    check.update(piece)
                    await spool.append(piece)
        except ObjectMissing:
            done.gone += 1
            return
        except ObjectDamaged:
            self._damaged(key, done)
            return
        size = spool.size
        if not check.matches():
            self._damaged(key, done)
            await trio.to_thread.run_sync(spool.discard)
            return
        await self.target.put_file(key, await trio.to_thread.run_sync(spool.flush))
        done.copied += 1
        done.bytes += size

    def _damaged(self, key: str, done: Pass) -> None:
        log.error("not copied: the bytes are not what the key promises", key=key)
        done.damaged += 1
        if len(done.damaged_keys) < NAMED:
            done.damaged_keys.append(key)


async def _start(
    nursery: trio.Nursery, slots: trio.CapacityLimiter, work: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Start something as soon as there is room for it."""
    token = object()
    await slots.acquire_on_behalf_of(token)

    async def run() -> None:
        try:
            await work(*arguments)
        finally:
            slots.release_on_behalf_of(token)

    nursery.start_soon(run)


def _is_promised(key: str, content: bytes) -> bool:
    named = parse_journal_key(key)
    if named is not None:
        return hashlib.sha256(content).digest() == named.digest
    return content_matches(key, content)

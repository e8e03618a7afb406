"""The ports a simulated daemon works through: the deployment's memory twins, behind a gate of its own.

At the gate calls are counted and written into the trace, a daemon dies before or after one of them, waits while its
process is stopped, and meets the weather. What has happened in the index is observed from here, not told by it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from storage.environment import Environment
from storage.errors import IndexUnavailable, StoreUnavailable
from storage.memory.index import MemoryIndex
from storage.object_store import ReadRange, StoredObject
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from tests.simulation.faults import Weather

LAZY_SYNC_S = 30.0
"""How long a store that forgets to sync keeps what it was given in its memory only."""


class SimulatedStore(MemoryStore):
    """The machine that holds the objects: what was not synced is gone when its power goes."""

    syncs = True
    """Whether a put is durable when it has returned."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._unsynced: dict[str, tuple[tuple[bytes, float] | None, float]] = {}
        """Key → what it was before, and when it is durable by itself."""
        self.put_at: dict[str, float] = {}
        self.gone: dict[str, tuple[StoredObject, float]] = {}
        """What was deleted, and when: an old listing has it still."""

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        await self._put_durably([key for key, _ in items], lambda: super(SimulatedStore, self).put_batch(items))

    async def put_file(self, key: str, path: Path) -> None:
        await self._put_durably([key], lambda: super(SimulatedStore, self).put_file(key, path))

    async def copy(self, source: str, target: str) -> None:
        await self._put_durably([target], lambda: super(SimulatedStore, self).copy(source, target))

    async def _put_durably(self, keys: list[str], put: Callable[[], Awaitable[None]]) -> None:
        before = {key: self._contents.get(key) for key in keys}
        await put()
        self.put_at.update(dict.fromkeys(keys, trio.current_time()))
        for key in keys:
            self._unsynced.setdefault(key, (before[key], trio.current_time() + LAZY_SYNC_S))
        if self.syncs:
            try:
                await trio.lowlevel.checkpoint()
            finally:
                for key in keys:
                    self._unsynced.pop(key, None)

    async def delete(self, keys: Iterable[str]) -> None:
        for key in (keys := list(keys)):
            if key in self._contents:
                content, modified = self._contents[key]
                self.gone[key] = StoredObject(key, len(content), modified), trio.current_time()
        await super().delete(keys)

    def contents(self) -> Mapping[str, bytes]:
        """Give what is stored, for who looks from outside."""
        return {key: content for key, (content, _) in self._contents.items()}

    def lose_power(self) -> None:
        """Forget what was not synced."""
        for key, (before, durable_at) in self._unsynced.items():
            if durable_at <= trio.current_time():
                continue
            if before is None:
                self._contents.pop(key, None)
            else:
                self._contents[key] = before
        self._unsynced.clear()


class Gate(Protocol):
    """What a call passes on its way in and out; raises ``gone`` when its daemon is dead."""

    weather: Weather

    async def enter(self, call: str, gone: Exception) -> None:
        """A call begins."""

    async def leave(self, call: str, gone: Exception) -> None:
        """A call has had its effect."""


class Witness(Protocol):
    """Who looks at the index after each of its operations."""

    def saw(self, operation: str, arguments: Sequence[Any], result: Any) -> None:
        """An operation was done; nothing else has happened since."""


class GatedStore(WrappedStore):
    """A daemon's way to the object store."""

    def __init__(self, machine: SimulatedStore, gate: Gate) -> None:
        super().__init__(machine)
        self._machine = machine
        self._gate = gate

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        await self._pass("put_batch", super().put_batch, items)

    async def put_file(self, key: str, path: Path) -> None:
        await self._pass("put_file", super().put_file, key, path)

    async def copy(self, source: str, target: str) -> None:
        await self._pass("copy", super().copy, source, target)

    async def get(self, key: str, most: int) -> bytes:
        return await self._pass("get", super().get, key, most)

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        return await self._pass("get_ranges", super().get_ranges, ranges)

    async def size(self, key: str) -> int:
        return await self._pass("size", super().size, key)

    async def delete(self, keys: Iterable[str]) -> None:
        await self._pass("delete", super().delete, list(keys))

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        await self._gate.enter("store.stream", _store_gone())
        async with self.inner.stream(key, offset, size) as pieces:
            yield pieces

    async def scan(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        await self._gate.enter("store.scan", _store_gone())
        lag_s = self._gate.weather.listing_lag()
        now = trio.current_time()
        known: set[str] = set()
        async with aclosing(self.inner.scan(prefix)) as found:  # type: ignore[type-var]
            async for stored in found:
                known.add(stored.key)
                if not lag_s or self._machine.put_at.get(stored.key, 0.0) <= now - lag_s:
                    yield stored
        for stored, gone_at in list(self._machine.gone.values()) if lag_s else []:
            if stored.key.startswith(prefix) and stored.key not in known and gone_at > now - lag_s:
                yield stored

    async def _pass(self, name: str, operation: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        await self._gate.enter(f"store.{name}", _store_gone())
        result = await operation(*arguments)
        if lag_s := self._gate.weather.lag("store"):
            await trio.sleep(lag_s)
        await self._gate.leave(f"store.{name}", _store_gone())
        return result


class GatedIndex:
    """A daemon's way to the index: the port, by whatever operations it has."""

    def __init__(self, inner: MemoryIndex, gate: Gate, witness: Witness) -> None:
        self._inner = inner
        self._gate = gate
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(operation):
            return operation
        gate, witness, call = self._gate, self._witness, f"index.{name}"

        async def passed(*arguments: Any, **named: Any) -> Any:
            weather = gate.weather
            await gate.enter(call, _index_gone())
            delay_s = weather.slowness("index slow")
            if delay_s:
                await trio.sleep(delay_s)
            if weather.strikes("index refuses"):
                await trio.lowlevel.checkpoint()
                raise IndexUnavailable("injected: refused")
            result = await operation(*arguments, **named)
            witness.saw(name, arguments, result)
            if lag_s := weather.lag("index"):
                await trio.sleep(lag_s)
            await gate.leave(call, _index_gone())
            if weather.strikes("index loses answers"):
                raise IndexUnavailable("injected: answer lost")
            return result

        setattr(self, name, passed)
        return passed


def _store_gone() -> StoreUnavailable:
    return StoreUnavailable("the process has died", temporary=False)


def _index_gone() -> IndexUnavailable:
    return IndexUnavailable("the process has died")

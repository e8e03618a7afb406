"""Inject the store's faults (F1, F2, F3, F4, F10, F11) at chosen calls: for tests and simulation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio

from storage.errors import ObjectMissing, ObjectUnreadable, StoreFull, StoreUnavailable
from storage.object_store import ObjectStore, ReadRange
from storage.objects.wrapped import WrappedStore

T = TypeVar("T")

_READS = {"get", "get_ranges", "stream", "size"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call about to be made."""

    operation: str
    number: int
    """Counted from 1 over all calls of this store."""
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a call."""

    fail_before: bool = False
    """F1: refused, nothing happened."""
    fail_after: bool = False
    """F2: it happened, the answer was lost; a stream breaks off before its end."""
    full: bool = False
    """F10."""
    vanish: bool = False
    """F4: a put is acknowledged and forgotten; a get finds nothing."""
    flip: bool = False
    """F3: one bit of what is read is wrong."""
    cut: bool = False
    """F3: the last byte of what is read is missing."""
    delay_s: float = 0.0
    """F11: slow but alive."""
    temporary: bool = True
    unreadable: bool = False
    """This content cannot be read, others can."""


Decide = Callable[[Call], Fault | None]


class FaultyStore(WrappedStore):
    """Ask ``decide`` before every call but ``scan`` what is to go wrong with it."""

    def __init__(self, inner: ObjectStore, decide: Decide) -> None:
        super().__init__(inner)
        self._decide = decide
        self.calls = 0

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``."""
        await self._run("put_batch", [key for key, _ in items], lambda: self.inner.put_batch(items), None)

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        await self._run("put_file", [key], lambda: self.inner.put_file(key, path), None)

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``."""
        await self._run("copy", [target], lambda: self.inner.copy(source, target), None)

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        return await self._run("get", [key], lambda: self.inner.get(key, most), _spoil)

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``."""
        return await self._run(
            "get_ranges", [r.key for r in ranges], lambda: self.inner.get_ranges(ranges),
            lambda contents, fault: [_spoil(contents[0], fault), *contents[1:]] if contents else contents,
        )  # fmt: skip

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``."""
        fault = await self._meet("stream", [key])
        async with self.inner.stream(key, offset, size) as pieces:
            if fault is None:
                yield pieces
            else:
                async with aclosing(_spoil_pieces(pieces, fault)) as spoiled:
                    yield spoiled

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        return await self._run("size", [key], lambda: self.inner.size(key), None)

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        wanted = list(keys)
        await self._run("delete", wanted, lambda: self.inner.delete(wanted), None)

    async def _run(
        self, operation: str, keys: Sequence[str], call: Callable[[], Awaitable[T]],
        spoil: Callable[[T, Fault], T] | None,
    ) -> T:  # fmt: skip
        fault = await self._meet(operation, keys)
        result = await call()
        if fault is None:
            return result
        if fault.vanish:
            await self.inner.delete(keys)
        if fault.fail_after:
            raise StoreUnavailable("injected: answer lost", temporary=fault.temporary)
        return spoil(result, fault) if spoil is not None else result

    async def _meet(self, operation: str, keys: Sequence[str]) -> Fault | None:
        """Begin a call; gives what is still to go wrong with it."""
        self.calls += 1
        fault = self._decide(Call(operation, self.calls, tuple(keys)))
        if fault is None:
            return None
        if fault.delay_s:
            await trio.sleep(fault.delay_s)
        if fault.full:
            raise StoreFull("injected: no room")
        if fault.unreadable:
            raise ObjectUnreadable("injected: unreadable")
        if fault.fail_before:
            raise StoreUnavailable("injected: refused", temporary=fault.temporary)
        if fault.vanish and operation in _READS:
            raise ObjectMissing(keys[0])
        return fault


async def _spoil_pieces(pieces: AsyncIterator[bytes], fault: Fault) -> AsyncGenerator[bytes, None]:
    held: bytes | None = None
    async for piece in pieces:
        if held is not None:
            yield held
        held = _spoil(piece, replace(fault, cut=False))
        fault = replace(fault, flip=False)
    if fault.fail_after:
        raise StoreUnavailable("injected: broken off", temporary=fault.temporary)
    if held is not None:
        yield _spoil(held, fault)


def _spoil(content: bytes, fault: Fault) -> bytes:
    if fault.flip and content:
        return bytes([content[0] ^ 1]) + content[1:]
    return content[:-1] if fault.cut else content

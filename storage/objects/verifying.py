"""Refuse to hand out or take in bytes that are not what their key promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from storage.errors import ObjectDamaged
from storage.layout import content_matches, verifier
from storage.objects.wrapped import WrappedStore
from wire.ids import Scheme


class VerifyingStore(WrappedStore):
    """Hash whole contents against their keys.

    A whole small read, a whole stream and a put are checked. A byte range cannot be: whoever reads one knows
    the id of what is in it and checks that.
    """

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``; raises ``ObjectDamaged`` before anything is stored under a wrong key."""
        for key, content in items:
            _check(key, content)
        await self.inner.put_batch(items)

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``; raises ``ObjectDamaged`` for a torn or flipped content."""
        content = await self.inner.get(key, most)
        _check(key, content)
        return content

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``; a whole content is checked by the time its last piece is handed on."""
        async with self.inner.stream(key, offset, size) as pieces:
            if offset or size is not None:
                yield pieces
            else:
                size = await self.inner.size(key) if _hash_begins_with_size(key) else 0
                async with aclosing(_checked(key, size, pieces)) as checked:
                    yield checked


async def _checked(key: str, size: int, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    check = verifier(key, size)
    held = b""
    async for piece in pieces:
        check.update(piece)
        if held:
            yield held
        held = piece  # the last piece is held back until the whole is known to be right
    if not check.matches():
        raise ObjectDamaged(f"{key} does not hash to its name")
    if held:
        yield held


def _check(key: str, content: bytes) -> None:
    if not content_matches(key, content):
        raise ObjectDamaged(f"{key} does not hash to its name")


def _hash_begins_with_size(key: str) -> bool:
    return key.startswith(f"objects/{Scheme.TYPED.value}/")

"""Uploads on their way: bytes a client sends to a signed URL, kept in a local file until they are complete.

A connection that breaks leaves what had arrived, and the next one continues there. What nobody continues is removed
by its age. Another daemon of the deployment does not see a partial upload: there it begins anew.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from wire.errors import Code, Refusal
from wire.limits import MIB

_WRITE_BYTES = MIB
_WRITE_PIECES = 1_000
"""The kernel takes 1,024 at once."""


class PartialUpload:
    """The file of one upload, held by one connection."""

    def __init__(self, path: Path, fd: int, length: int) -> None:
        self.path = path
        self.length = length
        """Bytes there, those in the buffer included."""
        self._fd = fd
        self._buffer: list[bytes] = []
        self._buffered = 0

    async def restart(self) -> None:
        """Forget what is there."""
        self._buffer, self._buffered = [], 0
        await trio.to_thread.run_sync(os.ftruncate, self._fd, 0)
        self.length = 0

    async def append(self, piece: bytes) -> None:
        """Add bytes at the end."""
        self._buffer.append(piece)
        self._buffered += len(piece)
        self.length += len(piece)
        if self._buffered >= _WRITE_BYTES or len(self._buffer) >= _WRITE_PIECES:
            await self.flush()

    async def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            pieces, self._buffer, self._buffered = self._buffer, [], 0
            await trio.to_thread.run_sync(_write_all, self._fd, pieces)


class Uploads:
    """The partial uploads of a daemon."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def length(self, name: str) -> int:
        """Give the bytes of an upload that are there; 0 for none."""
        try:
            return (self._directory / name).stat().st_size
        except FileNotFoundError:
            return 0

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[PartialUpload]:
        """Take hold of an upload; what is buffered at the end is written, also when the client has gone.

        Raises:
            Refusal: ``busy`` while another connection sends the same one.
        """
        fd = await trio.to_thread.run_sync(self._open, name)
        try:
            partial = PartialUpload(self._directory / name, fd, os.fstat(fd).st_size)
            try:
                yield partial
            finally:
                with trio.CancelScope(shield=True):
                    await partial.flush()
        finally:
            os.close(fd)

    def sweep(self, before: float) -> int:
        """Remove uploads nobody has added to since ``before`` (seconds since the epoch); blocking."""
        count = 0
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                try:
                    old = path.stat().st_mtime < before
                except FileNotFoundError:  # complete meanwhile
                    continue
                if old:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def _open(self, name: str) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise _busy() from None
        if not _is_at(fd, self._directory / name):  # put into the store between our opening and locking it
            os.close(fd)
            raise _busy()
        return fd


def _busy() -> Refusal:
    return Refusal(Code.BUSY, "another connection is sending this upload")


def _is_at(fd: int, path: Path) -> bool:
    """Tell whether an open file is still the one at a path: its bytes may be an object of the store by now."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_all(fd: int, pieces: list[bytes]) -> None:
    left = sum(map(len, pieces)) - os.writev(fd, pieces)
    if left:  # a full disk says so now
        view = memoryview(b"".join(pieces))[-left:]
        while view:
            view = view[os.write(fd, view) :]

"""Bytes on their way that are too many for memory: small ones stay in a buffer, the rest goes to a local file.

A push has one directory for its spools, removed when the push ends; what a killed process leaves is swept at the
next start.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import trio

MEMORY_BYTES = 1024 * 1024
"""A spool up to this size never touches the disk."""
PIECE_BYTES = 256 * 1024


class SpoolDirectory:
    """Where one push keeps its spools; used as an async context manager."""

    def __init__(self, parent: Path, name: str) -> None:
        self.path = parent / name
        self._numbers = itertools.count()
        self._made = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._made:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(self.path, ignore_errors=True))

    def new(self) -> Spool:
        """Give an empty spool."""
        return Spool(self)

    def new_path(self) -> Path:
        """Give an unused path, making the directory when it is the first; blocking, for worker threads."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._made = True
        return self.path / str(next(self._numbers))


class Spool:
    """An append-only byte string with random reads."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self.directory = directory
        self.size = 0
        self._tail = bytearray()
        self._path: Path | None = None
        self._on_disk = 0

    @property
    def in_memory(self) -> bool:
        """Whether nothing has been written to disk."""
        return self._path is None

    async def append(self, piece: bytes) -> None:
        """Add bytes at the end; goes to disk once a buffer is full."""
        self._tail += piece
        self.size += len(piece)
        if len(self._tail) >= MEMORY_BYTES:
            await trio.to_thread.run_sync(self.flush)
        else:
            await trio.lowlevel.checkpoint()

    def add(self, piece: bytes) -> None:
        """Like :meth:`append`, for worker threads: blocking."""
        self._tail += piece
        self.size += len(piece)
        if len(self._tail) >= MEMORY_BYTES:
            self.flush()

    def flush(self) -> Path:
        """Write everything to the file and give its path; blocking."""
        if self._path is None:
            self._path = self.directory.new_path()
        with self._path.open("ab") as file:
            file.write(self._tail)
        self._on_disk += len(self._tail)
        self._tail = bytearray()
        return self._path

    def read(self, offset: int, size: int) -> bytes:
        """Read a range; blocking when the spool is on disk."""
        if offset >= self._on_disk:
            return bytes(self._tail[offset - self._on_disk : offset - self._on_disk + size])
        assert self._path is not None
        with self._path.open("rb") as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            content += self._tail[: size - len(content)]
        return content

    def pieces(self) -> Iterator[bytes]:
        """Give the whole content in pieces; blocking when the spool is on disk."""
        if self._path is not None:
            with self._path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        yield from (bytes(self._tail[at : at + PIECE_BYTES]) for at in range(0, len(self._tail), PIECE_BYTES))

    def open(self) -> BinaryIO:
        """Open the whole content for reading from its start; blocking."""
        return io.BytesIO(self._tail) if self._path is None else self.flush().open("rb")

    def discard(self) -> None:
        """Give the room back before the push ends; blocking."""
        if self._path is not None:
            self._path.unlink()
        self.size = self._on_disk = 0
        self._tail, self._path = bytearray(), None

    def whole(self) -> bytes:
        """Give the whole content of a spool that is in memory."""
        return bytes(self._tail)


def sweep(parent: Path, older_than: float) -> int:
    """Remove what killed processes left: directories not touched since ``older_than`` (seconds since the epoch)."""
    count = 0
    if parent.is_dir():
        for entry in parent.iterdir():
            if entry.stat().st_mtime < older_than:
                shutil.rmtree(entry, ignore_errors=True)
                count += 1
    return count

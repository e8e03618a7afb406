"""The files of a work tree: written, replaced and removed without following a symbolic link anywhere.

A directory is opened from the one above it, so none on the way can be a link. A file that is replaced is written
beside the tree first and moved over, so that it is the old one or the new one at every moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from museworkd.client.errors import ClientError
from wire.ids import Kind, Scheme, hasher_for

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_DIRECTORY = {errno.ELOOP, errno.ENOTDIR}
_PIECE_BYTES = 1024 * 1024

SOMETHING_ELSE = b""
"""In place of a file's blob id: what is there is not a regular file, or cannot be reached as one."""


class WorkTree:
    """Works below a root that may hold anything."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: tuple[str, ...] | None = None
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave()

    def write_file(self, path: str, pieces: Iterable[bytes]) -> None:
        """Write a file that is not there yet."""
        *directories, name = path.split("/")
        self.enter(tuple(directories))
        try:
            fd = os.open(name, _NEW_FILE, 0o666, dir_fd=self._fd)
        except FileExistsError:
            raise ClientError(f"{self._root / path} is in the way") from None
        try:
            for piece in pieces:
                _write(fd, piece)
        finally:
            os.close(fd)

    def replace_file(self, path: str, written: Path) -> None:
        """Move a complete file to its path, over what stands there; an empty directory gives way."""
        *directories, name = path.split("/")
        self.enter(tuple(directories))
        try:
            os.rename(written, name, dst_dir_fd=self._fd)
        except IsADirectoryError:
            try:
                os.rmdir(name, dir_fd=self._fd)
            except OSError:
                raise ClientError(f"{self._root / path} is in the way: it is a directory with files in it") from None
            self._leave()  # it may be the one that is open
            self.enter(tuple(directories))
            os.rename(written, name, dst_dir_fd=self._fd)

    def remove_file(self, path: str) -> None:
        """Remove a file, and the directories above that are empty then."""
        *directories, name = path.split("/")
        if not self._reach(tuple(directories)):
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)
        while directories:
            *directories, name = directories
            if not self._reach(tuple(directories)):
                return
            try:
                os.rmdir(name, dir_fd=self._fd)
            except OSError:
                return

    def blob_id(self, path: str, scheme: Scheme) -> bytes | None:
        """Give the blob id of the file at a path; ``None`` when nothing is there, or :data:`SOMETHING_ELSE`."""
        *directories, name = path.split("/")
        try:
            if not self._reach(tuple(directories)):
                return None
            fd = os.open(name, _READ_FILE, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError:
            return SOMETHING_ELSE
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            return SOMETHING_ELSE
        hasher = hasher_for(Kind.BLOB, facts.st_size, scheme)
        with os.fdopen(fd, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                hasher.update(piece)
        return hasher.digest()

    def files_below(self, path: str) -> list[str] | None:
        """Give all that is no directory below a directory; ``None`` when there is no directory at the path."""
        *directories, name = path.split("/")
        try:
            if not self._reach(tuple(directories)):
                return None
            fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        except OSError:
            return None
        os.close(fd)
        base = self._root / path
        return [
            str(Path(at, file).relative_to(self._root))
            for at, names, files in os.walk(base)
            for file in [*files, *(n for n in names if Path(at, n).is_symlink())]
        ]

    def enter(self, names: tuple[str, ...]) -> None:
        """Open a directory, and make what is missing of it."""
        if names == self._names:
            return
        self._leave()
        self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for number, name in enumerate(names, 1):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._fd)
            try:
                self._step(name)
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
                raise ClientError(f"{self._root.joinpath(*names[:number])} is in the way") from None
        self._names = names

    def _reach(self, names: tuple[str, ...]) -> bool:
        """Open a directory if it is there; something else on the way raises ``OSError``."""
        if names == self._names:
            return True
        self._leave()
        self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                self._step(name)
        except FileNotFoundError:
            return False
        self._names = names
        return True

    def _step(self, name: str) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = fd

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._names = -1, None


def _write(fd: int, piece: bytes) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        piece = piece[written:]
        written = os.write(fd, piece)

"""Temporary files of a command, below ``.muse/tmp`` of its repository.

Each command has a directory of its own there and holds a lock on it. The lock dies with the process, so what one that
was killed has left is told from what another one is using, and the next push or fetch removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from museworkd.client.errors import ClientError
from museworkd.client.repository import LocalRepository

_DIRECTORY = "tmp"
_TRIES = 20
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def temporary_directory(repository: LocalRepository) -> Iterator[Path]:
    """Give an empty directory for the length of a block."""
    parent = repository.directory / _DIRECTORY
    path, lock = _claim(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        with contextlib.suppress(OSError):  # another command's is in it
            parent.rmdir()


def sweep(repository: LocalRepository) -> None:
    """Remove what killed commands left."""
    parent = repository.directory / _DIRECTORY
    for path in list(parent.iterdir()) if parent.is_dir() else []:
        with contextlib.suppress(OSError):  # somebody's, or gone by now
            lock = os.open(path, _OPEN)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
    with contextlib.suppress(OSError):
        parent.rmdir()


def _claim(parent: Path) -> tuple[Path, int]:
    """Make a directory and lock it; a sweep may take it away in between, then another one is made."""
    for _ in range(_TRIES):
        path = parent / uuid.uuid4().hex
        try:
            parent.mkdir(exist_ok=True)
            path.mkdir(mode=0o700)
            lock = os.open(path, _OPEN)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return path, lock
        os.close(lock)
    raise ClientError(f"{parent} cannot be used: other commands remove what is made there")

"""Writing a snapshot into a work tree.

Paths were checked when the snapshot was taken in; here nothing is written through a symbolic link and nothing that
is there already is overwritten. Every path becomes a regular file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.progress import Meter
from museworkd.client.repository import LocalRepository
from storage.snapshots import build_manifest
from wire.ids import format_id
from wire.manifest import Manifest
from wire.paths import PathPolicy, path_problem


async def manifest_of(repository: LocalRepository, snapshot_id: bytes) -> Manifest:
    """Rebuild a snapshot's manifest."""
    chain = await repository.index.snapshot_chain(repository.scheme, snapshot_id)
    if not chain:
        raise IntegrityError(f"snapshot {snapshot_id.hex()} is missing here")
    manifest = build_manifest(chain, PathPolicy.RELAXED)
    if manifest.snapshot_id(repository.scheme) != snapshot_id:
        raise IntegrityError(f"snapshot {snapshot_id.hex()} is damaged here")
    return manifest


async def checkout(repository: LocalRepository, meter: Meter) -> int:
    """Write the files of the current branch's head into an empty work tree; gives how many.

    Raises:
        ClientError: a file is in the way.
    """
    head = repository.branches().get(repository.head_branch)
    if head is None:
        return 0
    facts = repository.index.facts(head)
    if facts is None:
        raise IntegrityError(f"commit {format_id(head, repository.scheme)} is missing here")
    manifest = await manifest_of(repository, facts.snapshot_id)
    repository.set_checked_out(head)
    with meter.phase("Checking out", len(manifest)) as phase, _WorkTree(repository.root) as tree:
        for path, blob_id in manifest.items():
            if path_problem(path, PathPolicy.RELAXED) is not None:
                raise IntegrityError(f"unsafe path {path!a} in snapshot {facts.snapshot_id.hex()}")
            place = repository.index.place(blob_id)
            if place is None:
                raise IntegrityError(f"blob {blob_id.hex()} is missing here")
            tree.write_file(path, repository.files.pieces(place))
            phase.advance()
        for directory in manifest.directories:
            tree.enter(tuple(directory.split("/")))
    return len(manifest)


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _WorkTree:
    """Writes below a root that may hold anything; directories are opened one from the other, so that none is a link."""

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
        with os.fdopen(fd, "wb") as file:
            for piece in pieces:
                file.write(piece)

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
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                    raise
                raise ClientError(f"{self._root.joinpath(*names[:number])} is in the way") from None
            os.close(self._fd)
            self._fd = fd
        self._names = names

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._names = -1, None

"""Writing a snapshot into a work tree.

Paths were checked when the snapshot was taken in; here nothing is written through a symbolic link and nothing that
is there already is overwritten. Every path becomes a regular file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

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
    with meter.phase("Checking out", len(manifest)) as phase:
        for path, blob_id in manifest.items():
            if path_problem(path, PathPolicy.RELAXED) is not None:
                raise IntegrityError(f"unsafe path {path!a} in snapshot {facts.snapshot_id.hex()}")
            place = repository.index.place(blob_id)
            if place is None:
                raise IntegrityError(f"blob {blob_id.hex()} is missing here")
            _write_file(repository.root, path, repository.files.pieces(place))
            phase.advance()
        for directory in manifest.directories:
            _make_directories(repository.root, directory.split("/"))
    return len(manifest)


def _write_file(root: Path, path: str, pieces: Iterable[bytes]) -> None:
    *directories, name = path.split("/")
    target = _make_directories(root, directories) / name
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise ClientError(f"{target} is in the way") from None
    with os.fdopen(fd, "wb") as file:
        for piece in pieces:
            file.write(piece)


def _make_directories(root: Path, names: list[str]) -> Path:
    directory = root
    for name in names:
        directory = directory / name
        try:
            directory.mkdir()
        except FileExistsError:
            if directory.is_symlink() or not directory.is_dir():
                raise ClientError(f"{directory} is in the way") from None
    return directory

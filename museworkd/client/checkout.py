"""Writing a snapshot into a work tree, and turning one that holds a snapshot into another.

Paths were checked when the snapshot was taken in; here nothing is written through a symbolic link and nothing that
is there already is overwritten unless it is what an earlier checkout wrote. Every path becomes a regular file.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import trio

from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.progress import Meter
from museworkd.client.repository import LocalRepository
from museworkd.client.temporary import temporary_directory
from museworkd.client.work_tree import WorkTree
from storage.layout import Place
from storage.snapshots import build_manifest
from wire.ids import format_id
from wire.manifest import Manifest
from wire.paths import PathPolicy, path_problem

_NAMED_MOST = 10
_LOOKED_UP = 1000
"""Blobs whose places are asked for at once."""
_WHOLE_BYTES = 1024 * 1024


async def manifest_of(repository: LocalRepository, snapshot_id: bytes) -> Manifest:
    """Rebuild a snapshot's manifest."""
    chain = await repository.index.snapshot_chain(repository.scheme, snapshot_id)
    if not chain:
        raise IntegrityError(f"snapshot {snapshot_id.hex()} is missing here")
    manifest = build_manifest(chain, PathPolicy.RELAXED)
    if manifest.snapshot_id(repository.scheme) != snapshot_id:
        raise IntegrityError(f"snapshot {snapshot_id.hex()} is damaged here")
    return manifest


async def manifest_of_commit(repository: LocalRepository, commit_id: bytes) -> Manifest:
    """Rebuild the manifest of a commit's snapshot."""
    facts = repository.index.facts(commit_id)
    if facts is None:
        raise IntegrityError(f"commit {format_id(commit_id, repository.scheme)} is missing here")
    return await manifest_of(repository, facts.snapshot_id)


async def checkout(repository: LocalRepository, meter: Meter) -> int:
    """Write the files of the current branch's head into an empty work tree; gives how many.

    Raises:
        ClientError: a file is in the way.
    """
    head = repository.branches().get(repository.head_branch)
    if head is None:
        return 0
    manifest = await manifest_of_commit(repository, head)
    repository.set_checked_out(head)
    with meter.phase("Checking out", len(manifest)) as phase, WorkTree(repository.root) as tree:
        entries = manifest.items()
        while part := list(itertools.islice(entries, _LOOKED_UP)):
            places = await repository.index.places(repository.scheme, [blob_id for _, blob_id in part])
            for path, blob_id in part:
                tree.write_file(path, _read(repository, path, blob_id, places.get(blob_id)))
                phase.advance()
            await trio.lowlevel.checkpoint()
        for directory in manifest.directories:
            tree.enter(tuple(directory.split("/")))
    return len(manifest)


async def switch(repository: LocalRepository, commit_id: bytes, meter: Meter) -> int:
    """Turn a work tree that holds one commit's files into another's; gives how many files were written or removed.

    What the user has changed is never touched: if a file that would be written or removed is not as it was checked
    out, nothing is done at all. A switch that was cut off is done again from where it was.

    Raises:
        ClientError: local changes are in the way; the message names them.
    """
    before = repository.checked_out
    if before is None:  # a clone without files, which stays one
        return 0
    old, new = await manifest_of_commit(repository, before), await manifest_of_commit(repository, commit_id)
    upsert, remove = old.changes_to(new)
    with WorkTree(repository.root) as tree:
        problems = _problems(repository, tree, old, upsert, remove)
        if problems:
            more = f" and {len(problems) - _NAMED_MOST} more" if len(problems) > _NAMED_MOST else ""
            shown = ", ".join(f"{path!a}" for path in problems[:_NAMED_MOST])
            raise ClientError(f"local changes would be lost in {shown}{more}; nothing was changed")
        with meter.phase("Checking out", len(upsert) + len(remove)) as phase:
            for path in remove:
                tree.remove_file(path)
                phase.advance()
            with temporary_directory(repository) as directory:
                for path, blob_id in upsert.items():
                    tree.replace_file(path, _written(directory, _pieces(repository, path, blob_id)))
                    phase.advance()
            for name in sorted(set(old.directories) - set(new.directories), reverse=True):
                with contextlib.suppress(ClientError, OSError):
                    (repository.root / name).rmdir()
            for name in new.directories:
                tree.enter(tuple(name.split("/")))
    repository.set_checked_out(commit_id)
    return len(upsert) + len(remove)


def _problems(
    repository: LocalRepository, tree: WorkTree, old: Manifest, upsert: dict[str, bytes], remove: list[str]
) -> list[str]:
    """Give the paths whose files are neither as they were checked out nor as they are to be."""
    going = set(remove)
    found = [path for path in remove if tree.blob_id(path, repository.scheme) not in {None, old.get(path)}]
    for path, blob_id in upsert.items():
        there = tree.blob_id(path, repository.scheme)
        if there in {blob_id, old.get(path)}:  # a new path may be absent, a changed one may not
            continue
        below = tree.files_below(path)
        if below is not None and old.get(path) is None and going.issuperset(below):
            continue  # a directory whose files all go
        parents = path.split("/")[:-1]
        if any("/".join(parents[:n]) in going for n in range(1, len(parents) + 1)):
            continue  # a file goes, a directory comes in its place
        found.append(path)
    return found


def _pieces(repository: LocalRepository, path: str, blob_id: bytes) -> Iterable[bytes]:
    return _read(repository, path, blob_id, repository.index.place(blob_id))


def _read(repository: LocalRepository, path: str, blob_id: bytes, place: Place | None) -> Iterable[bytes]:
    """Give a file's content: a small one is proved before any of it is written, a larger one on the way."""
    if path_problem(path, PathPolicy.RELAXED) is not None:
        raise IntegrityError(f"unsafe path {path!a} in a snapshot")
    if place is None:
        raise IntegrityError(f"blob {blob_id.hex()} is missing here")
    return (repository.files.read(place),) if place.size <= _WHOLE_BYTES else repository.files.pieces(place)


def _written(directory: Path, pieces: Iterable[bytes]) -> Path:
    path = directory / "file"
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
    return path

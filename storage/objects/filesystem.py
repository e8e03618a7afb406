"""An object store in a directory: one file per key, safe for several processes and for sudden death.

How a batch is stored, and what is left if the process dies after each step:

1. every content is written to a file of its own under ``tmp/`` — left: temporary files, swept by
   :meth:`FilesystemStore.sweep_temporary`;
2. their bytes are made durable (one ``syncfs`` for a group, or one ``fdatasync`` each) — left: the same;
3. each file is renamed to its key — left: whole objects, under keys nobody has recorded yet;
4. the renames are made durable (one ``syncfs``, or one ``fsync`` per directory).

A marker file tells a store from an empty mount point: while it is missing, nothing is "not found".
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from storage.environment import Environment, SystemEnvironment
from storage.errors import (
    ObjectDamaged,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    StoreFull,
    StoreUnavailable,
)
from storage.layout import check_key
from storage.object_store import ReadRange, StoredObject, StoreStatistics, UrlSigning
from storage.objects.durability import Durability, Settler, sync_directory, write_new
from wire.ids import Scheme

T = TypeVar("T")

THREADS = 16
"""Measured: 8 to 16 threads saturate one NVMe device with small durable files."""
PIECE_BYTES = 256 * 1024
_COALESCE_GAP_BYTES = 16 * 1024
_COALESCE_MOST_BYTES = 4 * 1024 * 1024
_MARKER = "museworkd-store"
_TEMPORARY = "tmp"
_TEMPORARY_ERRNOS = {
    errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY,
}  # fmt: skip


class FilesystemStore:
    """``ObjectStore`` over a local (or POSIX-faithful network) file system."""

    def __init__(self, root: Path, durability: Durability, environment: Environment | None = None) -> None:
        self._root = root
        self._settler = Settler(root, durability)
        self._environment = environment or SystemEnvironment()
        self._limiter = trio.CapacityLimiter(THREADS)
        self._durable_directories: set[Path] = set()
        self._statistics = StoreStatistics()

    @classmethod
    async def open(
        cls, root: Path, durability: Durability = Durability.GROUP, environment: Environment | None = None
    ) -> FilesystemStore:
        """Open a store, making it when the directory is new or empty.

        Raises:
            StoreUnavailable: the directory holds something else, or cannot be used.
        """
        durable = await trio.to_thread.run_sync(_prepare, root)
        store = cls(root, durability, environment)
        store._durable_directories |= durable
        return store

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``; the whole batch is one worker-thread hop."""
        await self._in_thread(lambda: self._write_batch(items))
        self._statistics.puts += len(items)
        self._statistics.put_bytes += sum(len(content) for _, content in items)

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``; moved when it lies on the same file system, copied otherwise."""
        size = await self._in_thread(lambda: self._take_file(key, path))
        self._statistics.put_bytes += size
        self._statistics.puts += 1

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``; both names lead to one file, which nobody ever writes to again."""
        await self._in_thread(lambda: self._link(source, target))
        self._statistics.puts += 1

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        content = await self._in_thread(lambda: self._read_whole(key, most))
        self._statistics.gets += 1
        self._statistics.get_bytes += len(content)
        return content

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``; neighbouring ranges of one file are read at once."""
        contents = await self._in_thread(lambda: self._read_ranges(ranges))
        self._statistics.gets += len({r.key for r in ranges})
        self._statistics.get_bytes += sum(map(len, contents))
        return contents

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``."""
        opened = await self._in_thread(lambda: _Opened(*self._open_sized(key)))
        try:
            wanted = opened.size - offset if size is None else size
            _check_range(ReadRange(key, offset, wanted), opened.size)
            self._statistics.gets += 1
            async with aclosing(self._pieces(key, opened.fd, offset, wanted)) as pieces:
                yield pieces
        finally:
            opened.close()

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        return await self._in_thread(lambda: self._stat(key).st_size)

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        wanted = list(keys)
        await self._in_thread(lambda: self._unlink(wanted))
        self._statistics.deletes += len(wanted)

    async def scan(self, prefix: str) -> AsyncIterator[StoredObject]:
        """See ``ObjectStore``; one directory at a time."""
        waiting = [self._root / check_key(prefix.rstrip("/")) if prefix else self._root]
        while waiting:
            directory = waiting.pop()
            for entry in await self._in_thread(lambda d=directory: self._list(d)):  # type: ignore[misc]
                if stat.S_ISDIR(entry[1].st_mode):
                    waiting.append(entry[0])
                    continue
                key = entry[0].relative_to(self._root).as_posix()
                if key != _MARKER and not key.startswith(_TEMPORARY + "/"):
                    yield StoredObject(key, entry[1].st_size, entry[1].st_mtime)

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``."""
        limiter = self._limiter.statistics()
        return replace(self._statistics, running=limiter.borrowed_tokens, waiting=limiter.tasks_waiting)

    def signing(self) -> UrlSigning | None:
        """See ``ObjectStore``; it is reached through the daemon."""
        return None

    async def sweep_temporary(self, older_than_s: float) -> int:
        """See ``ObjectStore``: temporary files."""
        limit = self._environment.now().timestamp() - older_than_s
        return await self._in_thread(lambda: _sweep(self._root / _TEMPORARY, limit))

    def _write_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        staged: list[tuple[Path, str]] = []
        begun = self._settler.mark()
        try:
            for key, content in items:
                path = self._temporary_path()
                staged.append((path, key))
                write_new(path, content)
            self._settler.settle([path for path, _ in staged], begun)
            targets = {key: self._target(key) for _, key in staged}
            while staged:
                path, key = staged[0]
                path.replace(targets[key])
                staged.pop(0)
            self._settler.settle_directories({target.parent for target in targets.values()}, begun)
        finally:
            for path, _ in staged:
                path.unlink(missing_ok=True)

    def _take_file(self, key: str, path: Path) -> int:
        target = self._target(key)
        if not path.exists() and target.exists():  # a call before this one came as far as the rename
            _sync_file(target)
            sync_directory(target.parent)
            return target.stat().st_size
        size = path.stat().st_size
        try:
            _sync_file(path)
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copied = self._temporary_path()
            try:
                shutil.copyfile(path, copied)
                _sync_file(copied)
                copied.replace(target)
            finally:
                copied.unlink(missing_ok=True)
            sync_directory(target.parent)
            path.unlink(missing_ok=True)
        else:
            sync_directory(target.parent)
        return size

    def _link(self, source: str, target: str) -> None:
        path, final = self._path(source), self._target(target)
        temporary = self._temporary_path()
        try:
            try:
                os.link(path, temporary)
            except FileNotFoundError:
                raise self._absent(source) from None
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
                    raise
                shutil.copyfile(path, temporary)  # a file system without links
                _sync_file(temporary)
            temporary.replace(final)
            sync_directory(final.parent)
        finally:
            temporary.unlink(missing_ok=True)  # rename does nothing when both are one file already

    def _read_whole(self, key: str, most: int) -> bytes:
        fd, size = self._open_sized(key)
        try:
            if size > most:
                raise ValueError(f"{key} has {size} bytes, at most {most} were expected")
            return _pread_all(fd, size, 0, key)
        finally:
            os.close(fd)

    def _read_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        result: list[bytes] = [b""] * len(ranges)
        by_key: dict[str, list[int]] = {}
        for at, wanted in enumerate(ranges):
            by_key.setdefault(wanted.key, []).append(at)
        for key, positions in by_key.items():
            fd, total = self._open_sized(key)
            try:
                for at in positions:
                    _check_range(ranges[at], total)
                positions.sort(key=lambda at: ranges[at].offset)
                for run in _runs([(ranges[at], at) for at in positions]):
                    start = run[0][0].offset
                    end = max(r.offset + r.size for r, _ in run)
                    block = _pread_all(fd, end - start, start, key)
                    for r, at in run:
                        result[at] = block[r.offset - start : r.offset - start + r.size]
            finally:
                os.close(fd)
        return result

    async def _pieces(self, key: str, fd: int, offset: int, size: int) -> AsyncGenerator[bytes, None]:
        while size:
            count = min(size, PIECE_BYTES)
            piece = await self._in_thread(lambda c=count, o=offset: _pread_all(fd, c, o, key))  # type: ignore[misc]
            self._statistics.get_bytes += len(piece)
            offset, size = offset + len(piece), size - len(piece)
            yield piece

    def _open_sized(self, key: str) -> tuple[int, int]:
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._absent(key) from None
        return fd, os.fstat(fd).st_size

    def _stat(self, key: str) -> os.stat_result:
        try:
            return self._path(key).stat()
        except FileNotFoundError:
            raise self._absent(key) from None

    def _absent(self, key: str) -> StorageError:
        self._require_marker()
        return ObjectMissing(key)

    def _require_marker(self) -> None:
        if not (self._root / _MARKER).exists():
            raise StoreUnavailable(f"{self._root} is not a store at the moment: its marker file is missing")

    def _list(self, directory: Path) -> list[tuple[Path, os.stat_result]]:
        found = _scan(directory)
        if not found:
            self._require_marker()
        return found

    def _unlink(self, keys: list[str]) -> None:
        for key in keys:
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                self._require_marker()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _target(self, key: str) -> Path:
        """Make sure a key's directory exists, durably, and give the file's path."""
        path = self._path(key)
        if path.parent not in self._durable_directories:
            self._require_marker()
            _make_directories(path.parent, self._root)
            self._durable_directories.add(path.parent)
        return path

    def _temporary_path(self) -> Path:
        return self._root / _TEMPORARY / f"{os.getpid()}-{self._environment.random_bytes(12).hex()}"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run one group of file operations in a worker thread.

        A cancelled caller does not wait for it: what a write leaves behind is whole and harmless, and what a read
        brings is dropped.
        """

        def translated() -> T:
            try:
                return work()
            except OSError as error:
                raise _translate(error) from error

        return await trio.to_thread.run_sync(translated, limiter=self._limiter, abandon_on_cancel=True)


class _Opened:
    """An open file; closed at the latest when nobody refers to it, for its caller may be cancelled meanwhile."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def _translate(error: OSError) -> StorageError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(str(error))
    return StoreUnavailable(str(error)) if error.errno in _TEMPORARY_ERRNOS else ObjectUnreadable(str(error))


def _prepare(root: Path) -> set[Path]:
    """Make what a store consists of before its first object; gives the directories that are durable."""
    durable = set()
    try:
        missing = [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_directory(path.parent)
        marker = root / _MARKER
        if not marker.exists():
            strange = any(entry.name not in {_TEMPORARY, _MARKER} for entry in root.iterdir())
            if strange and not marker.exists():  # or else another process was making the store
                raise StoreUnavailable(f"{root} is not empty and not a store", temporary=False)
            marker.write_text("An object store of museworkd; do not edit what is below.\n")
            _sync_file(marker)
        (root / _TEMPORARY).mkdir(exist_ok=True)
        for scheme in Scheme:  # all at once, or the first pushes would pay one fsync for each new directory
            shards = root / "objects" / scheme.value
            _make_directories(shards, root)
            for shard in range(256):
                (shards / f"{shard:02x}").mkdir(exist_ok=True)
                durable.add(shards / f"{shard:02x}")
            sync_directory(shards)
        sync_directory(root)
    except OSError as error:
        raise _translate(error) from error
    return durable


def _make_directories(directory: Path, root: Path) -> None:
    """Make directories below the root, durably; one that is there may be another writer's who has not synced it yet."""
    below = [path for path in (directory, *directory.parents) if path.is_relative_to(root) and path != root]
    for path in reversed(below):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def _check_range(wanted: ReadRange, total: int) -> None:
    if wanted.offset < 0 or wanted.size < 0 or wanted.offset + wanted.size > total:
        raise ObjectDamaged(f"{wanted.key} has {total} bytes, {wanted.offset}+{wanted.size} were asked for")


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pread_all(fd: int, size: int, offset: int, key: str) -> bytes:
    content = os.pread(fd, size, offset)
    while len(content) < size:
        more = os.pread(fd, size - len(content), offset + len(content))
        if not more:
            raise ObjectDamaged(f"{key} ends at byte {offset + len(content)}, {offset + size} were expected")
        content += more
    return content


def _runs(ranges: list[tuple[ReadRange, int]]) -> Iterator[list[tuple[ReadRange, int]]]:
    run: list[tuple[ReadRange, int]] = []
    end = 0
    for item in ranges:
        wanted = item[0]
        if run and (
            wanted.offset - end > _COALESCE_GAP_BYTES
            or wanted.offset + wanted.size - run[0][0].offset > _COALESCE_MOST_BYTES
        ):
            yield run
            run = []
        run.append(item)
        end = max(end, wanted.offset + wanted.size) if len(run) > 1 else wanted.offset + wanted.size
    if run:
        yield run


def _scan(directory: Path) -> list[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(directory) as entries:
            found = []
            for entry in entries:
                try:
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:  # deleted meanwhile
                    continue
            return found
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sweep(directory: Path, limit: float) -> int:
    count = 0
    for path, facts in _scan(directory):
        if facts.st_mtime < limit:
            path.unlink(missing_ok=True)
            count += 1
    return count

"""A local repository's blobs: pack files; where a blob lies in one is in the repository's index."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from io import BufferedRandom, BufferedReader
from pathlib import Path

from museworkd.client.errors import IntegrityError
from storage.layout import Place
from storage.objects.durability import sync_directory
from wire.errors import Refusal
from wire.ids import Kind, Scheme, hash_bytes, hasher_for
from wire.pack import (
    PACK_HEADER_BYTES,
    IndexEntry,
    PackEnd,
    PackObjectBegin,
    PackObjectEnd,
    PackPiece,
    PackReader,
    pack_header,
    record_header,
)

PACK_BYTES = 256 * 1024 * 1024
"""A new pack is begun above this size."""
_PIECE_BYTES = 1024 * 1024
_NOT_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM, errno.EBADF}
"""What ``copy_file_range`` says where the kernel or the file system has none of it."""


class PackBuilder:
    """Write one pack whose number of objects is not known yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f".new-{os.getpid()}-{id(self)}"
        self._file = open_anew(self._path)
        self._file.write(pack_header(0))
        self.entries: list[IndexEntry] = []
        self.size = PACK_HEADER_BYTES

    def add(self, blob_id: bytes, size: int, pieces: Iterable[bytes]) -> None:
        """Append one blob of ``size`` bytes."""
        head = record_header(blob_id, size)
        self._file.write(head)
        self.entries.append(IndexEntry(blob_id, self.size + len(head), size))
        self.size += len(head) + size
        for piece in pieces:
            self._file.write(piece)

    def finish(self) -> bytes | None:
        """Complete the pack durably and give its id; ``None`` when it is empty."""
        if not self.entries:
            self.abandon()
            return None
        self._file.seek(0)
        self._file.write(pack_header(len(self.entries)))
        self._file.seek(0)
        covered = hashlib.sha256()
        while piece := self._file.read(_PIECE_BYTES):
            covered.update(piece)
        whole = covered.copy()
        self._file.write(covered.digest())
        whole.update(covered.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return keep_pack(self._directory, self._path, whole.digest())

    def abandon(self) -> None:
        """Throw the pack away."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def room_in(directory: Path) -> int:
    """Give how many bytes the disk of a directory has room for."""
    return shutil.disk_usage(directory).free


def open_anew(path: Path) -> BufferedRandom:
    """Begin a file of this process's own; whatever stands there, a symbolic link too, gives way and is not written."""
    path.unlink(missing_ok=True)
    return path.open("x+b")


def copy_pack(directory: Path, source: Path, offset: int, length: int, pack_id: bytes) -> None:
    """Cut a pack whose id is known out of a file, durably."""
    path = directory / f".new-{os.getpid()}"
    try:
        with source.open("rb") as file, open_anew(path) as target:
            _copy(file, target, offset, length)
            os.fsync(target.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    keep_pack(directory, path, pack_id)


def _copy(file: BufferedReader, target: BufferedRandom, offset: int, length: int) -> None:
    """Copy a part of a file to another's beginning: inside the kernel, where it can."""
    end = offset + length
    try:
        while offset < end and (count := os.copy_file_range(file.fileno(), target.fileno(), end - offset, offset)):
            offset += count
    except OSError as error:
        if error.errno not in _NOT_IN_KERNEL:
            raise
    target.seek(length - (end - offset))
    file.seek(offset)
    while offset < end:
        piece = file.read(min(end - offset, _PIECE_BYTES))
        if not piece:
            raise IntegrityError("the downloaded pack is cut")
        target.write(piece)
        offset += len(piece)
    target.flush()


def keep_pack(directory: Path, path: Path, pack_id: bytes) -> bytes:
    """Give a complete, durable pack file its name."""
    path.replace(directory / f"{pack_id.hex()}.mpack")
    sync_directory(directory)
    return pack_id


class PackFiles:
    """Read blobs out of packs; keeps the files it reads open."""

    def __init__(self, directory: Path, scheme: Scheme) -> None:
        self._directory = directory
        self._scheme = scheme
        self._open: dict[bytes, int] = {}

    def close(self) -> None:
        """Close all files."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def read(self, place: Place) -> bytes:
        """Read a whole blob and check it against its id."""
        content = b"".join(self._pieces(place))
        if hash_bytes(Kind.BLOB, content, self._scheme) != place.object_id:
            raise IntegrityError(f"blob {place.object_id.hex()} is damaged in pack {_name(place)}")
        return content

    def sample(self, place: Place, most: int) -> bytes:
        """Read the beginning of a blob, unchecked."""
        return os.pread(self._fd(place), min(place.size, most), place.offset)

    def pieces(self, place: Place) -> Iterator[bytes]:
        """Read a blob piece by piece and check it at the end."""
        hasher = hasher_for(Kind.BLOB, place.size, self._scheme)
        for piece in self._pieces(place):
            hasher.update(piece)
            yield piece
        if hasher.digest() != place.object_id:
            raise IntegrityError(f"blob {place.object_id.hex()} is damaged in pack {_name(place)}")

    def rest(self, place: Place, start: int) -> Iterator[bytes]:
        """Read a blob from an offset on; a part cannot be checked."""
        return self._pieces(Place(place.object_id, place.size - start, place.pack_id, place.offset + start))

    def check(self, pack_id: bytes) -> Iterator[IndexEntry]:
        """Read a whole pack, prove every blob and the footer; gives where each blob lies."""
        reader = PackReader()
        hasher = hashlib.sha256()
        current: PackObjectBegin | None = None
        path = self._directory / f"{pack_id.hex()}.mpack"
        try:
            with path.open("rb") as file:
                while True:
                    data = file.read(_PIECE_BYTES)
                    for event in reader.receive_data(data):
                        match event:
                            case PackObjectBegin():
                                current = event
                                hasher = hasher_for(Kind.BLOB, event.size, self._scheme)
                            case PackPiece(content):
                                hasher.update(content)
                            case PackObjectEnd():
                                assert current is not None
                                if hasher.digest() != current.object_id:
                                    raise IntegrityError(f"blob {current.object_id.hex()} is damaged in {path}")
                                yield IndexEntry(current.object_id, current.offset, current.size)
                            case PackEnd():
                                pass
                    if not data:
                        return
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}") from error
        except Refusal as refusal:
            raise IntegrityError(f"{path}: {refusal.detail}") from refusal

    def _pieces(self, place: Place) -> Iterator[bytes]:
        fd = self._fd(place)
        offset, left = place.offset, place.size
        while left:
            piece = os.pread(fd, min(left, _PIECE_BYTES), offset)
            if not piece:
                raise IntegrityError(f"pack {_name(place)} is cut")
            offset, left = offset + len(piece), left - len(piece)
            yield piece

    def _fd(self, place: Place) -> int:
        assert place.pack_id is not None
        fd = self._open.get(place.pack_id)
        if fd is None:
            try:
                fd = os.open(self._directory / f"{place.pack_id.hex()}.mpack", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise IntegrityError(f"pack {_name(place)}: {error.strerror}") from error
            self._open[place.pack_id] = fd
        return fd


def _name(place: Place) -> str:
    return place.pack_id.hex() if place.pack_id is not None else "?"

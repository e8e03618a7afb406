"""A pack that is written before the number of its objects is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from actors.spool import SpoolDirectory
from wire.pack import PACK_HEADER_BYTES, pack_header, record_header

_PIECE_BYTES = 256 * 1024


class PackFile:
    """Write a pack into a file of a push's spool directory; blocking, for worker threads."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self._path = directory.new_path()
        self._file = self._path.open("wb", buffering=1024 * 1024)
        self._file.write(pack_header(0))
        self._offset = PACK_HEADER_BYTES
        self._count = 0

    def add(self, object_id: bytes, size: int, pieces: Iterable[bytes]) -> int:
        """Append one object of ``size`` bytes; gives the offset of its content."""
        head = record_header(object_id, size)
        self._file.write(head)
        offset = self._offset + len(head)
        for piece in pieces:
            self._file.write(piece)
        self._offset = offset + size
        self._count += 1
        return offset

    def close(self) -> None:
        """Let go of a file that is not needed after all."""
        self._file.close()

    def finish(self) -> tuple[bytes, Path]:
        """Write the count and the footer; gives the pack's id and its file."""
        with self._file as file:
            file.seek(0)
            file.write(pack_header(self._count))
        covered, whole = hashlib.sha256(), hashlib.sha256()
        with self._path.open("r+b") as file:
            while piece := file.read(_PIECE_BYTES):
                covered.update(piece)
                whole.update(piece)
            footer = covered.digest()
            whole.update(footer)
            file.write(footer)
        return whole.digest(), self._path

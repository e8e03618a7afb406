"""Two listings of any length, sorted into local files, so that they can be compared with little memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from actors.repair.listing import listed
from actors.spool import SpoolDirectory
from storage.object_store import ObjectStore
from wire.limits import MIB

BUCKETS = 256
_FLUSH_BYTES = 8 * MIB


class Listing:
    """Keys of a store with their sizes, in buckets by a checksum of the key."""

    def __init__(self, spools: SpoolDirectory) -> None:
        self._spools = spools
        self._directory: Path | None = None
        self._waiting = [bytearray() for _ in range(BUCKETS)]
        self._waiting_bytes = 0
        self.keys = 0

    async def take_all(self, store: ObjectStore, advance: Callable[[], None]) -> None:
        """List a store."""
        async with listed(store, "") as found:
            async for stored in found:
                line = b"%d %s\n" % (stored.size, stored.key.encode())
                self._waiting[zlib.crc32(stored.key.encode()) % BUCKETS] += line
                self._waiting_bytes += len(line)
                self.keys += 1
                if self._waiting_bytes >= _FLUSH_BYTES:
                    await trio.to_thread.run_sync(self._flush)
                advance()

    async def bucket(self, number: int) -> dict[str, int]:
        """Give the keys of one bucket."""
        if self._directory is None:
            return dict(self._read(number))
        return await trio.to_thread.run_sync(lambda: dict(self._read(number)))

    def _flush(self) -> None:
        if self._directory is None:
            self._directory = self._spools.new_path()
            self._directory.mkdir()
        for number, lines in enumerate(self._waiting):
            if lines:
                with (self._directory / f"{number:02x}").open("ab") as file:
                    file.write(lines)
                self._waiting[number] = bytearray()
        self._waiting_bytes = 0

    def _read(self, number: int) -> Iterator[tuple[str, int]]:
        path = None if self._directory is None else self._directory / f"{number:02x}"
        lines = path.read_bytes() if path is not None and path.exists() else b""
        for line in (lines + self._waiting[number]).splitlines():
            size, _, key = line.partition(b" ")
            yield key.decode(), int(size)

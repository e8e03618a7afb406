"""A large map of paths to object ids, kept as the bytes it came in.

Python spends some 300 bytes on an entry of a dictionary of texts; here an entry takes what it took on the wire. Such a
map is read from front to back, any number of times; looking a single path up is for small maps.
"""

from __future__ import annotations

from array import array
from collections.abc import ItemsView, Iterator, Mapping, ValuesView

import msgpack

from wire.ids import Scheme, parse_id

_CHUNK_BYTES = 64 * 1024
MAP_HEAD = b"\xdf"
"""msgpack's map with a 32-bit count."""


class PathMap(Mapping[str, str]):
    """Filled once with :meth:`add`, then closed with :meth:`finish`."""

    __slots__ = ("_chunks", "_count", "_hashes", "_open")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._open: list[str] = []
        self._hashes = array("q")
        self._count = 0

    def add(self, path: str, object_id: str) -> None:
        """Append one entry."""
        self._open += (path, object_id)
        self._hashes.append(hash(path))
        self._count += 1
        if len(self._open) >= 1024:
            self._pack()

    def finish(self) -> bool:
        """Close the map; gives whether every path is there once (two of equal hash count as equal)."""
        self._pack()
        hashes, self._hashes = self._hashes, array("q")
        return len(set(hashes)) == len(hashes)

    def pieces(self) -> Iterator[bytes]:
        """Give the map as msgpack."""
        yield MAP_HEAD + self._count.to_bytes(4, "big")
        yield from self._chunks

    @property
    def held_bytes(self) -> int:
        """Bytes of memory it keeps."""
        return sum(map(len, self._chunks)) + 128

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Give the entries in the order they were added."""
        for chunk in self._chunks:
            unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(chunk))
            unpacker.feed(chunk)
            yield from zip(unpacker, unpacker, strict=True)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return (path for path, _ in self.pairs())

    def __getitem__(self, path: str) -> str:
        for one, object_id in self.pairs():
            if one == path:
                return object_id
        raise KeyError(path)

    def items(self) -> ItemsView[str, str]:
        """Give the entries; one pass."""
        return _Items(self)

    def _pack(self) -> None:
        packer = msgpack.Packer(autoreset=False)
        for text in self._open:
            packer.pack(text)
        self._chunks.append(packer.bytes())
        self._open = []


class _Items(ItemsView[str, str]):
    def __init__(self, entries: PathMap) -> None:
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self._entries.pairs()


class BlobMap(Mapping[str, bytes]):
    """A :class:`PathMap` whose ids are digests; each is read when it is come to."""

    __slots__ = ("_map", "_scheme")

    def __init__(self, paths: PathMap, scheme: Scheme) -> None:
        self._map = paths
        self._scheme = scheme

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Give the entries in order; raises ``malformed`` at an id that is none."""
        for path, object_id in self._map.pairs():
            yield path, parse_id(object_id, self._scheme, "object id")

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __getitem__(self, path: str) -> bytes:
        return parse_id(self._map[path], self._scheme, "object id")

    def items(self) -> ItemsView[str, bytes]:
        """Give the entries; one pass."""
        return _BlobItems(self)

    def values(self) -> ValuesView[bytes]:
        """Give the digests; one pass."""
        return _BlobValues(self)


class _BlobItems(ItemsView[str, bytes]):
    def __init__(self, entries: BlobMap) -> None:
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return self._entries.pairs()


class _BlobValues(ValuesView[bytes]):
    def __init__(self, entries: BlobMap) -> None:
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[bytes]:
        return (digest for _, digest in self._entries.pairs())

"""A large map of paths to object ids, kept as the bytes it came in, compressed.

Python spends some 300 bytes on an entry of a dictionary of texts; here an entry takes less than it took on the wire.
Such a map is read from front to back, any number of times; looking a single path up is for small maps.
"""

from __future__ import annotations

import itertools
import operator
from abc import abstractmethod
from array import array
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import TypeVar

import msgpack

from wire.compact import TextCodec
from wire.ids import Scheme, parse_id

V = TypeVar("V")
MAP_HEAD = b"\xdf"
"""msgpack's map with a 32-bit count."""


class WalkedMap(Mapping[str, V]):
    """A map that is read from front to back, any number of times."""

    __slots__ = ()

    @abstractmethod
    def pairs(self) -> Iterator[tuple[str, V]]:
        """Give the entries in order."""

    def __iter__(self) -> Iterator[str]:
        return (path for path, _ in self.pairs())

    def __getitem__(self, path: str) -> V:
        for one, value in self.pairs():
            if one == path:
                return value
        raise KeyError(path)

    def items(self) -> ItemsView[str, V]:
        """Give the entries; one pass."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Give what the paths lead to; one pass."""
        return _Values(self)


class _Items(ItemsView[str, V]):
    def __init__(self, entries: WalkedMap[V]) -> None:
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return self._entries.pairs()


class _Values(ValuesView[V]):
    def __init__(self, entries: WalkedMap[V]) -> None:
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._entries.pairs())


class PathMap(WalkedMap[str]):
    """Filled once with :meth:`add`, then closed with :meth:`finish`."""

    __slots__ = ("_chunks", "_codec", "_count", "_hashes", "_open")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._codec = TextCodec(compact=True)
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
        hashes, self._hashes = sorted(self._hashes), array("q")
        self._codec = TextCodec(compact=True)  # without the tables of the one that wrote
        return not any(map(operator.eq, hashes, itertools.islice(hashes, 1, None)))

    def pieces(self) -> Iterator[bytes]:
        """Give the map as msgpack."""
        yield MAP_HEAD + self._count.to_bytes(4, "big")
        yield from TextCodec(compact=True).read_all(self._chunks)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory it keeps."""
        return sum(map(len, self._chunks)) + 128

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Give the entries in the order they were added."""
        for chunk in TextCodec(compact=True).read_all(self._chunks):
            unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(chunk))
            unpacker.feed(chunk)
            yield from zip(unpacker, unpacker, strict=True)

    def __len__(self) -> int:
        return self._count

    def _pack(self) -> None:
        packer = msgpack.Packer(autoreset=False)
        for text in self._open:
            packer.pack(text)
        self._chunks.append(self._codec.write(packer.bytes()))
        self._open = []


class BlobMap(WalkedMap[bytes]):
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

    def __getitem__(self, path: str) -> bytes:
        return parse_id(self._map[path], self._scheme, "object id")

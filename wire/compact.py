"""Texts of paths and ids kept compressed in memory: what is large there takes about a third of its bytes.

Hexadecimal ids cannot take less than half; paths that stand in order take next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import zstandard

_LEVEL = 1
"""The quickest one that codes single characters: ids have nothing else to give."""


class TextCodec:
    """Write and read the texts of one owner, in one thread at a time.

    Compressing keeps tables of some hundred KiB: a codec is for one piece of work, not for as long as the texts live.
    """

    __slots__ = ("_compressor", "_decompressor", "compact")

    def __init__(self, *, compact: bool) -> None:
        self.compact = compact
        self._compressor: zstandard.ZstdCompressor | None = None
        self._decompressor: zstandard.ZstdDecompressor | None = None

    def write(self, text: bytes) -> bytes:
        """Give a text as it is kept."""
        if not self.compact:
            return text
        if self._compressor is None:
            self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        written = self._compressor.compress(text)
        return bytes(memoryview(written))  # that one keeps all the room it might have needed

    def read(self, kept: bytes) -> bytes:
        """Give a kept text back."""
        if not self.compact:
            return kept
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor()
        return self._decompressor.decompress(kept)

    def read_all(self, kept: Iterable[bytes]) -> Iterator[bytes]:
        """Give many, one after the other."""
        return map(self.read, kept) if self.compact else iter(kept)

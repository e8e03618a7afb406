"""Compressing contents on their way to the server, where it pays."""

from __future__ import annotations

import zstandard

COMPRESS_FROM_BYTES = 256
SAMPLE_BYTES = 4096
_WORTH = 0.9


class Compressor:
    """Judge a content by a sample, so that what is compressed already costs little."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)

    def pays(self, sample: bytes, size: int) -> bool:
        """Judge a content of ``size`` bytes by its first :data:`SAMPLE_BYTES`."""
        return size >= COMPRESS_FROM_BYTES and len(self._compressor.compress(sample)) <= len(sample) * _WORTH

    def compress(self, content: bytes) -> bytes:
        """Compress a whole content."""
        return self._compressor.compress(content)

    def encode(self, content: bytes) -> tuple[str, bytes]:
        """Give the encoding's name and the encoded bytes."""
        if not self.pays(content[:SAMPLE_BYTES], len(content)):
            return "raw", content
        return "zstd", self.compress(content)

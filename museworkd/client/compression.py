"""Compressing contents on their way to the server, where it pays."""

from __future__ import annotations

import zstandard

COMPRESS_FROM_BYTES = 256
_SAMPLE_BYTES = 4096
_WORTH = 0.9


class Compressor:
    """Judge a content by a sample, so that what is compressed already costs little."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)

    def encode(self, content: bytes) -> tuple[str, bytes]:
        """Give the encoding's name and the encoded bytes."""
        if len(content) < COMPRESS_FROM_BYTES:
            return "raw", content
        sample = content[:_SAMPLE_BYTES]
        if len(self._compressor.compress(sample)) > len(sample) * _WORTH:
            return "raw", content
        return "zstd", self._compressor.compress(content)

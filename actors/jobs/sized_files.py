"""The files of a manifest with their sizes, as the index knows them; no content is read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import trio

from storage.index import Index
from wire.ids import Scheme
from wire.manifest import Manifest

BLOBS_AT_ONCE = 50_000
"""Of a larger manifest a part of the blobs at a time, in as many passes over it."""
_LOOKED_UP = 2_000


@dataclass(frozen=True, slots=True)
class SizedBlob:
    """A blob and where in the manifest it stands."""

    blob: bytes
    paths: list[str]
    size: int | None
    """``None``: the index does not know it."""


async def sized_blobs(index: Index, scheme: Scheme, manifest: Manifest) -> AsyncGenerator[list[SizedBlob], None]:
    """Give all distinct blobs of a manifest, some at a time, each once."""
    parts = -(-len(manifest) // BLOBS_AT_ONCE)
    for part in range(parts):
        grouped = await trio.to_thread.run_sync(_grouped, manifest, part, parts)
        blobs = list(grouped)
        for start in range(0, len(blobs), _LOOKED_UP):
            some = blobs[start : start + _LOOKED_UP]
            sizes = await sizes_of(index, scheme, some)
            yield [SizedBlob(blob, grouped.pop(blob), sizes.get(blob)) for blob in some]


async def sizes_of(index: Index, scheme: Scheme, blobs: Iterable[bytes]) -> dict[bytes, int]:
    """Look sizes up; unknown blobs are left out."""
    found: dict[bytes, int] = {}
    unique = list(dict.fromkeys(blobs))
    for start in range(0, len(unique), _LOOKED_UP):
        places = await index.places(scheme, unique[start : start + _LOOKED_UP])
        found.update((blob, place.size) for blob, place in places.items())
    return found


def _grouped(manifest: Manifest, part: int, parts: int) -> dict[bytes, list[str]]:
    grouped: dict[bytes, list[str]] = {}
    for path, blob in manifest.items():
        if int.from_bytes(blob[:4]) % parts == part:
            grouped.setdefault(blob, []).append(path)
    return grouped

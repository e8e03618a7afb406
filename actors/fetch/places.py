"""Where the blobs of an answer are, found in batches and kept in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from actors.fetch.blob_list import BlobList
from actors.fetch.reading import damaged, found_place
from actors.repair.reading import RepairServices
from storage.layout import Place
from wire.ids import Scheme

_LOOKUP_BATCH = 2_000
_LOOSE, _PENDING = -1, -2
"""In place of a pack's number."""


class Places:
    """Where many blobs are, in little memory, in sending order."""

    def __init__(self) -> None:
        self.ids = bytearray()
        self.sizes = array("Q")
        self._offsets = array("Q")
        self._packs = array("l")
        self._pack_ids: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, place: Place) -> None:
        """Append one."""
        self.ids += place.object_id
        self.sizes.append(place.size)
        self._offsets.append(place.offset)
        if place.pack_id is None:
            self._packs.append(_PENDING if place.pending else _LOOSE)
            return
        number = self._numbers.setdefault(place.pack_id, len(self._pack_ids))
        if number == len(self._pack_ids):
            self._pack_ids.append(place.pack_id)
        self._packs.append(number)

    def __iter__(self) -> Iterator[Place]:
        for at in range(len(self.sizes)):
            pack = self._packs[at]
            object_id = bytes(self.ids[at * 32 : at * 32 + 32])
            pack_id = None if pack < 0 else self._pack_ids[pack]
            yield Place(object_id, self.sizes[at], pack_id, self._offsets[at], pack == _PENDING)


async def located(services: RepairServices, repo: int, scheme: Scheme, blobs: BlobList) -> Places:
    """Find where all blobs of an answer are; one that is nowhere raises ``ObjectDamaged``, and is named."""
    places = Places()
    for part in blobs.parts(_LOOKUP_BATCH):
        found = await services.index.held_places(repo, scheme, part)
        unplaced = [blob_id for blob_id in part if blob_id not in found]
        held = (await services.index.known_blobs(repo, scheme, unplaced)).held if unplaced else frozenset[bytes]()
        for blob_id in part:
            place = found.get(blob_id)
            if place is None and blob_id not in held:  # a copy may be somebody else's
                raise damaged(blob_id)
            places.add(await found_place(services, scheme, blob_id) if place is None else place)
    return places

"""Reading blobs wherever they are: in the index while they are pending, in a pack, or loose (protocol §8).

A pending blob may be promoted between the look at its place and the reading. Then it is in the store, at the place
its row says now, and never pending again: it is looked up once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.errors import ObjectDamaged
from storage.layout import Place
from storage.object_store import ObjectStore, ReadRange
from wire.ids import Scheme


class Places(Protocol):
    """What the index is asked; its ``History`` and ``ContentCache`` parts."""

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        """See ``History.places``."""

    async def cached_contents(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """See ``ContentCache.cached_contents``."""


async def read_contents(index: Places, store: ObjectStore, scheme: Scheme, places: Sequence[Place]) -> list[bytes]:
    """Read whole contents, in order; the caller bounds what they have together, and checks that they are right.

    Raises:
        ObjectMissing, ObjectDamaged: stored data is not whole; the message names the object.
    """
    contents: dict[bytes, bytes] = {}
    moved: dict[bytes, Place] = {}
    pending = [place.object_id for place in places if place.pending]
    if pending:
        contents = await _cached(index, scheme, pending)
        moved = await _promoted(index, scheme, [i for i in pending if i not in contents])
    now = [moved.get(place.object_id, place) for place in places]
    stored = [place for place in now if place.object_id not in contents]
    read = await store.get_ranges([ReadRange(p.key(scheme), p.offset, p.size) for p in stored]) if stored else []
    found = iter(read)
    return [contents[p.object_id] if p.object_id in contents else next(found) for p in now]


async def settled_place(index: Places, scheme: Scheme, place: Place) -> tuple[Place, bytes | None]:
    """Give a place in the store to read from, or the content of one that is pending."""
    if not place.pending:
        return place, None
    content = (await index.cached_contents(scheme, [place.object_id])).get(place.object_id)
    if content is not None:
        return place, content
    return (await _promoted(index, scheme, [place.object_id]))[place.object_id], None


async def _cached(index: Places, scheme: Scheme, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
    """Ask until everything there is was given."""
    contents: dict[bytes, bytes] = {}
    left = list(dict.fromkeys(wanted))
    while left and (found := await index.cached_contents(scheme, left)):
        contents.update(found)
        left = [object_id for object_id in left if object_id not in contents]
    return contents


async def _promoted(index: Places, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
    """Look up anew where blobs are that were pending."""
    if not object_ids:
        return {}
    places = await index.places(scheme, object_ids)
    for object_id in object_ids:
        if object_id not in places or places[object_id].pending:
            raise ObjectDamaged(f"the index has neither the content of object {object_id.hex()} nor its place")
    return places

"""Looking for blobs through all packs of a store, by the heads of their records.

The index knows one place of a blob. That another pack holds it too, or a record pack or a fetch pack does, is found
only by looking into all of them, so one search serves many blobs, a daemon runs one at a time, it has a limit of time,
and what it did not find is not looked for again for a while.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog
import trio

from actors.jobs.pack_heads import pack_heads
from actors.repair.listing import listed
from actors.repair.reading import RepairServices
from storage.errors import ObjectDamaged, ObjectMissing, ObjectUnreadable, StoreUnavailable
from storage.layout import Place, pack_key
from storage.object_store import ObjectStore
from wire.ids import Scheme
from wire.pack import IndexEntry

SEARCH_S = 20.0
"""While somebody waits for its answer."""
IN_VAIN_S = 300.0
"""What was not found is not looked for again for so long, by those who wait."""
IN_VAIN_MOST = 10_000
PREFIXES = ("packs", "records", "fetch")

Take = Callable[[bytes, str, IndexEntry], Awaitable[Place | None]]
"""Is given what may be a copy of a blob: its id, the pack's key, and where it lies in it; gives where it is then."""

log = structlog.get_logger("repair")


@dataclass(slots=True)
class _Searches:
    """What the searches of one store share."""

    one_at_a_time: trio.Lock = field(default_factory=trio.Lock)
    in_vain: OrderedDict[tuple[Scheme, bytes], float] = field(default_factory=OrderedDict)

    def note(self, scheme: Scheme, object_ids: Sequence[bytes]) -> None:
        for object_id in object_ids:
            self.in_vain[scheme, object_id] = trio.current_time() + IN_VAIN_S
            self.in_vain.move_to_end((scheme, object_id))
        while len(self.in_vain) > IN_VAIN_MOST:
            self.in_vain.popitem(last=False)

    def hopeless(self, scheme: Scheme, object_id: bytes) -> bool:
        return self.in_vain.get((scheme, object_id), 0.0) > trio.current_time()


_searches: weakref.WeakKeyDictionary[ObjectStore, _Searches] = weakref.WeakKeyDictionary()


async def searched(
    services: RepairServices, scheme: Scheme, wanted: Mapping[bytes, Place | None], take: Take, search_s: float
) -> dict[bytes, Place]:
    """Search all packs, those first that blobs were said to be in; gives what was found, with its place by now."""
    shared = _searches.setdefault(services.store, _Searches())
    left = dict(wanted) if search_s > SEARCH_S else {
        object_id: place for object_id, place in wanted.items() if not shared.hopeless(scheme, object_id)
    }  # fmt: skip
    found: dict[bytes, Place] = {}
    if not left:
        return found
    began = False
    with trio.move_on_after(search_s) as limit:
        async with shared.one_at_a_time, aclosing(entries_of(services, PREFIXES, _named(left))) as walk:
            began = True
            async for key, entries in walk:
                for entry in entries:
                    if entry.object_id in left:
                        place = await take(entry.object_id, key, entry)
                        if place is not None:
                            found[entry.object_id] = place
                            del left[entry.object_id]
                if not left:
                    break
    if not began:
        raise StoreUnavailable("other copies are being searched for already: try again")
    shared.note(scheme, list(left))
    if limit.cancelled_caught:
        log.warning("packs were not searched to the end", seconds=search_s, objects=len(left))
    return found


def _named(wanted: Mapping[bytes, Place | None]) -> set[str]:
    packs = {place.pack_id for place in wanted.values() if place is not None}
    return {pack_key(pack_id) for pack_id in packs if pack_id is not None}


async def entries_of(
    services: RepairServices, prefixes: Sequence[str], first: Collection[str] = ()
) -> AsyncGenerator[tuple[str, Sequence[IndexEntry]], None]:
    """Give what lies in the packs under some prefixes, with the packs' keys; those named ``first`` come first."""
    for key in sorted(first):
        async with aclosing(_of_pack(services, key)) as parts:
            async for entries in parts:
                yield key, entries
    for prefix in prefixes:
        async with listed(services.store, prefix) as keys:
            async for stored in keys:
                if stored.key not in first:
                    async with aclosing(_of_pack(services, stored.key)) as parts:
                        async for entries in parts:
                            yield stored.key, entries


async def _of_pack(services: RepairServices, key: str) -> AsyncGenerator[Sequence[IndexEntry], None]:
    """Give what lies in a pack, as far as its heads can be read."""
    try:
        async with aclosing(pack_heads(services.store, key, services.limits)) as heads:
            async for entries in heads:
                yield entries
    except (ObjectMissing, ObjectDamaged, ObjectUnreadable):  # gone, cut, without objects: nothing more of it is here
        return

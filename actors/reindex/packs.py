"""Whose ids the objects of a stored pack have: nothing but their bytes tells."""

from __future__ import annotations

from storage.errors import ObjectDamaged
from storage.object_store import ObjectStore
from wire.ids import Kind, Scheme, hasher_for
from wire.pack import IndexEntry


async def scheme_of(store: ObjectStore, key: str, entry: IndexEntry) -> Scheme:
    """Tell the scheme of a pack's ids by hashing one of its objects, which proves that one.

    Raises:
        ObjectDamaged: it has the hash of neither.
    """
    hashers = {scheme: hasher_for(Kind.BLOB, entry.size, scheme) for scheme in Scheme}
    if entry.size:
        async with store.stream(key, entry.offset, entry.size) as pieces:
            async for piece in pieces:
                for hasher in hashers.values():
                    hasher.update(piece)
    for scheme, hasher in hashers.items():
        if hasher.digest() == entry.object_id:
            return scheme
    raise ObjectDamaged(f"{key}: object {entry.object_id.hex()} does not hash to its id")

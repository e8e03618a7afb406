"""``mpack.index``: after a push by one file, see to it that the index says of every object of its packs what is so.

The push itself has recorded it all (protocol §7), so this mends: rows, byte ranges and the repository's references that
are missing or wrong, and contents that waited in the index and lie in the pack as well. Nothing is hashed: the pack was
proved at the door, and what is read of it are the heads of its records.

Rights: an object in a pack gives no right to it. The payload names the packs that pushes of this repository brought and
the pushes, written by the very transactions that accepted them, and of those alone the repository's references are
completed; not, however, once something was collected from the repository: what is missing may have been taken away. A
payload that has become too long names no pack; then the packs are looked at in which the repository's objects lie, and
of them only what the index says of places is mended.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from actors.fetch.blob_list import BlobList
from actors.jobs.handler import JobContext, JobObsolete
from actors.jobs.pack_heads import pack_heads
from actors.leases import leased
from storage.errors import ObjectMissing
from storage.job_rows import WHOLE
from storage.layout import pack_key
from storage.pack_repair import PackRepair
from storage.rows import Repository, StoredBlob
from wire.ids import DIGEST_BYTES, Scheme

ROWS_AT_ONCE = 2_000
"""Objects per transaction; of an index that is whole, it only reads."""
_HELD_AT_ONCE = 5_000


async def run(context: JobContext) -> Mapping[str, object]:
    """Mend what is not as it should be; running again changes nothing."""
    repository = await context.repository()
    scheme = repository.scheme
    if scheme is None:
        raise JobObsolete
    packs = _named(context.job.payload)
    if WHOLE.items() <= context.job.payload.items():
        packs = dict.fromkeys(await _of_repository(context, repository, scheme)) | packs
    objects, missing, repair = 0, 0, PackRepair()
    index, environment = context.services.index, context.services.environment
    async with leased(index, environment, repository.number) as lease:
        for done, (pack_id, push_id) in enumerate(packs.items()):
            await context.progress("packs", done, len(packs))
            try:
                async with aclosing(_objects(context, pack_id)) as batches:
                    async for batch in batches:
                        with context.phase("object_refs"):
                            repair += await index.complete_pack(
                                repository.number, scheme, batch, brought_by=push_id, lease=lease
                            )
                        objects += len(batch)
            except ObjectMissing:  # its objects are in another one by now, or are gone with it
                missing += 1
    return {
        "packs": len(packs) - missing, "packs_missing": missing, "objects": objects, "rows_completed": repair.rows,
        "ranges_repaired": repair.ranges, "promoted": repair.promoted, "refs_completed": repair.refs,
    }  # fmt: skip


async def _objects(context: JobContext, pack_id: bytes) -> AsyncGenerator[list[StoredBlob], None]:
    """Give the objects of a pack, each once, some at a time."""
    services = context.services
    seen, waiting = BlobList(), list[StoredBlob]()
    heads = pack_heads(services.store, pack_key(pack_id), services.limits)
    async with aclosing(heads):
        while True:
            with context.phase("heads"):
                entries = await anext(heads, None)
            for entry in entries or ():
                before = len(seen)
                seen.add(entry.object_id)
                if len(seen) > before:
                    waiting.append(StoredBlob(entry.object_id, entry.size, pack_id, entry.offset))
            while len(waiting) >= ROWS_AT_ONCE or (waiting and entries is None):
                yield waiting[:ROWS_AT_ONCE]
                del waiting[:ROWS_AT_ONCE]
            if entries is None:
                return


def _named(payload: Mapping[str, object]) -> dict[bytes, uuid.UUID | None]:
    """Read the packs of a payload, with the pushes that brought them; what is no id of a pack is not ours.

    A previous version does not say which push it was.
    """
    packs: dict[bytes, uuid.UUID | None] = {}
    for name, push in sorted(payload.items()):
        with suppress(ValueError):
            pack_id = bytes.fromhex(name)
            if len(pack_id) == DIGEST_BYTES:
                packs[pack_id] = uuid.UUID(push) if isinstance(push, str) else None
    return packs


async def _of_repository(context: JobContext, repository: Repository, scheme: Scheme) -> list[bytes]:
    """Find the packs in which the repository's objects lie."""
    packs: set[bytes] = set()
    after: bytes | None = b""
    with context.phase("packs"):
        while after is not None:
            found, after = await context.services.index.held_packs(repository.number, scheme, after, _HELD_AT_ONCE)
            packs |= found
            await context.progress("looking for packs", len(packs))
    return sorted(packs)

"""``content.promote``: contents that small pushes left in the index get their places in the object store.

Steps, and what is left if the worker dies after each:

1. contents are read from the index, some at a time, the oldest first — nothing new;
2. they are put into the store under their ids, durably — loose objects whose rows still say ``pending``: the next run
   puts the same bytes under the same keys again;
3. one transaction takes those contents out of the index and lets their rows say where they are.

A run takes all that wait, whichever repository's push they came with: a content belongs to none. Two runs at once do
the same work twice and no harm. What was collected between 2 and 3, and has come again, is another entry and stays; of
what the collector is just deleting under the same key nothing is promoted before it has done so.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from actors.jobs.handler import JobContext
from actors.leases import leased
from storage.content_cache import CachedContent
from storage.errors import Tombstoned
from storage.layout import loose_key

CONTENTS_AT_ONCE = 64
"""Per transaction; by bytes there are no more than ``READ_BYTES`` and one content."""


async def run(context: JobContext) -> Mapping[str, object]:
    """Promote what waits now."""
    index = context.services.index
    waiting, _ = await index.count_cached()
    if not waiting:
        return {"objects": 0, "bytes": 0}
    after = objects = size = 0
    refused: Tombstoned | None = None
    async with leased(index, context.services.environment, context.job.repo) as lease:
        while True:
            with context.phase("read"):
                batch = await index.oldest_cached(after, CONTENTS_AT_ONCE)
            if not batch:
                break
            try:
                objects += await _promote(context, lease, batch)
            except Tombstoned:
                for one in batch:  # all but those whose keys are just being deleted
                    try:
                        objects += await _promote(context, lease, [one])
                    except Tombstoned as error:
                        refused = error
            size += sum(len(one.content) for one in batch)
            after = batch[-1].entry
            await context.progress("promote", objects, max(waiting, objects))
    if refused is not None:
        raise refused
    return {"objects": objects, "bytes": size}


async def _promote(context: JobContext, lease: uuid.UUID, batch: Sequence[CachedContent]) -> int:
    index, store = context.services.index, context.services.store
    with context.phase("put"):
        await store.put_batch([(loose_key(one.object_id, one.scheme), one.content) for one in batch])
    with context.phase("rows"):
        return await index.promote_cached([one.entry for one in batch], lease)

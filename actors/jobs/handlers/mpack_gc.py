"""``mpack.gc``: folds loose objects and small packs of a repository into larger packs (see ``actors.collect.fold``).

Every push asks for it, and it looks at all a repository holds: so it does nothing within an hour of the last time,
unless its payload has ``now``.
"""

from __future__ import annotations

from collections.abc import Mapping

from actors.collect.fold import Folder
from actors.jobs.handler import JobContext

FOLD_EVERY_S = 3_600.0


async def run(context: JobContext) -> Mapping[str, object]:
    """Fold what the repository holds now."""
    repository = await context.repository()
    services = context.services
    every_s = 0.0 if context.job.payload.get("now") is True else FOLD_EVERY_S
    if not await services.index.begin_fold(repository.number, services.environment.now(), every_s):
        return {"skipped": True}
    with context.phase("fold"):
        folder = Folder(services.index, services.store, services.environment, services.spool_dir)
        folded = await folder.run(repository.number)
    return folded.counts()

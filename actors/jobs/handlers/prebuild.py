"""``fetch.mpack.prebuild``: make the packs that clones of a repository will ask for, before they do.

Made are a clone of all branches, as the ``museworkd`` client asks for it, and one of the default branch alone. Each is
an ordinary answer to a fetch in the store under its hash; the index remembers for which commits. Packs of commits that
branches have left expire, and are deleted a while later. If the worker dies in between, a pack is left that no row
names: it is deleted by its age, as any answer.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from actors.fetch.assemble import assemble
from actors.fetch.making import FetchAnswer
from actors.fetch.plan import plan_fetch
from actors.fetch.prepared import KEEP_S
from actors.jobs.handler import JobContext
from actors.leases import leased
from actors.opaque import takes_opaque
from storage.prebuilt import WANT_MOST, PrebuiltPack
from storage.rows import Repository
from wire.errors import Code, Refusal


async def run(context: JobContext) -> Mapping[str, object]:
    """Make what is not there yet."""
    services = context.services
    repository = await context.repository()
    index, now = services.index, services.environment.now()
    heads = await index.branch_heads(repository.number)
    size = await index.repository_bytes(repository.number)
    if not heads or size > services.settings.prebuild_bytes or takes_opaque(repository):  # nobody may ask for those
        await index.add_prebuilt(repository.number, [], now)
        return {"packs": 0, "built": 0, "repository_bytes": size, "too_large": bool(heads)}
    wants = {tuple(sorted(set(heads.values())))}
    if repository.default_branch in heads:
        wants.add((heads[repository.default_branch],))
    expires = now + dt.timedelta(seconds=KEEP_S)
    packs: list[PrebuiltPack] = []
    built = 0
    for want in sorted(want for want in wants if len(want) <= WANT_MOST):
        await services.fetch.makers.settled((repository.number, want, (), None))  # a clone that is under way
        known = await index.find_prebuilt(repository.number, want, now)
        if known is None:
            await context.progress("assemble", built, len(wants))
            made = await _made(context, repository, want)
            if made is None or made.mpack_id is None:
                continue
            built += 1
            known = PrebuiltPack(
                want, made.mpack_id, made.commit_count, made.object_count, made.size_bytes, now, expires
            )
        packs.append(known)
    with context.phase("rows"):
        await index.add_prebuilt(repository.number, packs, now)
    return {
        "packs": len(packs), "built": built, "repository_bytes": size,
        "objects": sum(pack.objects for pack in packs), "bytes": sum(pack.size for pack in packs),
    }  # fmt: skip


async def _made(context: JobContext, repository: Repository, want: Sequence[bytes]) -> FetchAnswer | None:
    """Assemble the answer; ``None`` when a branch has been moved away meanwhile: that push has a job of its own."""
    services = context.services
    async with services.fetch.slots.hold(1), leased(services.index, services.environment, repository.number):
        try:
            with context.phase("plan"):
                plan = await plan_fetch(services.index, repository, want, (), None)
        except Refusal as refusal:
            if refusal.code is not Code.NOT_FOUND:
                raise
            return None
        with context.phase("assemble"):
            return await assemble(services.fetch, repository, plan)

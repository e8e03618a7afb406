"""``example.authors``: how many commits of the default branch each author made, by the line of first parents.

An attempt that was cut is taken up where it was: what is kept names the next commit, and the counts so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from actors.jobs.handler import JobContext
from wire.canonical import parse_canonical

BATCH = 100
"""Commits looked at with two queries."""
KEPT_EVERY = 10
"""Batches after which the state is kept: so many are looked at again at most."""
AUTHORS_MOST = 1_000
"""Authors counted by name; the others count together."""
OTHERS = "(others)"


async def run(context: JobContext) -> Mapping[str, object]:
    """Count; gives the numbers of commits and authors, and who made most."""
    repository = await context.repository()  # of a repository that is gone, the job ends here
    index, scheme = context.services.index, repository.scheme
    tip = await index.branch_tip(repository.number, repository.default_branch)
    if tip is None or scheme is None:
        return {"commits": 0, "authors": 0}
    state = context.job.state if context.job.state.get("head") == tip.head.hex() else {}
    counts: Counter[str] = Counter()
    kept = state.get("counts")
    if isinstance(kept, Mapping):
        counts.update({str(author): int(count) for author, count in kept.items()})
    following: bytes | None = bytes.fromhex(str(state.get("next", tip.head.hex())))
    batches = 0
    while following is not None:
        with context.phase("facts"):
            facts = {fact.commit_id: fact for fact in await index.ancestry(scheme, [following], BATCH)}
        line: list[bytes] = []
        while following in facts and len(line) < BATCH:
            line.append(following)
            parents = facts[following].parents
            following = parents[0] if parents else None
        with context.phase("records"):
            left = line
            while left:  # as many at once as fit into memory
                records = await index.commit_records(repository.number, left)
                for record in records.values():
                    author = str(parse_canonical(record)[1].get("author") or "")
                    counts[author if author in counts or len(counts) < AUTHORS_MOST else OTHERS] += 1
                left = [commit_id for commit_id in left if commit_id not in records]
        batches += 1
        await context.progress("commits", counts.total(), tip.generation)
        if batches % KEPT_EVERY == 0 and following is not None:
            await context.keep_state({"head": tip.head.hex(), "next": following.hex(), "counts": dict(counts)})
    return {"commits": counts.total(), "authors": len(counts), "most": dict(counts.most_common(10))}

"""What a push need not bring: blobs its repository holds, uploaded and confirmed before (protocol §6)."""

from __future__ import annotations

from collections.abc import Sequence

from actors.push.context import Attempt, Counts, PushServices

CLAIMED_AT_ONCE = 1_000
"""Blobs per transaction."""


async def claim_held(services: PushServices, attempt: Attempt, counts: Counts, lacking: Sequence[bytes]) -> set[bytes]:
    """Make the held ones of what a push lacks its own; gives what it lacks all the same.

    They count like objects the push has brought.
    """
    missing, wanted = set(lacking), sorted(lacking)
    for at in range(0, len(wanted), CLAIMED_AT_ONCE):
        ids = wanted[at : at + CLAIMED_AT_ONCE]
        now = services.environment.now()
        claimed = await services.index.claim_blobs(attempt.ticket, attempt.plan.scheme, ids, now)
        counts.blobs_received += len(claimed)
        counts.blobs_written += len(claimed)
        missing -= claimed
    if missing:  # what was accepted meanwhile, or claimed by a call whose answer was lost, is not given again
        missing = set(await services.index.lacking_blobs(attempt.ticket, sorted(missing)))
    return missing

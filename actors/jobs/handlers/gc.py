"""``gc``: collects what nobody needs any more, of one repository or of the deployment (see ``actors.collect``).

Payload, all of it optional: ``dry_run``; ``keep_s``, in place of the setting ``jobs.gc_keep_s``; ``wait``: stay until
what was found can be deleted, which takes one to three times a lease lifetime.
"""

from __future__ import annotations

from collections.abc import Mapping

from actors.collect.collector import Wishes, collect
from actors.jobs.handler import JobContext, JobRefused
from storage.job_rows import DEPLOYMENT


async def run(context: JobContext) -> Mapping[str, object]:
    """Collect once; gives what was freed, or would be."""
    services, payload = context.services, context.job.payload
    keep_s = payload.get("keep_s", services.settings.gc_keep_s)
    if isinstance(keep_s, bool) or not isinstance(keep_s, int | float) or keep_s < 0:
        raise JobRefused("keep_s is not a number of seconds")
    wishes = Wishes(
        repositories=None if context.job.repo == DEPLOYMENT else [context.job.repo],
        keep_s=float(keep_s), dry_run=payload.get("dry_run") is True, wait=payload.get("wait") is True, patient=True,
    )  # fmt: skip
    report = await collect(
        services.index, services.store, services.environment, wishes, services.limits, context.progress, context.phase
    )
    return {"dry_run": wishes.dry_run, **report.counts()}

"""What is to be done after a push was accepted: the types of jobs it enqueues, in one place.

A job finds out by itself, from the index, what of its repository is new to it; so one waiting job stands for any
number of pushes, and nothing a client says gets into a payload but the id of its push. Only ``mpack.index`` is told
something: which packs came by which push, since no row says that of a pack as a whole.

What is worth doing once for several pushes waits a little: pushes come in groups, and what runs beside them slows
them down.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace

from storage.job_rows import NewJob

_AFTER_EVERY_PUSH = (
    NewJob("fetch.mpack.prebuild", 20),
    NewJob("push.file_last_commits", 30),
    NewJob("intel.structural", 40),
    NewJob("profile.snapshot", 40),
    NewJob("mpack.gc", 50),
)
_INDEX_PRIORITY = 10
_PROMOTE = NewJob("content.promote", 5)


def followups(
    push_id: uuid.UUID, packs: Iterable[bytes] = (), *, pending: bool = False, delay_s: float = 0.0
) -> list[NewJob]:
    """Give the jobs to enqueue.

    Args:
        push_id: of the push that is accepted.
        packs: ids of the packs of blobs that a push by one file left in place.
        pending: whether contents of the push wait in the index for their place in the store.
        delay_s: how long they wait.
    """
    payload = {pack_id.hex(): str(push_id) for pack_id in packs}
    index = [NewJob("mpack.index", _INDEX_PRIORITY, payload)] if payload else []
    wanted = [*([_PROMOTE] if pending else []), *index, *_AFTER_EVERY_PUSH]
    return [replace(job, delay_s=delay_s) for job in wanted]

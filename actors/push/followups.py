"""What is to be done after a push was accepted: the types of jobs it enqueues, in one place.

A job finds out by itself, from the index, what of its repository is new to it; so one waiting job stands for any
number of pushes, and nothing a client says gets into a payload. Only ``mpack.index`` is told something: which packs
came, since no row says that of a pack as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from storage.rows import NewJob

_AFTER_EVERY_PUSH = (
    NewJob("fetch.mpack.prebuild", 20),
    NewJob("push.file_last_commits", 30),
    NewJob("intel.structural", 40),
    NewJob("profile.snapshot", 40),
    NewJob("mpack.gc", 50),
)
_INDEX_PRIORITY = 10


def followups(packs: Iterable[bytes] = ()) -> list[NewJob]:
    """Give the jobs to enqueue; ``packs`` are the ids of the packs of blobs that a push by one file left in place."""
    payload = {pack_id.hex(): True for pack_id in packs}
    index = [NewJob("mpack.index", _INDEX_PRIORITY, payload)] if payload else []
    return [*index, *_AFTER_EVERY_PUSH]

"""Repositories looked up a moment ago: thousands of small uploads need not ask the index for each.

For uploads only, which are never served and count for nothing until somebody confirms them with a right he has then.
"""

from __future__ import annotations

import trio

from storage.index import Index
from storage.rows import Repository

REMEMBERED_S = 2.0
"""An upload to a repository deleted so recently is still taken, and expires."""
REMEMBERED = 1_000


class RecentRepositories:
    """Find repositories by name, at most once in :data:`REMEMBERED_S`."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._found: dict[tuple[str, str], tuple[float, Repository]] = {}

    async def find(self, owner: str, slug: str) -> Repository | None:
        """Find a repository; one that is not there is asked for again each time."""
        known = self._found.get((owner, slug))
        if known is not None and trio.current_time() < known[0]:
            return known[1]
        found = await self._index.find_repository(owner, slug)
        if found is None:
            self._found.pop((owner, slug), None)
            return None
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        self._found[owner, slug] = (trio.current_time() + REMEMBERED_S, found)
        return found

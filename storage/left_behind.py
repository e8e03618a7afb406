"""The part of the ``Index`` port that tells where branches have been, and may have left something behind.

What no branch leads to any more is held for a while, so that a branch can be put back (see ``storage.collection``).
Until it is collected nobody may read it by its name (protocol §8).
"""

from __future__ import annotations

from typing import Protocol


class LeftBehind(Protocol):
    """Where branches have been."""

    async def left_behind(self, repo: int, most: int) -> set[bytes]:
        """Give up to ``most`` commits that branches were on before they were moved by force or deleted.

        Those that were left before the repository was last swept are not given: what they held alone is gone.
        """

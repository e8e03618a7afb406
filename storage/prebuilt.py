"""The part of the ``Index`` port that remembers full clones made ahead: for which commits, and which pack answers.

A pack is for commits, not for branches: it stays right wherever branches move, as long as whoever asks may have those
commits. So rights are judged before it is looked for.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

WANT_MOST = 32
"""Commits of one pack: branches of a repository that is cloned whole."""


@dataclass(frozen=True, slots=True)
class PrebuiltPack:
    """A full clone of some commits, in the store under its hash."""

    want: tuple[bytes, ...]
    """Commit ids, sorted, at most :data:`WANT_MOST`."""
    mpack_id: bytes
    commits: int
    objects: int
    size: int
    """In bytes."""
    built_at: dt.datetime
    expires: dt.datetime
    """It is not given from then on."""


class Prebuilt(Protocol):
    """Full clones made ahead."""

    async def add_prebuilt(self, repo: int, packs: Sequence[PrebuiltPack], now: dt.datetime) -> None:
        """Remember a repository's packs in place of all it had: others expire now."""

    async def note_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        """Remember a pack that was made for a fetch, beside the others; one that is known stays."""

    async def find_prebuilt(self, repo: int, want: Sequence[bytes], now: dt.datetime) -> PrebuiltPack | None:
        """Find the pack for exactly these commits, in any order; one that has expired is none."""

    async def extend_prebuilt(self, repo: int, pack: PrebuiltPack, expires: dt.datetime) -> None:
        """Let a pack that is used expire later."""

    async def drop_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        """Forget a pack that is not in the store any more."""

    async def kept_prebuilt(self, mpack_ids: Sequence[bytes]) -> set[bytes]:
        """Give those that some repository still names."""

    async def forget_prebuilt(self, before: dt.datetime, most: int) -> int:
        """Forget up to ``most`` that expired before a moment; gives how many."""

    async def repository_bytes(self, repo: int) -> int:
        """Give how many bytes a repository's accepted pushes have brought."""

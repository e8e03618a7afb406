"""The part of the ``Index`` port that keeps tags and releases: names for commits, and what was said of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LISTED_LABELS = 10_000
"""Tags or releases that are listed at most."""


@dataclass(frozen=True, slots=True)
class TagRow:
    """A name for a commit."""

    tag: str
    commit_id: bytes
    record: bytes
    """The canonical bytes of the record as received."""


class Labels(Protocol):
    """Tags and releases of repositories."""

    async def put_tags(self, repo: int, tags: Sequence[TagRow]) -> int:
        """Set tags, each once; one of that name is replaced. Gives how many are new or another than before."""

    async def list_tags(self, repo: int) -> list[TagRow]:
        """Give the tags, by name."""

    async def put_release(self, repo: int, release_id: str, record: bytes, now: dt.datetime) -> bool:
        """Keep a release's canonical record; gives whether there was none of that id. A retracted one comes back."""

    async def list_releases(self, repo: int) -> list[bytes]:
        """Give the records of releases that are not retracted, newest first."""

    async def retract_release(self, repo: int, release_id: str, at: dt.datetime) -> bool:
        """Take a release back; gives whether it was there."""

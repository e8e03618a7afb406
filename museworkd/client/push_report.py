"""What a push is asked for and what it tells: ways, branch moves, leases, the report."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Way(enum.Enum):
    """How a push travels."""

    AUTO = "auto"
    STREAM = "stream"
    PRESIGNED = "presigned"
    MPACK = "mpack"


class Move(enum.Enum):
    """What becomes of the server's branch, as far as can be known here."""

    NONE = "none"
    """It is there already."""
    CREATE = "create"
    FAST_FORWARD = "fast-forward"
    FORCE = "force"
    """Commits are lost there."""
    NON_FAST_FORWARD = "non-fast-forward"
    """Refused: it has commits that the new head does not build on."""
    HEAD_MOVED = "head-moved"
    """Refused: it is not where it is expected to be."""
    UNKNOWN = "unknown"
    """This repository is shallow and does not reach back far enough."""

    @property
    def refused(self) -> bool:
        """Whether the server will refuse."""
        return self in {Move.NON_FAST_FORWARD, Move.HEAD_MOVED}


@dataclass(frozen=True, slots=True)
class Lease:
    """Force-with-lease: what the server's branch must be at; ``None``: it must not exist."""

    expected: bytes | None


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push of one branch came to, or would."""

    branch: str
    head: str
    up_to_date: bool
    dry_run: bool
    move: str
    """See ``Move``."""
    way: str | None
    """How it travels; ``None``: nothing is to be sent."""
    commits: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    """The contents' lengths, before they are compressed."""
    blobs_spared: int = 0
    """Of those, not sent: an interrupted attempt had brought them."""
    sent_bytes: int = 0
    attempts: int = 0
    result: Mapping[str, object] = field(default_factory=dict)
    """The server's."""

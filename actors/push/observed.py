"""What is told of a push when it has ended: to the log in one line, and to whoever counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PushObservation:
    """One attempt of a push, ended."""

    way: str
    """``stream`` or ``mpack``."""
    outcome: str
    """``accepted``, ``cut``, or the code of the refusal."""
    seconds: float
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    """Time by phase; phases overlap."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """``commits_written``, ``snapshots_written``, ``blobs_written``, ``blobs_skipped``."""


Observer = Callable[[PushObservation], None]

_COUNTS = ("commits_written", "snapshots_written", "blobs_written", "blobs_skipped")


def observation(way: str, members: Mapping[str, object], seconds: float) -> PushObservation:
    """Make an observation of a verdict, or of a refusal's body."""
    if "error" in members:
        return PushObservation(way, str(members["error"]), seconds)
    phases, counts = members.get("timings_ms"), {name: members.get(name) for name in _COUNTS}
    return PushObservation(
        way, "accepted", seconds,
        {str(phase): float(ms) for phase, ms in phases.items()} if isinstance(phases, dict) else {},
        {name: count for name, count in counts.items() if isinstance(count, int)},
    )  # fmt: skip


def unobserved(_: PushObservation) -> None:
    """Count nothing."""

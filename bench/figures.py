"""Numbers out of samples: medians, percentiles, ratios. Nothing here knows what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list of samples comes to."""

    count: int
    median: float
    p99: float
    least: float
    most: float

    def as_dict(self) -> dict[str, float]:
        """Give it for a JSON file."""
        return asdict(self)


def median(samples: Sequence[float]) -> float:
    """Give the middle of the samples, or between the two middle ones.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(samples: Sequence[float], percent: float) -> float:
    """Give the smallest sample that at least ``percent`` of them do not exceed: one that was really seen.

    Raises:
        ValueError: there are no samples, or ``percent`` is not above 0 and at most 100.
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError("a percentile is of some samples, above 0 and at most 100")
    ordered = sorted(samples)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples; there is at least one."""
    return Summary(len(samples), median(samples), percentile(samples, 99), min(samples), max(samples))


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Give ours divided by theirs; ``None`` when either is missing or there is nothing to divide by."""
    if ours is None or not theirs:
        return None
    return ours / theirs

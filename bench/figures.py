"""Numbers out of samples: medians, percentiles, ratios. Nothing here knows what was measured."""

from __future__ import annotations

import itertools
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


def steepest(points: Sequence[tuple[float, float]]) -> float:
    """Give how fast the second grows with the first where it grows fastest: 1 is in proportion, 2 by its square.

    Between two neighbours each time, so that what every measurement has besides cannot hide a steep end.

    Raises:
        ValueError: there are less than two points, or one of them is not above 0.
    """
    if len(points) < 2 or min(min(point) for point in points) <= 0:
        raise ValueError("a slope is between points above 0")
    ordered = sorted(points)
    return max(
        math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in itertools.pairwise(ordered)
    )


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Give ours divided by theirs; ``None`` when either is missing or there is nothing to divide by."""
    if ours is None or not theirs:
        return None
    return ours / theirs

"""What is to be reached, and whether a run reached it.

A target is a median of ours against a bound, or the ratio of our median to git's of the same run. A figure that was not
measured is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.figures import Summary, ratio

MIB = 1024 * 1024
FIRST_PUSH, CLONE, NO_OP, REPUSH = "first push", "clone", "no-op push", "re-push"
INCREMENT, BESIDE, REFS = "increment", "increment beside a push", "refs"
STREAM = "first push by stream"
START_UP = "start-up"
"""Of our client: no operation of its own, but part of every one."""
OPERATIONS = (FIRST_PUSH, STREAM, CLONE, NO_OP, REPUSH, REFS, INCREMENT, BESIDE)

Key = tuple[str, str, str, str]
Figures = Mapping[Key, Summary]
"""(workload, operation, peer, metric) → its summary."""


@dataclass(frozen=True, slots=True)
class Target:
    """One bound."""

    workload: str
    """``*``: every one that was measured."""
    operation: str
    metric: str
    bound: float
    of_git: bool = False
    p99: bool = False
    unit: str = ""
    scale: float = 1.0
    """The metric is shown divided by this, in ``unit``."""

    @property
    def text(self) -> str:
        """Say what is wanted."""
        if self.of_git:
            return f"≤ {self.bound:g} × git"
        return f"≤ {self.bound / self.scale:g} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target held against a run."""

    workload: str
    target: Target
    value: float | None

    @property
    def reached(self) -> bool | None:
        """Tell whether it was reached; ``None``: it was not measured."""
        return None if self.value is None else self.value <= self.target.bound


_PUSHED = (("L-full", 0.5), ("XL-random", 0.5), ("XL-text", 1.0), ("XL-grow", 1.0), ("REAL", 1.0))
TARGETS = (
    *(Target(name, FIRST_PUSH, "wall_s", bound, of_git=True) for name, bound in _PUSHED),
    *(Target(name, CLONE, "wall_s", 1.0, of_git=True) for name, _ in _PUSHED),
    *(Target(name, CLONE, "server_cpu_s", 0.3, of_git=True) for name, _ in _PUSHED),
    Target("XL-random", FIRST_PUSH, "server_cpu_s", 0.8, unit="s"),
    *(
        Target("*", operation, "server_ms", bound, p99=p99, unit="ms")
        for operation in (INCREMENT, BESIDE)
        for bound, p99 in ((15.0, False), (50.0, True))
    ),
    Target("*", NO_OP, "server_ms", 3.0, unit="ms"),
    Target("*", REFS, "server_ms", 3.0, unit="ms"),
    *(
        Target("*", operation, "server_peak_bytes", 64.0 * MIB, unit="MiB", scale=MIB)
        for operation in (FIRST_PUSH, STREAM, REPUSH, CLONE)
    ),
)


def judge(figures: Figures, ours: str, git: str) -> list[Judgement]:
    """Hold every target against a run; those whose workload or operation was not asked for are left out."""
    measured = list(dict.fromkeys((workload, operation) for workload, operation, _, _ in figures))
    found = []
    for target in TARGETS:
        for workload, operation in measured:
            if operation != target.operation or not _is_for(target, workload):
                continue
            found.append(Judgement(workload, target, _value(figures, workload, target, ours, git)))
    return found


def _is_for(target: Target, workload: str) -> bool:
    return target.workload in {"*", workload} or (target.workload == "REAL" and workload.startswith("REAL"))


def _value(figures: Figures, workload: str, target: Target, ours: str, git: str) -> float | None:
    mine = figures.get((workload, target.operation, ours, target.metric))
    if mine is None:
        return None
    if not target.of_git:
        # the peak of memory is a promise for any push, not for the middle one
        return mine.p99 if target.p99 else mine.most if target.metric == "server_peak_bytes" else mine.median
    theirs = figures.get((workload, target.operation, git, target.metric))
    return ratio(mine.median, None if theirs is None else theirs.median)

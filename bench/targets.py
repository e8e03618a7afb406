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
FETCH_COMMITS = 10
FETCH, FIRST_BYTE = f"fetch of {FETCH_COMMITS} commits", "first byte of a clone"
REPUSH_ELSEWHERE = "re-push to another owner"
STREAM, PRESIGNED, MPACK = "first push by stream", "first push by presigned objects", "first push by mpack"
WAYS = {STREAM: "stream", PRESIGNED: "presigned", MPACK: "mpack"}
"""Each on a server of its own; what the client calls them."""
START_UP = "start-up"
"""Of our client: no operation of its own, but part of every one."""
HOLDS = "connections held"
"""What a daemon tells when it stops: of everything it did."""
FIRST_SERVED = frozenset(
    {FIRST_PUSH, CLONE, FIRST_BYTE, NO_OP, REPUSH, REPUSH_ELSEWHERE, REFS, FETCH, INCREMENT, BESIDE}
)  # fmt: skip
"""Done one after another with one pair of servers."""
ON_TOP = frozenset({FETCH, INCREMENT, BESIDE})
"""Need a history with further commits."""
NO_PROCESS = frozenset({REFS, FIRST_BYTE})
"""Asked by the bench itself: no client is started."""
AT_ONCE = 64
CROWD_PUSH, CROWD_CLONE = f"{AT_ONCE} pushes at once", f"{AT_ONCE} clones at once"
KNOWN_FEW, KNOWN_MANY, UNKNOWN = "presign 1000 known", "presign 50000 known", "presign 50000 unknown"
NEGOTIATE = "negotiate 1000"
GROWTH = "growth"
UPLOAD = "upload"
PLAIN_PUSH, PLAIN_CLONE = "0.1.x first push", "0.1.x clone"
CLAIMERS = 4
CLAIMED = f"jobs by {CLAIMERS} claimers"
PROBES = {
    "CROWD": frozenset({CROWD_PUSH, CROWD_CLONE}),
    "MANY": frozenset({GROWTH, KNOWN_FEW, KNOWN_MANY, UNKNOWN, NEGOTIATE}),
    "FILE": frozenset({UPLOAD}),
    "PLAIN": frozenset({PLAIN_PUSH, PLAIN_CLONE}),
    "JOBS": frozenset({CLAIMED}),
}
"""Workloads that are no history of their own, and what is measured on each; git takes part in the clones of `CROWD`."""
OPERATIONS = (
    FIRST_PUSH, STREAM, PRESIGNED, MPACK, CLONE, FIRST_BYTE, NO_OP, REPUSH, REPUSH_ELSEWHERE, REFS, FETCH, INCREMENT,
    BESIDE, CROWD_PUSH, CROWD_CLONE, GROWTH, KNOWN_FEW, KNOWN_MANY, UNKNOWN, NEGOTIATE, UPLOAD, PLAIN_PUSH, PLAIN_CLONE,
    CLAIMED,
)  # fmt: skip
HOLD_P50, HOLD_P99, HOLD_MAX = "hold_p50_ms", "hold_p99_ms", "hold_max_ms"
TIMES_ALONE, ERRORS, PER_S = "times_alone", "errors", "per_s"
MB_S, SHA256_MB_S, OF_SHA256 = "mb_s", "sha256_mb_s", "of_sha256"
SLOPE, SERVER_SLOPE = "slope", "server_slope"

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
    at_least: bool = False
    unit: str = ""
    scale: float = 1.0
    """The metric is shown divided by this, in ``unit``."""

    @property
    def text(self) -> str:
        """Say what is wanted."""
        if self.of_git:
            return f"≤ {self.bound:g} × git"
        return f"{'≥' if self.at_least else '≤'} {self.bound / self.scale:g} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target held against a run."""

    workload: str
    target: Target
    value: float | None

    @property
    def reached(self) -> bool | None:
        """Tell whether it was reached; ``None``: it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.target.bound if self.target.at_least else self.value <= self.target.bound


_EARLIER_HUB = (
    ("L", PLAIN_PUSH, 2.1), ("XL-random", PLAIN_PUSH, 6.2), ("XL-grow", PLAIN_PUSH, 18.3),
    ("XL-random", PLAIN_CLONE, 2.1),
)  # fmt: skip
"""Wall seconds an earlier hub took for that client on a machine with two cores."""
_PUSHED = (("L-full", 0.5), ("XL-random", 0.5), ("XL-text", 1.0), ("XL-grow", 1.0), ("REAL", 1.0))
TARGETS = (
    *(Target(name, FIRST_PUSH, "wall_s", bound, of_git=True) for name, bound in _PUSHED),
    *(Target(name, CLONE, "wall_s", 1.0, of_git=True) for name, _ in _PUSHED),
    *(Target(name, CLONE, "server_cpu_s", 0.3, of_git=True) for name, _ in _PUSHED),
    Target("XL-random", FIRST_PUSH, "server_cpu_s", 0.8, unit="s"),
    Target("*", FIRST_BYTE, "wall_s", 1.0, of_git=True),
    Target("*", FETCH, "server_ms", 1.0, of_git=True),
    Target("*", CROWD_CLONE, "wall_s", 1.0, of_git=True),
    *(Target(f"PLAIN {name}", operation, "wall_s", bound, unit="s") for name, operation, bound in _EARLIER_HUB),
    *(
        Target("*", operation, "server_ms", bound, p99=p99, unit="ms")
        for operation in (INCREMENT, BESIDE)
        for bound, p99 in ((15.0, False), (50.0, True))
    ),
    Target("*", NO_OP, "server_ms", 3.0, unit="ms"),
    Target("*", REFS, "server_ms", 3.0, unit="ms"),
    *(
        Target("*", operation, "server_peak_bytes", bound * MIB, unit="MiB", scale=MIB)
        for bound, operations in (
            (64.0, (FIRST_PUSH, *WAYS, REPUSH, REPUSH_ELSEWHERE, CLONE, FETCH, PLAIN_PUSH, PLAIN_CLONE)),
            (256.0, (CROWD_PUSH, CROWD_CLONE)),
        )
        for operation in operations
    ),
    Target("*", KNOWN_FEW, "server_ms", 5.0, unit="ms"),
    Target("*", KNOWN_MANY, "server_ms", 100.0, unit="ms"),
    Target("*", HOLDS, HOLD_P99, 50.0, unit="ms"),
    Target("*", HOLDS, HOLD_MAX, 500.0, unit="ms"),
    Target("*", CROWD_PUSH, TIMES_ALONE, 1.5, at_least=True, unit="× alone"),
    *(Target("*", operation, ERRORS, 0.0) for operation in (CROWD_PUSH, CROWD_CLONE)),
    Target("*", UPLOAD, OF_SHA256, 0.8, at_least=True, unit="× sha256"),
    Target("*", CLAIMED, PER_S, 1500.0, at_least=True, unit="jobs/s"),
    *(Target("*", GROWTH, metric, 1.1) for metric in (SLOPE, SERVER_SLOPE)),
)
_PROMISED_ALWAYS = {"server_peak_bytes", HOLD_P99, HOLD_MAX, ERRORS}
"""Not only in the middle run."""


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
        return mine.p99 if target.p99 else mine.most if target.metric in _PROMISED_ALWAYS else mine.median
    theirs = figures.get((workload, target.operation, git, target.metric))
    return ratio(mine.median, None if theirs is None else theirs.median)

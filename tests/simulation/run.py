"""Run many seeds: ``python -m tests.simulation.run --seeds 2000``; replay one: ``--seed 17``.

Seeds are shared out over as many processes as there are cores. A failure prints its seed and the end of its trace, then
the smallest run with that seed that fails in the same way. The exit status is the number of failures, 1 at most.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulation.shrinking import shrink
from tests.simulation.world import Outcome, Plan, simulate

SHOWN_EVENTS = 60
_CHUNK = 20


def run_seed(seed: int) -> Outcome:
    """Run one seed; the trace is kept only of a failure."""
    outcome = simulate(Plan.drawn(seed))
    if not outcome.violations:
        outcome.trace.clear()
    return outcome


def run_seeds(seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    """Run seeds in several processes, which are ended with the iterator; outcomes come in the order of the seeds."""
    with multiprocessing.get_context("forkserver").Pool(processes, prepare) as pool:
        yield from pool.imap(run_seed, seeds, _CHUNK)


def prepare() -> None:
    """Make a process ready: what is loaded stays, and a run's garbage is little."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def report(outcome: Outcome, events: int = SHOWN_EVENTS) -> str:
    """Describe a failure."""
    lines = [f"seed {outcome.plan.seed} failed: {outcome.plan}", *outcome.trace[-events:]]
    lines += [f"{violation.invariant}: {violation.detail}" for violation in outcome.violations[:5]]
    return "\n".join([*lines, f"replay it with: make sim SEED={outcome.plan.seed}"])


def replay(seed: int) -> int:
    """Run one seed and show all that is kept of it."""
    outcome = simulate(Plan.drawn(seed))
    if not outcome.violations:
        print("\n".join(outcome.trace))
        print(f"seed {seed} keeps every promise: {outcome.plan}\n{outcome.events} events, trace {outcome.digest}")
        return 0
    print(report(outcome, outcome.events))
    smallest = shrink(outcome)
    if smallest is not outcome:
        print(f"\nthe smallest run that fails like it:\n{report(smallest)}")
    return 1


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="where to begin")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--digests", action="store_true", help="only print the hash of each trace")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    given = parser.parse_args()
    if given.seed is not None:
        return replay(given.seed)
    if given.digests:
        for seed in range(given.first, given.first + given.seeds):
            print(seed, simulate(Plan.drawn(seed)).digest)
        return 0
    began, failures, counts = time.monotonic(), 0, Counter[str]()
    for outcome in run_seeds(range(given.first, given.first + given.seeds), given.processes):
        counts.update(outcome.counts)
        if outcome.violations:
            failures += 1
            print(f"{report(outcome)}\n\nthe smallest run that fails like it:\n{report(shrink(outcome))}\n", flush=True)
            if failures >= given.failures:
                break
    seconds = time.monotonic() - began
    print(f"{given.seeds} seeds, {failures} failed, {seconds:.1f} s; pushes and moves: {dict(counts)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""A run is replayed by its seed, whatever the process it runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.simulation import planted
from tests.simulation.shrinking import shrink
from tests.simulation.world import Plan, simulate

ROOT = Path(__file__).parents[2]
_SEEDS = 8


def _digests_elsewhere(hash_seed: int) -> list[str]:
    command = [sys.executable, "-m", "tests.simulation.run", "--digests", "--seeds", str(_SEEDS)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.splitlines()


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """What happens, in which order and when, follows from the seed alone: not from hashing, nor from earlier runs."""
    here = [f"{seed} {simulate(Plan.drawn(seed)).digest}" for seed in range(_SEEDS)]
    assert _digests_elsewhere(1) == _digests_elsewhere(2) == here
    assert len({line.split()[1] for line in here}) == _SEEDS


def test_a_failure_is_made_smaller() -> None:
    """What a failure does not need is left out of the run that is shown for it, and the seed stays."""
    mistake = next(mistake for mistake in planted.MISTAKES if mistake.name == "no compare-and-swap")
    with planted.planted(mistake):
        plans = (plan for plan in map(Plan.drawn, range(2_000)) if mistake.concerns(plan))
        found = next(outcome for outcome in map(simulate, plans) if outcome.violations)
        smallest = shrink(found, tries=20)
    assert smallest.plan.seed == found.plan.seed
    assert smallest.violations[0].invariant == found.violations[0].invariant
    assert _weight(smallest.plan) <= _weight(found.plan)


def _weight(plan: Plan) -> int:
    return plan.clients * plan.operations * plan.daemons + len(plan.faults)

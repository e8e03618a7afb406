"""The simulation finds the mistakes it is there to find: each one planted is found within 2,000 seeds."""

from __future__ import annotations

import pytest

from tests.simulation.planted import MISTAKES, Planted, planted
from tests.simulation.world import Plan, simulate

SEEDS = 2_000


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_planted_mistake_is_found(mistake: Planted) -> None:
    """Without the claims' fence, the compare-and-swap, leases, sync, quota or a check, a promise is broken."""
    with planted(mistake):
        for seed in range(SEEDS):
            plan = Plan.drawn(seed)
            if not mistake.concerns(plan):
                continue
            broken = {violation.invariant for violation in simulate(plan).violations}
            if broken:
                assert broken & mistake.breaks, broken
                return
    pytest.fail(f"{mistake.name}: not found within {SEEDS} seeds")

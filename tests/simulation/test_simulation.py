"""The whole server in one process, under a mock clock and everything that goes wrong (design §5).

Faults F1 to F4, F7 to F12, F20, F21, F25, F27, F28, F29, F32, F35 and F36 to F39, drawn by seed, and clients of both
id schemes; after each run the invariants I1 to I5, I7 and I8, and that quotas hold.
"""

from __future__ import annotations

import pytest

from tests.simulation.run import report, run_seed
from tests.simulation.shrinking import shrink

SEEDS = 2_000
_PARTS = 40


@pytest.mark.parametrize("part", range(_PARTS))
def test_F1_F2_F3_F4_F7_F8_F9_F10_F11_F12_F20_F21_F25_F27_F28_F29_F32_F35_every_seed_keeps_every_promise(
    part: int,
) -> None:
    """Whatever fails when: acknowledged pushes are whole, branches move as told, jobs end once, all is given back."""
    for seed in range(part, SEEDS, _PARTS):
        outcome = run_seed(seed)
        if outcome.violations:
            smallest = shrink(outcome)
            pytest.fail(f"{report(outcome)}\n\nthe smallest run that fails like it:\n{report(smallest)}", pytrace=False)

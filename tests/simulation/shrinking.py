"""Making a failing run smaller: with the same seed, leave out whatever the failure does not need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.world import Outcome, Plan, simulate

TRIES = 60
"""Runs it may take."""


def shrink(failed: Outcome, tries: int = TRIES) -> Outcome:
    """Give the smallest run found that breaks the same invariant."""
    invariant = failed.violations[0].invariant
    smallest = failed
    progress = True
    while progress and tries:
        progress = False
        for plan in _smaller(smallest.plan):
            if not tries:
                break
            tries -= 1
            outcome = simulate(plan)
            if any(violation.invariant == invariant for violation in outcome.violations):
                smallest, progress = outcome, True
                break
    return smallest


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Give plans with less in them, the boldest first."""
    for name in ("clients", "daemons", "repositories"):
        for count in range(1, getattr(plan, name)):
            yield replace(plan, **{name: count})
    for count in range(1, plan.operations):
        yield replace(plan, operations=count)
    for count in range(plan.collectors):
        yield replace(plan, collectors=count)
    for kind in sorted(plan.faults):
        yield replace(plan, faults=plan.faults - {kind})
    for type_ in sorted(plan.types):
        yield replace(plan, types=plan.types - {type_})
    for count in range(plan.plain):
        yield replace(plan, plain=count)
    if plan.quota:
        yield replace(plan, quota=0)
    if plan.deletes:
        yield replace(plan, deletes=False)
    if plan.cache_bytes:
        yield replace(plan, cache_bytes=0)

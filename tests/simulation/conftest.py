"""Simulated runs make much garbage and little that stays: looked at rarely, they take three quarters of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.simulation.run import prepare


@pytest.fixture(scope="session", autouse=True)
def _little_looked_at() -> Iterator[None]:
    """As the processes of ``make sim`` have it."""
    before = gc.get_threshold()
    prepare()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()

"""Servers to talk to, and the rule that no test leaves an unexpected error in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.deployments import deployed
from tests.servers import Server


@pytest.fixture(params=["memory", "real"])
def database(request: pytest.FixtureRequest) -> str | None:
    """A database's URL, or ``None`` for the memory twins."""
    return request.getfixturevalue("database_url") if request.param == "real" else None


@pytest.fixture
async def server(database: str | None, tmp_path: Path) -> AsyncIterator[Server]:
    """A server over either pair of ports."""
    async with deployed(database, tmp_path) as running:
        yield running


@pytest.fixture
async def twin(tmp_path: Path) -> AsyncIterator[Server]:
    """A server over the memory twins only, for what does not depend on the ports."""
    async with deployed(None, tmp_path) as running:
        yield running


@pytest.fixture
def expected_errors(logs: list[dict]) -> Iterator[list[dict]]:
    """Entries of the log that a test expects, added by it; any other error fails it."""
    expected: list[dict] = []
    yield expected
    unexpected = [entry for entry in logs if entry["log_level"] in {"error", "critical"} and entry not in expected]
    assert unexpected == [], unexpected

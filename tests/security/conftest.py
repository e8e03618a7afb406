"""Servers to talk to (see ``tests.serving_fixtures``), and logging as it is outside of tests."""

from collections.abc import Iterator

import pytest
import structlog

from tests.serving_fixtures import database, expected_errors, server, twin

__all__ = ["database", "expected_errors", "restored_logging", "server", "twin"]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Let a test configure the log as the daemon does."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)

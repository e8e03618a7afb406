"""Servers to talk to, as elsewhere."""

from __future__ import annotations

from tests.forked_workers import workers
from tests.serving_fixtures import database, expected_errors, server, twin

__all__ = ["database", "expected_errors", "server", "twin", "workers"]

"""See ``tests.serving_fixtures``."""

from tests.serving_fixtures import database, expected_errors, server, twin

__all__ = ["database", "expected_errors", "server", "twin"]

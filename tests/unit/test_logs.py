"""Logging is never what a push dies of."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from museworkd.telemetry import logs


class Broken(io.StringIO):
    """A terminal that was closed, or a file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def restored():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_log_that_cannot_be_written_is_lost_in_silence(monkeypatch, style):
    monkeypatch.setattr("sys.stderr", Broken())
    logs.configure("info", style)
    structlog.get_logger("x").info("an event", fact=1)


def test_a_log_line_is_one_line_of_json(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", "json")
    structlog.get_logger("x").info("an event", text="two\nlines")
    structlog.get_logger("x").debug("not told")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["text"] == "two\nlines"

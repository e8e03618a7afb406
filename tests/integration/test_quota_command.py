"""``museworkd quota``: how an operator sees what an owner's repositories take up, and sets what they may."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from museworkd.cli.operator_commands import quota_command
from museworkd.config import ConfigError, load
from storage.rows import QUOTA_NONE


@pytest.fixture
def options(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The command sets up a process of its own; this one stays as it was."""
    monkeypatch.setattr("museworkd.cli.operator_commands.configure", lambda *_: None)
    umask = os.umask(0o022)
    yield ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    os.umask(umask)


def run(*arguments: str) -> Result:
    """Run the command without a process of its own."""
    return CliRunner().invoke(quota_command, arguments)


def test_a_quota_is_shown_set_and_left_to_the_default(options: list[str]) -> None:
    default = ["--set", "limits.owner_quota_bytes=700"]
    for arguments, quota, by_default in [
        (["ada"], None, True), (["ada", *default], 700, True), (["ada", "5000", *default], 5000, False),
        (["bob", *default], 700, True), (["ada", "none", *default], None, False), (["ada", "default"], None, True),
    ]:  # fmt: skip
        done = run(*arguments, *options, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == {
            "owner": arguments[0], "used": 0, "reserved": 0, "quota": quota, "by_default": by_default,
        }  # fmt: skip
    shown = run("ada", *options).stdout.split()
    assert [word for word in ("ada", "none", "(default)") if word not in shown] == []


@pytest.mark.parametrize("arguments", [["ada", "0"], ["ada", "-5"], ["ada", "5 GB"], ["ada", "9" * 20], ["api", "5"]])
def test_a_quota_that_cannot_be_is_refused(options: list[str], arguments: list[str]) -> None:
    done = run(*options, "--", *arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")


def test_a_default_of_nothing_is_none_and_less_than_nothing_is_an_error() -> None:
    config, _ = load(None, {}, {"limits.owner_quota_bytes": "0"})
    assert config.limits.owner_quota_bytes == QUOTA_NONE
    with pytest.raises(ConfigError, match=r"limits\.owner_quota_bytes"):
        load(None, {}, {"limits.owner_quota_bytes": "-1"})

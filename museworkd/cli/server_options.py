"""Options of operators' commands: which configuration, and how long something lives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from museworkd.config import Config, ConfigError, Setting, load

_LIFETIME = re.compile(r"(\d+)([smhdw])")
_LIFETIME_MOST_S = 100 * 365 * 86_400
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def lifetime(text: str | None) -> float | None:
    """Read a duration such as ``90d`` in seconds; ``None`` or ``never`` for no end."""
    if text is None or text == "never":
        return None
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise click.BadParameter("a number with s, m, h, d or w, such as 90d; or never")
    seconds = int(match.group(1)) * _UNIT_S[match.group(2)]
    if not 0 < seconds <= _LIFETIME_MOST_S:
        raise click.BadParameter("a lifetime is at least a second and at most a hundred years")
    return float(seconds)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the configuration."""
    options = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file."),
        click.option("--data-dir", type=str, help="Short for --set data_dir=…"),
        click.option("--database-url", type=str, help="Short for --set database.url=…"),
        click.option("--set", "settings", multiple=True, metavar="SECTION.NAME=VALUE", help="Set one setting."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_config(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...],
    **more: str | None,
) -> tuple[Config, list[Setting]]:  # fmt: skip
    """Load the configuration a command's options name."""
    flags: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes SECTION.NAME=VALUE, not {text!r}")
        flags[key] = value
    for name, given in {"data_dir": data_dir, "database.url": database_url, **more}.items():
        if given is not None:
            flags[name.replace("__", ".")] = given
    return load(config_file, None, flags)

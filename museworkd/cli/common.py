"""What all commands share: exit codes, output, and the configuration options."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import trio
from rich.console import Console
from rich.table import Table

from museworkd.cli.endings import end_in_order, exit_by_signal
from museworkd.client.errors import ClientError
from museworkd.config import Config, ConfigError, Setting, load
from storage.errors import IndexUnavailable, SchemaMismatch, StorageError
from wire.errors import Refusal

EXIT_OK = 0
EXIT_USER = 1
"""The user can mend it: a wrong argument, a missing right, a refused push."""
EXIT_USAGE = 2
"""The command line itself is wrong (click's own code)."""
EXIT_INTEGRITY = 3
"""Damaged or unreachable data, a lost connection, a failed verification."""
EXIT_CONFIG = 4
"""The configuration or the database's schema cannot be used."""

P = ParamSpec("P")
T = TypeVar("T")

_LIFETIME = re.compile(r"(\d+)([smhdw])")
_LIFETIME_MOST_S = 100 * 365 * 86_400
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def run(function: Callable[..., Any], *arguments: object) -> Any:
    """Run an async function and turn what it raises into a message and an exit code."""
    try:
        return trio.run(function, *arguments)
    except BaseExceptionGroup as group:
        _fail(_first(group))
    except (ClientError, ConfigError, Refusal, StorageError, OSError, KeyboardInterrupt) as error:
        _fail(error)


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """Give a synchronous command the same endings as :func:`run`."""
    return _guarded(function, terminate=False)


def guarded_client(function: Callable[P, T]) -> Callable[P, T]:
    """Guard a user's command, which ends by SIGTERM as it does by Ctrl-C: nothing half-made is left behind."""
    return _guarded(function, terminate=True)


def _guarded(function: Callable[P, T], *, terminate: bool) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            end_in_order(terminate=terminate)
            return function(*args, **kwargs)
        except (ClientError, ConfigError, Refusal, StorageError, OSError, KeyboardInterrupt) as error:
            _fail(error)
            raise AssertionError from None

    return wrapper


def say(text: str) -> None:
    """Tell a person something."""
    click.echo(text, err=True)


def emit(value: Mapping[str, object] | list[object], as_json: bool, table: Callable[[], Table | str]) -> None:
    """Print a result: JSON, or what a person likes to see."""
    if as_json:
        click.echo(json.dumps(value, ensure_ascii=False, default=str))
        return
    shown = table()
    if isinstance(shown, str):
        click.echo(shown)
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(shown)


def table_of(columns: list[str], rows: list[list[object]]) -> Table:
    """Make a table."""
    table = Table(*columns)
    for column in table.columns[:1]:
        column.no_wrap, column.overflow = True, "ignore"  # what other commands ask for
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    return table


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


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    if group.subgroup(KeyboardInterrupt) is not None:  # what else failed did so because of it
        return KeyboardInterrupt()
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return group


def _fail(error: BaseException) -> None:
    match error:
        case KeyboardInterrupt():
            exit_by_signal()
        case ClientError():
            say(f"error: {error}")
            sys.exit(error.exit_code)
        case Refusal():
            say(f"error: {error.detail}")
            sys.exit(EXIT_USER)
        case ConfigError() | SchemaMismatch():
            say(f"error: {error}")
            sys.exit(EXIT_CONFIG)
        case IndexUnavailable() | StorageError() | OSError():
            say(f"error: {error}")
            sys.exit(EXIT_INTEGRITY)
        case _:
            raise error

"""What commands print: results on stdout, words for people on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str) -> None:
    """Tell a person something."""
    click.echo(text, err=True)


def emit(value: Mapping[str, object] | list[object], as_json: bool, table: Callable[[], Table | str]) -> None:
    """Print a result: JSON, or what a person likes to see."""
    if as_json:
        click.echo(json.dumps(value, default=str))
        return
    shown = table()
    if isinstance(shown, str):
        click.echo(shown)
        return
    from rich.console import Console  # slow to begin, and most commands print a line

    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def table_of(columns: list[str], rows: list[list[object]]) -> Table:
    """Make a table."""
    from rich.table import Table

    table = Table(*columns)
    for column in table.columns[:1]:
        column.no_wrap, column.overflow = True, "ignore"  # what other commands ask for
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    return table


def many(count: int, thing: str) -> str:
    """Count things in words."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def examples(texts: list[str], count: int) -> str:
    """Name some of many things."""
    return f": {', '.join(texts)}{', …' if count > len(texts) else ''}" if texts else ""

"""Options of users' commands, and the remotes they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from museworkd.client.errors import ClientError

if TYPE_CHECKING:
    from museworkd.client.remote import Remote
    from museworkd.client.repository import LocalRepository


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every command has: how much it says, and in which form."""
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout."),
    ):
        command = option(command)
    return command


def token_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the token for the server."""
    return click.option("--token", envvar="MUSEWORKD_TOKEN", help="Bearer token; better given in $MUSEWORKD_TOKEN.")(
        command
    )


def directory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the directory to work in."""
    return click.option(
        "-C", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path(),
        help="Run as if started there.",
    )(command)  # fmt: skip


def find_remote(repository: LocalRepository, named: str, token: str | None) -> Remote:
    """Give the remote that a URL or a name stands for."""
    from museworkd.client.remote import Remote

    if "://" in named:
        return Remote(named, token)
    url = repository.remotes().get(named)
    if url is None:
        raise ClientError(
            f"there is no remote {named!r}; give a URL (`museworkd push URL --set-remote` keeps it as `origin`)"
        )
    return Remote(url, token)

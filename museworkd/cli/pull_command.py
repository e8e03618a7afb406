"""``museworkd pull``."""

from __future__ import annotations

import dataclasses
import getpass
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from museworkd.cli.client_options import directory_option, find_remote, result_options, token_option
from museworkd.cli.guards import EXIT_USER, guarded_client, run
from museworkd.cli.output import emit, many, say

if TYPE_CHECKING:
    from museworkd.client.pull import PullReport


@click.command("pull")
@click.argument("remote", default="origin")
@click.option("--ff-only", is_flag=True, help="Refuse to merge.")
@click.option("--author", help="Author of a merge commit, `Name <address>`; default: this system's user and host.")
@token_option
@directory_option
@result_options
@guarded_client
def pull_command(
    remote: str, ff_only: bool, author: str | None, token: str | None, directory: Path, quiet: bool, as_json: bool
) -> None:
    """Fetch from REMOTE and bring the current branch and its files up to what it has.

    Where both sides went on, files that only one of them changed are merged; the same file changed differently by both
    is a conflict: it is named, nothing is changed, and the exit code is 1. Files you have changed are left alone.
    """
    from museworkd.client.progress import meter_for
    from museworkd.client.pull import pull
    from museworkd.client.repository import LocalRepository
    from storage.environment import SystemEnvironment

    with LocalRepository.find(directory) as repository:
        where = find_remote(repository, remote, token)
        name = "origin" if "://" in remote else remote
        who = author or f"{getpass.getuser()} <{getpass.getuser()}@{socket.gethostname()}>"

        async def inside() -> PullReport:
            return await pull(
                repository, where, meter_for(quiet=quiet), name=name, author=who, fast_forward_only=ff_only,
                environment=SystemEnvironment(),
            )  # fmt: skip

        report: PullReport = run(inside)
    for path in report.conflicts:
        say(f"conflict: {path!a}")
    emit(dataclasses.asdict(report), as_json, lambda: _line(report))
    if report.conflicts:
        raise SystemExit(EXIT_USER)


def _line(report: PullReport) -> str:
    if report.conflicts:
        return f"{report.branch}: {many(len(report.conflicts), 'conflict')}; nothing was merged"
    files = f", {many(report.files, 'file')} changed" if report.files else ""
    return f"{report.branch}: {report.result}, at {report.head}{files}"

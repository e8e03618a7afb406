"""``museworkd push``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from museworkd.cli.client_options import directory_option, find_remote, result_options, token_option
from museworkd.cli.guards import EXIT_OK, EXIT_USER, EXPECTED, Ending, ending_of, guarded_client, run
from museworkd.cli.output import emit, many, say
from museworkd.client.errors import ClientError
from museworkd.client.push_report import Lease, Move, PushReport, Way
from wire.errors import Refusal
from wire.ids import format_id, parse_id

if TYPE_CHECKING:
    from museworkd.client.remote import Remote
    from museworkd.client.repository import LocalRepository


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """What the options ask for, for every branch alike."""

    force: bool
    lease: Lease | None
    way: Way
    dry_run: bool
    quiet: bool


@click.command("push")
@click.argument("remote", default="origin")
@click.option("--branch", "-b", "branches", multiple=True, help="Branch to push; the current one by default.")
@click.option("--all", "all_branches", is_flag=True, help="Push every branch.")
@click.option("--force", is_flag=True, help="Move the branch even if commits are lost there.")
@click.option("--expect", metavar="ID|none", help="Move it only from here (force-with-lease); none: it must be new.")
@click.option("--set-remote", is_flag=True, help="Keep the URL as the remote `origin`.")
@click.option(
    "--dry-run", "-n", is_flag=True, help="Send nothing; say what would be sent, and what becomes of the branch."
)
@click.option(
    "--way",
    type=click.Choice([way.value for way in Way]),
    default=Way.AUTO.value,
    show_default=True,
    help="How the bytes travel: a stream of frames, object by object to presigned URLs, one mpack file, or by what "
    "there is to send.",
)
@token_option
@directory_option
@result_options
@guarded_client
def push_command(
    remote: str, branches: tuple[str, ...], all_branches: bool, force: bool, expect: str | None, set_remote: bool,
    dry_run: bool, way: str, token: str | None, directory: Path, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Push branches to REMOTE, a URL or the name of a remote. Tags stay here.

    A push that is cut goes on by itself. One that was given up, or killed, goes on when the same command is run again:
    what has arrived is not sent twice.

    Each branch is tried, also when one before it was refused. Exit code 1 when any was, 3 when any was lost on the way
    or is damaged. A dry run ends with exit code 1 when the server would refuse.
    """
    if all_branches and branches:
        raise click.UsageError("--all and --branch exclude each other")
    if expect is not None and (all_branches or len(branches) > 1):
        raise click.UsageError("--expect is about one branch; push the branches one by one")
    if set_remote and dry_run:
        raise click.UsageError("--dry-run changes nothing, --set-remote does")
    from museworkd.client.repository import LocalRepository

    with LocalRepository.find(directory) as repository:
        where = find_remote(repository, remote, token)
        if set_remote:
            repository.set_remote("origin", where.url)
        lease = None
        if expect is not None:
            lease = Lease(None if expect == "none" else _parse_expected(repository, expect))
        wanted = _Wanted(force, lease, Way(way), dry_run, quiet)
        named = list(repository.branches()) if all_branches else list(branches) or [repository.head_branch]
        entries, exit_code = _push_each(repository, where, named, wanted, show=not as_json)
    if as_json:
        emit({"pushes": entries}, True, str)
    if exit_code:
        raise SystemExit(exit_code)


def _push_each(
    repository: LocalRepository, remote: Remote, branches: list[str], wanted: _Wanted, *, show: bool
) -> tuple[list[dict[str, object]], int]:
    """Push one branch after the other; gives what is told of each, and the exit code."""
    entries: list[dict[str, object]] = []
    exit_code = EXIT_OK
    supposed: dict[str, bytes] = {}
    for branch in branches:
        try:
            report: PushReport = run(_push_one, repository, remote, branch, wanted, supposed)
            if not wanted.dry_run:
                _remember(repository, remote, branch)
        except EXPECTED as error:
            ending = ending_of(error)
            exit_code = max(exit_code, ending.exit_code)
            say(f"error: {ending.detail}" if len(branches) == 1 else f"error: {branch}: {ending.detail}")
            entries.append(_failed(repository, branch, wanted, ending))
            continue
        if Move(report.move).refused:
            exit_code = max(exit_code, EXIT_USER)
        elif wanted.dry_run:
            supposed[branch] = repository.branches()[branch]
        entries.append(dataclasses.asdict(report))
        if show:
            click.echo(_line(report))
    return entries, exit_code


def _failed(repository: LocalRepository, branch: str, wanted: _Wanted, ending: Ending) -> dict[str, object]:
    head = repository.branches().get(branch)
    shown = None if head is None else format_id(head, repository.scheme)
    entry: dict[str, object] = {"branch": branch, "head": shown, "dry_run": wanted.dry_run}
    return {**entry, "error": ending.code, "detail": ending.detail}


async def _push_one(
    repository: LocalRepository, remote: Remote, branch: str, wanted: _Wanted, supposed: Mapping[str, bytes]
) -> PushReport:
    from museworkd.client.progress import meter_for
    from museworkd.client.push import push
    from storage.environment import SystemEnvironment

    return await push(
        repository, remote, branch, meter_for(quiet=wanted.quiet), force=wanted.force, lease=wanted.lease,
        way=wanted.way, dry_run=wanted.dry_run, supposed=supposed, environment=SystemEnvironment(),
    )  # fmt: skip


def _remember(repository: LocalRepository, remote: Remote, branch: str) -> None:
    for name, url in repository.remotes().items():
        if url == remote.url:
            repository.set_remote_branch(name, branch, repository.branches()[branch])


def _parse_expected(repository: LocalRepository, text: str) -> bytes:
    try:
        return parse_id(text, repository.scheme, "--expect")
    except Refusal as refusal:
        raise ClientError(refusal.detail) from refusal


_MOVES = {
    Move.NONE: "the branch stays where it is",
    Move.CREATE: "the branch would be made",
    Move.FAST_FORWARD: "the branch would move",
    Move.FORCE: "the branch would move, and commits would be lost there",
    Move.NON_FAST_FORWARD: "would be refused (non_fast_forward): the branch has commits that are not in this one",
    Move.HEAD_MOVED: "would be refused (head_moved): the branch is not where it is expected to be",
    Move.UNKNOWN: "whether the branch may move, the server has to say: this repository is shallow",
}


def _line(report: PushReport) -> str:
    if report.up_to_date:
        return f"{report.branch}: up to date at {report.head}"
    line = f"{report.branch} → {report.head}: {many(report.commits, 'commit')}, {many(report.blobs, 'blob')}, "
    if report.dry_run:
        return f"{line}{report.blob_bytes / 1e6:.1f} MB to send by {report.way}; {_MOVES[Move(report.move)]}"
    line += f"{report.sent_bytes / 1e6:.1f} MB sent"
    return line + (f", {many(report.blobs_spared, 'blob')} had arrived before" if report.blobs_spared else "")

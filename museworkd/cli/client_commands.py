"""What a user of a repository does: import, push, clone, fetch, verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from museworkd.cli.common import EXIT_INTEGRITY, EXIT_USER, emit, guarded_client, run, say
from museworkd.client.checkout import checkout
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone, fetch
from museworkd.client.git_import import ImportReport, import_git
from museworkd.client.progress import meter_for
from museworkd.client.push import Lease, PushReport, Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import VerifyReport, compare_with_git, verify
from wire.errors import Refusal
from wire.ids import parse_id


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout."),
    ):
        command = option(command)
    return command


def _token_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--token", envvar="MUSEWORKD_TOKEN", help="Bearer token; better given in $MUSEWORKD_TOKEN.")(
        command
    )


def _directory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-C", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path(),
        help="Run as if started there.",
    )(command)  # fmt: skip


@click.command("git-import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@_common
@guarded_client
def import_command(source: Path, target: Path, quiet: bool, as_json: bool) -> None:
    """Import a git repository or bundle SOURCE into a new Muse repository TARGET.

    TARGET becomes a repository when everything is in it. Tags are kept there and are not pushed.
    """
    with LocalRepository.fresh(target) as repository:
        report: ImportReport = run(import_git, source, repository, meter_for(quiet=quiet))
    for line in _import_notes(report):
        say(f"note: {line}")
    emit(
        dataclasses.asdict(report),
        as_json,
        lambda: _import_line(report),
    )


@click.command("push")
@click.argument("remote", default="origin")
@click.option("--branch", "-b", "branches", multiple=True, help="Branch to push; the current one by default.")
@click.option("--all", "all_branches", is_flag=True, help="Push every branch.")
@click.option("--force", is_flag=True, help="Move the branch even if commits are lost there.")
@click.option("--expect", metavar="ID|none", help="Move it only from here (force-with-lease); none: it must be new.")
@click.option("--set-remote", is_flag=True, help="Keep the URL as the remote `origin`.")
@click.option(
    "--way",
    type=click.Choice([way.value for way in Way]),
    default=Way.AUTO.value,
    show_default=True,
    help="How the bytes travel: a stream of frames, one mpack file, or by what there is to send.",
)
@_token_option
@_directory_option
@_common
@guarded_client
def push_command(
    remote: str, branches: tuple[str, ...], all_branches: bool, force: bool, expect: str | None, set_remote: bool,
    way: str, token: str | None, directory: Path, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Push branches to REMOTE, a URL or the name of a remote. Tags stay here."""
    if all_branches and branches:
        raise click.UsageError("--all and --branch exclude each other")
    if expect is not None and (all_branches or len(branches) > 1):
        raise click.UsageError("--expect is about one branch; push the branches one by one")
    reports: list[PushReport] = []
    with LocalRepository.find(directory) as repository:
        where = _remote(repository, remote, token)
        if set_remote:
            repository.set_remote("origin", where.url)
        lease = None
        if expect is not None:
            lease = Lease(None if expect == "none" else _parse_expected(repository, expect))
        wanted = list(repository.branches()) if all_branches else list(branches) or [repository.head_branch]
        for branch in wanted:
            report = run(_push_one, repository, where, branch, quiet, force, lease, Way(way))
            for name, url in repository.remotes().items():
                if url == where.url:
                    repository.set_remote_branch(name, branch, repository.branches()[branch])
            reports.append(report)
            if not as_json:
                click.echo(_push_line(report))
    if as_json:
        emit({"pushes": [dataclasses.asdict(report) for report in reports]}, True, str)


async def _push_one(
    repository: LocalRepository, remote: Remote, branch: str, quiet: bool, force: bool, lease: Lease | None, way: Way
) -> PushReport:
    return await push(repository, remote, branch, meter_for(quiet=quiet), force=force, lease=lease, way=way)


@click.command("clone")
@click.argument("url")
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--depth", type=click.IntRange(min=1), help="Only the newest commits of each branch.")
@click.option("--no-checkout", is_flag=True, help="Do not write the files of the default branch.")
@_token_option
@_common
@guarded_client
def clone_command(
    url: str, target: Path | None, depth: int | None, no_checkout: bool, token: str | None, quiet: bool, as_json: bool
) -> None:
    """Clone the repository at URL into TARGET; exit code 3 when it is not whole.

    Every path is written as a plain file: a symbolic link of git's as a file that holds its target, an executable
    without its mode. Both are kept in commit metadata.
    """
    remote = Remote(url, token)
    target = target or Path(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    meter = meter_for(quiet=quiet)

    async def inside() -> Any:
        report = await clone(remote, target, meter, depth=depth)
        files = 0
        if not no_checkout:
            with LocalRepository(target) as repository:
                files = await checkout(repository, meter)
        return report, files

    report, files = run(inside)
    if not report.branches:
        say("note: the repository is empty")
    emit(
        {**dataclasses.asdict(report), "files": files, "target": str(target)},
        as_json,
        lambda: (
            f"cloned {_many(report.commits, 'commit')} and {_many(report.blobs, 'blob')} "
            f"({report.received_bytes / 1e6:.1f} MB) into {target}, {_many(files, 'file')} checked out"
            + (f"; shallow, {_many(report.shallow, 'commit')} without parents" if report.shallow else "")
        ),
    )


@click.command("fetch")
@click.argument("remote", default="origin")
@click.option("--depth", type=click.IntRange(min=1), help="No more than the newest commits of each branch.")
@_token_option
@_directory_option
@_common
@guarded_client
def fetch_command(
    remote: str, depth: int | None, token: str | None, directory: Path, quiet: bool, as_json: bool
) -> None:
    """Bring what REMOTE has and this repository lacks; local branches stay where they are.

    A shallow repository gets the rest of its history, or as much of it as --depth says.
    """
    with LocalRepository.find(directory) as repository:
        where = _remote(repository, remote, token)

        async def inside() -> Any:
            return await fetch(repository, where, meter_for(quiet=quiet), depth=depth)

        report = run(inside)
    emit(
        dataclasses.asdict(report),
        as_json,
        lambda: (
            f"fetched {_many(report.commits, 'commit')} and {_many(report.blobs, 'blob')}"
            + "".join(f"\n  {branch} → {head}" for branch, head in report.branches.items())
        ),
    )


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--git", "source", type=click.Path(path_type=Path), help="Compare with this git repository or bundle.")
@_common
@guarded_client
def verify_command(directory: Path, source: Path | None, quiet: bool, as_json: bool) -> None:
    """Prove every byte of a local repository, and compare the files that were checked out.

    Exit code 3 when anything of the repository is wrong; 1 when only the work tree differs from the commit it was
    checked out from, which is no damage: the files are yours to change.
    """
    meter = meter_for(quiet=quiet)
    with LocalRepository.find(directory) as repository:
        report: VerifyReport = run(verify, repository, meter)
        if source is not None and not report.problem_count:
            compared: VerifyReport = run(compare_with_git, repository, source, meter)
            report.git_commits, report.git_files = compared.git_commits, compared.git_files
            report.problems += compared.problems
            report.problem_count += compared.problem_count
    for problem in report.problems:
        say(f"problem: {problem}")
    for change in report.work_tree_changes:
        say(f"work tree differs: {change}")
    emit(dataclasses.asdict(report), as_json, lambda: _verify_line(report, source))
    if report.problem_count:
        raise SystemExit(EXIT_INTEGRITY)
    if report.work_tree_change_count:
        raise SystemExit(EXIT_USER)


def _remote(repository: LocalRepository, named: str, token: str | None) -> Remote:
    if "://" in named:
        return Remote(named, token)
    url = repository.remotes().get(named)
    if url is None:
        raise ClientError(f"there is no remote {named!r}; give a URL, and --set-remote to keep it")
    return Remote(url, token)


def _parse_expected(repository: LocalRepository, text: str) -> bytes:
    try:
        return parse_id(text, repository.scheme, "--expect")
    except Refusal as refusal:
        raise ClientError(refusal.detail) from refusal


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _examples(paths: list[str], count: int) -> str:
    return f": {', '.join(paths)}{', …' if count > len(paths) else ''}" if paths else ""


def _import_line(report: ImportReport) -> str:
    extra = f" and {report.octopus_commits} made of octopus merges" if report.octopus_commits else ""
    line = (
        f"imported {_many(report.commits, 'commit')}{extra}, {_many(report.snapshots, 'snapshot')}, "
        f"{_many(report.blobs, 'blob')} ({report.blob_bytes / 1e6:.1f} MB), "
        f"{'branch' if len(report.branches) == 1 else 'branches'}: {', '.join(report.branches)}"
    )
    return line + (f"; {_many(report.tags, 'tag')}, kept here: tags are not pushed" if report.tags else "")


def _import_notes(report: ImportReport) -> list[str]:
    escaped = _examples(report.escaped_examples, report.escaped_paths)
    unportable = _examples([ascii(path) for path in report.unportable_examples], report.unportable_paths)
    notes = [
        (report.executables, "executable file", "the mode is kept in commit metadata; a checkout writes plain files"),
        (report.symlinks, "symbolic link", "a checkout writes a plain file that holds the target; the mode is kept in "
         "commit metadata"),
        (report.submodules, "submodule change", "kept in commit metadata"),
        (report.escaped_paths, "path", f"had to be escaped, the original is kept in commit metadata{escaped}"),
        (report.unportable_paths, "path",
         f"not portable, push to a repository made with --relaxed-paths{unportable}"),
        (report.octopus_merges, "octopus merge", f"made a chain of merges of two; {report.octopus_commits} more "
         "commits here than in git"),
        (report.only_tagged_commits, "commit", "on no branch, only below tags: kept here and not pushed"),
    ]  # fmt: skip
    lines = [f"{_many(count, thing)}: {text}" for count, thing, text in notes if count]
    return lines + [f"left out: {reason}" for reason in report.skipped_refs]


def _push_line(report: PushReport) -> str:
    if report.up_to_date:
        return f"{report.branch}: up to date at {report.head}"
    return (
        f"{report.branch} → {report.head}: {_many(report.commits, 'commit')}, {_many(report.blobs, 'blob')}, "
        f"{report.sent_bytes / 1e6:.1f} MB sent"
    )


def _verify_line(report: VerifyReport, source: Path | None) -> str:
    line = f"{_many(report.commits, 'commit')}, {_many(report.snapshots, 'snapshot')}, {_many(report.blobs, 'blob')}"
    if report.shallow:
        line += f", shallow: {_many(report.shallow, 'commit')} without parents"
    if source:
        line += f", {_many(report.git_files, 'file')} of {_many(report.git_commits, 'commit')} compared with git"
    ending = _many(report.problem_count, "problem") if report.problem_count else "all sound"
    if report.work_tree_change_count:
        ending += f"; the work tree differs in {_many(report.work_tree_change_count, 'path')}"
    elif report.work_tree_files:
        ending += f"; {_many(report.work_tree_files, 'file')} of the work tree as checked out"
    return f"{line}: {ending}"

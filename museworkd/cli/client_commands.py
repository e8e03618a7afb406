"""What a user of a repository does besides pushing: import, clone, fetch, verify. Each imports what it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from museworkd.cli.client_options import directory_option, find_remote, result_options, token_option
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_USER, guarded_client, run
from museworkd.cli.output import emit, examples, many, say

if TYPE_CHECKING:
    from museworkd.client.git_import import ImportReport
    from museworkd.client.verify import VerifyReport


@click.command("git-import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@result_options
@guarded_client
def import_command(source: Path, target: Path, quiet: bool, as_json: bool) -> None:
    """Import a git repository or bundle SOURCE into a new Muse repository TARGET.

    TARGET becomes a repository when everything is in it. Tags are kept there and are not pushed.
    """
    from museworkd.client.git_import import import_git
    from museworkd.client.progress import meter_for
    from museworkd.client.repository import LocalRepository

    with LocalRepository.fresh(target) as repository:
        report: ImportReport = run(import_git, source, repository, meter_for(quiet=quiet))
    for line in _import_notes(report):
        say(f"note: {line}")
    emit(
        dataclasses.asdict(report),
        as_json,
        lambda: _import_line(report),
    )


@click.command("clone")
@click.argument("url")
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--depth", type=click.IntRange(min=1), help="Only the newest commits of each branch.")
@click.option("--no-checkout", is_flag=True, help="Do not write the files of the default branch.")
@token_option
@result_options
@guarded_client
def clone_command(
    url: str, target: Path | None, depth: int | None, no_checkout: bool, token: str | None, quiet: bool, as_json: bool
) -> None:
    """Clone the repository at URL into TARGET; exit code 3 when it is not whole.

    Every path is written as a plain file: a symbolic link of git's as a file that holds its target, an executable
    without its mode. Both are kept in commit metadata.
    """
    from museworkd.client.checkout import checkout
    from museworkd.client.errors import IntegrityError
    from museworkd.client.fetch import clone, head_branch
    from museworkd.client.progress import meter_for
    from museworkd.client.remote import Remote
    from museworkd.client.repository import LocalRepository

    remote = Remote(url, token)
    target = target or Path(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    meter = meter_for(quiet=quiet)

    async def inside() -> Any:
        report = await clone(remote, target, meter, depth=depth)
        files = 0
        if not no_checkout:
            with LocalRepository(target) as repository:
                try:
                    files = await checkout(repository, meter)
                except OSError as error:
                    raise IntegrityError(
                        f"the repository {target} is whole, but its files could not all be written: {error}"
                    ) from error
        return report, files

    report, files = run(inside)
    if not report.branches:
        say("note: the repository is empty")
    elif report.default_branch not in report.branches:
        chosen = head_branch(report.branches, report.default_branch)
        say(f"note: the default branch {report.default_branch!r} does not exist there; this clone is on {chosen!r}")
    emit(
        {**dataclasses.asdict(report), "files": files, "target": str(target)},
        as_json,
        lambda: (
            f"cloned {many(report.commits, 'commit')} and {many(report.blobs, 'blob')} "
            f"({report.received_bytes / 1e6:.1f} MB) into {target}, {many(files, 'file')} checked out"
            + (f"; shallow, {many(report.shallow, 'commit')} without parents" if report.shallow else "")
        ),
    )


@click.command("fetch")
@click.argument("remote", default="origin")
@click.option("--depth", type=click.IntRange(min=1), help="No more than the newest commits of each branch.")
@click.option("--prune", is_flag=True, help="Forget what is known of branches that REMOTE does not have any more.")
@token_option
@directory_option
@result_options
@guarded_client
def fetch_command(
    remote: str, depth: int | None, prune: bool, token: str | None, directory: Path, quiet: bool, as_json: bool
) -> None:
    """Bring what REMOTE has and this repository lacks; local branches stay where they are.

    A shallow repository gets the rest of its history, or as much of it as --depth says.
    """
    from museworkd.client.fetch import fetch
    from museworkd.client.progress import meter_for
    from museworkd.client.repository import LocalRepository

    with LocalRepository.find(directory) as repository:
        where = find_remote(repository, remote, token)

        async def inside() -> Any:
            return await fetch(repository, where, meter_for(quiet=quiet), depth=depth, prune=prune)

        report = run(inside)
    emit(
        dataclasses.asdict(report),
        as_json,
        lambda: (
            f"fetched {many(report.commits, 'commit')} and {many(report.blobs, 'blob')}"
            + "".join(f"\n  {branch} → {head}" for branch, head in report.branches.items())
            + "".join(f"\n  {branch} is gone there" for branch in report.pruned)
        ),
    )


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--git", "source", type=click.Path(path_type=Path), help="Compare with this git repository or bundle.")
@result_options
@guarded_client
def verify_command(directory: Path, source: Path | None, quiet: bool, as_json: bool) -> None:
    """Prove every byte of a local repository, and compare the files that were checked out.

    Exit code 3 when anything of the repository is wrong; 1 when only the work tree differs from the commit it was
    checked out from, which is no damage: the files are yours to change.
    """
    from museworkd.client.progress import meter_for
    from museworkd.client.repository import LocalRepository
    from museworkd.client.verify import verify

    meter = meter_for(quiet=quiet)
    with LocalRepository.find(directory) as repository:
        report: VerifyReport = run(verify, repository, meter)
        if source is not None and not report.problem_count:
            from museworkd.client.git_comparison import compare_with_git

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


def _import_line(report: ImportReport) -> str:
    extra = f" and {report.octopus_commits} made of octopus merges" if report.octopus_commits else ""
    line = (
        f"imported {many(report.commits, 'commit')}{extra}, {many(report.snapshots, 'snapshot')}, "
        f"{many(report.blobs, 'blob')} ({report.blob_bytes / 1e6:.1f} MB), "
        f"{'branch' if len(report.branches) == 1 else 'branches'}: {', '.join(report.branches)}"
    )
    return line + (f"; {many(report.tags, 'tag')}, kept here: tags are not pushed" if report.tags else "")


def _import_notes(report: ImportReport) -> list[str]:
    escaped = examples(report.escaped_examples, report.escaped_paths)
    unportable = examples([ascii(path) for path in report.unportable_examples], report.unportable_paths)
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
    lines = [f"{many(count, thing)}: {text}" for count, thing, text in notes if count]
    return lines + [f"left out: {reason}" for reason in report.skipped_refs]


def _verify_line(report: VerifyReport, source: Path | None) -> str:
    line = f"{many(report.commits, 'commit')}, {many(report.snapshots, 'snapshot')}, {many(report.blobs, 'blob')}"
    if report.shallow:
        line += f", shallow: {many(report.shallow, 'commit')} without parents"
    if source:
        line += f", {many(report.git_files, 'file')} of {many(report.git_commits, 'commit')} compared with git"
    ending = many(report.problem_count, "problem") if report.problem_count else "all sound"
    if report.work_tree_change_count:
        ending += f"; the work tree differs in {many(report.work_tree_change_count, 'path')}"
    elif report.work_tree_files:
        ending += f"; {many(report.work_tree_files, 'file')} of the work tree as checked out"
    return f"{line}: {ending}"

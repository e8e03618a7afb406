"""``museworkd gc`` and ``museworkd scrub``: upkeep that otherwise comes by itself, now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from museworkd.cli.guards import guarded
from museworkd.cli.job_following import enqueue, exit_code, repositories_of, repository_number, say_end, seconds, shown
from museworkd.cli.operator_commands import with_index
from museworkd.cli.output import emit
from museworkd.cli.server_options import config_options, load_config
from museworkd.config import Config
from storage.collection_rows import HANDOVER_S
from storage.index import Index
from storage.job_rows import DEPLOYMENT, Job, JobFilter
from storage.rows import Repository

Found = tuple[list[Job], dict[int, Repository]]


def _waiting(command: Callable[..., Any]) -> Callable[..., Any]:
    wait_s = click.option(
        "--wait-s", type=float, callback=seconds, default=86_400.0, show_default=True, help="For so long at most."
    )
    return click.option("--wait", is_flag=True, help="Follow the job to its end.")(wait_s(command))


@click.command("gc")
@click.argument("name", metavar="[OWNER/NAME]", required=False)
@click.option("--now", is_flag=True, help="Take what nobody reaches at once, not after jobs.gc_keep_s.")
@click.option("--dry-run", is_flag=True, help="Take nothing, only tell what would be taken.")
@click.option("--until-deleted", is_flag=True, help="Stay until what was found can be deleted: five minutes or more.")
@_waiting
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def gc_command(
    name: str | None, now: bool, dry_run: bool, until_deleted: bool, wait: bool, wait_s: float,
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Enqueue a collection of what nobody needs: of one repository, or of the deployment.

    What is found is deleted once nobody can rely on it any more: by a later collection, or with --until-deleted by
    this one. What is taken from a repository is held for two hours more, --now or not: pushes may have been told that
    it need not be sent.

    With --wait the exit code is 0 when it is done, 1 when it was cancelled, and 3 when it failed or took too long.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    payload: dict[str, object] = {"dry_run": dry_run}
    if now:
        payload["keep_s"] = 0
    if until_deleted:
        payload["wait"] = True
    _enqueue(config, "gc", name, payload, wait_s if wait else None, as_json)


@click.command("scrub")
@click.option("--now", is_flag=True, help="Begin one; without it the last one is shown.")
@_waiting
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def scrub_command(
    now: bool, wait: bool, wait_s: float, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Read and hash everything that is stored, or show what that has found; nothing is deleted.

    With --wait the exit code is 0 when it is done, 1 when it was cancelled, and 3 when it failed or took too long.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    if now:
        _enqueue(config, "scrub", None, {}, wait_s if wait else None, as_json)
        return
    found = with_index(config, lambda index: index.list_jobs(JobFilter(DEPLOYMENT, "scrub"), 1))
    value = shown(found[0], {}) if found else None
    emit({"scrub": value}, as_json, lambda: "there was none yet" if value is None else _told(value))


def _enqueue(
    config: Config, type_: str, name: str | None, payload: dict[str, object], wait_s: float | None, as_json: bool
) -> None:
    async def work(index: Index) -> Found:
        repo = await repository_number(index, name)
        job = await enqueue(index, repo, type_, payload, wait_s)
        return [job], await repositories_of(index, [job])

    (job,), repositories = with_index(config, work)
    followed = wait_s is not None
    value = shown(job, repositories)
    emit(value, as_json, lambda: _told(value))
    say_end(job, followed)
    raise SystemExit(exit_code(job, followed))


def _told(job: dict[str, object]) -> str:
    lines = [f"job {job['job']} {job['type']}: {job['state']}"]
    result = job["result"]
    if isinstance(result, dict):
        lines += [f"  {name}: {value}" for name, value in result.items()]
        if result.get("released_bytes") and not result.get("dry_run"):
            lines.append(f"  released bytes are held for {HANDOVER_S / 3600:g} h; a collection after that deletes them")
    return "\n".join(lines)

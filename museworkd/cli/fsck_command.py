"""``museworkd fsck``: do index and object store say the same, and does every chain hold? Also beside daemons."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actors.fetch.assemble import FetchServices
from actors.fsck.run import FsckOptions, fsck
from actors.jobs.handler import JobServices
from actors.jobs.settings import JobSettings
from museworkd.assembly import open_deployment, open_store
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_OK, guarded, run
from museworkd.cli.operator_commands import repository_name
from museworkd.cli.output import emit, many, table_of
from museworkd.cli.server_options import config_options, load_config
from museworkd.client.progress import Meter, meter_for
from museworkd.config import Config
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from storage.slots import Slots
from wire.errors import Code, Refusal
from wire.limits import MIB

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_MOST = 200
"""Problems in the table; ``--json`` has more."""


def rate(context: click.Context, parameter: click.Parameter, value: float) -> float:  # noqa: ARG001 - click's
    """Refuse a rate below nothing; gives bytes per second."""
    if not 0 <= value < float("inf"):
        raise click.BadParameter("a number of MiB per second, 0 for no limit")
    return value * MIB


def with_services(config: Config, work: Callable[[JobServices], Awaitable[Any]], bytes_per_s: float = 0.0) -> Any:
    """Do something with index and store of a configuration, also beside a running daemon."""

    async def inside() -> Any:
        environment = SystemEnvironment()
        async with open_deployment(config, environment) as deployment:
            store = await open_store(config, environment)
            spool_dir = config.data_dir / "spool"
            index, limits = deployment.index, config.limits
            fetch = FetchServices(index, store, environment, spool_dir, limits, Slots(1))
            settings = JobSettings(scrub_bytes_per_s=int(bytes_per_s))
            return await work(JobServices(index, store, environment, spool_dir, limits, fetch, settings))

    configure("error", "auto")  # on stderr, as all words for people are
    return run(inside)


@click.command("fsck")
@click.option("--deep", is_flag=True, help="Read and hash every byte that is stored.")
@click.option("--repo", "name", metavar="OWNER/NAME", help="Look at one repository only.")
@click.option("--repair", is_flag=True, help="Mend what another copy allows; nothing is ever deleted.")
@click.option("--rate", type=float, default=0.0, callback=rate, help="MiB per second that --deep reads; 0: no limit.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def fsck_command(
    deep: bool, name: str | None, repair: bool, rate: float, quiet: bool, config_file: Path | None,
    data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Check the index against the object store, both ways, and every chain of history; only --repair changes anything.

    It may run beside daemons. The exit code is 0 when everything is whole, or was mended by --repair, and 3 when
    problems are left.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    meter: Meter = meter_for(quiet=quiet)

    async def work(services: JobServices) -> dict[str, object]:
        repository = None
        if name is not None:
            owner, slug = repository_name(name)
            repository = await services.index.find_repository(owner, slug)
            if repository is None:
                raise Refusal(Code.NOT_FOUND, f"there is no repository {owner}/{slug}")
        return (await fsck(services, FsckOptions(deep, repair, repository), meter)).shown()

    shown = with_services(config, work, rate)
    emit(shown, as_json, lambda: _table(shown))
    raise SystemExit(EXIT_OK if shown["whole"] else EXIT_INTEGRITY)


def _table(shown: dict[str, Any]) -> Table | str:
    checked = ", ".join(f"{count} {what}" for what, count in shown["checked"].items())
    explained = ", ".join(f"{count} {what}" for what, count in shown["explained"].items() if count)
    words = [f"checked: {checked}"]
    if explained:
        words.append(f"in the store and not named by the index, as it may be: {explained}")
    if not shown["problems"]:
        return "\n".join([*words, "everything is whole"])
    found = shown["found"]
    rows = [
        [
            one["problem"], one["repository"] or "", one["key"] or one["object_id"] or "",
            "yes" if one["mended"] else "no", one["detail"],
        ]
        for one in found[:SHOWN_MOST]
    ]  # fmt: skip
    if shown["problems"] > len(rows):
        words.append(f"the first {len(rows)} of {shown['problems']} problems are shown")
    words.append(f"{many(shown['problems'], 'problem')}, {shown['mended']} mended, {shown['left']} left")
    table = table_of(["problem", "repository", "what", "mended", "detail"], rows)
    table.caption = "\n".join(words)
    return table

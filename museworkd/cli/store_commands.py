"""``museworkd store check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from museworkd.cli.guards import EXIT_CONFIG, EXIT_INTEGRITY, EXIT_OK, guarded, run
from museworkd.cli.output import emit, say, table_of
from museworkd.cli.server_options import config_options, load_config
from museworkd.config import Config

if TYPE_CHECKING:
    from storage.objects.check import Finding


@click.group("store")
def store_group() -> None:
    """Look at the object store."""


@store_group.command("check")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def check_command(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Try out what is relied on in the object store, with contents that are removed again.

    The exit code is 0 when the store can be used, though perhaps not for everything; 4 when it cannot; and 3 when it
    does not answer now.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    where = str(config.store_path) if config.s3 is None else f"{config.store.url} at {config.s3.origin.url}"
    findings: list[Finding] = run(_findings, config)
    outcomes = {finding.outcome.value for finding in findings}
    usable = not outcomes & {"refused", "unreachable"}
    value = {
        "store": where,
        "usable": usable,
        "checks": [
            {"name": f.name, "relied_on_by": f.relied_on_by, "outcome": f.outcome.value, "detail": f.detail}
            for f in findings
        ],
    }
    rows: list[list[object]] = [[f.name, f.outcome.value, f.relied_on_by, f.detail] for f in findings]
    emit(value, as_json, lambda: table_of(["check", "outcome", "relied on by", "detail"], rows))
    if usable:
        say(f"{where} can be used" + ("" if outcomes == {"ok"} else ", without what is told above"))
    else:
        say(f"{where} " + ("cannot be used" if "refused" in outcomes else "does not answer now"))
    raise SystemExit(EXIT_CONFIG if "refused" in outcomes else EXIT_OK if usable else EXIT_INTEGRITY)


async def _findings(config: Config) -> list[Finding]:
    from storage.environment import SystemEnvironment

    environment = SystemEnvironment()
    if config.s3 is not None:
        from museworkd.s3_opening import check_s3

        return await check_s3(config, config.s3, environment)
    from storage.objects.check import check_port
    from storage.objects.filesystem import FilesystemStore

    store = await FilesystemStore.open(config.store_path, config.store.sync, environment)
    return await check_port(store, environment)

"""``museworkd config check`` and ``config show``."""

from __future__ import annotations

from pathlib import Path

import click

from museworkd.cli.guards import guarded
from museworkd.cli.output import emit, table_of
from museworkd.cli.server_options import config_options, load_config


@click.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("check")
@config_options
@guarded
def check(config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...]) -> None:
    """Check the configuration; exit code 4 when it cannot be used."""
    load_config(config_file, data_dir, database_url, settings)
    click.echo("the configuration is sound")


@config_group.command("show")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def show(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Show every setting with where its value comes from."""
    _, found = load_config(config_file, data_dir, database_url, settings)
    emit(
        {setting.key: {"value": setting.shown, "origin": setting.origin} for setting in found},
        as_json,
        lambda: table_of(["setting", "value", "origin"], [[s.key, s.shown, s.origin] for s in found]),
    )

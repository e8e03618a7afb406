"""``museworkd serve``."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import click

from museworkd.cli.guards import guarded, run
from museworkd.cli.output import say
from museworkd.cli.server_options import config_options, load_config
from museworkd.config import ROLES, ConfigError
from museworkd.daemon import run_daemon
from museworkd.telemetry.logs import configure


@click.command("serve")
@config_options
@click.option("--bind", type=str, help="Short for --set server.bind=…")
@click.option("--role", type=click.Choice(ROLES), help="Short for --set server.role=…")
@click.option("--json", "as_json", is_flag=True, help="Announce URL and process on stdout as JSON.")
@guarded
def serve_command(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...],
    bind: str | None, role: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve until Ctrl-C or SIGTERM, which drain; a second one stops at once.

    Any number of daemons may serve one database and one store. By default each answers clients and does jobs;
    with `--role web` it leaves jobs to others, with `--role worker` it does nothing else and answers only /livez and
    /readyz.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings, server__bind=bind, server__role=role)
    configure(config.log.level, config.log.format)
    _check_owner(config.data_dir)

    def announce(url: str) -> None:
        if as_json:
            click.echo(json.dumps({"event": "listening", "url": url, "pid": os.getpid()}))
        else:
            say(f"museworkd listens on {url}")

    run(run_daemon, config, announce)


def _check_owner(data_dir: Path) -> None:
    """Keep root from leaving files in a service's directory that the service cannot read."""
    if os.geteuid() != 0 or not data_dir.is_dir():
        return
    owner = data_dir.stat().st_uid
    if owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise ConfigError(f"{data_dir} belongs to {name}: serve as that user, with `runuser -u {name} -- museworkd …`")

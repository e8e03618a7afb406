"""``museworkd reindex``: the database made anew from the object store."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import click

from actors.heartbeat import Heartbeats
from actors.push.context import PushServices
from actors.reindex.rebuild import Rebuild, RebuildReport
from museworkd.assembly import open_deployment, open_store
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_OK, guarded, run
from museworkd.cli.output import emit, many, say
from museworkd.cli.server_options import config_options, load_config
from museworkd.config import Config
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from storage.postgres.reindex_index import ReindexIndex

_EVERY_S = 1.0
_SHOWN = 100


@click.command("reindex")
@click.option("--replace", "replace_all", is_flag=True, help="Throw away what the database holds.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def reindex_command(
    replace_all: bool, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Make an empty database anew from the object store alone; no daemon may use it meanwhile.

    When it is cut, run it again: it goes on where it was. A daemon that still uses the lost database has to be stopped
    first. The exit code is 3 when something that was acknowledged is not in the store any more; the rest can be used.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    configure("warning", "auto")
    report: RebuildReport = run(_rebuild, config, replace_all)
    shown = dataclasses.asdict(report)
    shown["damaged"] = shown["damaged"][:_SHOWN]
    shown["damaged_count"] = len(report.damaged)
    emit(shown, as_json, lambda: _told(report))
    raise SystemExit(EXIT_INTEGRITY if report.damaged else EXIT_OK)


async def _rebuild(config: Config, replace_all: bool) -> RebuildReport:
    environment = SystemEnvironment()
    meter = _Meter()
    async with open_deployment(config, environment) as deployment:
        store = await open_store(config, environment)
        index = ReindexIndex(deployment.index)
        spool_dir = config.data_dir / "spool"
        services = PushServices(index, store, environment, Heartbeats(), spool_dir, config.limits)
        return await Rebuild(index, services, meter.show).run(replace_all=replace_all)


class _Meter:
    """Says how far it is, now and then, to a person who looks."""

    def __init__(self) -> None:
        self._said_at = 0.0
        self._phase = ""

    def show(self, phase: str, done: int, total: int | None) -> None:
        """Say it, if there is somebody and it is time."""
        now = time.monotonic()
        if phase == self._phase and now - self._said_at < _EVERY_S:
            return
        if phase != self._phase or sys.stderr.isatty():
            say(f"{phase}: {done}" + ("" if total is None else f" of {total}"))
        self._said_at, self._phase = now, phase


def _told(report: RebuildReport) -> str:
    lines = [
        f"rebuilt: generation {report.generation}, {many(report.entries, 'entry').replace('entrys', 'entries')}, "
        f"{many(report.steps, 'push').replace('pushs', 'pushes')}, {many(report.objects, 'object')}"
    ]
    lines += [f"  {finding.repository}: {finding.detail}" for finding in report.damaged[:_SHOWN]]
    return "\n".join(lines)

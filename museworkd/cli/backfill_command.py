"""``museworkd backfill``: what is in the index and not in the object store is written out. Also beside daemons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actors.jobs.handler import JobServices
from actors.journal.writing import JournalOffice
from actors.repair.backfill import Backfill
from museworkd.cli.fsck_command import rate, with_services
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_OK, guarded
from museworkd.cli.output import emit, many
from museworkd.cli.server_options import config_options, load_config
from museworkd.client.progress import Meter, meter_for
from storage.fsck import RecordPacks
from storage.journal import Journal


async def backfilled(services: JobServices, bytes_per_s: float, meter: Meter, *, dry_run: bool) -> dict[str, object]:
    """Write out what is not; gives counts."""
    assert isinstance(services.index, RecordPacks)
    with meter.phase("pushes") as phase:
        done = await Backfill(services, services.index, bytes_per_s, phase=phase).run(dry_run)
    facts = 0
    if not dry_run and isinstance(services.index, Journal):
        with meter.phase("journal"):
            facts = await JournalOffice(services.index, services.store, services.environment).write_out()
    return {
        "pushes": done.pushes, "written": done.written, "records": done.records, "bytes": done.bytes,
        "facts": facts, "left": done.left, "failures": done.failures,
    }  # fmt: skip


@click.command("backfill")
@click.option("--rate", type=float, default=0.0, callback=rate, help="MiB per second to write; 0: no limit.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def backfill_command(
    rate: float, dry_run: bool, quiet: bool, config_file: Path | None, data_dir: str | None,
    database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Write out commits and snapshots that are in no record pack of the store, and facts that are in no journal.

    Pushes of earlier versions are written out so, and record packs that were lost. It may be cut at any moment and
    run again; what is written stays. The exit code is 0 when nothing is left, and 3 when something is.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    meter: Meter = meter_for(quiet=quiet)
    shown = with_services(config, lambda services: backfilled(services, rate, meter, dry_run=dry_run))
    emit(shown, as_json, lambda: _told(shown))
    raise SystemExit(EXIT_INTEGRITY if shown["left"] else EXIT_OK)


def _told(shown: dict[str, Any]) -> str:
    lines = [
        f"{many(shown['pushes'], 'push' if shown['pushes'] == 1 else 'pushe')} lacked a record pack; "
        f"{shown['records']} records of {shown['written']} were written ({shown['bytes']} bytes), "
        f"{shown['facts']} facts journalled; {shown['left']} left"
    ]
    return "\n".join([*lines, *shown["failures"]])

"""``museworkd migrate-store``: copy everything that is stored into another store, while the first one is in use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from actors.journal.joining import read_epoch
from actors.repair.store_copy import Pass, StoreCopy
from museworkd.assembly import open_store
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_OK, guarded, run
from museworkd.cli.output import emit, many
from museworkd.cli.server_options import config_options, load_config
from museworkd.client.progress import Meter, meter_for
from museworkd.config import Config, ConfigError
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from wire.errors import malformed

PASSES_MOST = 20
SETTLED_KEYS = 500
"""A pass that had to copy no more than this leaves a short one for when the daemons are stopped."""
FINAL_PASSES = 3


def store_config(config: Config, url: str) -> Config:
    """Give a configuration whose store is the one a URL names; its other settings stay.

    Raises:
        ConfigError: it names none.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and parts.path != "/":
        store = dataclasses.replace(config.store, url="", path=Path(unquote(parts.path)))
    elif parts.scheme == "s3":
        store = dataclasses.replace(config.store, url=url.rstrip("/"))
    else:
        raise ConfigError(f"not a store: {url!r}; file:///directory or s3://bucket/prefix")
    changed = dataclasses.replace(config, store=store)
    try:
        assert changed.s3 is not None or not store.url
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return changed


async def migrate_store(
    config: Config, source_url: str, target_url: str, meter: Meter, *, final: bool, verify: bool
) -> dict[str, Any]:
    """Copy in passes until little is left, or with ``final`` until nothing is; gives what was done.

    Raises:
        Refusal: the stores are one, or the target is another deployment's.
        StorageError: a store cannot be used now.
    """
    environment = SystemEnvironment()
    source_config, target_config = store_config(config, source_url), store_config(config, target_url)
    if source_config.store == target_config.store:
        raise malformed("both stores are the same one")
    if not source_config.store.url and not source_config.store.path.is_dir():
        raise malformed(f"there is no directory {source_config.store.path}")
    source = await open_store(source_config, environment)
    target = await open_store(target_config, environment)
    ours, theirs = await read_epoch(source), await read_epoch(target)
    if theirs is not None and (ours is None or ours.deployment != theirs.deployment):
        raise malformed(f"{target_url} belongs to another deployment; name an empty store")
    copy = StoreCopy(source, target, environment, config.data_dir / "spool", verify)
    passes: list[Pass] = []
    for number in range(1, (FINAL_PASSES if final else PASSES_MOST) + 1):
        with meter.phase(f"pass {number}") as phase:
            done = await copy.run(phase.advance)
            phase.note(f"{done.copied} copied, {done.there} there")
        passes.append(done)
        if not done.copied or (not final and done.copied <= SETTLED_KEYS):
            break
    last = passes[-1]
    return {
        "source": source_url, "target": target_url, "final": final, "passes": [done.shown() for done in passes],
        "settled": not last.damaged and (not last.copied if final else last.copied <= SETTLED_KEYS),
        "next": _next(config, target_config, last, final=final),
    }  # fmt: skip


def _next(config: Config, target: Config, last: Pass, *, final: bool) -> list[str]:
    """Say what the operator does now."""
    if last.damaged:
        return ["some keys are damaged in the source: run museworkd fsck --deep --repair, and this command again"]
    if not final:
        return [
            "stop all daemons (systemctl stop museworkd)",
            "run this command again with --final",
            "change the configuration as it says, and start the daemons",
        ]
    if last.copied:
        return ["something still writes to the source: stop all daemons, and run this command again with --final"]
    store = target.store
    if store.url:
        setting = [f'in section [store] set url = "{store.url}"']
        setting += [
            f'and {key} = "{value}"'
            for key, value in (("endpoint", store.endpoint), ("public_endpoint", store.public_endpoint))
            if value
        ]
    else:
        setting = [f'in section [store] set path = "{store.path}"', *(["and remove url"] if config.store.url else [])]
    return [
        *setting,
        "start the daemons (systemctl start museworkd)",
        "keep the old store until museworkd fsck is content",
    ]


@click.command("migrate-store")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--final", is_flag=True, help="All daemons are stopped: copy until nothing is left.")
@click.option("--verify", is_flag=True, help="Read and hash what is in DST already, too.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def migrate_store_command(
    source: str, target: str, final: bool, verify: bool, quiet: bool, config_file: Path | None,
    data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Copy everything in the object store SRC to DST, each file:///directory or s3://bucket/prefix.

    Daemons may go on working with SRC; run it again to copy what came meanwhile, and with --final once they are
    stopped. What the S3 service needs is taken from the configuration. The exit code is 0 when DST has it all, but for
    what comes while daemons work, and 3 when something could not be copied.
    """
    config, _ = load_config(config_file, data_dir, database_url, settings)
    meter: Meter = meter_for(quiet=quiet)

    async def inside() -> dict[str, Any]:
        return await migrate_store(config, source, target, meter, final=final, verify=verify)

    configure("error", "auto")  # on stderr, as all words for people are
    shown = run(inside)
    emit(shown, as_json, lambda: _told(shown))
    raise SystemExit(EXIT_OK if shown["settled"] else EXIT_INTEGRITY)


def _told(shown: dict[str, Any]) -> str:
    lines = [
        f"pass {number}: {many(done['keys'], 'key')}, {done['there']} there already, {done['copied']} copied "
        f"({done['bytes']} bytes), {done['damaged']} damaged"
        for number, done in enumerate(shown["passes"], 1)
    ]
    lines += [f"  damaged: {key}" for key in shown["passes"][-1]["damaged_keys"]]
    return "\n".join([*lines, "now:", *(f"  {number}. {step}" for number, step in enumerate(shown["next"], 1))])

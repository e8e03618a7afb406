"""What an operator does beside the daemon: schema, repositories, tokens, quotas. Works on the database directly."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import trio

from museworkd.administration import check_handle, create_repository, create_token, shown
from museworkd.assembly import database_settings, open_deployment
from museworkd.cli.guards import EXIT_USER, guarded, run
from museworkd.cli.output import emit, say, table_of
from museworkd.cli.server_options import config_options, lifetime, load_config
from museworkd.config import Config
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from storage.index import Index
from storage.migrate import migrate
from storage.postgres.embedded import EmbeddedPostgres
from storage.rows import QUOTA_NONE, OwnerUsage, Right, Token, Verify
from wire.errors import Code, Refusal, malformed

_SCOPES = {right.name.lower(): right for right in Right if right is not Right.NONE}


def with_index(config: Config, work: Callable[[Index], Awaitable[Any]]) -> Any:
    """Do something with the index of a configuration, also beside a running daemon."""

    async def inside() -> Any:
        async with open_deployment(config) as deployment:
            return await work(deployment.index)

    configure("warning", "auto")  # on stderr, as all words for people are
    return run(inside)


@click.command("migrate")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def migrate_command(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Bring the database's schema up to date; refuses one that is newer than this version."""
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def inside() -> list[str]:
        embedded = None if config.database.url else EmbeddedPostgres(config.data_dir)
        if embedded is not None:
            await trio.to_thread.run_sync(embedded.start)
        try:
            applied = await trio.to_thread.run_sync(migrate, database_settings(config, embedded))
        finally:
            if embedded is not None:
                await trio.to_thread.run_sync(embedded.stop)
        return [migration.name for migration in applied]

    applied = run(inside)
    emit({"applied": applied}, as_json, lambda: "\n".join(applied) or "the schema is up to date")


@click.group("repo")
def repo_group() -> None:
    """Make, list and delete repositories."""


@repo_group.command("create")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--public/--private", default=False, show_default=True)
@click.option("--default-branch", default="main", show_default=True)
@click.option("--domain", default="code", show_default=True)
@click.option("--relaxed-paths", is_flag=True, help="Take paths that cannot be checked out on every system.")
@click.option("--require-signed-commits", is_flag=True)
@click.option(
    "--verify",
    type=click.Choice([each.value for each in Verify]),
    default=Verify.STRICT.value,
    show_default=True,
    help="plain-lenient takes the ids of commits and snapshots of very old tools as they are.",
)
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def repo_create(
    name: str, public: bool, default_branch: str, domain: str, relaxed_paths: bool, require_signed_commits: bool,
    verify: str, config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Make a repository."""
    owner, slug = repository_name(name)
    config, _ = load_config(config_file, data_dir, database_url, settings)
    wanted = {
        "slug": slug, "visibility": "public" if public else "private", "default_branch": default_branch,
        "domain": domain,
        "settings": {
            "relaxed_paths": relaxed_paths, "require_signed_commits": require_signed_commits, "verify": verify,
        },
    }  # fmt: skip
    made = shown(with_index(config, lambda index: create_repository(index, SystemEnvironment(), owner, wanted)))
    emit(made, as_json, lambda: f"made {made['visibility']} repository {owner}/{slug} ({made['repo_id']})")


@repo_group.command("list")
@click.option("--owner", type=str)
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def repo_list(
    owner: str | None, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """List all repositories."""
    config, _ = load_config(config_file, data_dir, database_url, settings)
    found = with_index(config, lambda index: index.list_repositories(None, everything=True))
    rows = [shown(r) for r in found if owner in {None, r.owner}]
    emit(
        {"repositories": rows},
        as_json,
        lambda: table_of(
            ["repository", "visibility", "ids", "default branch", "created"],
            [
                [f"{r['owner']}/{r['slug']}", r["visibility"], r["scheme"] or "-", r["default_branch"], r["created_at"]]
                for r in rows
            ],
        ),
    )


@repo_group.command("delete")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def repo_delete(
    name: str, yes: bool, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Delete a repository."""
    owner, slug = repository_name(name)
    config, _ = load_config(config_file, data_dir, database_url, settings)
    if not yes:
        click.confirm(f"delete {owner}/{slug} with all its history?", abort=True, err=True)

    async def work(index: Index) -> str:
        found = await index.find_repository(owner, slug)
        if found is None:
            raise Refusal(Code.NOT_FOUND, f"there is no repository {owner}/{slug}")
        await index.delete_repository(found.number, SystemEnvironment().now())
        return str(found.repo_id)

    repo_id = with_index(config, work)
    emit({"deleted": repo_id}, as_json, lambda: f"deleted {owner}/{slug}")


@click.group("token")
def token_group() -> None:
    """Make, list and revoke bearer tokens."""


@token_group.command("create")
@click.argument("handle")
@click.option("--scope", type=click.Choice(list(_SCOPES)), default="write", show_default=True)
@click.option("--expires", default="90d", show_default=True, help="A lifetime such as 12h or 90d; or never.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def token_create(
    handle: str, scope: str, expires: str, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Make a token for an identity and print it: it cannot be shown again."""
    lifetime_s = lifetime(expires)
    config, _ = load_config(config_file, data_dir, database_url, settings)
    token, secret = with_index(
        config, lambda index: create_token(index, SystemEnvironment(), handle, _SCOPES[scope], lifetime_s)
    )
    if not as_json:
        say(f"token {token.token_id} for {handle}, scope {scope}, expires {token.expires_at or 'never'}:")
    emit({**_shown_token(token), "token": secret}, as_json, lambda: secret)


@token_group.command("list")
@click.option("--handle", type=str)
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def token_list(
    handle: str | None, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """List tokens; their secrets are not kept."""
    config, _ = load_config(config_file, data_dir, database_url, settings)
    rows = [_shown_token(t) for t in with_index(config, lambda index: index.list_tokens(handle))]
    columns = ["token_id", "handle", "scope", "state", "created_at", "expires_at", "revoked_at"]
    emit({"tokens": rows}, as_json, lambda: table_of(columns, [[row[c] or "-" for c in columns] for row in rows]))


@token_group.command("revoke")
@click.argument("token_id")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def token_revoke(
    token_id: str, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Revoke a token; it stops working at once."""
    try:
        wanted = uuid.UUID(token_id)
    except ValueError:
        raise malformed("a token id is a UUID, as `token list` shows it") from None
    config, _ = load_config(config_file, data_dir, database_url, settings)
    done = with_index(config, lambda index: index.revoke_token(wanted, SystemEnvironment().now()))
    if done or as_json:
        emit({"revoked": done}, as_json, lambda: "revoked")
    if not done:
        say("error: there is no valid token with that id")
        raise SystemExit(EXIT_USER)


@click.command("quota")
@click.argument("owner")
@click.argument("quota", metavar="[BYTES|none|default]", required=False)
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def quota_command(
    owner: str, quota: str | None, config_file: Path | None, data_dir: str | None, database_url: str | None,
    settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show how much an owner's repositories hold, and set how much they may.

    `none` lets the owner store without limit, `default` leaves it to the setting limits.owner_quota_bytes.
    """
    check_handle(owner)
    wanted = None if quota is None else _quota(quota)
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def work(index: Index) -> OwnerUsage:
        if quota is not None:
            await index.set_quota(owner, wanted)
        return await index.owner_usage(owner, SystemEnvironment().now())

    found = with_index(config, work)
    row = {
        "owner": owner, "used": found.used, "reserved": found.reserved, "quota": found.quota,
        "by_default": found.by_default,
    }  # fmt: skip
    limit = "none" if found.quota is None else str(found.quota)
    cells = [owner, found.used, found.reserved, f"{limit} (default)" if found.by_default else limit]
    emit(row, as_json, lambda: table_of(["owner", "used", "reserved", "quota"], [cells]))


def _quota(text: str) -> int | None:
    words = {"none": QUOTA_NONE, "default": None}
    if text in words:
        return words[text]
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise malformed(f"a quota is a number of bytes above 0, none or default, not {text!r}")
    return int(text)


def repository_name(name: str) -> tuple[str, str]:
    """Read ``OWNER/NAME``."""
    owner, slash, slug = name.partition("/")
    if not slash or not owner or not slug or "/" in slug:
        raise malformed(f"a repository is named OWNER/NAME, not {name!r}")
    return owner, slug


def _shown_token(token: Token) -> dict[str, object]:
    valid = token.valid_at(SystemEnvironment().now())
    state = "valid" if valid else "expired" if token.revoked_at is None else "revoked"
    return {
        "token_id": str(token.token_id),
        "handle": token.handle,
        "scope": token.scope.name.lower(),
        "state": state,
        "created_at": token.created_at.isoformat(),
        "expires_at": None if token.expires_at is None else token.expires_at.isoformat(),
        "revoked_at": None if token.revoked_at is None else token.revoked_at.isoformat(),
    }

"""``refs``: the branches read, and several of them updated at once, all or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from actors.branches import BranchUpdate, update_branches
from actors.opaque import as_sent, kept_commit_ids, shown_refusal
from museworkd.http.control_bodies import answer, control_body
from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import read_body
from museworkd.http.services import HttpServices, admit_to
from storage.rows import Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme, format_id, parse_id
from wire.limits import Limits
from wire.paths import check_branch_name

UPDATES_MOST = 1_000


async def get_refs(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET refs``: where every push and fetch begins."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    heads = await services.index.branch_heads(repository.number)
    value: dict[str, object] = {
        "repo_id": str(repository.repo_id),
        "domain": repository.domain,
        "default_branch": repository.default_branch,
        "branch_heads": _shown(repository, heads),
    }
    await answer(exchange, await as_sent(services.index, repository, value))


async def post_refs(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST refs``: several branches moved, made or deleted, all or none."""
    identity, repository, right = await admit_to(services, exchange, names, Right.WRITE)
    assert identity is not None
    async with control_body(services, exchange) as body:
        updates = _updates(repository, read_body(body, exchange.headers.get("content-type", "")), services.limits)
    now = services.environment.now()
    updates = await _as_kept(services, repository, updates)
    try:
        await update_branches(services.index, repository, right, identity.handle, updates, now)
    except Refusal as refusal:
        raise await shown_refusal(services.index, repository, refusal) from None
    await services.push.journal.settle()
    heads = await services.index.branch_heads(repository.number)
    shown = {"branch_heads": _shown(repository, heads)}
    await answer(exchange, await as_sent(services.index, repository, shown))


async def _as_kept(services: HttpServices, repository: Repository, updates: list[BranchUpdate]) -> list[BranchUpdate]:
    named = [commit_id for update in updates for commit_id in (update.old, update.new) if commit_id is not None]
    kept = dict(zip(named, await kept_commit_ids(services.index, repository, named), strict=True))
    return [
        replace(
            update, old=None if update.old is None else kept[update.old],
            new=None if update.new is None else kept[update.new],
        )
        for update in updates
    ]  # fmt: skip


def _shown(repository: Repository, heads: Mapping[str, bytes]) -> dict[str, str]:
    scheme = repository.scheme or Scheme.TYPED
    return {name: format_id(head, scheme) for name, head in heads.items()}


def _updates(repository: Repository, body: dict[str, object], limits: Limits) -> list[BranchUpdate]:
    listed, force = body.get("updates"), body.get("force", False)
    if not isinstance(listed, list) or not listed:
        raise malformed("updates is not a list of changes")
    if len(listed) > UPDATES_MOST:
        raise Refusal(Code.TOO_LARGE, f"{len(listed)} updates at once, the limit is {UPDATES_MOST}")
    updates = [_update(repository, item, force, limits) for item in listed]
    if len({update.branch for update in updates}) != len(updates):
        raise malformed("a branch is named twice")
    return updates


def _update(repository: Repository, item: object, force: object, limits: Limits) -> BranchUpdate:
    if not isinstance(item, dict) or not {"old", "new"} <= item.keys():
        raise malformed("an update is a map of branch, old and new; nil for a branch that is not there")
    forced = item.get("force", force)
    if not isinstance(forced, bool):
        raise malformed("force is not a boolean")
    scheme = repository.scheme or Scheme.TYPED
    old, new = (None if item[key] is None else parse_id(item[key], scheme, key) for key in ("old", "new"))
    if old is None and new is None:
        raise malformed("an update with neither old nor new changes nothing")
    return BranchUpdate(check_branch_name(item.get("branch"), limits), old, new, forced)

"""Fetching and cloning: download a pack, prove every byte of it, then link it in; refs are moved last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import trio

from museworkd.client.blob_packs import open_anew, room_in
from museworkd.client.errors import ClientError, IntegrityError, StaleUrlError, TransferError
from museworkd.client.pack_intake import FetchReport, PackIntake
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository, is_vacant
from museworkd.client.temporary import sweep, temporary_directory
from museworkd.client.transport import Api, Remote, download
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id, parse_id
from wire.paths import check_branch_name

HAVE_MOST = 500
"""Newest commits offered to the server; it walks on from there."""
RESUMES = 8
RESUME_PAUSE_S = 0.2
"""After a download that brought nothing, twice as long for each in a row: a server that starts anew takes its time."""
LONGEST_PAUSE_S = 10.0
ASKED_AGAIN = 2
"""Times it is asked for another pack when the one that was made is gone."""
PREPARING_S = 3_600.0
"""How long a client asks for a pack that the server says it is making."""
PREPARING_PAUSE_S = 1.0
_DOMAIN_MOST = 255


async def fetch(
    repository: LocalRepository, remote: Remote, meter: Meter, *, name: str = "origin", depth: int | None = None,
    prune: bool = False,
) -> FetchReport:  # fmt: skip
    """Bring everything the remote's branches have and this repository lacks; ``prune`` forgets branches that are gone.

    A shallow repository lacks what lies beyond its cut: without ``depth`` all of that is brought, with it so much that
    each branch has its newest ``depth`` commits. When the pack has gone before it was here whole — it had expired, or
    the server was started anew and makes another — everything is asked again.

    Raises:
        ClientError: refused. TransferError: the connection was lost. IntegrityError: what came is not whole.
    """
    for _ in range(ASKED_AGAIN):
        try:
            return await _fetch(repository, remote, meter, name, depth, prune=prune)
        except StaleUrlError as error:
            with meter.phase("Asking again") as phase:
                phase.note(str(error))
                await trio.sleep(RESUME_PAUSE_S)
    return await _fetch(repository, remote, meter, name, depth, prune=prune)


async def _fetch(
    repository: LocalRepository, remote: Remote, meter: Meter, name: str, depth: int | None, *, prune: bool
) -> FetchReport:
    sweep(repository)
    report = FetchReport()
    tags: dict[str, bytes] = {}
    async with Api(remote) as api:
        refs = await api.get("refs")
        heads = _branch_heads(refs, repository.scheme)
        report.default_branch = _default_branch(refs)
        wanted = list(dict.fromkeys(head for head in heads.values() if _lacks(repository, head, depth)))
        if wanted:
            have = _whole(repository) if repository.index.shallow() else _newest(repository)
            body: dict[str, object] = {
                "want": [format_id(i, repository.scheme) for i in wanted],
                "have": [format_id(i, repository.scheme) for i in have],
            }
            if depth is not None:
                body["depth"] = depth
            with meter.phase("Asking the server") as phase:
                answer = await _prepared(api, body, phase)
                phase.note(f"{_count(answer, 'commit_count')} commits, {_count(answer, 'object_count')} blobs")
            if depth is None and answer.get("shallow"):
                raise IntegrityError("the server sent a history that is cut, which was not asked for")
            tags = await _take(repository, answer, report, meter)
    for head in heads.values():
        if not repository.index.has_commit(head):
            raise IntegrityError(f"the server did not send commit {format_id(head, repository.scheme)}")
    if depth is None and any(_lacks(repository, head, None) for head in wanted):
        raise IntegrityError("the server did not send the whole history")
    report.shallow = len(repository.index.shallow())
    known = repository.remote_branches(name)
    for branch, head in heads.items():
        if known.get(branch) != head:
            repository.set_remote_branch(name, branch, head)
            report.branches[branch] = format_id(head, repository.scheme)
    for branch in sorted(known.keys() - heads.keys()) if prune else ():
        repository.set_remote_branch(name, branch, None)
        report.pruned.append(branch)
    for tag, head in tags.items():
        repository.set_tag(tag, head)
    return report


async def clone(remote: Remote, target: Path, meter: Meter, *, depth: int | None = None) -> FetchReport:
    """Make a new repository with everything the remote has; a failed clone leaves nothing behind.

    Raises:
        ClientError: the target is not empty, or the server refuses.
    """
    if not is_vacant(target):
        raise ClientError(f"{target} exists and is not {'empty' if target.is_dir() else 'a directory'}")
    async with Api(remote) as api:
        refs = await api.get("refs")
    with LocalRepository.fresh(target, _domain(refs)) as repository:
        repository.set_remote("origin", remote.url)
        report = await fetch(repository, remote, meter, depth=depth)
        for branch, head in repository.remote_branches("origin").items():
            repository.set_branch(branch, head)
        repository.set_head_branch(head_branch(repository.branches(), report.default_branch))
        return report


def head_branch(branches: Collection[str], default: str) -> str:
    """Choose what a clone is on: the server's default, or when that does not exist the likeliest there is."""
    for name in (default, "main", "master"):
        if name in branches:
            return name
    return min(branches, default=default)


async def _prepared(api: Api, body: Mapping[str, object], phase: Phase) -> dict[str, object]:
    """Ask until the server has made the pack; it is made once, however often it is asked for."""
    began = trio.current_time()
    while True:
        try:
            return await api.post("fetch/mpack", body)
        except TransferError as error:
            if error.code != Code.PREPARING.text or trio.current_time() - began > PREPARING_S:
                raise
            phase.note("the server is making the pack")
            await trio.sleep(max(error.retry_after_s or 0.0, PREPARING_PAUSE_S))


async def _take(
    repository: LocalRepository, answer: Mapping[str, object], report: FetchReport, meter: Meter
) -> dict[str, bytes]:
    """Download and take in what the server made; gives its tags, which are proved and not set yet."""
    url, size = answer.get("mpack_url"), answer.get("size_bytes")
    if url is None:
        return {}
    if not isinstance(url, str) or type(size) is not int or size < 0:
        raise IntegrityError("the server's fetch answer has no mpack_url or size_bytes")
    try:
        expected = parse_id(answer.get("mpack_id"), Scheme.TYPED, "mpack_id")
        with temporary_directory(repository) as directory:
            path = directory / "incoming"
            with meter.phase("Receiving", size) as phase:
                await _download(url, path, size, phase)
            report.received_bytes = size
            with meter.phase("Verifying", _count(answer, "commit_count") + _count(answer, "object_count")) as phase:
                return await PackIntake(repository, path, expected, answer.get("shallow"), report, phase).run()
    except Refusal as refusal:
        raise IntegrityError(f"what the server sent is refused ({refusal.code.text}): {refusal.detail}") from refusal


async def _download(url: str, path: Path, size: int, phase: Phase) -> None:
    """Download with resumption; nothing is proved yet."""
    free = room_in(path.parent)
    if size > free:
        raise IntegrityError(f"the server announced {size} bytes, and {path.parent} has room for {free}")
    failures = furthest = 0
    with open_anew(path) as file:
        while file.tell() < size:
            before = file.tell()
            try:
                async with download(url, before) as (start, pieces):
                    file.seek(start)
                    async for piece in pieces:
                        if file.tell() + len(piece) > size:
                            raise IntegrityError(f"the server announced {size} bytes and sent more")
                        file.write(piece)
                        phase.advance(len(piece))
                if file.tell() < size:
                    raise TransferError("the download ended early")
            except TransferError:
                failures = failures + 1 if file.tell() <= furthest else 0  # a server without ranges begins anew
                furthest = max(furthest, file.tell())
                if failures > RESUMES:
                    raise
                pause = RESUME_PAUSE_S * 2 ** (failures - 1) if failures else 0.0
                await trio.sleep(min(pause, LONGEST_PAUSE_S))
            except IntegrityError:
                raise
            except ClientError as error:  # this pack is not given any more; another one may be
                raise StaleUrlError(str(error), error.code) from error


def _branch_heads(refs: Mapping[str, object], scheme: Scheme) -> dict[str, bytes]:
    heads = refs.get("branch_heads")
    if not isinstance(heads, dict):
        raise IntegrityError("the server's refs have no branch heads")
    try:
        return {check_branch_name(name): parse_id(head, scheme) for name, head in heads.items()}
    except Refusal as refusal:
        raise ClientError(f"this client cannot read the server's repository: {refusal.detail}") from refusal


def _default_branch(refs: Mapping[str, object]) -> str:
    try:
        return check_branch_name(refs.get("default_branch", "main"))
    except Refusal as refusal:
        raise IntegrityError(f"the server's default branch is none: {refusal.detail}") from refusal


def _domain(refs: Mapping[str, object]) -> str:
    domain = refs.get("domain", "code")
    if not isinstance(domain, str) or not domain.isprintable() or not 0 < len(domain) <= _DOMAIN_MOST:
        raise IntegrityError("the server's domain is not a word")
    return domain


def _lacks(repository: LocalRepository, head: bytes, depth: int | None) -> bool:
    """Tell whether a branch's history is not here, or not as deep as is asked for."""
    index = repository.index
    if not index.has_commit(head):
        return True
    shallow = index.shallow()
    if not shallow:
        return False
    seen, waiting, cut = {head}, [head], False
    while waiting:
        commit_id = waiting.pop()
        cut = cut or commit_id in shallow
        facts = index.facts(commit_id)
        for parent in facts.parents if facts is not None else ():
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return cut and (depth is None or len(seen) < depth)


def _whole(repository: LocalRepository) -> list[bytes]:
    """Offer only commits whose whole history is here: the server leaves out what lies below an offered one."""
    return repository.index.whole_commits()[-HAVE_MOST:]


def _newest(repository: LocalRepository) -> list[bytes]:
    """Offer what the server most likely knows: every head there is, then the newest commits."""
    heads = [*repository.branches().values()]
    for remote in repository.remotes():
        heads += repository.remote_branches(remote).values()
    found = list(dict.fromkeys(head for head in heads if repository.index.has_commit(head)))
    return found[:HAVE_MOST]


def _count(answer: Mapping[str, object], key: str) -> int:
    value = answer.get(key)
    return value if type(value) is int and value >= 0 else 0

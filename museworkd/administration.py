"""What operators and the API share: making repositories and tokens from checked values."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import replace

from museworkd.http.access import hash_secret, new_secret
from storage.environment import Environment
from storage.index import Index
from storage.rows import NewRepository, Repository, RepositorySettings, Right, Token, Verify, Visibility
from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme
from wire.paths import check_branch_name

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_RESERVED_OWNERS = {"api", "livez", "readyz", "metrics", "console", "docs", "static"}
"""First segments of paths that are not repositories."""


def check_handle(value: object) -> str:
    """Check an identity's handle; raises ``malformed``."""
    name = _check_name(value, "a handle")
    if name.lower() in _RESERVED_OWNERS:
        raise malformed(f"the handle {name!r} is reserved")
    return name


def check_slug(value: object) -> str:
    """Check a repository's name; raises ``malformed``."""
    return _check_name(value, "a repository name")


def parse_settings(value: object, present: RepositorySettings, scheme: Scheme | None = None) -> RepositorySettings:
    """Read changed settings over the present ones of a repository with ids of a scheme; unknown names are refused."""
    if not isinstance(value, Mapping):
        raise malformed("settings is not a map")
    settings = present
    for name, setting in value.items():
        if name == "relaxed_paths" and isinstance(setting, bool):
            settings = replace(settings, relaxed_paths=setting)
        elif name == "require_signed_commits" and isinstance(setting, bool):
            settings = replace(settings, require_signed_commits=setting)
        elif name == "protected_branches" and isinstance(setting, list):
            settings = replace(settings, protected_branches=tuple(check_branch_name(b) for b in setting))
        elif name == "verify" and isinstance(setting, str) and setting in set(Verify):
            verify = Verify(setting)
            if verify is Verify.PLAIN_LENIENT and scheme is Scheme.TYPED:
                raise malformed("this repository has typed ids, which are always verified: verify stays strict")
            opaque = settings.opaque_ids or verify is Verify.PLAIN_LENIENT
            settings = replace(settings, verify=verify, opaque_ids=opaque)
        else:
            raise malformed(f"the setting {str(name)[:60]!a} is unknown or has the wrong type")
    return settings


async def create_repository(
    index: Index, environment: Environment, owner: str, wanted: Mapping[str, object]
) -> Repository:
    """Make a repository from ``slug``, ``visibility``, ``default_branch``, ``domain`` and ``settings``.

    Raises:
        Refusal: ``malformed`` or ``already_exists``.
    """
    slug = check_slug(wanted.get("slug"))
    try:
        visibility = Visibility(wanted.get("visibility", "private"))
    except ValueError:
        raise malformed("visibility is private or public") from None
    domain = wanted.get("domain", "code")
    if not isinstance(domain, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", domain):
        raise malformed("domain is a short lower-case name")
    made = await index.create_repository(
        NewRepository(
            environment.uuid(), check_handle(owner), slug, visibility,
            check_branch_name(wanted.get("default_branch", "main")), domain, environment.now(),
            parse_settings(wanted.get("settings", {}), RepositorySettings()),
        )
    )  # fmt: skip
    if made is None:
        raise Refusal(Code.ALREADY_EXISTS, f"there is a repository {owner}/{slug} already")
    return made


async def create_token(
    index: Index, environment: Environment, handle: str, scope: Right, lifetime_s: float | None
) -> tuple[Token, str]:
    """Make a token; gives it with its secret, which is not kept anywhere."""
    secret = new_secret(environment)
    now = environment.now()
    expires = None if lifetime_s is None else now + dt.timedelta(seconds=lifetime_s)
    token = Token(environment.uuid(), check_handle(handle), hash_secret(secret), scope, now, expires)
    await index.create_token(token)
    return token, secret


def shown(repository: Repository) -> dict[str, object]:
    """Give a repository as the API shows it."""
    settings = repository.settings
    return {
        "repo_id": str(repository.repo_id),
        "owner": repository.owner,
        "slug": repository.slug,
        "visibility": repository.visibility.value,
        "scheme": None if repository.scheme is None else repository.scheme.value,
        "default_branch": repository.default_branch,
        "domain": repository.domain,
        "created_at": repository.created_at.isoformat(),
        "settings": {
            "relaxed_paths": settings.relaxed_paths,
            "require_signed_commits": settings.require_signed_commits,
            "protected_branches": list(settings.protected_branches),
            "verify": settings.verify.value,
        },
    }


def _check_name(value: object, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise malformed(f"{what} is 1 to 100 letters, digits, dots, dashes or underscores")
    return value

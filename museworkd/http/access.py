"""Who is asking, and what may they do (protocol §10)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from storage.environment import Environment
from storage.index import Index
from storage.rows import Repository, Right, Token, Visibility
from wire.errors import Code, Refusal

TOKEN_PREFIX = "mwt_"
NO_REPOSITORY = 0
"""The number of no repository: rows are numbered from 1."""
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller, limited by the scope of its token."""

    handle: str
    scope: Right


def new_secret(environment: Environment) -> str:
    """Make a bearer token's secret text."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(environment.random_bytes(_SECRET_BYTES)).decode().rstrip("=")


def hash_secret(secret: str) -> bytes:
    """Give what is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def authenticate(index: Index, environment: Environment, authorization: str | None) -> Identity | None:
    """Find out who sends an ``Authorization`` header; ``None`` without one.

    Raises:
        Refusal: ``unauthenticated`` for anything that is not a valid token.
    """
    if authorization is None:
        return None
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Refusal(Code.UNAUTHENTICATED, "send a bearer token: `Authorization: Bearer <token>`")
    token: Token | None = await index.find_token(hash_secret(secret.strip()))
    if token is None or not token.valid_at(environment.now()):
        raise Refusal(Code.UNAUTHENTICATED, "the token is unknown, expired or revoked")
    return Identity(token.handle, token.scope)


async def right_on(index: Index, repository: Repository, identity: Identity | None) -> Right:
    """Work out what a caller may do with a repository."""
    public = Right.READ if repository.visibility is Visibility.PUBLIC else Right.NONE
    if identity is None:
        return public
    if identity.handle == repository.owner:
        named = Right.ADMIN
    else:
        named = await index.collaborator_right(repository.number, identity.handle)
    return max(public, min(named, identity.scope))


async def find_for(
    index: Index, identity: Identity | None, owner: str, slug: str, needed: Right
) -> tuple[Repository, Right]:
    """Find a repository for a caller who needs a right on it.

    One that may not be read is refused exactly like one that does not exist (threat T22). Nobody in particular
    cannot write: that is refused before anything is looked up.

    Raises:
        Refusal: ``unauthenticated``, ``not_found`` or ``forbidden``.
    """
    if identity is None and needed > Right.READ:
        raise Refusal(Code.UNAUTHENTICATED, "this needs a token")
    repository = await index.find_repository(owner, slug)
    if repository is None:
        if identity is not None:  # as many questions as for a hidden one, so that the time tells nothing either
            await index.collaborator_right(NO_REPOSITORY, identity.handle)
        right = Right.NONE
    else:
        right = await right_on(index, repository, identity)
    if repository is None or right < Right.READ:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    if right < needed:
        raise Refusal(Code.FORBIDDEN, f"this needs the right to {needed.name.lower()}")
    return repository, right

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
    return _identity(await index.find_token(hash_secret(_bearer(authorization))), environment)


async def admit(
    index: Index, environment: Environment, authorization: str | None, owner: str, slug: str, needed: Right
) -> tuple[Identity | None, Repository, Right]:
    """Authenticate a request to a repository and find it, as :func:`authenticate` and :func:`find_for`, at once.

    Nobody in particular cannot write: that is refused before anything is looked up.

    Raises:
        Refusal: ``unauthenticated``, ``not_found`` or ``forbidden``.
    """
    if authorization is None and needed > Right.READ:
        raise Refusal(Code.UNAUTHENTICATED, "this needs a token")
    token_hash = None if authorization is None else hash_secret(_bearer(authorization))
    found = await index.find_access(token_hash, owner, slug)
    identity = None if token_hash is None else _identity(found.token, environment)
    repository = found.repository
    right = Right.NONE if repository is None else _right(repository, identity, found.named)
    return identity, *_judge(repository, right, needed)


async def right_on(index: Index, repository: Repository, identity: Identity | None) -> Right:
    """Work out what a caller may do with a repository."""
    named = Right.NONE
    if identity is not None and identity.handle != repository.owner:
        named = await index.collaborator_right(repository.number, identity.handle)
    return _right(repository, identity, named)


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
    return _judge(repository, right, needed)


def _bearer(authorization: str) -> str:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Refusal(Code.UNAUTHENTICATED, "send a bearer token: `Authorization: Bearer <token>`")
    return secret.strip()


def _identity(token: Token | None, environment: Environment) -> Identity:
    if token is None or not token.valid_at(environment.now()):
        raise Refusal(Code.UNAUTHENTICATED, "the token is unknown, expired or revoked")
    return Identity(token.handle, token.scope)


def _right(repository: Repository, identity: Identity | None, named: Right) -> Right:
    public = Right.READ if repository.visibility is Visibility.PUBLIC else Right.NONE
    if identity is None:
        return public
    if identity.handle == repository.owner:
        named = Right.ADMIN
    return max(public, min(named, identity.scope))


def _judge(repository: Repository | None, right: Right, needed: Right) -> tuple[Repository, Right]:
    if repository is None or right < Right.READ:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    if right < needed:
        raise Refusal(Code.FORBIDDEN, f"this needs the right to {needed.name.lower()}")
    return repository, right

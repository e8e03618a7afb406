"""Tokens and deployment secrets."""

from __future__ import annotations

import datetime as dt
import uuid

from storage.postgres.database import Connection, one_statement
from storage.rows import Right, Token

_q_ensure_identity = "INSERT INTO identities (handle, created_at) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_q_insert_token = """
    INSERT INTO tokens (token_id, handle, token_hash, scope, created_at, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (token_id) DO NOTHING
"""
_q_revoke_token = "UPDATE tokens SET revoked_at = %s WHERE token_id = %s AND revoked_at IS NULL"
token_columns = "token_id, handle, token_hash, scope, created_at, expires_at, revoked_at"
_q_find_token = f"SELECT {token_columns} FROM tokens WHERE token_hash = %s"
_q_list_tokens = f"""
    SELECT {token_columns} FROM tokens
    WHERE %(handle)s::text IS NULL OR handle = %(handle)s
    ORDER BY created_at DESC, token_id
"""
_q_insert_secret = "INSERT INTO secrets (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_q_find_secret = "SELECT value FROM secrets WHERE name = %s"


def create_token(connection: Connection, token: Token) -> None:
    """See ``Identities.create_token``."""
    connection.execute(_q_ensure_identity, (token.handle, token.created_at))
    connection.execute(
        _q_insert_token,
        (token.token_id, token.handle, token.token_hash, token.scope.value, token.created_at, token.expires_at),
    )


def revoke_token(connection: Connection, token_id: uuid.UUID, at: dt.datetime) -> bool:
    """See ``Identities.revoke_token``."""
    return connection.execute(_q_revoke_token, (at, token_id)).rowcount == 1


@one_statement
def find_token(connection: Connection, token_hash: bytes) -> Token | None:
    """See ``Identities.find_token``."""
    row = connection.execute(_q_find_token, (token_hash,)).fetchone()
    return None if row is None else token_of(row)


def list_tokens(connection: Connection, handle: str | None) -> list[Token]:
    """See ``Identities.list_tokens``."""
    return [token_of(row) for row in connection.execute(_q_list_tokens, {"handle": handle})]


def secret(connection: Connection, name: str, candidate: bytes) -> bytes:
    """See ``Identities.secret``."""
    connection.execute(_q_insert_secret, (name, candidate))
    row = connection.execute(_q_find_secret, (name,)).fetchone()
    assert row is not None
    return bytes(row[0])


def token_of(row: tuple[object, ...]) -> Token:
    """Read a row of :data:`token_columns`."""
    token_id, handle, token_hash, scope, created_at, expires_at, revoked_at = row
    return Token(token_id, handle, token_hash, Right(scope), created_at, expires_at, revoked_at)  # type: ignore[arg-type]

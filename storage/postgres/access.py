"""Who is asking, for what, and what they were named for: one look-up for each request to a repository."""

from __future__ import annotations

from storage.postgres.database import Connection, one_statement
from storage.postgres.identities import token_columns, token_of
from storage.postgres.repositories import is_storable, repository_columns, repository_of
from storage.rows import Access, Right

# The same work whether there is such a repository, such a token, or neither (threat T22).
_q_access = f"""
    SELECT t.*, r.*, c."right"
    FROM (VALUES (1)) AS one (row)
    LEFT JOIN (SELECT {token_columns} FROM tokens WHERE token_hash = %(token)s) AS t ON true
    LEFT JOIN (
        SELECT {repository_columns} FROM repositories
        WHERE owner = %(owner)s AND slug = %(slug)s AND deleted_at IS NULL
    ) AS r ON true
    LEFT JOIN collaborators c ON c.repo = r.repo AND c.handle = t.handle
"""
_TOKEN_COLUMNS = token_columns.count(",") + 1


@one_statement
def find_access(connection: Connection, token_hash: bytes | None, owner: str, slug: str) -> Access:
    """See ``Identities.find_access``."""
    if not (is_storable(owner) and is_storable(slug)):
        owner = slug = ""  # the name of none
    arguments = {"token": token_hash, "owner": owner, "slug": slug}
    row = connection.execute(_q_access, arguments).fetchone()
    assert row is not None
    token, repository, right = row[:_TOKEN_COLUMNS], row[_TOKEN_COLUMNS:-1], row[-1]
    return Access(
        None if token[0] is None else token_of(token),
        None if repository[0] is None else repository_of(repository),
        Right.NONE if right is None else Right(right),
    )

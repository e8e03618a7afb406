"""Repositories, collaborators, branch heads and the branch log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from psycopg.types.json import Jsonb

from storage.postgres.database import Connection, one_statement
from storage.rows import (
    BranchLogEntry,
    BranchTip,
    NewRepository,
    Repository,
    RepositorySettings,
    Right,
    Verify,
    Visibility,
)
from wire.ids import Scheme

repository_columns = "repo, repo_id, owner, slug, visibility, scheme, default_branch, domain, settings, created_at"
_q_insert = """
    INSERT INTO repositories (repo_id, owner, slug, visibility, default_branch, domain, settings, created_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (owner, slug) WHERE deleted_at IS NULL DO NOTHING
"""
_q_ensure_identity = "INSERT INTO identities (handle, created_at) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_q_find = f"SELECT {repository_columns} FROM repositories WHERE owner = %s AND slug = %s AND deleted_at IS NULL"
_q_numbered = f"SELECT {repository_columns} FROM repositories WHERE repo = ANY(%s) AND deleted_at IS NULL"
_q_list = f"""
    SELECT {repository_columns} FROM repositories r
    WHERE deleted_at IS NULL AND (
        %(everything)s OR visibility = 'public' OR owner = %(handle)s
        OR EXISTS (SELECT 1 FROM collaborators c WHERE c.repo = r.repo AND c.handle = %(handle)s)
    )
    ORDER BY owner, slug
"""
_q_update = """
    UPDATE repositories SET visibility = %s, settings = %s, default_branch = %s
    WHERE repo = %s AND deleted_at IS NULL
"""
_q_delete = "UPDATE repositories SET deleted_at = %s WHERE repo = %s AND deleted_at IS NULL"
_q_set_collaborator = """
    INSERT INTO collaborators (repo, handle, "right") VALUES (%s, %s, %s)
    ON CONFLICT (repo, handle) DO UPDATE SET "right" = excluded."right"
"""
_q_remove_collaborator = "DELETE FROM collaborators WHERE repo = %s AND handle = %s"
_q_find_collaborator = 'SELECT "right" FROM collaborators WHERE repo = %s AND handle = %s'
_q_tip = """
    SELECT b.head, c.snapshot_id, c.generation
    FROM branches b JOIN repositories r USING (repo) JOIN commits c ON c.commit_id = b.head AND c.scheme = r.scheme
    WHERE b.repo = %s AND b.name = %s
"""
_q_heads = "SELECT name, head FROM branches WHERE repo = %s ORDER BY name"
_q_log = """
    SELECT l.branch, l.old, l.new, l.handle, p.push_id, l.forced, l.at
    FROM branch_log l LEFT JOIN pushes p USING (push)
    WHERE l.repo = %s AND l.branch = %s ORDER BY l.entry
"""


def create_repository(connection: Connection, new: NewRepository) -> Repository | None:
    """See ``Repositories.create_repository``."""
    connection.execute(_q_ensure_identity, (new.owner, new.created_at))
    connection.execute(
        _q_insert,
        (
            new.repo_id, new.owner, new.slug, new.visibility.value, new.default_branch, new.domain,
            Jsonb(asdict(new.settings)), new.created_at,
        ),
    )  # fmt: skip
    found = find_repository(connection, new.owner, new.slug)
    return found if found is not None and found.repo_id == new.repo_id else None


@one_statement
def find_repository(connection: Connection, owner: str, slug: str) -> Repository | None:
    """See ``Repositories.find_repository``."""
    if not (is_storable(owner) and is_storable(slug)):
        return None
    row = connection.execute(_q_find, (owner, slug)).fetchone()
    return None if row is None else repository_of(row)


@one_statement
def repositories_numbered(connection: Connection, numbers: Sequence[int]) -> dict[int, Repository]:
    """See ``Repositories.repositories_numbered``."""
    found = (repository_of(row) for row in connection.execute(_q_numbered, (list(numbers),)).fetchall())
    return {repository.number: repository for repository in found}


@one_statement
def list_repositories(connection: Connection, handle: str | None, everything: bool) -> list[Repository]:
    """See ``Repositories.list_repositories``."""
    rows = connection.execute(_q_list, {"handle": handle, "everything": everything})
    return [repository_of(row) for row in rows]


def update_repository(
    connection: Connection, number: int, visibility: Visibility, settings: RepositorySettings, default_branch: str
) -> bool:
    """See ``Repositories.update_repository``."""
    done = connection.execute(_q_update, (visibility.value, Jsonb(asdict(settings)), default_branch, number))
    return done.rowcount == 1


def delete_repository(connection: Connection, number: int, at: dt.datetime) -> bool:
    """See ``Repositories.delete_repository``."""
    return connection.execute(_q_delete, (at, number)).rowcount == 1


def set_collaborator(connection: Connection, number: int, handle: str, right: Right) -> None:
    """See ``Repositories.set_collaborator``."""
    if right is Right.NONE:
        connection.execute(_q_remove_collaborator, (number, handle))
    else:
        connection.execute(_q_set_collaborator, (number, handle, right.value))


@one_statement
def collaborator_right(connection: Connection, number: int, handle: str) -> Right:
    """See ``Repositories.collaborator_right``."""
    row = connection.execute(_q_find_collaborator, (number, handle)).fetchone()
    return Right.NONE if row is None else Right(row[0])


@one_statement
def branch_heads(connection: Connection, number: int) -> dict[str, bytes]:
    """See ``Repositories.branch_heads``."""
    return {name: bytes(head) for name, head in connection.execute(_q_heads, (number,))}


@one_statement
def branch_tip(connection: Connection, number: int, branch: str) -> BranchTip | None:
    """See ``Repositories.branch_tip``."""
    row = connection.execute(_q_tip, (number, branch)).fetchone()
    return None if row is None else BranchTip(bytes(row[0]), bytes(row[1]), row[2])


@one_statement
def branch_log(connection: Connection, number: int, branch: str) -> list[BranchLogEntry]:
    """See ``Repositories.branch_log``."""
    return [BranchLogEntry(*row) for row in connection.execute(_q_log, (number, branch))]


def is_storable(text: str) -> bool:
    """Tell whether PostgreSQL can hold a text; what a client asks for may be anything."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def repository_of(row: tuple[Any, ...]) -> Repository:
    """Read a row of :data:`repository_columns`."""
    number, repo_id, owner, slug, visibility, scheme, default_branch, domain, settings, created_at = row
    return Repository(
        number, repo_id, owner, slug, Visibility(visibility), None if scheme is None else Scheme(scheme),
        default_branch, domain, settings_of(settings), created_at,
    )  # fmt: skip


def settings_of(stored: dict[str, Any]) -> RepositorySettings:
    """Read stored settings; ones a newer version added are left alone."""
    return RepositorySettings(
        relaxed_paths=bool(stored.get("relaxed_paths", False)),
        require_signed_commits=bool(stored.get("require_signed_commits", False)),
        protected_branches=tuple(stored.get("protected_branches", ())),
        verify=Verify(stored.get("verify", Verify.STRICT)),
        opaque_ids=bool(stored.get("opaque_ids", False)),
    )

"""Rows made of what the journal says they are, and what is to be told of where it has gaps."""

from __future__ import annotations

from storage.postgres.database import Connection
from storage.rows import PushState


def _last(kind: str, key: str) -> str:
    """Give the entries that say what rows of a kind are now."""
    return f"""(SELECT DISTINCT ON ({key}) entry, gone, fact, verdict FROM reindex_entries WHERE kind = '{kind}'
                ORDER BY {key}, entry DESC)"""


def _row(table: str, columns: str, source: str, *, rest: str = "") -> str:
    """Give the statement that puts facts into a table, as rows of the table's own types."""
    named = ", ".join(_column(column.strip()) for column in columns.split(","))
    return f"""
        INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
        SELECT {named} FROM {source} AS l, json_populate_record(NULL::{table}, l.fact) AS r WHERE NOT l.gone {rest}
    """


def _column(name: str) -> str:
    return "l.verdict" if name == "verdict" else f"r.{name}"


_repo = "(fact ->> 'repo')"
_OF_A_REPOSITORY = "AND EXISTS (SELECT 1 FROM repositories k WHERE k.repo = r.repo)"
"""What a repository had of which no entry came back is told."""
_q_facts = (
    _row("identities", "handle, created_at", _last("identity", "(fact ->> 'handle')")),
    _row(
        "tokens", "token_id, handle, token_hash, scope, created_at, expires_at, revoked_at",
        _last("token", "(fact ->> 'token_id')"),
        rest="AND EXISTS (SELECT 1 FROM identities i WHERE i.handle = r.handle)",
    ),
    _row(
        "repositories",
        "repo, repo_id, owner, slug, visibility, scheme, default_branch, domain, settings, created_at, deleted_at",
        _last("repository", _repo),
        rest="ORDER BY l.entry DESC ON CONFLICT DO NOTHING",  # of two of one name the later one, if a deletion was lost
    ),
    _row("collaborators", 'repo, handle, "right"', _last("collaborator", f"{_repo}, (fact ->> 'handle')"),
         rest=_OF_A_REPOSITORY),
    _row(
        "pushes",
        "push, repo, push_id, handle, branch, attempt, state, verdict, lease_expires, created_at, finished_at, bytes, "
        "record_pack",
        _last("push", "(fact ->> 'push')"),
        rest=_OF_A_REPOSITORY,
    ),
    f"UPDATE pushes SET state = {PushState.OPEN.value}, verdict = NULL, finished_at = NULL "
    f"WHERE state = {PushState.ACCEPTED.value}",
    _row("branch_log", "entry, repo, branch, old, new, handle, push, forced, at", _last("branch", "(fact ->> 'entry')"),
         rest=_OF_A_REPOSITORY + " AND (r.push IS NULL OR EXISTS (SELECT 1 FROM pushes p WHERE p.push = r.push))"),
    _row("tags", "repo, tag, commit_id, record", _last("tag", f"{_repo}, (fact ->> 'tag')"),
         rest=_OF_A_REPOSITORY),
    _row("releases", "repo, release, record, created_at, retracted_at",
         _last("release", f"{_repo}, (fact ->> 'release')"), rest=_OF_A_REPOSITORY),
    _row("owner_quotas", "owner, quota_bytes", _last("quota", "(fact ->> 'owner')")),
    _row("repository_usage", "repo, bytes", _last("usage", _repo), rest=_OF_A_REPOSITORY),
    """
        INSERT INTO branches (repo, name, head, updated_at)
        SELECT repo, branch, new, at
        FROM (SELECT DISTINCT ON (repo, branch) repo, branch, new, at FROM branch_log ORDER BY repo, branch, entry DESC)
             AS last
        WHERE new IS NOT NULL
    """,
    """
        INSERT INTO reindex_findings (key, detail)
        SELECT 'repository/' || repo, 'repository number ' || repo || ': the journal does not say any more what it was'
        FROM (SELECT DISTINCT (fact ->> 'repo')::bigint AS repo FROM reindex_entries) AS named
        WHERE repo IS NOT NULL AND NOT EXISTS (SELECT 1 FROM repositories k WHERE k.repo = named.repo)
    """,
    """
        INSERT INTO reindex_findings (key, detail)
        SELECT 'branch/' || b.entry,
               r.owner || '/' || r.slug || ': moves of branch ' || b.branch || ' before ' || b.at || ' are lost'
        FROM (SELECT *, lag(new) OVER (PARTITION BY repo, branch ORDER BY entry) AS before FROM branch_log) AS b
        JOIN repositories r USING (repo) WHERE r.deleted_at IS NULL AND b.old IS DISTINCT FROM b.before
    """,
)  # fmt: skip


def make_rows(connection: Connection) -> None:
    """Make the rows of the last word on each; accepted pushes stay open."""
    for statement in _q_facts:
        connection.execute(statement.encode())

"""A database that is older than quotas knows, once it is migrated, what its repositories take up."""

from __future__ import annotations

import psycopg

from storage.migrate import known_migrations, migrate
from storage.postgres.database import DatabaseSettings

FILL = """
    INSERT INTO repositories (repo_id, owner, slug, visibility, scheme, default_branch, domain, settings, created_at)
    SELECT gen_random_uuid(), 'ada', slug, 'private', scheme, 'main', 'code', '{}', now()
    FROM (VALUES ('typed', 'typed'), ('plain', 'plain'), ('new', NULL), ('empty', NULL)) AS r (slug, scheme);
    INSERT INTO pushes (repo, push_id, handle, branch, attempt, state, lease_expires, created_at)
    SELECT repo, gen_random_uuid(), 'ada', 'main', 1, state, now(), now()
    FROM (VALUES (1, 1), (1, 1), (1, 0), (1, 2), (2, 1), (3, 0)) AS p (repo, state);
    INSERT INTO blobs (blob_id, scheme, size)
    SELECT sha256(name::bytea), scheme, size
    FROM (VALUES ('a', 'typed', 1), ('b', 'typed', 20), ('c', 'typed', 300), ('d', 'typed', 4000),
                 ('a', 'plain', 50000)) AS b (name, scheme, size);
    INSERT INTO blob_refs (repo, blob_id, push)
    SELECT repo, sha256(name::bytea), push
    FROM (VALUES (1, 'a', 1), (1, 'b', 1),               -- a first push
                 (1, 'b', 2), (1, 'c', 2), (1, 'a', 2),  -- one that brought two of them at the same time
                 (1, 'c', 3), (1, 'd', 3),               -- one under way: only d is new
                 (1, 'd', 4),                            -- one that was refused
                 (2, 'a', 5),                            -- another scheme
                 (3, 'd', 6)) AS r (repo, name, push);   -- a first one under way
"""


def test_what_accepted_pushes_brought_is_counted(empty_database: str) -> None:
    settings = DatabaseSettings(empty_database)
    known = known_migrations()
    migrate(settings, [migration for migration in known if migration.version < 3])
    with psycopg.connect(empty_database) as connection:
        connection.execute(FILL)
    migrate(settings, known)
    with psycopg.connect(empty_database) as connection:
        usage = connection.execute("SELECT repo, bytes FROM repository_usage ORDER BY repo").fetchall()
        assert usage == [(1, 321), (2, 50_000)]
        under_way = connection.execute("SELECT push, bytes FROM pushes WHERE bytes > 0 ORDER BY push").fetchall()
        assert under_way == [(3, 4_000), (6, 4_000)]

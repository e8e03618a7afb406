"""Where branches have been, before they were moved by force or deleted."""

from __future__ import annotations

from storage.postgres.database import Connection, Database, one_statement

_q_left_behind = """
    SELECT DISTINCT old FROM branch_log
    WHERE repo = %(repo)s AND (forced OR new IS NULL) AND old IS NOT NULL
      AND at > (SELECT swept_until FROM repositories WHERE repo = %(repo)s)
    LIMIT %(most)s
"""


@one_statement
def left_behind(connection: Connection, repo: int, most: int) -> set[bytes]:
    """See ``LeftBehind.left_behind``."""
    return {bytes(row[0]) for row in connection.execute(_q_left_behind, {"repo": repo, "most": most})}


class PostgresLeftBehind:
    """See ``storage.left_behind.LeftBehind`` for what each operation promises."""

    database: Database

    async def left_behind(self, repo: int, most: int) -> set[bytes]:
        return await self.database.run(left_behind, repo, most)

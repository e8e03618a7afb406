"""A local repository's index: commits, snapshots and where blobs lie, in one SQLite file.

It answers the same questions as the server's history port, so that walking, rebuilding and choosing what to send are
one piece of code on both sides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.layout import Place
from storage.rows import CommitRow, SnapshotRow
from wire.graph import CommitFacts
from wire.ids import DIGEST_BYTES, Scheme

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS packs (pack INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS blobs (
        id BLOB PRIMARY KEY, pack INTEGER NOT NULL, at INTEGER NOT NULL, size INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS commits (
        id BLOB PRIMARY KEY, parents BLOB NOT NULL, snapshot BLOB NOT NULL, generation INTEGER NOT NULL,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS snapshots (
        id BLOB PRIMARY KEY, base BLOB, depth INTEGER NOT NULL, delta BLOB NOT NULL, "full" BLOB, extras BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS shallow (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_VARIABLES = 500
"""Ids per query: below SQLite's oldest limit of 999 variables."""


class LocalIndex:
    """See the module; writing happens inside :meth:`transaction`."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is written in a block durable at once, or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_pack(self, pack_id: bytes, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """Add a pack and its ``(blob id, offset, size)`` entries."""
        self._db.execute("INSERT OR IGNORE INTO packs (name) VALUES (?)", (pack_id,))
        (number,) = self._db.execute("SELECT pack FROM packs WHERE name = ?", (pack_id,)).fetchone()
        self._db.executemany(
            "INSERT OR IGNORE INTO blobs (id, pack, at, size) VALUES (?, ?, ?, ?)",
            ((blob, number, offset, size) for blob, offset, size in entries),
        )

    def add_commits(self, rows: Iterable[CommitRow]) -> None:
        """Add commits, parents first."""
        self._db.executemany(
            "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?)",
            ((r.commit_id, b"".join(r.parents), r.snapshot_id, r.generation, r.record) for r in rows),
        )

    def add_snapshots(self, rows: Iterable[tuple[SnapshotRow, bytes]]) -> None:
        """Add snapshots with their extras, bases first."""
        self._db.executemany(
            "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
            ((r.snapshot_id, r.base_id, r.depth, r.delta, r.full, extras) for r, extras in rows),
        )

    def set_shallow(self, ids: Iterable[bytes]) -> None:
        """Note commits whose parents are not here."""
        self._db.executemany("INSERT OR IGNORE INTO shallow VALUES (?)", ((i,) for i in ids))

    def shallow(self) -> set[bytes]:
        """Give the commits whose parents are not here."""
        return {row[0] for row in self._db.execute("SELECT id FROM shallow")}

    def pack_ids(self) -> list[bytes]:
        """Give all packs."""
        return [row[0] for row in self._db.execute("SELECT name FROM packs ORDER BY pack")]

    def has_commit(self, commit_id: bytes) -> bool:
        """Tell whether a commit is here."""
        return self._db.execute("SELECT 1 FROM commits WHERE id = ?", (commit_id,)).fetchone() is not None

    def has_snapshot(self, snapshot_id: bytes) -> bool:
        """Tell whether a snapshot is here."""
        return self._db.execute("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone() is not None

    def place(self, blob_id: bytes) -> Place | None:
        """Say where a blob lies."""
        row = self._db.execute(
            "SELECT b.size, p.name, b.at FROM blobs b JOIN packs p USING (pack) WHERE b.id = ?", (blob_id,)
        ).fetchone()
        return None if row is None else Place(blob_id, row[0], row[1], row[2])

    def commit_ids(self) -> list[bytes]:
        """Give all commits, parents before children."""
        return [row[0] for row in self._db.execute("SELECT id FROM commits ORDER BY generation, id")]

    def snapshot_count(self) -> int:
        """Count the snapshots."""
        count: int = self._db.execute("SELECT count(*) FROM snapshots").fetchone()[0]
        return count

    def blob_count(self) -> int:
        """Count the blobs."""
        count: int = self._db.execute("SELECT count(*) FROM blobs").fetchone()[0]
        return count

    def facts(self, commit_id: bytes) -> CommitFacts | None:
        """Give one commit's facts."""
        row = self._db.execute(
            "SELECT parents, snapshot, generation FROM commits WHERE id = ?", (commit_id,)
        ).fetchone()
        return None if row is None else CommitFacts(commit_id, self._parents(commit_id, row[0]), row[1], row[2])

    def record(self, commit_id: bytes) -> bytes:
        """Give one commit's canonical record; raises ``KeyError``."""
        row = self._db.execute("SELECT record FROM commits WHERE id = ?", (commit_id,)).fetchone()
        if row is None:
            raise KeyError(commit_id.hex())
        record: bytes = row[0]
        return record

    async def held_commits(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, int]:  # noqa: ARG002
        """See ``History``."""
        return {r[0]: r[1] for r in self._rows("SELECT id, generation FROM commits WHERE id IN (%s)", commit_ids)}

    async def ancestry(self, scheme: Scheme, commit_ids: Sequence[bytes], most: int) -> list[CommitFacts]:  # noqa: ARG002
        """See ``History``."""
        found: dict[bytes, CommitFacts] = {}
        level = list(commit_ids)
        while level and len(found) < len(commit_ids) + most:
            facts = [self.facts(commit_id) for commit_id in level if commit_id not in found]
            found.update((fact.commit_id, fact) for fact in facts if fact is not None)
            level = [parent for fact in facts if fact is not None for parent in fact.parents]
        return list(found.values())

    async def commit_records(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:  # noqa: ARG002
        """See ``History``."""
        return {r[0]: r[1] for r in self._rows("SELECT id, record FROM commits WHERE id IN (%s)", commit_ids)}

    async def snapshot_deltas(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, SnapshotRow]:  # noqa: ARG002
        """See ``History``."""
        rows = self._rows("SELECT id, base, depth, delta, NULL FROM snapshots WHERE id IN (%s)", snapshot_ids)
        return {row[0]: SnapshotRow(*row) for row in rows}

    async def snapshot_extras(self, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:  # noqa: ARG002
        """See ``History``."""
        rows = self._rows("SELECT id, extras FROM snapshots WHERE id IN (%s)", snapshot_ids)
        return {r[0]: r[1] for r in rows if r[1]}

    async def snapshot_chain(self, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:  # noqa: ARG002
        """See ``History``."""
        chain: list[SnapshotRow] = []
        wanted: bytes | None = snapshot_id
        while wanted is not None:
            row = self._db.execute(
                'SELECT id, base, depth, delta, "full" FROM snapshots WHERE id = ?', (wanted,)
            ).fetchone()
            if row is None:
                break
            chain.append(SnapshotRow(*row))
            wanted = row[1] if row[4] is None else None
        return chain

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:  # noqa: ARG002
        """See ``History``."""
        found = {blob_id: self.place(blob_id) for blob_id in object_ids}
        return {blob_id: place for blob_id, place in found.items() if place is not None}

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:  # noqa: ARG002
        """See ``History``."""
        return await self.places(scheme, object_ids)

    def _parents(self, commit_id: bytes, joined: bytes) -> tuple[bytes, ...]:
        if self._db.execute("SELECT 1 FROM shallow WHERE id = ?", (commit_id,)).fetchone() is not None:
            return ()
        return tuple(joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES))

    def _rows(self, query: str, ids: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            yield from self._db.execute(query % ",".join("?" * len(part)), part)

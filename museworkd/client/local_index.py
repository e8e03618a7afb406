"""A local repository's index: commits, snapshots and where blobs lie, in one SQLite file.

It answers the same questions as the server's history port, so that walking, rebuilding and choosing what to send are
one piece of code on both sides.

The file may be damaged like any other. Whatever SQLite says about that, and every row that is not what was written,
is an :class:`IntegrityError` that tells what to do.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from museworkd.client.errors import ClientError, IntegrityError
from storage.history_rows import CommitRow, SnapshotRow
from storage.layout import Place
from storage.snapshots import Changes, unpack_changes
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
SMALLEST_BYTES = 512
"""A smaller file holds no table: SQLite takes it for a new one."""
_VARIABLES = 500
"""Ids per query: below SQLite's oldest limit of 999 variables."""
_PLACES = "SELECT b.id, b.size, p.name, b.at FROM blobs b JOIN packs p USING (pack) WHERE b.id"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_PRIMARY = 0xFF
"""The low byte of SQLite's extended error codes."""


class _Database:
    """A connection that reports a damaged file in our words; rows are read whole, so nothing fails later."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        with self._speaking():
            self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with self._speaking():
                self._connection.execute(f"PRAGMA journal_mode = {'MEMORY' if fresh else 'WAL'}")
                self._connection.execute(f"PRAGMA synchronous = {'OFF' if fresh else 'FULL'}")
                self._connection.executescript(_SCHEMA)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._speaking():
            self._connection.close()

    def settle(self) -> None:
        with self._speaking():
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a query and give its rows."""
        with self._speaking():
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Give the first row, if there is one."""
        found = self.rows(query, values)
        return found[0] if found else None

    def change(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of values."""
        with self._speaking():
            self._connection.executemany(query, rows)

    def damaged(self, what: str) -> IntegrityError:
        """Make the error for a damaged file."""
        return IntegrityError(
            f"the repository's index {self._path} is damaged ({what}): it cannot be mended here, make a fresh clone"
        )

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, sqlite3.InterfaceError, OverflowError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            code = None if code is None else code & _PRIMARY
            if code in _BUSY:
                raise ClientError(f"another command is using {self._path}") from error
            if isinstance(error, sqlite3.OperationalError) and code not in _DAMAGE | {sqlite3.SQLITE_ERROR}:
                raise IntegrityError(f"the repository's index {self._path} cannot be used: {error}") from error
            raise self.damaged(str(error)) from error


class LocalIndex:
    """See the module; writing happens inside :meth:`transaction`."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Open the file, or make it.

        Args:
            path: where it is.
            fresh: it counts for nothing before :meth:`settle`, so that until then nothing of it has to be durable.
        """
        self._db = _Database(path, fresh=fresh)

    def settle(self) -> None:
        """Make a fresh file durable; from here on it is as any other."""
        self._db.settle()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def check(self) -> list[str]:
        """Let SQLite look at the whole file; gives what is wrong with it."""
        found = [str(row[0]) for row in self._db.rows("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else [line for text in found for line in text.splitlines()]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is written in a block durable at once, or not at all."""
        self._db.rows("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(ClientError):  # the error at hand says more, and closing rolls back as well
                self._db.rows("ROLLBACK")
            raise
        self._db.rows("COMMIT")

    def add_pack(self, pack_id: bytes, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """Add a pack and its ``(blob id, offset, size)`` entries."""
        self._db.rows("INSERT OR IGNORE INTO packs (name) VALUES (?)", (pack_id,))
        ((number,),) = self._db.rows("SELECT pack FROM packs WHERE name = ?", (pack_id,))
        self._db.change(
            "INSERT OR IGNORE INTO blobs (id, pack, at, size) VALUES (?, ?, ?, ?)",
            ((blob, number, offset, size) for blob, offset, size in sorted(entries)),
        )

    def add_commits(self, rows: Iterable[CommitRow]) -> None:
        """Add commits; as every table, in the order of ids, which is how they lie in it."""
        self._db.change(
            "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?)",
            (
                (r.commit_id, b"".join(r.parents), r.snapshot_id, r.generation, r.record)
                for r in sorted(rows, key=operator.attrgetter("commit_id"))
            ),
        )

    def add_snapshots(self, rows: Iterable[tuple[SnapshotRow, bytes]]) -> None:
        """Add snapshots with their extras."""
        self._db.change(
            "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
            (
                (r.snapshot_id, r.base_id, r.depth, r.delta, r.full, extras)
                for r, extras in sorted(rows, key=lambda row: row[0].snapshot_id)
            ),
        )

    def set_shallow(self, ids: Iterable[bytes]) -> None:
        """Note commits whose parents are not here."""
        self._db.change("INSERT OR IGNORE INTO shallow VALUES (?)", ((i,) for i in ids))

    def deepen(self) -> None:
        """Take note of parents that have come: fewer commits are shallow, and generations grow above them.

        Done over the whole index: a commit that nobody sent again may stand on one that got its parents now.
        """
        rows = self._db.rows("SELECT id, parents, generation FROM commits ORDER BY generation")
        held = {row[0]: (_split(row[1]), row[2]) for row in rows}
        here = [(i,) for i in self.shallow() if i in held and all(parent in held for parent in held[i][0])]
        self._db.change("DELETE FROM shallow WHERE id = ?", here)
        shallow = self.shallow()
        generations: dict[bytes, int] = {}
        waiting = list(reversed(held))
        while waiting:
            commit_id = waiting[-1]
            parents = () if commit_id in shallow else [parent for parent in held[commit_id][0] if parent in held]
            missing = [parent for parent in parents if parent not in generations]
            if commit_id not in generations and missing:
                waiting += missing
                continue
            generations[commit_id] = 1 + max((generations[parent] for parent in parents), default=0)
            waiting.pop()
        self._db.change(
            "UPDATE commits SET generation = ? WHERE id = ?",
            ((order, commit_id) for commit_id, order in generations.items() if order != held[commit_id][1]),
        )

    def whole_commits(self) -> list[bytes]:
        """Give the commits whose whole history is here, parents before children."""
        shallow = self.shallow()
        whole: dict[bytes, None] = {}
        for commit_id, joined in self._db.rows("SELECT id, parents FROM commits ORDER BY generation, id"):
            if commit_id not in shallow and all(parent in whole for parent in _split(joined)):
                whole[commit_id] = None
        return list(whole)

    def shallow(self) -> set[bytes]:
        """Give the commits whose parents are not here."""
        return {self._id(row[0]) for row in self._db.rows("SELECT id FROM shallow")}

    def pack_ids(self) -> list[bytes]:
        """Give all packs."""
        return [self._id(row[0]) for row in self._db.rows("SELECT name FROM packs ORDER BY pack")]

    def pack_places(self, pack_id: bytes) -> dict[bytes, tuple[int, int]]:
        """Give offset and size of every blob that is read from a pack."""
        query = "SELECT b.id, b.at, b.size FROM blobs b JOIN packs p USING (pack) WHERE p.name = ?"
        return {row[0]: (row[1], row[2]) for row in self._db.rows(query, (pack_id,))}

    def lost_blobs(self) -> int:
        """Count the blobs said to lie in a pack that is not known."""
        (row,) = self._db.rows("SELECT count(*) FROM blobs WHERE pack NOT IN (SELECT pack FROM packs)")
        return int(row[0])

    @property
    def has_blobs(self) -> bool:
        """Whether any blob is here."""
        return self._db.row("SELECT 1 FROM blobs LIMIT 1") is not None

    def has_commit(self, commit_id: bytes) -> bool:
        """Tell whether a commit is here."""
        return self._db.row("SELECT 1 FROM commits WHERE id = ?", (commit_id,)) is not None

    def has_snapshot(self, snapshot_id: bytes) -> bool:
        """Tell whether a snapshot is here."""
        return self._db.row("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)) is not None

    def place(self, blob_id: bytes) -> Place | None:
        """Say where a blob lies."""
        row = self._db.row(f"{_PLACES} = ?", (blob_id,))
        return None if row is None else self._place(row)

    def _place(self, row: tuple[Any, ...]) -> Place:
        blob_id, size, pack_id, offset = row
        if type(size) is not int or type(offset) is not int or size < 0 or offset < 0:
            raise self._db.damaged(f"the place of blob {blob_id.hex()} is not one")
        return Place(blob_id, size, self._id(pack_id), offset)

    def commit_ids(self) -> list[bytes]:
        """Give all commits, parents before children."""
        return [self._id(row[0]) for row in self._db.rows("SELECT id FROM commits ORDER BY generation, id")]

    def snapshot_count(self) -> int:
        """Count the snapshots."""
        ((count,),) = self._db.rows("SELECT count(*) FROM snapshots")
        return int(count)

    def blob_count(self) -> int:
        """Count the blobs."""
        ((count,),) = self._db.rows("SELECT count(*) FROM blobs")
        return int(count)

    def facts(self, commit_id: bytes) -> CommitFacts | None:
        """Give one commit's facts."""
        row = self._db.row("SELECT parents, snapshot, generation FROM commits WHERE id = ?", (commit_id,))
        if row is None:
            return None
        joined, snapshot_id, generation = row
        if type(generation) is not int or not isinstance(joined, bytes) or len(joined) % DIGEST_BYTES:
            raise self._db.damaged(f"the row of commit {commit_id.hex()} is not one")
        return CommitFacts(commit_id, self._parents(commit_id, joined), self._id(snapshot_id), generation)

    def record(self, commit_id: bytes) -> bytes:
        """Give one commit's canonical record, which must be there."""
        row = self._db.row("SELECT record FROM commits WHERE id = ?", (commit_id,))
        if row is None or not isinstance(row[0], bytes):
            raise self._db.damaged(f"it lacks commit {commit_id.hex()}")
        return row[0]

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
        return {row[0]: self._snapshot(row) for row in rows}

    async def snapshot_extras(self, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:  # noqa: ARG002
        """See ``History``."""
        rows = self._rows("SELECT id, extras FROM snapshots WHERE id IN (%s)", snapshot_ids)
        return {r[0]: r[1] for r in rows if r[1]}

    async def snapshot_chain(self, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:  # noqa: ARG002
        """See ``History``."""
        chain: list[SnapshotRow] = []
        seen: set[bytes] = set()
        wanted: bytes | None = snapshot_id
        while wanted is not None:
            row = self._db.row('SELECT id, base, depth, delta, "full" FROM snapshots WHERE id = ?', (wanted,))
            if row is None:
                break
            if wanted in seen:
                raise self._db.damaged(f"snapshot {wanted.hex()} builds on itself")
            seen.add(wanted)
            chain.append(self._snapshot(row))
            wanted = row[1] if row[4] is None else None
        return chain

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:  # noqa: ARG002
        """See ``History``."""
        found: dict[bytes, Place] = {}
        for at in range(0, len(object_ids), _VARIABLES):
            part = object_ids[at : at + _VARIABLES]
            query = f"{_PLACES} IN ({', '.join('?' * len(part))})"
            found.update((row[0], self._place(row)) for row in self._db.rows(query, part))
        return found

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:  # noqa: ARG002
        """See ``History``."""
        return await self.places(scheme, object_ids)

    def _parents(self, commit_id: bytes, joined: bytes) -> tuple[bytes, ...]:
        if self._db.row("SELECT 1 FROM shallow WHERE id = ?", (commit_id,)) is not None:
            return ()
        return _split(joined)

    def _id(self, value: object) -> bytes:
        if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
            raise self._db.damaged("something stands where an id should")
        return value

    def _snapshot(self, row: tuple[Any, ...]) -> SnapshotRow:
        """Check a row's shape; what it says is proved by the snapshot's id."""
        snapshot_id, base_id, depth, delta, full = row
        try:
            sound = type(depth) is int and (base_id is None or len(self._id(base_id)) == DIGEST_BYTES)
            for packed in (delta, full):
                sound = sound and (packed is None or _is_changes(unpack_changes(packed)))
        except (ValueError, TypeError, msgpack.UnpackException):
            sound = False
        if not sound or delta is None:
            raise self._db.damaged(f"the row of snapshot {bytes(snapshot_id).hex()} is not one")
        return SnapshotRow(snapshot_id, base_id, depth, delta, full)

    def _rows(self, query: str, ids: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            yield from self._db.rows(query % ",".join("?" * len(part)), part)


def _split(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES))


def _is_changes(changes: Changes) -> bool:
    upsert: object = changes.upsert
    if not isinstance(upsert, Mapping):
        return False
    texts = [*upsert, *changes.remove, *changes.directories]
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(blob_id, bytes) and len(blob_id) == DIGEST_BYTES for blob_id in upsert.values()
    )

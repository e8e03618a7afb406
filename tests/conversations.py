"""Conversations with the database: what one version says, said again to the schema of another (fault F19).

A version that still runs while the database is migrated goes on saying what it says. So for each released schema a
file in ``tests/golden/conversations`` holds what its code said in tests of the index: statements, arguments as they
went over the wire, and the answers. ``tools/conversations.py`` records them, and ``tests/integration/test_versions.py``
says them to the newest schema. Values that are others every time (tokens of claims) are found by saying everything a
second time when it is recorded; where a later argument holds such a value, it is replaced.
"""

from __future__ import annotations

import json
import lzma
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import pq

from storage.postgres.database import DatabaseSettings, connection_arguments

FOLDER = Path(__file__).parent / "golden" / "conversations"
ANY = "*"
"""In place of an answer's value that is another one every time."""
LOCK_TIMEOUT_S = 2.0
UUID = 2950
"""PostgreSQL's number of the type."""
_UUID_BYTES = 16


@dataclass
class Said:
    """One statement and its answer, or the end of a transaction."""

    connection: int
    statement: str
    """``COMMIT`` and ``ROLLBACK`` have no answer."""
    alone: bool = True
    """Whether it is a transaction by itself."""
    types: list[int] = field(default_factory=list)
    formats: list[int] = field(default_factory=list)
    arguments: list[str | None] = field(default_factory=list)
    binary: bool = False
    answer: dict[str, Any] | None = None

    def has(self) -> tuple[str, bool]:
        """Give what it is an example of: a statement that finds or changes something, or does not."""
        answer = self.answer or {}
        return self.statement, answer.get("status", "").endswith(" 0") or "error" in answer


@dataclass
class Conversation:
    """What was said in one test."""

    name: str
    said: list[Said]


class Differs(Exception):
    """An answer is not the recorded one."""


def answer_of(result: pq.abc.PGresult) -> dict[str, Any]:
    """Give what was answered: the command, the types of the columns, and the rows."""
    status = (result.command_status or b"").decode()
    columns = [result.ftype(at) for at in range(result.nfields)]
    rows = [
        [written(result.get_value(row, at)) for at in range(result.nfields)] for row in range(result.ntuples)
    ]  # fmt: skip
    return {"status": status, "columns": columns, "rows": rows}


def written(value: bytes | memoryview | None) -> str | None:
    """Write a value of the wire as text: as it is where it is plain text, else in hexadecimal."""
    if value is None:
        return None
    value = bytes(value)
    if value.isascii() and value.decode().isprintable():
        return "t" + value.decode()
    return "x" + value.hex()


def unwritten(text: str | None) -> bytes | None:
    """Read what :func:`written` wrote."""
    if text is None:
        return None
    return text[1:].encode() if text[0] == "t" else bytes.fromhex(text[1:])


class Speaker:
    """Says a conversation again, on connections of its own, and compares the answers."""

    def __init__(self, url: str, *, learning: bool = False) -> None:
        self._url = url
        self._learning = learning
        self._connections: dict[int, psycopg.Connection] = {}
        self._others: list[tuple[bytes, bytes]] = []
        """What stands for what this time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self._connections.values():
            connection.close()

    def say(self, conversation: Conversation) -> None:
        """Say it; raises :class:`Differs`. While learning, values that differ become :data:`ANY`."""
        for said in conversation.said:
            connection = self._connections.get(said.connection) or self._connect(said.connection)
            if said.answer is None:
                with suppress(psycopg.OperationalError):
                    _run(connection, said.statement.encode())
                continue
            if not said.alone and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
                _run(connection, b"BEGIN")
            self._compare(said, self._ask(connection, said))

    def _connect(self, number: int) -> psycopg.Connection:
        arguments = connection_arguments(DatabaseSettings(self._url, lock_timeout_s=LOCK_TIMEOUT_S))
        arguments["options"] += " -c timezone=UTC"
        connection = psycopg.connect(self._url, autocommit=True, **arguments)
        self._connections[number] = connection
        return connection

    def _ask(self, connection: psycopg.Connection, said: Said) -> dict[str, Any]:
        values = [self._with_others(unwritten(text)) for text in said.arguments]
        result = connection.pgconn.exec_params(
            said.statement.encode(), values, said.types, said.formats, int(said.binary)
        )  # fmt: skip
        if result.status == pq.ExecStatus.FATAL_ERROR:
            state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
            return {"error": state.decode(), "words": (result.error_message or b"").decode()}
        return answer_of(result)

    def _with_others(self, value: bytes | None) -> bytes | None:
        for recorded, now in self._others if value is not None else ():
            value = value.replace(recorded, now)  # type: ignore[union-attr]
        return value

    def _compare(self, said: Said, answer: dict[str, Any]) -> None:
        assert said.answer is not None
        facts = ("status", "columns") if "error" not in said.answer else ("error",)
        if any(said.answer.get(fact) != answer.get(fact) for fact in facts):
            raise Differs(f"{said.statement}\nwas answered {said.answer}\nand now {answer}")
        for recorded_row, row in zip(said.answer.get("rows", ()), answer.get("rows", ()), strict=True):
            for at, (recorded, now) in enumerate(zip(recorded_row, row, strict=True)):
                if recorded is not None and recorded.startswith(ANY) and now is not None:
                    self._learn(recorded.removeprefix(ANY), now, said.answer["columns"][at])
                elif recorded != now:
                    if not self._learning or recorded is None or now is None:
                        raise Differs(f"{said.statement}\nwas answered {recorded_row}\nand now {row}")
                    self._learn(recorded, now, said.answer["columns"][at])
                    recorded_row[at] = ANY + recorded

    def _learn(self, recorded: str, now: str, column: int) -> None:
        if column != UUID:
            return
        pair = [_as_uuid(unwritten(text) or b"") for text in (recorded, now)]
        for way in (lambda one: one.bytes, lambda one: str(one).encode(), lambda one: one.hex.encode()):
            self._others.append((way(pair[0]), way(pair[1])))


def _as_uuid(value: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=value) if len(value) == _UUID_BYTES else uuid.UUID(value.decode())


def _run(connection: psycopg.Connection, command: bytes) -> None:
    result = connection.pgconn.exec_(command)
    if result.status == pq.ExecStatus.FATAL_ERROR:
        raise psycopg.OperationalError((result.error_message or b"").decode())


def kept(conversations: Sequence[Conversation]) -> str:
    """Write conversations as text, each statement once."""
    statements = sorted({said.statement for one in conversations for said in one.said})
    number = {statement: at for at, statement in enumerate(statements)}
    lines = [
        json.dumps({"name": one.name, "said": [
            [said.connection, number[said.statement], said.alone, said.types, said.formats, said.arguments, said.binary,
             said.answer]
            for said in one.said
        ]}, separators=(",", ":"))
        for one in conversations
    ]  # fmt: skip
    return "\n".join([json.dumps(statements, indent=0), *lines]) + "\n"


def read(path: Path) -> Iterator[Conversation]:
    """Read what :func:`kept` wrote, compressed."""
    text = lzma.decompress(path.read_bytes()).decode()
    statements, end = json.JSONDecoder().raw_decode(text)
    for line in text[end:].splitlines():
        if line:
            found = json.loads(line)
            yield Conversation(
                found["name"], [Said(said[0], statements[said[1]], *said[2:]) for said in found["said"]]
            )  # fmt: skip

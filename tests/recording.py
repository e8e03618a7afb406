"""Recording what tests of the index say to the database: a plugin of pytest for ``tools/conversations.py``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from storage.postgres import database
from tests.conversations import Conversation, Said, answer_of, kept, written

TARGET = "MUSEWORKD_CONVERSATIONS"
"""The variable that names the file to write."""
_heard: list[Said] = []
_numbers: dict[int, int] = {}
_lock = threading.Lock()


class RecordingCursor(psycopg.Cursor[Any]):
    """Notes each statement with its answer."""

    _converted: Any = None

    def _convert_query(self, *arguments: Any) -> Any:
        self._converted = super()._convert_query(*arguments)
        return self._converted

    def execute(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().execute(*arguments, **named)
        except psycopg.Error as error:
            self._note({"error": error.sqlstate or "", "words": str(error)})
            raise
        finally:
            if self.pgresult is not None and self.pgresult.status in {1, 2}:
                self._note(answer_of(self.pgresult))

    def executemany(self, query: Any, params_seq: Any, **_: Any) -> None:
        for params in params_seq:
            self.execute(query, params)

    def _note(self, answer: dict[str, Any]) -> None:
        query = self._converted
        connection: Any = self.connection
        _hear(Said(
            _number(connection), query.query.decode(), connection.autocommit, list(query.types or ()),
            [int(one) for one in query.formats or ()], [written(value) for value in query.params or ()],
            bool(self.pgresult is not None and self.pgresult.nfields and self.pgresult.fformat(0)), answer,
        ))  # fmt: skip


class RecordingConnection(psycopg.Connection[Any]):
    """Notes the ends of transactions."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.cursor_factory = RecordingCursor
        self.prepare_threshold = None

    def commit(self) -> None:
        if self.pgconn.transaction_status:
            _hear(Said(_number(self), "COMMIT"))
        super().commit()

    def rollback(self) -> None:
        if self.pgconn.transaction_status:
            _hear(Said(_number(self), "ROLLBACK"))
        super().rollback()


def _number(connection: psycopg.Connection[Any]) -> int:
    with _lock:
        return _numbers.setdefault(id(connection), len(_numbers))


def _hear(said: Said) -> None:
    with _lock:
        _heard.append(said)


def pytest_configure() -> None:
    database.ConnectionPool = partial(database.ConnectionPool, connection_class=RecordingConnection)  # type: ignore[assignment,misc]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _heard.clear()
    _numbers.clear()
    yield
    if "postgres" in item.name and _heard:
        with Path(os.environ[TARGET]).open("a") as file:
            file.write(kept([Conversation(item.nodeid, list(_heard))]))
            file.write("\f\n")

"""LISTEN on a connection of its own, in a worker thread."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import trio
from psycopg import sql

from storage.errors import IndexUnavailable
from storage.postgres.database import DatabaseSettings, connection_arguments

_POLL_S = 0.5
"""How long one look for notifications may keep its thread: the longest wait on leaving the block."""


@asynccontextmanager
async def listen(settings: DatabaseSettings, channel: str) -> AsyncIterator[AsyncIterator[str]]:
    """Listen on a channel; see ``Index.listen``."""
    send, receive = trio.open_memory_channel[str](math.inf)
    stop = threading.Event()
    token = trio.lowlevel.current_trio_token()

    def connect() -> psycopg.Connection[tuple[object, ...]]:
        connection = psycopg.connect(settings.conninfo, autocommit=True, **connection_arguments(settings))
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        return connection

    def watch() -> None:
        try:
            while not stop.is_set():
                for notification in connection.notifies(timeout=_POLL_S):
                    token.run_sync_soon(send.send_nowait, notification.payload)
        except psycopg.OperationalError:
            token.run_sync_soon(send.close)  # the consumer sees the end and raises

    async def payloads() -> AsyncIterator[str]:
        async for payload in receive:
            yield payload
        raise IndexUnavailable("the listening connection was lost")

    try:
        connection = await trio.to_thread.run_sync(connect)
    except psycopg.OperationalError as error:
        raise IndexUnavailable(str(error)) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, watch)
        try:
            yield payloads()
        finally:
            stop.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.close)

"""LISTEN on a connection of its own, in a worker thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import outcome
import psycopg
import trio
from psycopg import sql

from storage.errors import IndexUnavailable
from storage.index import UNREAD_NOTIFICATIONS
from storage.postgres.database import DatabaseSettings, connection_arguments

_POLL_S = 0.5
"""How long one look for notifications may keep its thread: the longest wait on leaving the block."""


@asynccontextmanager
async def listen(settings: DatabaseSettings, channel: str) -> AsyncIterator[AsyncIterator[str]]:
    """Listen on a channel; see ``Index.listen``."""
    send, receive = trio.open_memory_channel[str](UNREAD_NOTIFICATIONS)
    stop = threading.Event()
    ended = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def keep(payload: str) -> None:
        with suppress(trio.WouldBlock):  # nobody reads: a wake-up more would tell nothing new
            send.send_nowait(payload)

    def watch() -> None:
        try:
            while not stop.is_set():
                for notification in connection.notifies(timeout=_POLL_S):
                    token.run_sync_soon(keep, notification.payload)
        except psycopg.OperationalError:
            pass
        finally:
            connection.close()  # here and nowhere else: libpq's connections are one thread's at a time

    def end(result: outcome.Outcome[None]) -> None:
        send.close()  # a consumer sees the end and raises
        ended.set()
        result.unwrap()

    async def payloads() -> AsyncGenerator[str, None]:
        async for payload in receive:
            yield payload
        raise IndexUnavailable("the listening connection was lost")

    try:
        connection = await trio.to_thread.run_sync(_connect, settings, channel)
    except psycopg.OperationalError as error:
        raise IndexUnavailable(str(error)) from error
    # not in a nursery, which would wrap what is raised in the block
    trio.lowlevel.start_thread_soon(watch, lambda result: token.run_sync_soon(end, result))
    try:
        async with aclosing(payloads()) as given:
            yield given
    finally:
        stop.set()
        with trio.CancelScope(shield=True):
            await ended.wait()


def _connect(settings: DatabaseSettings, channel: str) -> psycopg.Connection[tuple[object, ...]]:
    connection = psycopg.connect(settings.conninfo, autocommit=True, **connection_arguments(settings))
    try:
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    except BaseException:
        connection.close()
        raise
    return connection

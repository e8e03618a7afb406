"""Running transactions: a pool of connections, each used by one worker thread for one function at a time.

A transaction is a synchronous function of a connection, so by construction it cannot await the store or a client,
and a cancellation cannot cut it in half: the caller's cancellation asks the server to cancel the running
statement and then waits for the thread, so that no connection goes back to the pool with a cancel request
still on its way. What failed for a reason outside the function (a serialization failure, a deadlock, a lost
connection) is run again; every function can be, since it commits wholly or not at all and its writes are
idempotent. Transactions of several statements take turns besides, see ``storage.postgres.turns``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import outcome
import psycopg
import trio
from psycopg import conninfo as pg_conninfo
from psycopg import errors as pg_errors
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from storage.environment import Environment
from storage.errors import IndexUnavailable
from storage.postgres.turns import LONG_S, Turn, turns_at_once

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

ATTEMPTS = 5
RETRY_DELAY_S = 0.05
POOL_WAIT_S = 30.0
RECONNECT_S = 1.0
"""How long the pool keeps at a lost connection, with growing pauses; then whoever waits for one makes it try anew."""
CONNECT_TIMEOUT_S = 10
CANCEL_RETRY_S = 0.2
CANCEL_ANSWER_S = 10.0
"""How long a cancelled transaction may take to end before its connection is given up."""
ANSWER_GRACE_S = 30.0
"""How long after a statement's own time limit a server that says nothing counts as gone."""
KEEPALIVE_S = 30
_HOLD_SAMPLES = 10_000
_CANCEL_TIMEOUT_S = 2.0
_POOL_LOOK_S = 0.25
"""How often who waits for a connection looks whether its caller has gone."""
_CONFLICTS = (pg_errors.SerializationFailure, pg_errors.DeadlockDetected)
"""Lost against another transaction: the connection is sound, the function runs again."""
_FORBIDDEN = pg_errors.InsufficientPrivilege
"""The operator's to mend, and no different the next time."""
_FINAL = (
    pg_errors.QueryCanceled, pg_errors.LockNotAvailable, pg_errors.DiskFull, _FORBIDDEN, PoolTimeout, PoolClosed,
)  # fmt: skip
"""Running again would only wait again."""
_q_durable = """
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
_DEMOTED = pg_errors.ReadOnlySqlTransaction
"""After a fail-over: the connection works, and leads to a server that is no longer the primary."""
_UNAVAILABLE = (
    psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed, _DEMOTED, _FORBIDDEN,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """How to reach PostgreSQL; durations in seconds."""

    conninfo: str
    pool_size: int = 8
    statement_timeout_s: float = 60.0
    lock_timeout_s: float = 10.0
    idle_in_transaction_timeout_s: float = 30.0
    turns: int | None = None
    """Transactions of several statements at once; ``None``: as many as there are cores."""


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """A look at the pool. Holds are measured from check-out to return of a connection."""

    transactions: int
    retries: int
    failures: int
    running: int
    waiting: int
    hold_max_ms: float
    hold_p99_ms: float
    hold_p50_ms: float


_SINGLE: set[Callable[..., object]] = set()
_IN_TURN: set[Callable[..., object]] = set()


def one_statement(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function that runs one statement at most: it needs neither a BEGIN nor a COMMIT around it."""
    _SINGLE.add(function)
    return function


def one_large_statement(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function that runs one statement at most, which is work for a core: it takes its turn as others do."""
    _IN_TURN.add(function)
    return one_statement(function)


class Database:
    """A pool of connections and the only way to use one."""

    def __init__(self, settings: DatabaseSettings, environment: Environment) -> None:
        self._settings = settings
        self._environment = environment
        self._slots = trio.CapacityLimiter(settings.pool_size)
        self._turns = trio.CapacityLimiter(settings.turns or turns_at_once())
        self._threads = trio.CapacityLimiter(settings.pool_size)  # for what waits for a server that may be gone
        self._holds: deque[float] = deque(maxlen=_HOLD_SAMPLES)
        self._hold_max = 0.0
        self._transactions = self._retries = self._failures = 0
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            settings.conninfo, min_size=1, max_size=settings.pool_size, open=False, name="museworkd",
            reconnect_timeout=RECONNECT_S, kwargs=connection_arguments(settings), configure=_require_durable,
        )  # fmt: skip

    async def open(self) -> None:
        """Open the pool; connections are made when they are needed."""
        await trio.to_thread.run_sync(self._pool.open)

    async def aclose(self) -> None:
        """Close the pool; also under cancellation."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: self._pool.close(timeout=5))

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run ``function(connection, *arguments)`` as one transaction in a worker thread.

        Raises:
            IndexUnavailable: the database could not do it, after retries within bounds.
            Exception: whatever the function raises, after a rollback.
        """
        attempt = 1
        while True:
            try:
                return await self._run_once(function, arguments)
            except _UNAVAILABLE as error:
                self._failures += 1
                if isinstance(error, _FINAL) or attempt >= ATTEMPTS:
                    raise IndexUnavailable(f"{type(error).__name__}: {_first_line(error)}") from error
                if not isinstance(error, _CONFLICTS):  # the connection may be one of many that died together
                    await trio.to_thread.run_sync(self._pool.check, abandon_on_cancel=True, limiter=self._threads)
            self._retries += 1
            await trio.sleep(RETRY_DELAY_S * 2 ** (attempt - 1) * (0.5 + self._environment.jitter()))
            attempt += 1

    def statistics(self) -> DatabaseStatistics:
        """Give a look at the pool."""
        holds = sorted(self._holds)
        limiter = self._slots.statistics()
        return DatabaseStatistics(
            self._transactions, self._retries, self._failures, limiter.borrowed_tokens,
            limiter.tasks_waiting + self._turns.statistics().tasks_waiting,
            self._hold_max * 1000, _percentile(holds, 0.99) * 1000, _percentile(holds, 0.5) * 1000,
        )  # fmt: skip

    def reset_statistics(self) -> None:
        """Forget hold times, so that a test or a scrape interval sees its own."""
        self._holds.clear()
        self._hold_max = 0.0

    async def _run_once(self, function: Callable[..., T], arguments: tuple[object, ...]) -> T:
        job = _Job(self._pool, self._threads, function, arguments)
        answer_s = self._settings.statement_timeout_s + ANSWER_GRACE_S
        async with contextlib.AsyncExitStack() as line:  # waiting in line can be cancelled freely
            passes = function in _SINGLE and function not in _IN_TURN
            turn = None if passes else await line.enter_async_context(Turn(self._turns))
            await line.enter_async_context(self._slots)
            await job.in_thread(answer_s, turn)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._transactions += 1
        self._holds.append(job.held_s)
        self._hold_max = max(self._hold_max, job.held_s)
        if job.hung_up:
            raise IndexUnavailable("the database server does not answer any more")
        return job.result()


class _Job(Generic[T]):
    """One function on its way through a connection."""

    def __init__(
        self, pool: ConnectionPool[Connection], threads: trio.CapacityLimiter, function: Callable[..., T],
        arguments: tuple[object, ...],
    ) -> None:  # fmt: skip
        self.threads = threads
        self._pool = pool
        self._function = function
        self._arguments = arguments
        self._active: Connection | None = None
        self._unwanted = False
        self._lock = threading.Lock()
        self._outcome: outcome.Outcome[T] | None = None
        self._waiting: trio.lowlevel.Task | None = None
        self.done = trio.Event()
        self.hung_up = False
        self.held_s = 0.0

    def result(self) -> T:
        """Give what the function gave, or raise what it raised."""
        assert self._outcome is not None
        return self._outcome.unwrap()

    async def in_thread(self, answer_s: float, turn: Turn | None) -> None:
        """Run in a worker thread, to its end: a caller that is cancelled has the server cancel the statement first.

        What takes long gives up its turn. A server that does not answer within ``answer_s`` is hung up on. This is
        ``trio.to_thread.run_sync`` with a hand in what a cancellation does, which would else take a nursery and a
        task for each transaction.
        """
        token = trio.lowlevel.current_trio_token()

        def finish() -> None:
            self.done.set()
            if self._waiting is not None:
                trio.lowlevel.reschedule(self._waiting)
                self._waiting = None

        def deliver(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(finish)

        trio.lowlevel.start_thread_soon(self.run, deliver, "transaction")
        if turn is not None:
            with contextlib.suppress(trio.Cancelled), trio.move_on_after(LONG_S):  # the caller's is heard below
                await self._wait(self._leave)
            turn.give_up()
        if self.done.is_set():
            return
        with trio.move_on_after(answer_s) as patience:

            def abort(_: object) -> trio.lowlevel.Abort:
                end = _hang_up if patience.cancel_called else _cancel
                trio.lowlevel.spawn_system_task(end, self, name="end a transaction")
                return trio.lowlevel.Abort.FAILED

            await self._wait(abort)

    async def _wait(self, abort: Callable[[object], trio.lowlevel.Abort]) -> None:
        self._waiting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def run(self) -> None:
        """Run in the worker thread; what the function raises is kept for :meth:`result`."""
        self._outcome = outcome.capture(self._with_connection)

    def _with_connection(self) -> T:
        connection = self._get_connection()
        started = time.perf_counter()
        try:
            return self._transact(connection)
        finally:
            self._pool.putconn(connection)
            self.held_s = time.perf_counter() - started

    def _get_connection(self) -> Connection:
        give_up_at = time.monotonic() + POOL_WAIT_S
        while True:
            try:
                return self._pool.getconn(timeout=_POOL_LOOK_S)
            except PoolTimeout:
                if self._unwanted or time.monotonic() > give_up_at:
                    raise PoolTimeout(f"no connection could be had within {POOL_WAIT_S:.0f} s") from None

    def cancel(self) -> None:
        """Ask the server to cancel what runs now; from another worker thread."""
        with self._lock:  # the connection cannot go back to the pool while the request is on its way
            self._unwanted = True
            if self._active is not None:
                self._active.cancel_safe(timeout=_CANCEL_TIMEOUT_S)

    def hang_up(self) -> None:
        """End the conversation from our side: whoever waits for an answer learns that none will come."""
        with self._lock:
            if self._active is None or self._active.closed:
                return
            self.hung_up = True
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._active.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _transact(self, connection: Connection) -> T:
        with self._lock:
            if self._unwanted:
                raise pg_errors.QueryCanceled("the caller has gone")
            self._active = connection
        try:
            alone = self._function in _SINGLE
            if connection.autocommit is not alone:
                connection.autocommit = alone
            value = self._function(connection, *self._arguments)
            if not alone:
                connection.commit()
            return value
        except BaseException as error:
            if isinstance(error, _DEMOTED):
                connection.close()
            if not connection.closed:
                connection.rollback()
            raise
        finally:
            with self._lock:
                self._active = None


async def _hang_up(job: _Job[Any]) -> None:
    job.hang_up()


async def _cancel(job: _Job[Any]) -> None:
    """Cancel a transaction whose caller has gone; hang up on a server that does not mind."""
    hang_up_at = trio.current_time() + CANCEL_ANSWER_S
    while not job.done.is_set():
        try:
            await trio.to_thread.run_sync(job.cancel, limiter=job.threads)
        except (psycopg.Error, OSError):
            pass  # no second connection, or no descriptor, to be had: the statement timeout ends it
        with trio.move_on_after(CANCEL_RETRY_S):
            await job.done.wait()
        if trio.current_time() > hang_up_at:
            job.hang_up()


def connection_arguments(settings: DatabaseSettings) -> dict[str, Any]:
    """Give what every connection is opened with: limits and planning on the server's side, and keepalives.

    A prepared statement keeps no plan: a push makes tables grow a thousandfold before their statistics are taken
    again, and the plan for a table of one page reads all of it for each id.
    """
    limits = {
        "statement_timeout": settings.statement_timeout_s,
        "lock_timeout": settings.lock_timeout_s,
        "idle_in_transaction_session_timeout": settings.idle_in_transaction_timeout_s,
    }
    options = [f"{name}={int(seconds * 1000)}" for name, seconds in limits.items()]
    options.append("plan_cache_mode=force_custom_plan")
    # whatever the database's default: what waited for a lock has to see what it was for
    options.append("default_transaction_isolation=read\\ committed")
    return {
        "options": " ".join(f"-c {option}" for option in options),
        "application_name": "museworkd",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": KEEPALIVE_S,
        "keepalives_interval": KEEPALIVE_S,
        "keepalives_count": 2,
    }


def _require_durable(connection: Connection) -> None:
    """See to it that what is acknowledged is on disk, whatever the database's default; a stricter one is left."""
    connection.autocommit = True
    connection.execute(_q_durable)
    connection.autocommit = False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def without_password(conninfo: str) -> str | None:
    """Give a connection string as it may be shown; ``None`` when it is none."""
    try:
        arguments = pg_conninfo.conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return None
    secrets = {name: "***" for name in ("password", "sslpassword") if arguments.get(name)}
    return pg_conninfo.make_conninfo("", **{**arguments, **secrets}) if secrets else conninfo

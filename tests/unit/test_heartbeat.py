"""The heartbeat clock: clients hear at least every 10 s, leases stay alive. Under a mock clock."""

from __future__ import annotations

import itertools
import uuid

import trio
import trio.testing

from actors.heartbeat import HEARTBEAT_S, LEASE_S, HeartbeatClock, Heartbeats
from storage.environment import SeededEnvironment
from storage.errors import IndexUnavailable
from storage.rows import PushTicket


class Quiet:
    """A push that says nothing by itself."""

    def __init__(self) -> None:
        self.ticket = PushTicket(1, 1, uuid.UUID(int=1), 1)
        self.heard_at = [0.0]

    def tick(self, quiet_s: float) -> None:
        if trio.current_time() - self.heard_at[-1] >= quiet_s:
            self.heard_at.append(trio.current_time())


class Renewals:
    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[tuple[float, int]] = []

    async def renew_pushes(self, tickets, now, lease_s) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time(), len(tickets)))
        if self.failures:
            self.failures -= 1
            raise IndexUnavailable("down")


async def test_no_client_waits_more_than_ten_seconds_for_a_word(autojump_clock: trio.testing.MockClock) -> None:
    heartbeats, push = Heartbeats(), Quiet()
    heartbeats.add(push)
    with trio.move_on_after(120):
        await HeartbeatClock(heartbeats, Renewals(), SeededEnvironment(1)).live()
    gaps = [b - a for a, b in itertools.pairwise(push.heard_at)]
    assert len(gaps) >= 12
    assert max(gaps) <= HEARTBEAT_S


async def test_a_removed_push_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    heartbeats, push = Heartbeats(), Quiet()
    heartbeats.add(push)
    heartbeats.remove(push)
    with trio.move_on_after(60):
        await HeartbeatClock(heartbeats, Renewals(), SeededEnvironment(1)).live()
    assert push.heard_at == [0.0]


async def test_leases_are_renewed_in_one_call_long_before_they_end(autojump_clock: trio.testing.MockClock) -> None:
    heartbeats, index = Heartbeats(), Renewals()
    for _ in range(3):
        heartbeats.add(Quiet())
    with trio.move_on_after(LEASE_S):
        await HeartbeatClock(heartbeats, index, SeededEnvironment(1)).live()
    assert {count for _, count in index.calls} == {3}
    times = [0.0, *(at for at, _ in index.calls)]
    assert max(b - a for a, b in itertools.pairwise(times)) <= LEASE_S / 5


async def test_a_failed_renewal_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    heartbeats, index = Heartbeats(), Renewals(failures=3)
    heartbeats.add(Quiet())
    with trio.move_on_after(LEASE_S):
        await HeartbeatClock(heartbeats, index, SeededEnvironment(1)).live()
    assert len(index.calls) > 4

"""The supervisor: who lives again, when it gives up, and how it drains. Under a mock clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from actors.actor import Actor
from actors.supervisor import Child, Draining, GaveUp, Restart, Supervisor


class Scripted(Actor[None]):
    """Runs a function as its whole life."""

    def __init__(self, life: Callable) -> None:
        super().__init__("scripted")
        self._life = life

    async def run(self) -> None:
        await self._life()

    async def handle(self, message: None) -> None:
        raise AssertionError


class Lives:
    """Counts the lives of a child and ends the first ones as told."""

    def __init__(self, *endings: str) -> None:
        self.endings = list(endings)
        self.count = 0

    def make(self) -> Scripted:
        return Scripted(self.live)

    async def live(self) -> None:
        self.count += 1
        ending = self.endings.pop(0) if self.endings else "stay"
        if ending == "crash":
            raise RuntimeError("crash")
        if ending == "stay":
            await trio.sleep_forever()


async def run_for(seconds: float, supervisor: Supervisor, *children: Child) -> None:
    with trio.move_on_after(seconds):
        await supervisor.run(list(children))


@pytest.mark.parametrize(
    ("restart", "endings", "lives"),
    [
        (Restart.PERMANENT, ["end", "crash"], 3),
        (Restart.TRANSIENT, ["crash", "end"], 2),
        (Restart.TRANSIENT, ["end"], 1),
        (Restart.TEMPORARY, ["crash"], 1),
        (Restart.TEMPORARY, ["end"], 1),
    ],
)
async def test_a_child_lives_again_as_its_policy_says(
    restart: Restart, endings: list[str], lives: int, autojump_clock: trio.testing.MockClock
) -> None:
    child = Lives(*endings)
    await run_for(60, Supervisor(), Child("child", child.make, restart))
    assert child.count == lives


async def test_a_crash_of_one_child_does_not_touch_another(autojump_clock: trio.testing.MockClock) -> None:
    calm, wild = Lives(), Lives("crash", "crash")
    await run_for(60, Supervisor(), Child("calm", calm.make), Child("wild", wild.make))
    assert (calm.count, wild.count) == (1, 3)


async def test_F26_it_gives_up_when_a_child_crashes_too_often(autojump_clock: trio.testing.MockClock) -> None:
    child = Lives(*["crash"] * 100)
    with pytest.RaisesGroup(GaveUp, flatten_subgroups=True):
        await Supervisor(restarts_most=5, restart_period_s=10).run([Child("child", child.make)])
    assert child.count == 6


async def test_crashes_far_apart_are_forgiven(autojump_clock: trio.testing.MockClock) -> None:
    count = 0

    async def crash_after_a_while() -> None:
        nonlocal count
        count += 1
        await trio.sleep(5)
        raise RuntimeError("crash")

    await run_for(
        600, Supervisor(restarts_most=3, restart_period_s=10), Child("c", lambda: Scripted(crash_after_a_while))
    )
    assert count > 100


async def test_a_temporary_actor_runs_and_is_forgotten(nursery: trio.Nursery) -> None:
    supervisor = Supervisor()
    await nursery.start(supervisor.run, [])
    done = trio.Event()
    go = trio.Event()

    async def life() -> None:
        await go.wait()
        done.set()

    await supervisor.start(Scripted(life))
    await trio.testing.wait_all_tasks_blocked()
    assert [s.name for s in supervisor.statistics().children] == ["scripted"]
    go.set()
    await done.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.statistics().children == ()


async def test_draining_waits_for_what_runs_and_takes_nothing_new(autojump_clock: trio.testing.MockClock) -> None:
    supervisor = Supervisor()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [])
        await supervisor.start(Scripted(lambda: trio.sleep(7)))
        began = trio.current_time()
        assert await supervisor.drain(20) is True
        assert trio.current_time() - began == pytest.approx(7)
        with pytest.raises(Draining):
            await supervisor.start(Scripted(lambda: trio.sleep(1)))
        nursery.cancel_scope.cancel()


async def test_draining_ends_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    supervisor = Supervisor()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [])
        await supervisor.start(Scripted(trio.sleep_forever))
        assert await supervisor.drain(3) is False
        nursery.cancel_scope.cancel()


async def test_draining_with_nothing_to_do_ends_at_once() -> None:
    assert await Supervisor().drain(3) is True


async def test_a_start_that_is_cancelled_while_it_waits_does_not_hold_up_draining() -> None:
    supervisor = Supervisor()  # not running: requests pile up
    for _ in range(64):
        await supervisor.start(Scripted(trio.sleep_forever))
    with trio.move_on_after(0):
        await supervisor.start(Scripted(trio.sleep_forever))
    assert supervisor._temporaries == 64

"""The watchdog's round trip through the tree: who answers, who is named, and when nobody says alive. Mock clock."""

from __future__ import annotations

import trio
import trio.testing

from actors.actor import Actor
from actors.supervisor import Child, Supervisor
from actors.watchdog import Watchdog


class Worker(Actor[None]):
    """Works and rests in turn; may get stuck."""

    def __init__(self, name: str, work_s: float = 0.1, stuck: trio.Event | None = None) -> None:
        super().__init__(name, mailbox_size=0)
        self._work_s = work_s
        self._stuck = stuck
        self.rounds = 0

    async def run(self) -> None:
        while True:
            self.rounds += 1
            if self._stuck is not None:
                await self._stuck.wait()
            await trio.sleep(self._work_s)
            await self.rest(600)

    async def handle(self, message: None) -> None:
        raise AssertionError


class Tree:
    """A supervisor with a watchdog that says alive to a list."""

    def __init__(self, *workers: Worker) -> None:
        self.supervisor = Supervisor()
        self.alive: list[float] = []
        self.children = [Child(worker.name, lambda worker=worker: worker) for worker in workers]
        self.children.append(Child("watchdog", lambda: Watchdog(self.supervisor, self._say, round_s=10, silent_s=180)))

    def _say(self) -> None:
        self.alive.append(trio.current_time())


async def test_actors_that_rest_answer_and_their_rest_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("calm")
    tree = Tree(worker, Worker("slow", work_s=70))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.supervisor.run, tree.children)
        await trio.sleep(590)
        assert worker.rounds == 1
        await trio.sleep(20)
        assert worker.rounds == 2
        assert tree.supervisor.silent == ()
        assert len(tree.alive) >= 30
        nursery.cancel_scope.cancel()


async def test_F23_a_stuck_actor_is_named_and_nobody_says_alive_until_it_answers_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    free = trio.Event()
    tree = Tree(Worker("calm"), Worker("stuck", stuck=free))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.supervisor.run, tree.children)
        await trio.sleep(170)
        assert tree.supervisor.silent == ()
        await trio.sleep(60)
        assert tree.supervisor.silent == ("stuck",)
        said = len(tree.alive)
        await trio.sleep(300)
        assert len(tree.alive) == said
        free.set()
        await trio.sleep(60)
        assert tree.supervisor.silent == ()
        assert len(tree.alive) > said
        nursery.cancel_scope.cancel()


async def test_an_actor_that_answers_in_the_middle_of_long_work_is_not_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Long(Worker):
        async def run(self) -> None:
            for _ in range(10_000):
                await trio.sleep(5)
                self.answer()

    tree = Tree(Long("long"))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.supervisor.run, tree.children)
        await trio.sleep(1_000)
        assert tree.supervisor.silent == ()
        nursery.cancel_scope.cancel()


async def test_temporary_actors_are_not_asked(autojump_clock: trio.testing.MockClock) -> None:
    tree = Tree()
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.supervisor.run, tree.children)
        await tree.supervisor.start(Worker("a push", stuck=trio.Event()))
        await trio.sleep(1_000)
        assert tree.supervisor.silent == ()
        nursery.cancel_scope.cancel()


async def test_an_actor_woken_before_it_rests_does_not_miss_it(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("woken")
    worker.wake()
    with trio.move_on_after(5):
        await worker.live()
    assert worker.rounds == 2


async def test_F24_a_loop_that_was_blocked_is_told(logs: list[dict], mock_clock: trio.testing.MockClock) -> None:
    tree = Tree()
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.supervisor.run, tree.children)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(15)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [entry["seconds"] for entry in logs if entry["event"] == "the loop was blocked"] == [5.0]

"""What ``/livez`` and ``/readyz`` say of a daemon one of whose actors is stuck, and that its own actors all answer."""

from __future__ import annotations

from pathlib import Path

import trio

from museworkd.assembly import make_services, make_work
from museworkd.config import Config
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from tests.http_client import ask
from tests.servers import Server


async def test_F23_a_silent_actor_is_named_and_the_daemon_is_no_longer_live(twin: Server) -> None:
    assert (await ask(twin, "GET", "/livez")).status == 200
    assert (await ask(twin, "GET", "/readyz")).value["checks"]["actors"] == "ok"
    twin.services.supervisor.silent = ("claimer", "cron")
    live, ready = await ask(twin, "GET", "/livez"), await ask(twin, "GET", "/readyz")
    assert (live.status, live.value["silent"]) == (503, ["claimer", "cron"])
    assert (ready.status, ready.value["checks"]["actors"]) == (503, "silent: claimer, cron")
    twin.services.supervisor.silent = ()
    assert (await ask(twin, "GET", "/livez")).status == 200


async def test_every_permanent_actor_of_a_daemon_answers_the_watchdog(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path)
    services, children = await make_services(config, MemoryIndex(), MemoryStore())
    children += make_work(config, services).children()
    async with trio.open_nursery() as nursery:
        await nursery.start(services.supervisor.run, children)
        assert await services.supervisor.round_trip(20) == []
        running = services.supervisor.statistics().children
        assert {actor.name for actor in running} == {child.name for child in children}
        nursery.cancel_scope.cancel()

"""F20: SIGKILL at every step of a push, by every way; the daemon comes back and nothing is lost or half done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.dying_server import Dying, dying_server, heard, make_repository
from tests.growing import WAYS, Growing, another_repository, heads, push_ids
from tests.http_client import ask
from tests.muse import Push
from tests.servers import Server
from tests.stepping import ACCEPTING, Moment, Step, steps_of

MOMENTS: dict[str, tuple[bool, Callable[[list[str]], list[Step]]]] = {
    # between two writes nothing changes that outlives a process: of what is read there, the first of each name will do
    "before, in batches of one": (
        True,
        lambda calls: [step for step in steps_of(calls, Moment.BEFORE) if step.writes or step.number == 1],
    ),
    "inside, in batches of one": (True, lambda calls: steps_of(calls, Moment.INSIDE, writing=True)),
    # of the others, "after" is before the next; the last are the acceptance, its entries in the store, and the upload
    "after the last": (False, lambda calls: steps_of(calls, Moment.AFTER, writing=True)[-3:]),
}


@pytest.fixture(scope="module")
def dying(postgres_home: Path, module_database_url: str) -> Iterator[Dying]:
    with dying_server(postgres_home / "dying", module_database_url) as running:
        yield running


@pytest.fixture
async def index(dying: Dying, module_database_url: str) -> AsyncIterator[PostgresIndex]:
    async with PostgresIndex(DatabaseSettings(module_database_url, pool_size=1)) as index:
        yield index


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", MOMENTS)
async def test_F20_a_daemon_killed_at_any_step_of_a_push_has_all_of_it_or_nothing(
    dying: Dying, index: PostgresIndex, way: str, when: str
) -> None:
    """I1, I2 and I4 after each kill; the same push again ends accepted, and what was pushed comes back whole."""
    server = dying.server
    if await make_repository(index, "other"):
        await another_repository(server)
    branch = Growing(f"{way}-{when}".replace(", ", "-").replace(" ", "-"))
    await make_repository(index, branch.slug)
    await branch.push(server, WAYS[way])
    small_batches, chosen = MOMENTS[when]
    await dying.die_at(None, small_batches)
    await branch.push(server, WAYS[way])
    steps = chosen(await dying.live_on())
    met: set[str] = set()
    for number, step in enumerate(steps):
        history, push_id = branch.next(), next(push_ids)
        await dying.die_at(step, small_batches)
        said = await heard(WAYS[way](server, history, push_id, branch.slug))
        death = dying.died()
        assert (said is None) == (death is not None), said
        if death is None:
            assert said["type"] == "R"
            await dying.live_on()
        else:
            met.add(step.call)
            await look_at(server, branch, history, push_id, accepted=death["accepted"])
            if number % 4 == 0:
                await branch.can_be_fetched(server)
            said = await WAYS[way](server, history, push_id, branch.slug)
            assert (said["type"], said["head"]) == ("R", history.head), (step, said)
        branch.grown(history)
    await branch.is_whole(server, index)
    assert met == {step.call for step in steps}
    assert met & ACCEPTING
    assert "Traceback" not in dying.log


async def look_at(server: Server, branch: Growing, history: Push, push_id: str, *, accepted: bool) -> None:
    """What a daemon has that was just started again."""
    state = await ask(server, "GET", f"/alice/{branch.slug}/push/{push_id}", token="alice")
    if accepted:  # nobody heard of it, but it is done
        assert await heads(server, branch.slug) == {"main": history.head}
        assert state.value["status"] == "accepted"
    else:
        await branch.is_unseen(server, history)
        assert state.status == 404 or state.value["status"] in {"pending", "interrupted"}

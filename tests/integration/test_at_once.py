"""A push's transactions as one statement each do exactly what the ones of several statements do.

Every situation is played twice, on two owners of one database: for one, everything is tried at once; the other's
deployment has a quota, large enough for anything, and a quota is what is never decided at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psycopg
import pytest

from storage.environment import SeededEnvironment
from storage.errors import StaleTicket, Tombstoned
from storage.job_rows import NewJob
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import BranchMove, MoveResult, PushRows, PushTicket, Repository, Written
from tests.behaviour.test_index import TYPED, Bench, blob, commit, name, names, snapshot
from wire.ids import Scheme

VAST = 1 << 50
AT_ONCE = {"record_at_once", "record_snapshots_at_once", "record_commits_at_once", "finish_at_once"}
IN_STEPS = {"record_blobs", "record_snapshots", "record_commits", "finish_push"}
TODO = [NewJob("mpack.index", 0, {"a pack": True}), NewJob("gc", 3)]


@dataclass
class Play(Bench):
    """One playing of a situation: its names are its own, and what ran is remembered."""

    index: PostgresIndex
    url: str
    owner: str
    seen: list[object] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = SeededEnvironment(sum(self.owner.encode()))
        run = self.index.database.run

        async def noted(function: Callable[..., object], *arguments: object) -> object:
            self.ran.append(function.__name__)
            return await run(function, *arguments)

        self.index.database.run = noted  # type: ignore[method-assign, assignment]

    async def begun(self, slug: str = "x") -> PushTicket:
        return await self.begin(await self.repository(self.owner, slug))

    def of(self, text: str) -> str:
        return f"{self.owner} {text}"

    def rows(
        self, *, commits: Sequence[str] = ("c1",), content: bytes | None = None, pack: str | None = None
    ) -> PushRows:
        blobs = [replace(blob(self.of("b1"), 1), content=content), blob(self.of("b2"), 5, pack and self.of(pack), 9)]
        return PushRows(blobs, [snapshot(self.of("s1"))], [commit(self.of(one)) for one in commits])

    async def finish(
        self, ticket: PushTicket, rows: PushRows, new: str = "c1", old: str | None = None, scheme: Scheme = TYPED
    ) -> None:
        """Finish, and remember what came of it."""

        def words(written: Written) -> Mapping[str, object]:
            return {"blobs": written.blobs, "snapshots": written.snapshots, "commits": written.commits}

        move = BranchMove("main", None if old is None else name(self.of(old)), name(self.of(new)), False)
        now = self.environment.now()
        result = await self.index.finish_push(ticket, scheme, rows, move, words, now, 7, TODO)
        self.seen.append(self.anonymous(result))

    async def attempt(self, doing: Awaitable[object]) -> None:
        """Remember what comes of it, or which error."""
        try:
            self.seen.append(await doing)
        except (StaleTicket, Tombstoned) as error:
            self.seen.append(type(error))

    def anonymous(self, result: MoveResult) -> MoveResult:
        heads = {name(self.of(text)): text.encode() for text in ("c1", "c2", "other")}
        return replace(result, head=None if result.head is None else heads[result.head])

    async def look(self, repository: Repository) -> None:
        """Remember everything there is to see of a repository, but for names."""
        number, texts = repository.number, ("b1", "b2", "b3")
        ticket = await self.begin(repository, branch="look")
        places = await self.index.held_places(number, TYPED, names(map(self.of, texts)))
        self.seen += [
            sorted((place.size, place.offset, place.pending, place.pack_id is None) for place in places.values()),
            len(await self.index.lacking_blobs(ticket, names(map(self.of, texts)))),
            len(await self.index.lacking_snapshots(ticket, names(map(self.of, ("s1", "s2"))))),
            len(await self.index.held_commits(number, names(map(self.of, ("c1", "c2", "other"))))),
            [entry.handle for entry in await self.index.branch_log(number, "main")],
            (await self.index.owner_usage(self.owner, self.environment.now())).used,
        ]
        with psycopg.connect(self.url) as beside:
            self.seen += beside.execute(
                "SELECT scheme, (SELECT count(*) FROM jobs j WHERE j.repo = r.repo), "
                "(SELECT count(*) FROM content_cache) FROM repositories r WHERE repo = %s", (number,)
            ).fetchall()  # fmt: skip
            beside.execute("DELETE FROM content_cache")


async def usual(play: Play) -> None:
    repository = await play.repository(play.owner)
    await play.finish(await play.begin(repository), play.rows())
    await play.look(repository)


async def second(play: Play) -> None:
    repository = await play.repository(play.owner)
    await play.finish(await play.begin(repository), play.rows())
    rows = PushRows([blob(play.of("b3"))], [snapshot(play.of("s2"))], [commit(play.of("c2"), play.of("c1"))])
    await play.finish(await play.begin(repository), rows, "c2", "c1")
    await play.look(repository)


async def in_batches(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    rows = play.rows(commits=["c1", "c2"])
    play.seen += [
        await play.index.record_blobs(ticket, TYPED, rows.blobs),
        await play.index.record_blobs(ticket, TYPED, rows.blobs),
        await play.index.record_snapshots(ticket, TYPED, rows.snapshots),
        await play.index.record_commits(ticket, TYPED, rows.commits),
    ]
    await play.finish(ticket, PushRows([blob(play.of("b3"))]))
    await play.look(repository)


async def waiting_contents(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    rows = play.rows(content=b"x")
    play.seen.append(await play.index.record_blobs(ticket, TYPED, rows.blobs))
    await play.finish(ticket, PushRows([replace(blob(play.of("b3"), 2), content=b"yz")], rows.snapshots, rows.commits))
    await play.look(repository)


async def in_a_known_pack(play: Play) -> None:
    repository, other = await play.repository(play.owner), await play.repository(play.owner, "other")
    await play.index.record_blobs(await play.begin(other), TYPED, [blob(play.of("b9"), 1, play.of("pack"), 1)])
    play.ran.clear()
    await play.finish(await play.begin(repository), play.rows(pack="pack"))
    await play.look(repository)


async def in_a_new_pack(play: Play) -> None:
    repository = await play.repository(play.owner)
    await play.finish(await play.begin(repository), play.rows(pack="pack"))
    await play.look(repository)


async def not_all_new(play: Play) -> None:
    repository = await play.repository(play.owner)
    await play.push(repository, commit(play.of("c1")), snapshot(play.of("s1")), new=play.of("c1"), branch="beside")
    await play.finish(await play.begin(repository), play.rows())
    await play.look(repository)


async def a_moved_branch(play: Play) -> None:
    repository = await play.repository(play.owner)
    await play.push(repository, commit(play.of("other")), new=play.of("other"))
    await play.finish(await play.begin(repository), play.rows())
    await play.finish(await play.begin(repository), play.rows(), old="c2")
    await play.look(repository)


async def a_newer_attempt(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    again = await play.begin(repository, ticket.push_id)
    rows = play.rows()
    for each in (ticket, again):
        await play.attempt(play.index.record_blobs(each, TYPED, rows.blobs))
        await play.attempt(play.index.record_snapshots(each, TYPED, rows.snapshots))
        await play.attempt(play.index.record_commits(each, TYPED, rows.commits))
    await play.finish(ticket, rows)
    await play.finish(again, rows)
    await play.look(repository)


async def finished_again(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    await play.finish(ticket, play.rows())
    await play.finish(ticket, play.rows())
    await play.look(repository)


async def a_deleted_repository(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    await play.index.delete_repository(repository.number, play.environment.now())
    await play.finish(ticket, play.rows())


async def another_scheme(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    await play.push(repository, commit(play.of("other")), new=play.of("other"), branch="beside")
    await play.finish(ticket, play.rows(), scheme=Scheme.PLAIN)
    await play.look(repository)


async def tombstones(play: Play) -> None:
    repository = await play.repository(play.owner)
    ticket = await play.begin(repository)
    with psycopg.connect(play.url) as beside:
        mark = """INSERT INTO collect_marks (kind, scheme, id, loose, state, marked_at, moment)
                  VALUES (0, 'typed', %s, true, %s, now(), pg_current_xact_id())"""
        beside.execute(mark, (name(play.of("b1")), 1))
        beside.execute(mark, (name(play.of("b2")), 0))
    rows = play.rows()
    await play.attempt(play.index.record_blobs(ticket, TYPED, rows.blobs))
    await play.attempt(play.index.record_blobs(ticket, TYPED, rows.blobs[1:]))
    await play.look(repository)
    with psycopg.connect(play.url) as beside:
        left = beside.execute("DELETE FROM collect_marks RETURNING state").fetchall()
    play.seen += left


SITUATIONS: Mapping[Callable[[Play], Awaitable[None]], bool] = {
    usual: True, second: True, in_batches: True, waiting_contents: True, in_a_known_pack: True,
    in_a_new_pack: False, not_all_new: False, a_moved_branch: False, a_newer_attempt: False, finished_again: False,
    a_deleted_repository: False, another_scheme: False, tombstones: False,
}  # fmt: skip
"""And whether everything can be done at once."""


@pytest.fixture
async def indexes(database_url: str) -> AsyncIterator[tuple[PostgresIndex, PostgresIndex]]:
    settings = DatabaseSettings(database_url)
    async with PostgresIndex(settings) as first, PostgresIndex(settings, None, VAST) as other:
        yield first, other


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_at_once_or_in_steps_the_same_comes_of_it(
    indexes: tuple[PostgresIndex, PostgresIndex], database_url: str, situation: Callable[[Play], Awaitable[None]]
) -> None:
    at_once, in_steps = Play(indexes[0], database_url, "ada"), Play(indexes[1], database_url, "bob")
    for play in (at_once, in_steps):
        await situation(play)
    assert [str(one).replace("bob", "ada") for one in in_steps.seen] == [str(one) for one in at_once.seen]
    assert AT_ONCE & set(at_once.ran)
    assert not AT_ONCE & set(in_steps.ran) - {"record_snapshots_at_once", "record_commits_at_once"}
    assert bool(IN_STEPS & set(at_once.ran)) is not SITUATIONS[situation]

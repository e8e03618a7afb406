"""What every ``Index`` promises, held against the memory twin and against PostgreSQL."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import psycopg
import pytest
import trio
from trio.testing import assert_checkpoints

from storage.environment import SeededEnvironment
from storage.errors import StaleTicket
from storage.index import UNREAD_NOTIFICATIONS, Index
from storage.layout import Place
from storage.memory.index import MemoryIndex
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import (
    BranchLogEntry,
    BranchMove,
    CommitRow,
    MoveResult,
    NewRepository,
    Outcome,
    PushRecord,
    PushState,
    PushTicket,
    Repository,
    RepositorySettings,
    Right,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Token,
    Visibility,
)
from wire.graph import CommitFacts
from wire.ids import Scheme

TYPED, PLAIN = Scheme.TYPED, Scheme.PLAIN
VERDICT = {"head": "…", "counts": [1, 2.5, None, True], "nested": {"": {}}}
MANY = 10_000


@pytest.fixture(scope="module")
def tables(module_database_url: str) -> str:
    """The tables with contents, for TRUNCATE."""
    with psycopg.connect(module_database_url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        return ", ".join(name for (name,) in found if name != "schema_migrations")


@pytest.fixture
def emptied_url(module_database_url: str, tables: str) -> str:
    with psycopg.connect(module_database_url) as connection:
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")
    return module_database_url


@pytest.fixture(params=["memory", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("emptied_url")


@pytest.fixture
async def index(url: str | None) -> AsyncIterator[Index]:
    if url is None:
        yield MemoryIndex()
        return
    async with PostgresIndex(DatabaseSettings(url)) as made:
        yield made


@pytest.fixture
def bench(index: Index) -> Bench:
    return Bench(index)


def name(text: str) -> bytes:
    """The id of something that is never looked into."""
    return hashlib.sha256(text.encode()).digest()


def names(texts: Iterable[str]) -> list[bytes]:
    return [name(text) for text in texts]


def blob(text: str, size: int = 3, pack: str | None = None, offset: int = 0) -> StoredBlob:
    return StoredBlob(name(text), size, None if pack is None else name(pack), offset)


def snapshot(
    text: str, base: str | None = None, depth: int = 0, full: bytes | None = None, extras: bytes = b""
) -> SnapshotRef:
    row = SnapshotRow(name(text), None if base is None else name(base), depth, f"changes of {text}".encode(), full)
    return SnapshotRef(row, extras)


def commit(text: str, *parents: str, generation: int = 1, record: bytes | None = None) -> CommitRow:
    body = f"record of {text}".encode() if record is None else record
    return CommitRow(name(text), tuple(names(parents)), name(f"snapshot of {text}"), generation, body)


def facts(text: str, *parents: str, generation: int = 1) -> CommitFacts:
    return CommitFacts(name(text), tuple(names(parents)), name(f"snapshot of {text}"), generation)


@dataclass
class Bench:
    """An index, and the ordinary ways to fill it."""

    index: Index

    def __post_init__(self) -> None:
        self.environment = SeededEnvironment(42)

    def new(self, owner: str = "ada", slug: str = "x", visibility: Visibility = Visibility.PRIVATE) -> NewRepository:
        self.environment.move(1)
        return NewRepository(
            self.environment.uuid(), owner, slug, visibility, "main", "code", self.environment.now(),
        )  # fmt: skip

    async def repository(
        self, owner: str = "ada", slug: str = "x", visibility: Visibility = Visibility.PRIVATE
    ) -> Repository:
        made = await self.index.create_repository(self.new(owner, slug, visibility))
        assert made is not None
        return made

    async def begin(
        self, repository: Repository, push_id: uuid.UUID | None = None, handle: str = "ada", branch: str = "main"
    ) -> PushTicket:
        ticket = await self.index.begin_push(
            repository.number, push_id or self.environment.uuid(), handle, branch, self.environment.now(), 600
        )
        assert isinstance(ticket, PushTicket)
        return ticket

    async def accept(
        self, ticket: PushTicket, new: str, old: str | None = None, branch: str = "main", scheme: Scheme = TYPED,
        forced: bool = False, verdict: Mapping[str, object] = VERDICT,
    ) -> MoveResult:  # fmt: skip
        self.environment.move(1)
        move = BranchMove(branch, None if old is None else name(old), name(new), forced)
        return await self.index.accept_push(ticket, scheme, move, verdict, self.environment.now())

    async def record(
        self, ticket: PushTicket, *rows: StoredBlob | SnapshotRef | CommitRow, scheme: Scheme = TYPED
    ) -> None:
        await self.index.record_blobs(ticket, scheme, [row for row in rows if isinstance(row, StoredBlob)])
        await self.index.record_snapshots(ticket, scheme, [row for row in rows if isinstance(row, SnapshotRef)])
        await self.index.record_commits(ticket, scheme, [row for row in rows if isinstance(row, CommitRow)])

    async def push(
        self, repository: Repository, *rows: StoredBlob | SnapshotRef | CommitRow, new: str = "head",
        old: str | None = None, branch: str = "main", scheme: Scheme = TYPED,
    ) -> PushTicket:  # fmt: skip
        """A whole accepted push."""
        ticket = await self.begin(repository, branch=branch)
        await self.record(ticket, *rows, scheme=scheme)
        assert await self.accept(ticket, new, old, branch, scheme) == MoveResult(Outcome.MOVED, name(new))
        return ticket

    async def log(self, repository: Repository, branch: str = "main") -> list[tuple[bytes | None, bytes | None]]:
        return [(entry.old, entry.new) for entry in await self.index.branch_log(repository.number, branch)]

    def token(self, handle: str = "ada", **fields: object) -> Token:
        self.environment.move(1)
        secret = self.environment.random_bytes(32)
        made = Token(self.environment.uuid(), handle, secret, Right.WRITE, self.environment.now(), None)
        return replace(made, **fields)


# ---- tokens and secrets


async def test_a_token_is_found_by_its_hash(bench: Bench) -> None:
    expires = dt.datetime(2030, 1, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
    tokens = [bench.token(), bench.token("bob", scope=Right.ADMIN, expires_at=expires), bench.token()]
    for token in tokens:
        await bench.index.create_token(token)
    for token in tokens:
        assert await bench.index.find_token(token.token_hash) == token
    assert await bench.index.find_token(bytes(32)) is None


async def test_a_token_stored_again_stays_as_it_was(bench: Bench) -> None:
    token = bench.token()
    await bench.index.create_token(token)
    await bench.index.create_token(replace(token, scope=Right.ADMIN))
    assert await bench.index.list_tokens(None) == [token]


async def test_an_expired_token_is_found_all_the_same(bench: Bench) -> None:
    token = bench.token(expires_at=bench.environment.now() - dt.timedelta(days=1))
    await bench.index.create_token(token)
    assert await bench.index.find_token(token.token_hash) == token


async def test_a_revoked_token_says_since_when(bench: Bench) -> None:
    token, other = bench.token(), bench.token()
    await bench.index.create_token(token)
    await bench.index.create_token(other)
    at = bench.environment.now()
    assert await bench.index.revoke_token(token.token_id, at)
    assert await bench.index.find_token(token.token_hash) == replace(token, revoked_at=at)
    assert await bench.index.find_token(other.token_hash) == other


async def test_a_token_is_revoked_once(bench: Bench) -> None:
    token = bench.token()
    await bench.index.create_token(token)
    at = bench.environment.now()
    assert await bench.index.revoke_token(token.token_id, at)
    assert not await bench.index.revoke_token(token.token_id, at + dt.timedelta(days=1))
    assert not await bench.index.revoke_token(bench.environment.uuid(), at)
    assert await bench.index.list_tokens("ada") == [replace(token, revoked_at=at)]


async def test_tokens_are_listed_newest_first(bench: Bench) -> None:
    tokens = [bench.token(handle) for handle in ("ada", "bob", "ada", "bob", "bob")]
    same_time = [bench.token(created_at=tokens[0].created_at) for _ in range(4)]
    for token in tokens + same_time:
        await bench.index.create_token(token)
    await bench.index.revoke_token(tokens[1].token_id, tokens[1].created_at)
    tokens[1] = replace(tokens[1], revoked_at=tokens[1].created_at)
    oldest = sorted([tokens[0], *same_time], key=lambda token: token.token_id)
    assert await bench.index.list_tokens(None) == [tokens[4], tokens[3], tokens[2], tokens[1], *oldest]
    assert await bench.index.list_tokens("bob") == [tokens[4], tokens[3], tokens[1]]
    assert await bench.index.list_tokens("nobody") == []


async def test_the_first_secret_of_a_name_stays(index: Index) -> None:
    assert await index.secret("urls", b"first") == b"first"
    assert await index.secret("urls", b"second") == b"first"
    assert await index.secret("other", b"third") == b"third"


async def test_several_who_ask_for_a_secret_at_once_get_the_same(index: Index) -> None:
    found = []

    async def ask(candidate: bytes) -> None:
        found.append(await index.secret("urls", candidate))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(ask, b"candidate %d" % number)
    assert len(set(found)) == 1


# ---- repositories


async def test_a_repository_is_found_with_everything_that_was_said(bench: Bench) -> None:
    settings = RepositorySettings(True, True, ("main", "gültig/ü", "a'b\"c"))
    new = replace(bench.new(visibility=Visibility.PUBLIC), settings=settings, default_branch="trunk", domain="music")
    made = await bench.index.create_repository(new)
    assert made == Repository(
        made.number, new.repo_id, "ada", "x", Visibility.PUBLIC, None, "trunk", "music", settings, new.created_at
    )
    assert await bench.index.find_repository("ada", "x") == made


async def test_a_repository_made_again_is_the_same(bench: Bench) -> None:
    new = bench.new()
    made = await bench.index.create_repository(new)
    assert await bench.index.create_repository(new) == made
    assert await bench.index.list_repositories("ada") == [made]


async def test_a_taken_name_makes_no_repository(bench: Bench) -> None:
    made = await bench.repository()
    assert await bench.index.create_repository(bench.new()) is None
    assert await bench.index.list_repositories("ada") == [made]


async def test_of_several_who_want_a_name_one_gets_it(bench: Bench) -> None:
    made = []

    async def make(new: NewRepository) -> None:
        made.append(await bench.index.create_repository(new))

    async with trio.open_nursery() as nursery:
        for new in [bench.new() for _ in range(6)]:
            nursery.start_soon(make, new)
    winners = [repository for repository in made if repository is not None]
    assert len(made) == 6
    assert winners == await bench.index.list_repositories("ada")


async def test_repositories_are_found_by_number_until_they_are_gone(bench: Bench) -> None:
    made = {r.number: r for r in [await bench.repository("ada", slug) for slug in ("x", "y", "z")]}
    unknown = max(made) + 1_000
    assert await bench.index.repositories_numbered([*made, unknown]) == made
    assert await bench.index.repositories_numbered([]) == {}
    (gone, *left) = made
    await bench.index.delete_repository(gone, bench.new().created_at)
    assert set(await bench.index.repositories_numbered(list(made))) == set(left)


async def test_names_are_exact(bench: Bench) -> None:
    made = {
        (owner, slug): await bench.repository(owner, slug) for owner in ("ada", "Ada") for slug in ("x", "X", "x.y")
    }
    for (owner, slug), repository in made.items():
        assert await bench.index.find_repository(owner, slug) == repository


async def test_a_name_nobody_has_finds_nothing(bench: Bench) -> None:
    await bench.repository()
    for nobody in ("nobody", "", "ad", "ada ", "a%", "a\0da", "ad\udcffa", "'; DROP TABLE pushes; --"):
        assert await bench.index.find_repository(nobody, "x") is None
        assert await bench.index.find_repository("ada", nobody) is None


async def test_each_sees_what_he_may_read(bench: Bench) -> None:
    own = await bench.repository("ada", "own")
    public = await bench.repository("bob", "public", Visibility.PUBLIC)
    shared = await bench.repository("bob", "shared")
    secret = await bench.repository("bob", "secret")
    deleted = await bench.repository("ada", "deleted", Visibility.PUBLIC)
    await bench.index.set_collaborator(shared.number, "ada", Right.READ)
    await bench.index.set_collaborator(deleted.number, "eve", Right.READ)
    await bench.index.delete_repository(deleted.number, bench.environment.now())
    assert await bench.index.list_repositories("ada") == [own, public, shared]
    assert await bench.index.list_repositories("bob") == [public, secret, shared]
    assert await bench.index.list_repositories("eve") == [public]
    assert await bench.index.list_repositories(None) == [public]
    assert await bench.index.list_repositories(None, everything=True) == [own, public, secret, shared]


async def test_an_updated_repository_is_found_as_updated(bench: Bench) -> None:
    made, other = await bench.repository(), await bench.repository("ada", "other")
    settings = RepositorySettings(protected_branches=("main",))
    for _ in range(2):
        assert await bench.index.update_repository(made.number, Visibility.PUBLIC, settings, "trunk")
    changed = replace(made, visibility=Visibility.PUBLIC, settings=settings, default_branch="trunk")
    assert await bench.index.find_repository("ada", "x") == changed
    assert await bench.index.find_repository("ada", "other") == other


async def test_a_deleted_repository_is_out_of_sight_and_its_name_is_free(bench: Bench) -> None:
    made = await bench.repository()
    assert await bench.index.delete_repository(made.number, bench.environment.now())
    assert await bench.index.find_repository("ada", "x") is None
    assert await bench.index.list_repositories("ada", everything=True) == []
    again = await bench.repository()
    assert again.number != made.number
    assert await bench.index.find_repository("ada", "x") == again


async def test_a_deleted_repository_is_not_there_to_be_changed(bench: Bench) -> None:
    made = await bench.repository()
    unknown = made.number + 1000
    await bench.index.delete_repository(made.number, bench.environment.now())
    for number in (made.number, unknown):
        assert not await bench.index.delete_repository(number, bench.environment.now())
        assert not await bench.index.update_repository(number, Visibility.PUBLIC, RepositorySettings(), "main")


async def test_a_repository_made_in_a_deleted_ones_place_has_nothing_of_it(bench: Bench) -> None:
    first = await bench.repository()
    await bench.push(first, blob("b"), commit("c"), snapshot("s"), new="c")
    await bench.index.set_collaborator(first.number, "bob", Right.ADMIN)
    await bench.index.delete_repository(first.number, bench.environment.now())
    second = await bench.repository()
    assert second.scheme is None
    assert await bench.index.branch_heads(second.number) == {}
    assert await bench.index.branch_log(second.number, "main") == []
    assert await bench.index.collaborator_right(second.number, "bob") is Right.NONE
    assert (await bench.index.known_blobs(second.number, TYPED, [name("b")])).held == frozenset()
    assert await bench.index.held_commits(second.number, [name("c")]) == {}


async def test_a_collaborator_has_the_right_last_given(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("ada", "two")
    assert await bench.index.collaborator_right(one.number, "bob") is Right.NONE
    for right in (Right.READ, Right.ADMIN, Right.WRITE, Right.WRITE):
        await bench.index.set_collaborator(one.number, "bob", right)
        assert await bench.index.collaborator_right(one.number, "bob") is right
    assert await bench.index.collaborator_right(two.number, "bob") is Right.NONE
    assert await bench.index.collaborator_right(one.number, "eve") is Right.NONE
    for _ in range(2):
        await bench.index.set_collaborator(one.number, "bob", Right.NONE)
        assert await bench.index.collaborator_right(one.number, "bob") is Right.NONE


async def test_branches_come_with_their_heads_by_name(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("ada", "other")
    for branch in ("main", "Z", "a/b", "ä", "\U0001f3b5", "￿"):
        await bench.push(repository, new=f"head of {branch}", branch=branch)
    await bench.push(other, new="elsewhere")
    found = await bench.index.branch_heads(repository.number)
    assert list(found.items()) == [
        (branch, name(f"head of {branch}")) for branch in ("Z", "a/b", "main", "ä", "￿", "\U0001f3b5")
    ]
    assert await bench.index.branch_heads(other.number) == {"main": name("elsewhere")}


# ---- a push begins


async def test_a_new_push_is_its_first_attempt(bench: Bench) -> None:
    repository = await bench.repository()
    push_id = bench.environment.uuid()
    ticket = await bench.begin(repository, push_id)
    assert (ticket.repo, ticket.push_id, ticket.attempt) == (repository.number, push_id, 1)


async def test_a_push_begun_again_is_a_newer_attempt_of_the_same(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    again = await bench.begin(repository, ticket.push_id)
    assert again == replace(ticket, attempt=2)


async def test_attempts_begun_at_once_are_told_apart(bench: Bench) -> None:
    repository = await bench.repository()
    push_id = bench.environment.uuid()
    tickets = []

    async def begin() -> None:
        tickets.append(await bench.begin(repository, push_id))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(begin)
    assert sorted(ticket.attempt for ticket in tickets) == [1, 2, 3, 4, 5, 6]
    assert len({ticket.number for ticket in tickets}) == 1


async def test_one_push_id_in_two_repositories_names_two_pushes(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("ada", "two")
    push_id = bench.environment.uuid()
    first, second = await bench.begin(one, push_id), await bench.begin(two, push_id)
    assert first.number != second.number
    assert (first.attempt, second.attempt) == (1, 1)
    await bench.accept(first, "c")
    assert (await bench.index.find_push(two.number, push_id)).state is PushState.OPEN


@pytest.mark.parametrize("state", [PushState.ACCEPTED, PushState.REFUSED])
async def test_a_finished_push_begun_again_gives_its_record(bench: Bench, state: PushState) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    began = bench.environment.now()
    if state is PushState.ACCEPTED:
        await bench.accept(ticket, "c")
    else:
        bench.environment.move(1)
        await bench.index.refuse_push(ticket, VERDICT, bench.environment.now())
    record = PushRecord(ticket.push_id, "ada", "main", state, VERDICT, began, bench.environment.now())
    for handle in ("ada", "eve"):
        assert record == await bench.index.begin_push(
            repository.number, ticket.push_id, handle, "other", bench.environment.now(), 600
        )
    assert await bench.index.find_push(repository.number, ticket.push_id) == record


async def test_somebody_elses_open_push_cannot_be_taken_over(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    found = await bench.index.begin_push(repository.number, ticket.push_id, "eve", "main", bench.environment.now(), 600)
    assert found == PushRecord(ticket.push_id, "ada", "main", PushState.OPEN, None, bench.environment.now(), None)
    assert await bench.accept(ticket, "c") == MoveResult(Outcome.MOVED, name("c"))


async def test_an_unknown_push_is_not_found(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("ada", "other")
    ticket = await bench.begin(repository)
    assert await bench.index.find_push(repository.number, bench.environment.uuid()) is None
    assert await bench.index.find_push(other.number, ticket.push_id) is None


async def test_an_open_push_is_found_as_such(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository, branch="a/b")
    assert await bench.index.find_push(repository.number, ticket.push_id) == PushRecord(
        ticket.push_id, "ada", "a/b", PushState.OPEN, None, bench.environment.now(), None
    )


async def leases(index: Index) -> dict[int, dt.datetime]:
    """Look behind the port: until when each push's rows are kept."""
    if isinstance(index, MemoryIndex):
        return {number: entry.lease_expires for number, entry in index.tables.pushes.items()}
    return await index.database.run(lambda c: dict(c.execute("SELECT push, lease_expires FROM pushes").fetchall()))


async def test_a_lease_is_renewed_for_the_newest_attempt_of_an_open_push(bench: Bench) -> None:
    repository = await bench.repository()
    begun = bench.environment.now()
    stale = await bench.begin(repository)
    current = await bench.begin(repository, stale.push_id)
    overtaken = await bench.begin(repository)
    await bench.begin(repository, overtaken.push_id)
    finished = await bench.begin(repository)
    await bench.accept(finished, "c")
    plain = await bench.begin(repository)
    later = begun + dt.timedelta(seconds=100)
    for _ in range(2):
        await bench.index.renew_pushes([current, overtaken, finished, plain], later, 900)
    after, before = later + dt.timedelta(seconds=900), begun + dt.timedelta(seconds=600)
    found = await leases(bench.index)
    assert (found[current.number], found[overtaken.number], found[finished.number]) == (after, before, before)
    assert found[plain.number] == after


async def test_no_leases_may_be_renewed(bench: Bench) -> None:
    await bench.index.renew_pushes([], bench.environment.now(), 900)


async def test_a_newer_attempt_has_a_lease_of_its_own(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    bench.environment.move(5000)
    await bench.begin(repository, ticket.push_id)
    assert await leases(bench.index) == {ticket.number: bench.environment.now() + dt.timedelta(seconds=600)}


# ---- rows of a push


ROWS = (blob("b1"), blob("b2", 500, "pack", 92), snapshot("s1", extras=b"{}"), commit("c1"))


@dataclass
class Sight:
    """All that can be read of :data:`ROWS` through one repository."""

    blobs: set[bytes]
    commits: dict[bytes, int]
    places: dict[bytes, Place]
    records: dict[bytes, bytes]
    extras: dict[bytes, bytes]
    heads: dict[str, bytes]

    @classmethod
    async def of(cls, index: Index, repository: Repository, scheme: Scheme = TYPED) -> Sight:
        number, blobs, commits = repository.number, names(["b1", "b2"]), [name("c1")]
        return cls(
            set((await index.known_blobs(number, scheme, blobs)).held),
            await index.held_commits(number, commits),
            await index.held_places(number, scheme, blobs),
            await index.commit_records(number, commits),
            await index.snapshot_extras(number, [name("s1")]),
            await index.branch_heads(number),
        )


NOTHING = Sight(set(), {}, {}, {}, {}, {})
EVERYTHING = Sight(
    set(names(["b1", "b2"])),
    {name("c1"): 1},
    {name("b1"): Place(name("b1"), 3, None, 0), name("b2"): Place(name("b2"), 500, name("pack"), 92)},
    {name("c1"): b"record of c1"},
    {name("s1"): b"{}"},
    {"main": name("c1")},
)


async def test_an_accepted_push_is_seen_by_its_repository_and_by_no_other(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("bob", "two", Visibility.PUBLIC)
    await bench.push(one, *ROWS, new="c1")
    assert await Sight.of(bench.index, one) == EVERYTHING
    assert await Sight.of(bench.index, two) == NOTHING


async def test_rows_of_an_open_push_are_seen_by_nobody_else(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("bob", "other")
    ticket = await bench.begin(repository)
    await bench.record(ticket, *ROWS)
    assert await Sight.of(bench.index, repository) == NOTHING
    assert await Sight.of(bench.index, other) == NOTHING
    for stranger in (await bench.begin(repository), await bench.begin(other)):
        assert set(await bench.index.lacking_blobs(stranger, names(["b1", "b2"]))) == set(names(["b1", "b2"]))
        assert await bench.index.lacking_snapshots(stranger, [name("s1")]) == [name("s1")]
        assert await bench.index.lacking_commits(stranger, [name("c1")]) == [name("c1")]


async def test_rows_of_a_refused_push_are_seen_by_nobody(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    await bench.record(ticket, *ROWS)
    await bench.index.refuse_push(ticket, VERDICT, bench.environment.now())
    assert await Sight.of(bench.index, repository) == NOTHING
    stranger = await bench.begin(repository)
    assert len(await bench.index.lacking_blobs(stranger, names(["b1", "b2"]))) == 2


async def test_rows_of_an_older_attempt_count_for_the_newer_one(bench: Bench) -> None:
    repository = await bench.repository()
    stale = await bench.begin(repository)
    await bench.record(stale, *ROWS)
    ticket = await bench.begin(repository, stale.push_id)
    assert await bench.index.lacking_blobs(ticket, names(["b1", "b2"])) == []
    assert await bench.index.lacking_snapshots(ticket, [name("s1")]) == []
    assert await bench.index.record_blobs(ticket, TYPED, [blob("b1")]) == 0
    await bench.accept(ticket, "c1")
    assert await Sight.of(bench.index, repository) == EVERYTHING


@pytest.mark.parametrize("why", ["overtaken", "accepted", "refused"])
async def test_a_stale_ticket_writes_nothing(bench: Bench, why: str) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    if why == "overtaken":
        await bench.begin(repository, ticket.push_id)
    elif why == "accepted":
        await bench.accept(ticket, "c0")
    else:
        await bench.index.refuse_push(ticket, VERDICT, bench.environment.now())
    with pytest.raises(StaleTicket):
        await bench.index.record_blobs(ticket, TYPED, [blob("b1")])
    with pytest.raises(StaleTicket):
        await bench.index.record_snapshots(ticket, TYPED, [snapshot("s1")])
    with pytest.raises(StaleTicket):
        await bench.index.record_commits(ticket, TYPED, [commit("c1")])
    assert (await bench.index.known_blobs(repository.number, TYPED, [name("b1")], ticket.number)).sent == frozenset()
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == []
    assert await bench.index.ancestry(TYPED, [name("c1")], 0) == []


async def test_writing_rows_again_writes_nothing(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    for expected in (2, 0):
        assert await bench.index.record_blobs(ticket, TYPED, [blob("b1"), blob("b2", 500, "pack", 92)]) == expected
    for expected in (1, 0):
        assert await bench.index.record_snapshots(ticket, TYPED, [snapshot("s1", extras=b"{}")]) == expected
        assert await bench.index.record_commits(ticket, TYPED, [commit("c1")]) == expected
    await bench.accept(ticket, "c1")
    assert await Sight.of(bench.index, repository) == EVERYTHING


async def test_what_a_batch_names_twice_is_written_once(bench: Bench) -> None:
    ticket = await bench.begin(await bench.repository())
    assert await bench.index.record_blobs(ticket, TYPED, [blob("b1"), blob("b2"), blob("b1")]) == 2
    assert await bench.index.record_snapshots(ticket, TYPED, [snapshot("s1"), snapshot("s1")]) == 1
    assert await bench.index.record_commits(ticket, TYPED, [commit("c1"), commit("c1")]) == 1


async def test_empty_batches_are_nothing(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    assert await bench.index.record_blobs(ticket, TYPED, []) == 0
    assert await bench.index.record_snapshots(ticket, TYPED, []) == 0
    assert await bench.index.record_commits(ticket, TYPED, []) == 0
    known = await bench.index.known_blobs(repository.number, TYPED, [])
    assert (known.sent, known.held) == (frozenset(), frozenset())
    assert await bench.index.lacking_blobs(ticket, []) == []
    assert await bench.index.lacking_snapshots(ticket, []) == []
    assert await bench.index.lacking_commits(ticket, []) == []
    assert await bench.index.ancestry(TYPED, [], 10) == []
    assert await bench.index.places(TYPED, []) == {}


async def test_counts_leave_out_what_the_repository_held_before(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("ada", "other")
    await bench.push(repository, snapshot("s1"), commit("c1"), new="c1")
    ticket, elsewhere = await bench.begin(repository), await bench.begin(other)
    assert await bench.index.record_snapshots(ticket, TYPED, [snapshot("s1"), snapshot("s2", "s1", 1)]) == 1
    assert await bench.index.record_commits(ticket, TYPED, [commit("c1"), commit("c2", "c1", generation=2)]) == 1
    assert await bench.index.record_snapshots(elsewhere, TYPED, [snapshot("s1"), snapshot("s2", "s1", 1)]) == 2
    assert await bench.index.record_commits(elsewhere, TYPED, [commit("c1"), commit("c2", "c1", generation=2)]) == 2


async def test_known_blobs_tells_what_this_push_sent_and_this_repository_holds(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("bob", "two", Visibility.PUBLIC)
    await bench.push(one, blob("mine"), blob("both"), new="c1")
    await bench.push(two, blob("both"), blob("theirs"), new="c2")
    ticket = await bench.begin(one)
    await bench.record(ticket, blob("open"))
    wanted = names(["mine", "both", "theirs", "open", "unknown"])
    known = await bench.index.known_blobs(one.number, TYPED, wanted, ticket.number)
    assert (known.held, known.sent) == (set(names(["mine", "both"])), set(names(["open"])))
    known = await bench.index.known_blobs(two.number, TYPED, wanted + wanted, ticket.number)
    assert (known.held, known.sent) == (set(names(["both", "theirs"])), frozenset())
    assert (await bench.index.known_blobs(one.number, TYPED, wanted)).sent == frozenset()


async def test_held_is_the_same_whatever_other_repositories_do(bench: Bench) -> None:
    mine, theirs = await bench.repository(), await bench.repository("eve", "theirs", Visibility.PUBLIC)
    wanted = names(["b1", "b2"])
    assert (await bench.index.known_blobs(mine.number, TYPED, wanted)).held == frozenset()
    ticket = await bench.begin(theirs)
    await bench.record(ticket, blob("b1"), blob("b2"))
    assert (await bench.index.known_blobs(mine.number, TYPED, wanted)).held == frozenset()
    await bench.accept(ticket, "c")
    assert (await bench.index.known_blobs(mine.number, TYPED, wanted)).held == frozenset()


async def test_lacking_is_what_neither_the_push_nor_its_repository_has(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("bob", "other", Visibility.PUBLIC)
    everything = [blob("held"), snapshot("held"), commit("held")]
    await bench.push(repository, *everything, new="held")
    await bench.push(other, blob("theirs"), snapshot("theirs"), commit("theirs"), new="theirs")
    ticket = await bench.begin(repository)
    await bench.record(ticket, blob("own"), snapshot("own"), commit("own"))
    wanted = names(["held", "theirs", "own", "unknown"])
    lacking = names(["theirs", "unknown"])
    assert sorted(await bench.index.lacking_blobs(ticket, wanted + wanted)) == sorted(lacking)
    assert sorted(await bench.index.lacking_snapshots(ticket, wanted + wanted)) == sorted(lacking)
    assert sorted(await bench.index.lacking_commits(ticket, wanted + wanted)) == sorted([*lacking, name("own")])


# ---- a push is accepted


async def test_accepting_makes_a_branch(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    assert await bench.accept(ticket, "c1") == MoveResult(Outcome.MOVED, name("c1"))
    assert await bench.index.branch_heads(repository.number) == {"main": name("c1")}
    assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.ACCEPTED


async def test_accepting_moves_a_branch(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.push(repository, new="c1")
    ticket = await bench.begin(repository)
    assert await bench.accept(ticket, "c2", "c1") == MoveResult(Outcome.MOVED, name("c2"))
    assert await bench.index.branch_heads(repository.number) == {"main": name("c2")}


async def test_accepting_fixes_the_scheme(bench: Bench) -> None:
    for scheme in Scheme:
        repository = await bench.repository("ada", scheme.value)
        await bench.push(repository, new="c1", scheme=scheme)
        assert await bench.index.find_repository("ada", scheme.value) == replace(repository, scheme=scheme)


async def test_accepting_the_head_that_is_there_is_no_move(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.push(repository, new="c1")
    for old in ("c1", None, "c0"):
        ticket = await bench.begin(repository)
        assert await bench.accept(ticket, "c1", old) == MoveResult(Outcome.MOVED, name("c1"))
        assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.ACCEPTED
    assert await bench.log(repository) == [(None, name("c1"))]


async def test_accepting_again_gives_the_first_answer(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.push(repository, new="c1")
    record = await bench.index.find_push(repository.number, ticket.push_id)
    for _ in range(2):
        assert await bench.accept(ticket, "c1", verdict={"another": "verdict"}) == MoveResult(Outcome.MOVED, name("c1"))
    await bench.push(repository, new="c2", old="c1")
    assert await bench.accept(ticket, "c1") == MoveResult(Outcome.MOVED, name("c1"))
    assert await bench.index.find_push(repository.number, ticket.push_id) == record
    assert await bench.log(repository) == [(None, name("c1")), (name("c1"), name("c2"))]
    assert await bench.index.branch_heads(repository.number) == {"main": name("c2")}


@pytest.mark.parametrize("believed", ["no branch", "another head"])
async def test_head_differs_from_what_was_believed(bench: Bench, believed: str) -> None:
    repository = await bench.repository()
    await bench.push(repository, new="c1")
    ticket = await bench.begin(repository)
    old = None if believed == "no branch" else "c0"
    assert await bench.accept(ticket, "c2", old) == MoveResult(Outcome.HEAD_DIFFERS, name("c1"))
    assert await bench.index.branch_heads(repository.number) == {"main": name("c1")}


async def test_head_differs_when_the_branch_believed_in_is_not_there(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    assert await bench.accept(ticket, "c2", "c1") == MoveResult(Outcome.HEAD_DIFFERS, None)
    assert await bench.index.branch_heads(repository.number) == {}


async def test_nothing_stays_of_an_attempt_whose_head_differed_and_the_push_goes_on(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    await bench.record(ticket, *ROWS, scheme=PLAIN)
    assert (await bench.accept(ticket, "c1", "c0", scheme=PLAIN)).outcome is Outcome.HEAD_DIFFERS
    assert await bench.index.find_repository("ada", "x") == repository
    assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.OPEN
    assert await bench.log(repository) == []
    assert await Sight.of(bench.index, repository, PLAIN) == NOTHING
    assert await bench.accept(ticket, "c1", scheme=PLAIN) == MoveResult(Outcome.MOVED, name("c1"))
    assert await Sight.of(bench.index, repository, PLAIN) == EVERYTHING


async def test_superseded_by_a_newer_attempt(bench: Bench) -> None:
    repository = await bench.repository()
    stale = await bench.begin(repository)
    ticket = await bench.begin(repository, stale.push_id)
    assert await bench.accept(stale, "c1") == MoveResult(Outcome.SUPERSEDED)
    assert await bench.index.branch_heads(repository.number) == {}
    assert (await bench.accept(ticket, "c1")).outcome is Outcome.MOVED
    assert await bench.accept(stale, "c1") == MoveResult(Outcome.SUPERSEDED)


async def test_superseded_by_a_refusal(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    await bench.index.refuse_push(ticket, VERDICT, bench.environment.now())
    assert await bench.accept(ticket, "c1") == MoveResult(Outcome.SUPERSEDED)
    assert await bench.index.branch_heads(repository.number) == {}


async def test_gone_with_its_repository(bench: Bench) -> None:
    for scheme in (None, TYPED):
        repository = await bench.repository()
        if scheme is not None:
            await bench.push(repository, new="c0", branch="other")
        ticket = await bench.begin(repository)
        await bench.index.delete_repository(repository.number, bench.environment.now())
        assert await bench.accept(ticket, "c1") == MoveResult(Outcome.GONE)
        assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.OPEN


async def test_scheme_differs_from_the_one_fixed_meanwhile(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository, branch="plain")
    await bench.push(repository, new="c1", scheme=TYPED)
    assert await bench.accept(ticket, "c1", branch="plain", scheme=PLAIN) == MoveResult(Outcome.SCHEME_DIFFERS)
    assert await bench.index.branch_heads(repository.number) == {"main": name("c1")}
    assert (await bench.index.find_repository("ada", "x")).scheme is TYPED
    assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.OPEN


async def race(bench: Bench, *accepts: Callable[[], Awaitable[MoveResult]]) -> list[MoveResult]:
    results: dict[int, MoveResult] = {}

    async def run(at: int, accept: Callable[[], Awaitable[MoveResult]]) -> None:
        results[at] = await accept()

    async with trio.open_nursery() as nursery:
        for at, accept in enumerate(accepts):
            nursery.start_soon(run, at, accept)
    return [results[at] for at in range(len(accepts))]


@pytest.mark.parametrize("old", [None, "c0"], ids=["a new branch", "an old branch"])
async def test_of_several_moves_of_a_branch_at_once_one_wins(bench: Bench, old: str | None) -> None:
    repository = await bench.repository()
    if old is not None:
        await bench.push(repository, new=old)
    tickets = [await bench.begin(repository) for _ in range(6)]
    results = await race(
        bench, *[lambda t=ticket, n=at: bench.accept(t, f"new {n}", old) for at, ticket in enumerate(tickets)]
    )
    winners = [at for at, result in enumerate(results) if result.outcome is Outcome.MOVED]
    assert len(winners) == 1
    head = name(f"new {winners[0]}")
    assert {result.head for result in results} == {head}
    assert await bench.index.branch_heads(repository.number) == {"main": head}
    before = None if old is None else name(old)
    assert (await bench.log(repository))[-1] == (before, head)
    assert len(await bench.log(repository)) == (1 if old is None else 2)


async def test_first_pushes_to_several_branches_at_once_all_succeed(bench: Bench) -> None:
    repository = await bench.repository()
    tickets = [await bench.begin(repository, branch=f"b{at}") for at in range(6)]
    results = await race(
        bench, *[lambda t=ticket, n=at: bench.accept(t, f"c{n}", branch=f"b{n}") for at, ticket in enumerate(tickets)]
    )
    assert {result.outcome for result in results} == {Outcome.MOVED}
    assert await bench.index.branch_heads(repository.number) == {f"b{at}": name(f"c{at}") for at in range(6)}


async def test_of_first_pushes_in_two_schemes_at_once_one_scheme_wins(bench: Bench) -> None:
    repository = await bench.repository()
    tickets = [await bench.begin(repository, branch=f"b{at}") for at in range(6)]
    schemes = [TYPED, PLAIN] * 3
    results = await race(
        bench,
        *[
            lambda t=ticket, n=at: bench.accept(t, f"c{n}", branch=f"b{n}", scheme=schemes[n])
            for at, ticket in enumerate(tickets)
        ],
    )
    fixed = (await bench.index.find_repository("ada", "x")).scheme
    assert [result.outcome for result in results] == [
        Outcome.MOVED if scheme is fixed else Outcome.SCHEME_DIFFERS for scheme in schemes
    ]


async def test_a_verdict_comes_back_as_it_was_given(bench: Bench) -> None:
    repository = await bench.repository()
    verdict = {"text": "ü \0 \x1b \ud800 \U0001f3b5", "n": [0, -1, 2**60, 1.5, None, True], "": {"a": {"b": []}}}
    accepted, refused = await bench.begin(repository), await bench.begin(repository)
    await bench.accept(accepted, "c1", verdict=verdict)
    await bench.index.refuse_push(refused, verdict, bench.environment.now())
    for ticket in (accepted, refused):
        assert (await bench.index.find_push(repository.number, ticket.push_id)).verdict == verdict


async def test_several_branches_move_all_or_none(bench: Bench) -> None:
    repository = await bench.repository()
    number, now = repository.number, bench.environment.now()
    await bench.push(repository, blob("b"), commit("c1"), commit("c2", "c1", generation=2), new="c1")
    made = [BranchMove("new", None, name("c2"), False), BranchMove("main", name("c1"), name("c2"), False)]
    wrong = BranchMove("other", name("c1"), name("c2"), False)
    result = await bench.index.move_branches(number, [*made, wrong], "ada", now)
    assert result == MoveResult(Outcome.HEAD_DIFFERS, None, "other")
    assert await bench.index.branch_heads(number) == {"main": name("c1")}
    for _ in range(2):  # an answer that was lost is asked for again
        assert await bench.index.move_branches(number, made, "ada", now) == MoveResult(Outcome.MOVED)
        assert await bench.index.branch_heads(number) == {"main": name("c2"), "new": name("c2")}
    gone = [BranchMove("main", name("c2"), None, False), BranchMove("new", name("c2"), name("c1"), True)]
    for _ in range(2):
        assert await bench.index.move_branches(number, gone, "bob", now) == MoveResult(Outcome.MOVED)
        assert await bench.index.branch_heads(number) == {"new": name("c1")}
    log = [(e.old, e.new, e.handle, e.forced) for e in await bench.index.branch_log(number, "main")][1:]
    assert log == [(name("c1"), name("c2"), "ada", False), (name("c2"), None, "bob", False)]
    log = [(e.old, e.new, e.push_id, e.forced) for e in await bench.index.branch_log(number, "new")]
    assert log == [(None, name("c2"), None, False), (name("c2"), name("c1"), None, True)]


async def test_branches_of_a_deleted_repository_do_not_move(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.index.delete_repository(repository.number, bench.environment.now())
    move = BranchMove("main", None, name("c"), False)
    moved = await bench.index.move_branches(repository.number, [move], "ada", bench.environment.now())
    assert moved == MoveResult(Outcome.GONE)


async def test_the_branch_log_is_a_chain_of_moves(bench: Bench) -> None:
    repository = await bench.repository()
    expected = []
    old = None
    for at in range(5):
        handle = f"user {at % 2}"
        ticket = await bench.begin(repository, handle=handle)
        await bench.accept(ticket, f"c{at}", old, forced=at == 3)
        before = None if old is None else name(old)
        now = bench.environment.now()
        expected.append(BranchLogEntry("main", before, name(f"c{at}"), handle, ticket.push_id, at == 3, now))
        old = f"c{at}"
        await bench.push(repository, new=f"c{at}", old=None, branch=f"other {at}")
    found = await bench.index.branch_log(repository.number, "main")
    assert found == expected
    assert all(later.old == earlier.new for earlier, later in itertools.pairwise(found))
    assert await bench.log(repository, "other 2") == [(None, name("c2"))]
    assert await bench.log(repository, "no such branch") == []


# ---- a push is refused


async def test_a_refusal_is_kept_as_the_verdict(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    began = bench.environment.now()
    bench.environment.move(5)
    await bench.index.refuse_push(ticket, {"error": "malformed"}, bench.environment.now())
    assert await bench.index.find_push(repository.number, ticket.push_id) == PushRecord(
        ticket.push_id, "ada", "main", PushState.REFUSED, {"error": "malformed"}, began, bench.environment.now()
    )


async def test_the_first_verdict_stays(bench: Bench) -> None:
    repository = await bench.repository()
    refused, accepted = await bench.begin(repository), await bench.begin(repository)
    await bench.index.refuse_push(refused, {"error": "first"}, bench.environment.now())
    await bench.accept(accepted, "c1", verdict={"first": True})
    for ticket in (refused, accepted):
        await bench.index.refuse_push(ticket, {"error": "second"}, bench.environment.now())
    assert (await bench.index.find_push(repository.number, refused.push_id)).verdict == {"error": "first"}
    found = await bench.index.find_push(repository.number, accepted.push_id)
    assert (found.state, found.verdict) == (PushState.ACCEPTED, {"first": True})


async def test_an_overtaken_attempt_refuses_nothing(bench: Bench) -> None:
    repository = await bench.repository()
    stale = await bench.begin(repository)
    ticket = await bench.begin(repository, stale.push_id)
    await bench.index.refuse_push(stale, {"error": "late"}, bench.environment.now())
    assert (await bench.index.find_push(repository.number, ticket.push_id)).state is PushState.OPEN
    assert (await bench.accept(ticket, "c1")).outcome is Outcome.MOVED


# ---- history


async def test_held_commits_come_with_their_generation(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository("bob", "other")
    rows = [commit("c1"), commit("c2", "c1", generation=2), commit("c3", "c2", generation=3)]
    await bench.push(repository, *rows, new="c3")
    await bench.push(other, rows[0], new="c1")
    assert await bench.index.held_commits(repository.number, names(["c1", "c3", "c3", "unknown"])) == {
        name("c1"): 1, name("c3"): 3,
    }  # fmt: skip
    assert await bench.index.held_commits(other.number, names(["c1", "c2", "c3"])) == {name("c1"): 1}


async def diamonds(bench: Bench, count: int) -> tuple[Repository, list[CommitFacts]]:
    """A history of diamonds: each merge has two parents, both children of the merge before."""
    rows = [commit("m0")]
    for at in range(1, count + 1):
        rows += [commit(f"{side}{at}", f"m{at - 1}", generation=2 * at) for side in ("left", "right")]
        rows.append(commit(f"m{at}", f"left{at}", f"right{at}", generation=2 * at + 1))
    repository = await bench.repository()
    await bench.push(repository, *rows, new=f"m{count}")
    return repository, [CommitFacts(r.commit_id, r.parents, r.snapshot_id, r.generation) for r in rows]


async def test_ancestry_gives_the_facts_of_commits_and_their_ancestors(bench: Bench) -> None:
    _, rows = await diamonds(bench, 3)
    found = await bench.index.ancestry(TYPED, [name("m2")], 100)
    assert sorted(found, key=lambda f: f.commit_id) == sorted(rows[:7], key=lambda f: f.commit_id)
    assert await bench.index.ancestry(TYPED, [name("m0")], 100) == rows[:1]


async def test_ancestry_gives_the_nearest_first(bench: Bench) -> None:
    _, rows = await diamonds(bench, 40)
    found = await bench.index.ancestry(TYPED, [name("m40")], 1000)
    assert len(found) == len(rows)
    generations = [fact.order for fact in found]
    assert generations == sorted(generations, reverse=True)


async def test_ancestry_gives_no_more_ancestors_than_asked_for(bench: Bench) -> None:
    await diamonds(bench, 10)
    asked = names(["m10", "m4", "m10"])
    for most in (0, 1, 2, 3, 10, 11):
        found = await bench.index.ancestry(TYPED, asked, most)
        assert len(found) == 2 + most
        assert {fact.commit_id for fact in found} >= set(asked)


async def test_ancestry_does_not_follow_what_is_much_older(bench: Bench) -> None:
    rows = [commit("old1"), commit("old2", "old1", generation=2), commit("c3", "old2", generation=3)]
    rows += [commit(f"c{at}", f"c{at - 1}", "old2", generation=at) for at in range(4, 40)]
    repository = await bench.repository()
    await bench.push(repository, *rows, new="c39")
    found = await bench.index.ancestry(TYPED, [name("c39")], 10)
    assert {fact.commit_id for fact in found} == {name(f"c{at}") for at in range(30, 40)} | {name("old2")}


async def test_the_depths_of_stored_snapshots_are_told_whoever_stored_them(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.push(repository, snapshot("s0"), snapshot("s1", base="s0", depth=1), commit("c"), new="c")
    found = await bench.index.snapshot_depths(TYPED, names(["s0", "s1", "unknown"]))
    assert found == {name("s0"): 0, name("s1"): 1}
    assert await bench.index.snapshot_depths(PLAIN, names(["s0"])) == {}


async def test_stored_bodies_are_given_only_as_far_as_they_fit_into_memory(bench: Bench) -> None:
    repository = await bench.repository()
    ids = [f"c{at}" for at in range(8)]
    rows = [commit(one, record=bytes([at]) * 1_500_000) for at, one in enumerate(ids)]
    await bench.push(repository, *rows, new="c0")
    found = await bench.index.commit_records(repository.number, names(ids))
    assert list(found) == names(ids[:3])
    assert list(await bench.index.commit_records(repository.number, names(ids[3:]))) == names(ids[3:6])


async def test_ancestry_leaves_out_what_is_unknown(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.push(repository, commit("c2", "never recorded", generation=2), new="c2")
    assert await bench.index.ancestry(TYPED, names(["c2", "unknown"]), 10) == [
        facts("c2", "never recorded", generation=2)
    ]
    assert await bench.index.ancestry(PLAIN, names(["c2"]), 10) == []


async def test_ancestry_gives_a_commit_asked_for_twice_once(bench: Bench) -> None:
    await diamonds(bench, 2)
    found = await bench.index.ancestry(TYPED, names(["m2", "m2", "m1"]), 100)
    assert len(found) == 7


async def test_each_repository_gets_its_own_record_of_a_commit(bench: Bench) -> None:
    one, two, three = [await bench.repository("ada", slug) for slug in ("one", "two", "three")]
    await bench.push(one, commit("c", record=b'{"branch":"main"}'), new="c")
    await bench.push(two, commit("c", record=b'{"branch":"dev","extra":1}'), new="c")
    await bench.push(three, commit("c", record=b'{"branch":"main"}'), new="c")
    for repository, record in [(one, b'{"branch":"main"}'), (two, b'{"branch":"dev","extra":1}')]:
        assert await bench.index.commit_records(repository.number, [name("c")]) == {name("c"): record}
    assert await bench.index.commit_records(three.number, names(["c", "unknown"])) == {name("c"): b'{"branch":"main"}'}


async def test_the_first_record_a_repository_accepted_stays(bench: Bench) -> None:
    repository = await bench.repository()
    never = await bench.begin(repository)
    await bench.record(never, commit("c", record=b"never accepted"), snapshot("s", extras=b"never accepted"))
    await bench.push(repository, commit("c", record=b"first"), snapshot("s", extras=b"first"), new="c")
    await bench.push(repository, commit("c", record=b"second"), snapshot("s", extras=b"second"), new="c", old="c")
    assert await bench.index.commit_records(repository.number, [name("c")]) == {name("c"): b"first"}
    assert await bench.index.snapshot_extras(repository.number, [name("s")]) == {name("s"): b"first"}


async def test_of_two_pushes_that_bring_the_same_commit_at_once_the_first_begun_counts(bench: Bench) -> None:
    repository = await bench.repository()
    one, two = await bench.begin(repository), await bench.begin(repository)
    await bench.record(one, commit("c", record=b"one"), snapshot("s", extras=b"one"))
    await bench.record(two, commit("c", record=b"two"), snapshot("s", extras=b"two"))
    await bench.accept(two, "c")
    assert await bench.index.commit_records(repository.number, [name("c")]) == {name("c"): b"two"}
    await bench.accept(one, "c")
    assert await bench.index.commit_records(repository.number, [name("c")]) == {name("c"): b"one"}
    assert await bench.index.snapshot_extras(repository.number, [name("s")]) == {name("s"): b"one"}


async def test_each_repository_gets_its_own_extras_of_a_snapshot(bench: Bench) -> None:
    one, two, three = [await bench.repository("ada", slug) for slug in ("one", "two", "three")]
    await bench.push(one, snapshot("s", extras=b'{"note":"one"}'), new="c")
    await bench.push(two, snapshot("s", extras=b'{"note":"two"}'), snapshot("t", extras=b"{}"), new="c")
    await bench.push(three, snapshot("s"), new="c")
    wanted = names(["s", "t", "unknown"])
    assert await bench.index.snapshot_extras(one.number, wanted) == {name("s"): b'{"note":"one"}'}
    assert await bench.index.snapshot_extras(two.number, wanted) == {name("s"): b'{"note":"two"}', name("t"): b"{}"}
    assert await bench.index.snapshot_extras(three.number, wanted) == {}


async def test_snapshot_deltas_come_without_full_contents(bench: Bench) -> None:
    refs = [snapshot("s0"), snapshot("s1", "s0", 1), snapshot("s2", "s1", 0, full=b"the whole of it")]
    await bench.push(await bench.repository(), *refs, new="c")
    found = await bench.index.snapshot_deltas(TYPED, names(["s0", "s2", "s2", "unknown"]))
    assert found == {name("s0"): refs[0].row, name("s2"): replace(refs[2].row, full=None)}
    assert await bench.index.snapshot_deltas(PLAIN, names(["s0"])) == {}


async def test_a_chain_goes_from_a_snapshot_to_the_nearest_full_content(bench: Bench) -> None:
    refs = [
        snapshot("s0"), snapshot("s1", "s0", 1), snapshot("s2", "s1", 0, full=b"all of s2"), snapshot("s3", "s2", 1),
        snapshot("s4", "s3", 2), snapshot("sibling", "s2", 1),
    ]  # fmt: skip
    rows = [ref.row for ref in refs]
    await bench.push(await bench.repository(), *refs, new="c")
    assert await bench.index.snapshot_chain(TYPED, name("s4")) == [rows[4], rows[3], rows[2]]
    assert await bench.index.snapshot_chain(TYPED, name("sibling")) == [rows[5], rows[2]]
    assert await bench.index.snapshot_chain(TYPED, name("s2")) == [rows[2]]
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == [rows[1], rows[0]]
    assert await bench.index.snapshot_chain(TYPED, name("s0")) == [rows[0]]
    assert await bench.index.snapshot_chain(TYPED, name("unknown")) == []
    assert await bench.index.snapshot_chain(PLAIN, name("s0")) == []


async def test_a_broken_chain_ends_where_it_is_broken(bench: Bench) -> None:
    ref = snapshot("s1", "never recorded", 1)
    await bench.push(await bench.repository(), ref, new="c")
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == [ref.row]


async def test_the_longest_chain_comes_back_whole(bench: Bench) -> None:
    refs = [snapshot("s0"), *[snapshot(f"s{at}", f"s{at - 1}", at) for at in range(1, 49)]]
    await bench.push(await bench.repository(), *refs, new="c")
    assert await bench.index.snapshot_chain(TYPED, name("s48")) == [ref.row for ref in reversed(refs)]


async def test_a_snapshot_row_stays_as_it_was_first_stored(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("bob", "two")
    first = snapshot("s1", full=b"all of s1")
    await bench.push(one, first, new="c")
    await bench.push(two, snapshot("s0"), snapshot("s1", "s0", 1), new="c")
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == [first.row]


async def test_places_say_where_blobs_are(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    rows = [
        blob("loose", 10),
        blob("packed", 2**40, "pack", 2**41),
        blob("beside", 0, "pack", 13),
        blob("far", 1, "p2"),
    ]
    await bench.record(ticket, *rows)
    expected = {row.object_id: Place(row.object_id, row.size, row.pack_id, row.offset) for row in rows}
    wanted = [row.object_id for row in rows] * 2 + [name("unknown")]
    assert await bench.index.places(TYPED, wanted) == expected
    assert await bench.index.places(PLAIN, wanted) == {}
    assert await bench.index.held_places(repository.number, TYPED, wanted) == {}
    await bench.accept(ticket, "c")
    assert await bench.index.held_places(repository.number, TYPED, wanted) == expected


async def test_a_blob_stays_where_it_was_first_recorded(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("bob", "two")
    await bench.push(one, blob("b", 7, "pack", 92), new="c")
    await bench.push(two, blob("b", 7), new="c")
    expected = {name("b"): Place(name("b"), 7, name("pack"), 92)}
    assert await bench.index.places(TYPED, [name("b")]) == expected
    for repository in (one, two):
        assert await bench.index.held_places(repository.number, TYPED, [name("b")]) == expected


async def test_held_places_tells_nothing_of_other_repositories(bench: Bench) -> None:
    one, two = await bench.repository(), await bench.repository("bob", "two", Visibility.PUBLIC)
    await bench.push(one, blob("b"), new="c")
    await bench.push(two, blob("other"), new="c")
    assert await bench.index.held_places(two.number, TYPED, names(["b"])) == {}


async def test_one_digest_in_both_schemes_names_two_things(bench: Bench) -> None:
    typed, plain = await bench.repository("ada", "typed"), await bench.repository("ada", "plain")
    one = [blob("x", 1), snapshot("x", extras=b"typed"), commit("x", "p", record=b"typed")]
    two = [blob("x", 2, "pack", 9), snapshot("x", full=b"plain"), commit("x", generation=7, record=b"plain")]
    await bench.push(typed, *one, new="x")
    known = await bench.index.known_blobs(plain.number, PLAIN, [name("x")])
    assert (known.sent, known.held) == (frozenset(), frozenset())
    await bench.push(plain, *two, new="x", scheme=PLAIN)
    assert await bench.index.places(TYPED, [name("x")]) == {name("x"): Place(name("x"), 1, None, 0)}
    assert await bench.index.places(PLAIN, [name("x")]) == {name("x"): Place(name("x"), 2, name("pack"), 9)}
    assert await bench.index.snapshot_chain(TYPED, name("x")) == [one[1].row]
    assert await bench.index.snapshot_chain(PLAIN, name("x")) == [two[1].row]
    assert await bench.index.ancestry(TYPED, [name("x")], 9) == [facts("x", "p")]
    assert await bench.index.ancestry(PLAIN, [name("x")], 9) == [facts("x", generation=7)]
    assert await bench.index.held_commits(typed.number, [name("x")]) == {name("x"): 1}
    assert await bench.index.held_commits(plain.number, [name("x")]) == {name("x"): 7}
    assert await bench.index.commit_records(plain.number, [name("x")]) == {name("x"): b"plain"}


# ---- large batches


async def test_ten_thousand_blobs_in_one_batch(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    rows = [blob(f"b{at}", at, f"pack {at % 3}" if at % 2 else None, at) for at in range(MANY)]
    ids = [row.object_id for row in rows]
    assert await bench.index.record_blobs(ticket, TYPED, rows) == MANY
    assert await bench.index.lacking_blobs(ticket, [*ids, name("unknown")]) == [name("unknown")]
    await bench.accept(ticket, "c")
    known = await bench.index.known_blobs(repository.number, TYPED, ids)
    assert known.held == set(ids)
    found = await bench.index.held_places(repository.number, TYPED, ids)
    assert found == {row.object_id: Place(row.object_id, row.size, row.pack_id, row.offset) for row in rows}


async def test_ten_thousand_commits_and_snapshots_in_one_batch(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    rows = [commit("c0"), *[commit(f"c{at}", f"c{at - 1}", generation=at + 1) for at in range(1, MANY)]]
    refs = [snapshot(f"s{at}", extras=b"{}") for at in range(MANY)]
    assert await bench.index.record_commits(ticket, TYPED, rows) == MANY
    assert await bench.index.record_snapshots(ticket, TYPED, refs) == MANY
    snapshot_ids, ids = [ref.row.snapshot_id for ref in refs], [row.commit_id for row in rows]
    assert await bench.index.lacking_snapshots(ticket, snapshot_ids) == []
    await bench.accept(ticket, f"c{MANY - 1}")
    assert await bench.index.held_commits(repository.number, ids) == {row.commit_id: row.generation for row in rows}
    assert await bench.index.commit_records(repository.number, ids) == {row.commit_id: row.record for row in rows}
    assert len(await bench.index.snapshot_deltas(TYPED, snapshot_ids)) == MANY
    assert len(await bench.index.snapshot_extras(repository.number, snapshot_ids)) == MANY
    found = await bench.index.ancestry(TYPED, [ids[-1]], MANY)
    assert [fact.commit_id for fact in found] == ids[::-1]
    assert len(await bench.index.ancestry(TYPED, [ids[-1]], 1000)) == 1001


# ---- notifications


async def test_a_notification_reaches_every_listener_of_its_channel(index: Index) -> None:
    payloads = ["one", "two", "", "ü \U0001f3b5", "'; --", "x" * 7000]
    async with index.listen("jobs") as first, index.listen("jobs") as second, index.listen("other") as other:
        for payload in payloads:
            await index.notify("jobs", payload)
        await index.notify("other", "elsewhere")
        with trio.fail_after(10):
            for listener in (first, second):
                assert [await anext(aiter(listener)) for _ in payloads] == payloads
            assert await anext(aiter(other)) == "elsewhere"


async def test_a_channel_may_have_any_name(index: Index) -> None:
    async def listen(channel: str) -> None:
        async with index.listen(channel) as listener:
            await index.notify(channel.swapcase() + "x", "not for us")
            await index.notify(channel, channel)
            with trio.fail_after(10):
                assert await anext(aiter(listener)) == channel

    async with trio.open_nursery() as nursery:
        for channel in ["Jobs", "jobs", "a b", 'x"; DROP TABLE pushes; --', "it's", "ü", "repo-1", "select"]:
            nursery.start_soon(listen, channel)


async def test_notifying_nobody_is_no_error(index: Index) -> None:
    await index.notify("jobs", "x")
    async with index.listen("jobs"):
        pass
    await index.notify("jobs", "x")


async def test_an_exception_inside_a_listening_block_comes_out_as_it_is(index: Index) -> None:
    with pytest.raises(ZeroDivisionError):
        async with index.listen("jobs"):
            raise ZeroDivisionError


async def test_the_memory_twin_keeps_unread_notifications_up_to_a_limit(memory_index: MemoryIndex) -> None:
    async with memory_index.listen("jobs") as listener:
        for at in range(UNREAD_NOTIFICATIONS + 10):
            await memory_index.notify("jobs", str(at))
        notifications = aiter(listener)
        kept = [await anext(notifications) for _ in range(UNREAD_NOTIFICATIONS)]
        await memory_index.notify("jobs", "after")
        assert await anext(notifications) == "after"
    assert kept == [str(at) for at in range(UNREAD_NOTIFICATIONS)]


async def test_a_listener_can_be_cancelled(index: Index) -> None:
    with trio.CancelScope() as scope:
        async with index.listen("jobs") as listener:
            await index.notify("jobs", "x")
            async for _ in listener:
                scope.cancel()
    assert scope.cancelled_caught


# ---- every call


async def test_every_call_is_a_checkpoint(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.push(repository, *ROWS, new="c1")
    index, now, number = bench.index, bench.environment.now(), repository.number
    for call in [
        index.ping,
        lambda: index.notify("jobs", "x"),
        lambda: index.create_token(bench.token()),
        lambda: index.revoke_token(ticket.push_id, now),
        lambda: index.find_token(bytes(32)),
        lambda: index.list_tokens(None),
        lambda: index.secret("urls", b"x"),
        lambda: index.create_repository(bench.new()),
        lambda: index.find_repository("ada", "x"),
        lambda: index.list_repositories(None),
        lambda: index.update_repository(number, Visibility.PUBLIC, RepositorySettings(), "main"),
        lambda: index.set_collaborator(number, "bob", Right.READ),
        lambda: index.collaborator_right(number, "bob"),
        lambda: index.branch_heads(number),
        lambda: index.branch_log(number, "main"),
        lambda: index.begin_push(number, ticket.push_id, "ada", "main", now, 1),
        lambda: index.find_push(number, ticket.push_id),
        lambda: index.renew_pushes([], now, 1),
        lambda: index.known_blobs(number, TYPED, []),
        lambda: index.lacking_blobs(ticket, []),
        lambda: index.lacking_snapshots(ticket, []),
        lambda: index.lacking_commits(ticket, []),
        lambda: bench.accept(ticket, "c1"),
        lambda: index.refuse_push(ticket, {}, now),
        lambda: index.held_commits(number, []),
        lambda: index.ancestry(TYPED, [], 1),
        lambda: index.commit_records(number, []),
        lambda: index.snapshot_deltas(TYPED, []),
        lambda: index.snapshot_extras(number, []),
        lambda: index.snapshot_chain(TYPED, bytes(32)),
        lambda: index.places(TYPED, []),
        lambda: index.held_places(number, TYPED, []),
        lambda: index.delete_repository(number, now),
    ]:
        with assert_checkpoints():
            await call()


# ---- the twins side by side


class Twins:
    """Does the same to both indexes and compares what they say."""

    HANDLES = ("ada", "bob", "eve")
    BRANCHES = ("main", "dev")
    COMMITS = (
        commit("c0"), commit("c1", "c0", generation=2), commit("c2", "c0", generation=2),
        commit("c3", "c1", "c2", generation=3), commit("c4", "c3", generation=4),
        commit("c5", "c4", "c2", generation=5),
    )  # fmt: skip

    def __init__(self, memory: MemoryIndex, postgres: PostgresIndex, seed: int) -> None:
        self.indexes: tuple[Index, Index] = (memory, postgres)
        self.rng = random.Random(seed)
        self.environment = SeededEnvironment(seed)
        self.repositories: list[tuple[Repository, Repository]] = []
        self.tickets: list[tuple[PushTicket, PushTicket, Scheme]] = []
        self.push_ids = [self.environment.uuid() for _ in range(8)]

    async def both(self, call: Callable[[Index, int], Awaitable[object]]) -> tuple[object, object]:
        """Call both, with 0 for the first twin and 1 for the second; what they say must agree."""
        results = []
        for at, index in enumerate(self.indexes):
            try:
                results.append(await call(index, at))
            except StaleTicket:
                results.append(StaleTicket)
        assert self.plain(results[0]) == self.plain(results[1])
        return results[0], results[1]

    @classmethod
    def plain(cls, result: object) -> object:
        """Without the numbers, which are each index's own, and without orders nobody promised."""
        match result:
            case Repository():
                return replace(result, number=0)
            case PushTicket():
                return replace(result, number=0, repo=0)
            case list() if result and isinstance(result[0], bytes | CommitFacts):
                return sorted(result, key=repr)
            case list():
                return [cls.plain(item) for item in result]
            case _:
                return result

    async def step(self) -> None:
        self.environment.move(self.rng.random())
        if not self.repositories:
            await self.make_repository()
        steps = [self.make_repository, self.change_repository, self.begin, self.begin, self.finish, self.finish]
        steps += [self.write] * 8 + [self.look] * 6
        await self.rng.choice(steps)()

    async def make_repository(self) -> None:
        rng, environment = self.rng, self.environment
        new = NewRepository(
            environment.uuid(), rng.choice(self.HANDLES), rng.choice("xy"), rng.choice(list(Visibility)), "main",
            "code", environment.now(), RepositorySettings(rng.random() < 0.5),
        )  # fmt: skip
        made = await self.both(lambda index, at: index.create_repository(new))
        if made[0] is not None:
            self.repositories.append(made)

    async def change_repository(self) -> None:
        rng, pair, now = self.rng, self.rng.choice(self.repositories), self.environment.now()
        handle, right = rng.choice(self.HANDLES), rng.choice(list(Right))
        await self.both(lambda index, at: index.set_collaborator(pair[at].number, handle, right))
        visibility = rng.choice(list(Visibility))
        await self.both(
            lambda index, at: index.update_repository(pair[at].number, visibility, RepositorySettings(), handle)
        )
        if rng.random() < 0.2:
            await self.both(lambda index, at: index.delete_repository(pair[at].number, now))

    async def begin(self) -> None:
        rng, now = self.rng, self.environment.now()
        pair, push_id = rng.choice(self.repositories), rng.choice(self.push_ids)
        handle, branch = rng.choice(self.HANDLES[:2]), rng.choice(self.BRANCHES)
        found = await self.both(lambda index, at: index.begin_push(pair[at].number, push_id, handle, branch, now, 600))
        if isinstance(found[0], PushTicket):
            self.tickets.append((*found, rng.choice([TYPED, TYPED, TYPED, PLAIN])))

    async def write(self) -> None:
        if not self.tickets:
            return
        rng = self.rng
        ticket = rng.choice(self.tickets[-8:])
        scheme = ticket[2]
        mark = str(rng.randrange(3))
        blobs = [blob(f"b{rng.randrange(12)}", 3, rng.choice([None, "pack"]), 9) for _ in range(rng.randrange(5))]
        first = rng.randrange(6)
        commits = [replace(c, record=c.commit_id + mark.encode()) for c in self.COMMITS[first : first + 3]]
        snapshots = [
            snapshot(f"s{n}", f"s{n - 1}" if n else None, n, extras=mark.encode() * rng.randrange(2))
            for n in range(first, first + 3)
        ]
        await self.both(lambda index, at: index.record_blobs(ticket[at], scheme, blobs))
        await self.both(lambda index, at: index.record_commits(ticket[at], scheme, commits))
        await self.both(lambda index, at: index.record_snapshots(ticket[at], scheme, snapshots))
        wanted = names([f"{kind}{n}" for kind in "bcs" for n in range(8)])
        for operation in ("lacking_blobs", "lacking_commits", "lacking_snapshots"):
            await self.both(lambda index, at, op=operation: getattr(index, op)(ticket[at], wanted))

    async def finish(self) -> None:
        if not self.tickets:
            return
        rng, now = self.rng, self.environment.now()
        ticket = rng.choice(self.tickets[-8:])
        verdict = {"n": rng.randrange(100)}
        if rng.random() < 0.2:
            await self.both(lambda index, at: index.refuse_push(ticket[at], verdict, now))
            return
        ids = [c.commit_id for c in self.COMMITS]
        old = rng.choice([None, *ids])
        if rng.random() < 0.6:
            old = (await self.indexes[0].branch_heads(ticket[0].repo)).get("main")
        move = BranchMove(rng.choice(self.BRANCHES), old, rng.choice(ids), rng.random() < 0.3)
        await self.both(lambda index, at: index.accept_push(ticket[at], ticket[2], move, verdict, now))

    async def look(self) -> None:
        rng = self.rng
        pair, scheme = rng.choice(self.repositories), rng.choice([TYPED, TYPED, PLAIN])
        wanted = names([f"{kind}{n}" for kind in "bcs" for n in range(12)])
        for operation in ("held_commits", "commit_records", "snapshot_extras"):
            await self.both(lambda index, at, op=operation: getattr(index, op)(pair[at].number, wanted))
        for operation in ("snapshot_deltas", "places"):
            await self.both(lambda index, at, op=operation: getattr(index, op)(scheme, wanted))
        for operation in ("known_blobs", "held_places"):
            await self.both(lambda index, at, op=operation: getattr(index, op)(pair[at].number, scheme, wanted))
        await self.both(lambda index, at: index.ancestry(scheme, wanted, 100))
        snapshot_id = name(f"s{rng.randrange(12)}")
        await self.both(lambda index, at: index.snapshot_chain(scheme, snapshot_id))
        await self.both(lambda index, at: index.branch_heads(pair[at].number))
        branch, push_id, handle = rng.choice(self.BRANCHES), rng.choice(self.push_ids), rng.choice(self.HANDLES)
        await self.both(lambda index, at: index.branch_log(pair[at].number, branch))
        await self.both(lambda index, at: index.find_push(pair[at].number, push_id))
        await self.both(lambda index, at: index.collaborator_right(pair[at].number, handle))
        await self.both(lambda index, at: index.list_repositories(handle))
        await self.both(lambda index, at: index.find_repository(pair[at].owner, pair[at].slug))


@pytest.mark.parametrize("seed", range(6))
async def test_the_twins_agree_on_a_session(memory_index: MemoryIndex, emptied_url: str, seed: int) -> None:
    async with PostgresIndex(DatabaseSettings(emptied_url)) as postgres_index:
        twins = Twins(memory_index, postgres_index, seed)
        for _ in range(90):
            await twins.step()
    for pair in twins.repositories:
        for branch in Twins.BRANCHES:
            log = await memory_index.branch_log(pair[0].number, branch)
            assert all(later.old == earlier.new for earlier, later in itertools.pairwise(log))

"""A client of a simulated deployment: it makes history, sends it one way or another, and believes nothing it fetches.

It does what the real one does below its command line: an attempt that was cut or refused for a while is made again
under the same push id, perhaps with another daemon; when the server lacks something after all, it asks where the
branches are and sends everything it takes.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from actors.branches import BranchUpdate, update_branches
from museworkd.http.access import hash_secret
from storage.job_rows import NewJob
from storage.rows import Repository, Right, Token
from tests.clones import Clone
from tests.simulation.daemon import Cut, Daemon
from tests.simulation.fetching import Fetcher
from tests.simulation.library import Library
from tests.simulation.plain import PlainSender
from tests.simulation.sending import Sender
from tests.simulation.witness import Operation
from tests.simulation.work import TALLY
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id, parse_id

BRANCHES = ("main", "main", "dev", "feature/x")
TRIES = 6
PATIENCE_S = 150.0
_FRESH_TRIES = 3
_PAUSES_S = (0, 0, 0.5, 5, 20)
_LONG_PAUSES_S = (0, 0, 5, 50, 350)
"""Between operations; what is collected waits for a lease lifetime first."""
_AGAIN = {Code.STORE_DAMAGED, Code.PUSH_SUPERSEDED}
"""Not retryable by the book, and worth another try in bad weather."""
_NO_VERDICT = {Code.QUOTA_EXCEEDED, Code.NOT_FOUND}
"""An earlier attempt may have been accepted, or be yet: the quota changes, and a repository may have gone since."""
_LACKING = {Code.MISSING_OBJECTS, Code.MISSING_PARENTS}


class Client:
    """One identity at work. ``world`` is the run it is part of."""

    def __init__(self, world: Any, name: str, repository: Repository) -> None:
        self.world = world
        self.name = name
        self.repository = repository
        self.rng: random.Random = world.draw("client", name)
        self.scheme: Scheme = world.scheme(repository.number)
        self.library: Library = world.library(repository.number)
        self.clone = self.new_clone()
        self.sender = Sender(self)
        self.fetcher = Fetcher(self)
        self.plain = PlainSender(self)
        self.secret = f"secret of {name}"

    def new_clone(self) -> Clone:
        """Give an empty clone."""
        return Clone(self.library.name)

    async def enrol(self) -> None:
        """Be known to the deployment, with the right to write."""
        index, environment = self.world.index, self.world.environment
        now = environment.now()
        await index.create_token(Token(environment.uuid(), self.name, hash_secret(self.secret), Right.WRITE, now, None))
        await index.set_collaborator(self.repository.number, self.name, Right.WRITE)

    async def run(self, operations: int) -> None:
        """Do some things, one after the other."""
        await self.enrol()
        pauses = _LONG_PAUSES_S if self.world.plan.collectors else _PAUSES_S
        for _ in range(operations + 2 if self.world.plan.collectors else operations):
            await trio.sleep(self.rng.choice(pauses))
            acts = [self.push, self.fetch, self.move_branch, self.trespass, self.enqueue, self.delete_repository]
            weights = [8, 4, 4, 1, 2] if self.world.plan.collectors else [10, 5, 2, 1, 4]
            act = self.rng.choices(acts, [*weights, 3 if self.world.plan.deletes else 0])[0]
            await act()

    @property
    def is_old(self) -> bool:
        """Whether it may be a client of version 0.1."""
        return self.scheme is Scheme.PLAIN

    async def ask(self, function: Callable[[Daemon], tuple[Any, ...]]) -> Any:
        """Ask some daemon until there is an answer; ``function`` gives what it is to do.

        Raises:
            Refusal: for good, or too often.
            Cut: too often.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return await self.once(function)
            except (Cut, Refusal) as error:
                if attempt == TRIES or not is_passing(error):
                    raise
            await self.wait(attempt)
        raise AssertionError

    async def once(self, function: Callable[[Daemon], tuple[Any, ...]]) -> Any:
        """Ask some daemon once."""
        daemon: Daemon = self.world.some_daemon(self.rng)
        with trio.move_on_after(PATIENCE_S):
            return await daemon.call(*function(daemon))
        raise Cut

    async def wait(self, attempt: int) -> None:
        """Leave some time before another try."""
        await trio.sleep(min(30.0, 2.0**attempt) * (0.5 + self.rng.random()))

    async def heads(self) -> dict[str, str]:
        """Ask where the branches are."""
        heads = await self.ask(lambda daemon: (daemon.index.branch_heads, self.repository.number))
        return {branch: format_id(head, self.scheme) for branch, head in heads.items()}

    async def push(self) -> None:
        """Build on a branch and push it, until there is a verdict or it is given up."""
        try:
            heads = await self.heads()
        except (Cut, Refusal):
            return
        rng, library = self.rng, self.library
        branch = rng.choice(BRANCHES)
        force = rng.random() < (0.5 if self.world.plan.collectors else 0.15)
        tip = heads.get(branch)
        others = sorted({head for head in heads.values() if head != tip})
        bases = [tip] if tip else []
        if others and (tip is None or rng.random() < 0.2):
            bases.append(rng.choice(others))
        if force and rng.random() < 0.7:
            bases = rng.sample(list(library.closure(heads.values())), rng.choice([0, 1])) if heads else []
        head = library.make(rng, bases, self.name)
        for _ in range(rng.choice([0, 0, 1, 2])):
            head = library.make(rng, [head], self.name)
        expected = (tip,) if rng.random() < 0.2 else None
        if rng.random() < 0.1:  # a client that takes for granted what it was never told
            heads = {**heads, "assumed": rng.choice(sorted(library.commits))}
        await self.push_head(branch, head, heads, force=force, expected=expected)

    async def push_head(
        self, branch: str, head: str, heads: dict[str, str], *, force: bool = False,
        expected: tuple[str | None] | None = None,
    ) -> Operation:  # fmt: skip
        """Push a commit; what it takes is reckoned from where the server's branches were."""
        have = list(heads.values())
        for _ in range(_FRESH_TRIES):
            old = self.is_old and expected is None and self.rng.random() < 0.8
            push_id = None if old else uuid.UUID(bytes=self.rng.randbytes(16), version=4)
            operation = self.world.witness.begins(
                Operation(
                    self.name, self.repository.number, branch, head, force, expected, push_id,
                    self.world.witness.moment(), nameless=old,
                )
            )  # fmt: skip
            try:
                await self._until_verdict(operation, have)
            except Refusal as refusal:
                self.world.trace.say(self.name, f"{refusal}")
                for_good = not is_passing(refusal) and refusal.code not in _NO_VERDICT
                self.world.witness.ends(operation, "refused" if for_good else "unknown")
                if refusal.code not in _LACKING:
                    return operation
                try:
                    have = list((await self.heads()).values())
                except (Cut, Refusal):
                    return operation
            except Cut:
                self.world.witness.ends(operation, "unknown")
                return operation
            else:
                self.world.witness.ends(operation, "acknowledged")
                return operation
        return operation

    async def _until_verdict(self, operation: Operation, have: list[str]) -> None:
        assert operation.new is not None
        deltas = self.rng.random() < 0.4 and not operation.nameless
        push = self.library.push_of(operation.branch, operation.new, have, deltas=deltas)
        self.world.sent[self.repository.number].update(push.blobs)
        ways: list[Way] = [self.sender.by_stream, self.sender.by_mpack, self.sender.by_presigned]
        way = self.rng.choices(ways, weights=[6, 3, 2])[0]
        if operation.nameless:
            way = self.plain.by_push
            self.plain.begin()
        elif self.is_old:
            way = self.sender.by_stream
        for attempt in range(1, TRIES + 1):
            self.world.trace.say(self.name, f"{way.__name__} {operation.new[7:15]} attempt {attempt}")
            try:
                verdict = await way(operation, push)
            except (Cut, Refusal) as error:
                self.world.trace.say(self.name, f"attempt {attempt}: {error!r}")
                if attempt == TRIES or not is_passing(error):
                    raise
            else:
                if (verdict["branch"], verdict["head"]) != (operation.branch, operation.new):
                    self.world.violated("I2", f"the verdict is of something else: {verdict}")
                return
            await self.wait(attempt)

    async def fetch(self) -> None:
        """Clone or fetch, and compare every byte with what was made."""
        began = self.world.witness.moment()
        try:
            heads = await self.heads()
            if not heads:
                return
            wanted = sorted(heads) if self.rng.random() < 0.7 else [self.rng.choice(sorted(heads))]
            want = sorted({heads[branch] for branch in wanted})
            clone = self.clone if self.rng.random() < 0.5 else self.new_clone()
            await self.fetcher.into(clone, want)
        except (Cut, Refusal) as error:
            self.world.trace.say(self.name, f"fetch: {error!r}")
            return
        self.world.check_clone(self, clone, {branch: heads[branch] for branch in wanted}, began)

    async def found(self, daemon: Daemon) -> Repository:
        """Find the repository as a request does.

        Raises:
            Refusal: ``not_found``.
        """
        repository = await daemon.index.find_repository(self.repository.owner, self.repository.slug)
        if repository is None:
            raise Refusal(Code.NOT_FOUND, "no such repository")
        return repository

    async def move_branch(self) -> None:
        """Make, move or delete a branch without pushing anything."""
        try:
            heads = await self.heads()
        except (Cut, Refusal):
            return
        if not heads:
            return
        rng = self.rng
        branch = rng.choice(["dev", "feature/x", "copy"])
        old = heads.get(branch)
        new = None if old and rng.random() < 0.5 else rng.choice(sorted(heads.values()))
        force = rng.random() < 0.5
        operation = self.world.witness.begins(
            Operation(self.name, self.repository.number, branch, new, force, (old,), None, self.world.witness.moment())
        )
        update = BranchUpdate(branch, self._digest(old), self._digest(new), force)

        async def moved(daemon: Daemon) -> None:
            repository = await self.found(daemon)
            now = daemon.environment.now()
            await update_branches(daemon.index, repository, Right.WRITE, self.name, [update], now)

        for attempt in range(1, TRIES + 1):
            try:
                await self.once(lambda daemon: (moved, daemon))
            except (Cut, Refusal) as error:
                if attempt == TRIES or not is_passing(error):
                    # refused after an answer that was lost: the first one may have done it
                    refused = attempt == 1 and isinstance(error, Refusal) and not is_passing(error)
                    self.world.witness.ends(operation, "refused" if refused else "unknown")
                    return
            else:
                self.world.witness.ends(operation, "acknowledged")
                return
            await self.wait(attempt)

    def _digest(self, commit_id: str | None) -> bytes | None:
        return None if commit_id is None else parse_id(commit_id, self.scheme)

    async def delete_repository(self) -> None:
        """Delete the repository, where the plan has that, with everybody at work in it."""
        if self.world.plan.deletes and self.repository.number not in self.world.deleted:
            self.world.deleted.add(self.repository.number)
            try:
                await self.ask(
                    lambda daemon: (daemon.index.delete_repository, self.repository.number, daemon.environment.now())
                )
            except (Cut, Refusal):
                return

    async def trespass(self) -> None:
        """Try to get what another repository has: by naming a commit, and by claiming a blob without sending it."""
        found = self.world.strange_to(self.repository.number, self.rng)
        if found is None:
            return
        commit_id, blob_id = found
        try:
            await self.fetcher.into(self.new_clone(), [commit_id])
        except (Cut, Refusal) as error:
            if isinstance(error, Refusal) and not is_passing(error) and error.code is not Code.NOT_FOUND:
                self.world.violated("I3", f"a fetch of a strange commit was refused with {error}")
        else:
            self.world.violated("I3", f"{self.name} fetched commit {commit_id} of another repository")
        try:
            heads = await self.heads()
        except (Cut, Refusal):
            return
        await self.sender.claim_strange(blob_id, heads)

    async def enqueue(self) -> None:
        """Ask for a job whose effect can be seen."""
        if TALLY not in self.world.plan.types:
            return
        keys = [self.rng.randbytes(4).hex() for _ in range(self.rng.choice([1, 2, 3]))]
        job = NewJob(TALLY, self.rng.randrange(40), dict.fromkeys(keys, True))
        try:
            await self.ask(
                lambda daemon: (daemon.index.enqueue_jobs, self.repository.number, [job], daemon.environment.now())
            )
        except (Cut, Refusal):
            return
        self.world.jobs.wanted(keys)


def is_passing(error: Exception) -> bool:
    """Tell whether another try may go better."""
    return isinstance(error, Cut) or (isinstance(error, Refusal) and (error.code.retryable or error.code in _AGAIN))


Way = Callable[[Operation, Any], Awaitable[dict[str, Any]]]

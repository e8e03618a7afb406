"""A client of a simulated deployment: it makes history, sends it one way or another, and believes nothing it fetches.

It does what the real one does below its command line: an attempt that was cut or refused for a while is made again
under the same push id, perhaps with another daemon; when the server lacks something after all, it asks where the
branches are and sends everything it takes.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from actors.branches import BranchUpdate, update_branches
from actors.fetch.assemble import fetch
from storage.job_rows import NewJob
from storage.layout import fetch_pack_key
from storage.rows import Repository, Right
from tests.clones import Clone
from tests.simulation.daemon import Cut, Daemon
from tests.simulation.sending import Sender
from tests.simulation.witness import Operation
from tests.simulation.work import TALLY
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id, parse_id

BRANCHES = ("main", "main", "dev", "feature/x")
TRIES = 6
PATIENCE_S = 150.0
FETCH_PATIENCE_S = 20.0
_FRESH_TRIES = 3
_PAUSES_S = (0, 0, 0.5, 5, 20)
_LONG_PAUSES_S = (0, 0, 5, 50, 350)
"""Between operations; what is collected waits for a lease lifetime first."""
_AGAIN = {Code.STORE_DAMAGED, Code.PUSH_SUPERSEDED}
"""Not retryable by the book, and worth another try in bad weather."""
_LACKING = {Code.MISSING_OBJECTS, Code.MISSING_PARENTS}


class Client:
    """One identity at work. ``world`` is the run it is part of."""

    def __init__(self, world: Any, name: str, repository: Repository) -> None:
        self.world = world
        self.name = name
        self.repository = repository
        self.rng: random.Random = world.draw("client", name)
        self.clone = Clone()
        self.sender = Sender(self)

    async def run(self, operations: int) -> None:
        """Do some things, one after the other."""
        pauses = _LONG_PAUSES_S if self.world.plan.collectors else _PAUSES_S
        for _ in range(operations + 2 if self.world.plan.collectors else operations):
            await trio.sleep(self.rng.choice(pauses))
            acts = [self.push, self.fetch, self.move_branch, self.trespass, self.enqueue]
            act = self.rng.choices(acts, [8, 4, 4, 1, 2] if self.world.plan.collectors else [10, 5, 2, 1, 4])[0]
            await act()

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
        return {branch: format_id(head, Scheme.TYPED) for branch, head in heads.items()}

    async def push(self) -> None:
        """Build on a branch and push it, until there is a verdict or it is given up."""
        try:
            heads = await self.heads()
        except (Cut, Refusal):
            return
        rng, library = self.rng, self.world.library
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
        await self.push_head(branch, head, heads, force=force, expected=expected)

    async def push_head(
        self, branch: str, head: str, heads: dict[str, str], *, force: bool = False,
        expected: tuple[str | None] | None = None,
    ) -> Operation:  # fmt: skip
        """Push a commit; what it takes is reckoned from where the server's branches were."""
        have = list(heads.values())
        for _ in range(_FRESH_TRIES):
            push_id = uuid.UUID(bytes=self.rng.randbytes(16), version=4)
            operation = self.world.witness.begins(
                Operation(
                    self.name, self.repository.number, branch, head, force, expected, push_id,
                    self.world.witness.moment(),
                )
            )  # fmt: skip
            try:
                await self._until_verdict(operation, have)
            except Refusal as refusal:
                self.world.trace.say(self.name, f"{refusal}")
                self.world.witness.ends(operation, "unknown" if is_passing(refusal) else "refused")
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
        push = self.world.library.push_of(operation.branch, operation.new, have, deltas=self.rng.random() < 0.4)
        self.world.sent[self.repository.number].update(push.blobs)
        way = self.rng.choices(
            [self.sender.by_stream, self.sender.by_mpack, self.sender.by_presigned], weights=[6, 3, 2]
        )[0]  # fmt: skip
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
            clone = self.clone if self.rng.random() < 0.5 else Clone()
            await self.fetch_into(clone, want)
        except (Cut, Refusal) as error:
            self.world.trace.say(self.name, f"fetch: {error!r}")
            return
        self.world.check_clone(self, clone, {branch: heads[branch] for branch in wanted}, began)

    async def fetch_into(self, clone: Clone, want: list[str], depth: int | None = None) -> None:
        """Fetch what a clone lacks, trying again with another answer when one cannot be downloaded."""
        ids = [parse_id(commit_id, Scheme.TYPED) for commit_id in want]
        have = [parse_id(commit_id, Scheme.TYPED) for commit_id in clone.commits]

        async def answered(daemon: Daemon) -> bytes | None:
            repository = await daemon.index.find_repository(self.repository.owner, self.repository.slug)
            answer = await fetch(daemon.fetch, daemon.supervisor.start, repository, ids, have, depth, FETCH_PATIENCE_S)
            if answer.mpack_id is None:
                return None
            async with daemon.store.stream(fetch_pack_key(answer.mpack_id)) as pieces:
                body = b"".join([piece async for piece in pieces])
            if hashlib.sha256(body).digest() != answer.mpack_id:
                raise Cut  # the real client sees it too, and downloads it again
            return body

        body = await self.ask(lambda daemon: (answered, daemon))
        if body is not None:
            clone.apply(body)
        self.world.trace.say(self.name, f"fetched {len(want)} heads, {len(body or b'')} bytes")

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
        update = BranchUpdate(branch, _digest(old), _digest(new), force)

        async def moved(daemon: Daemon) -> None:
            repository = await daemon.index.find_repository(self.repository.owner, self.repository.slug)
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

    async def trespass(self) -> None:
        """Try to get what another repository has: by naming a commit, and by claiming a blob without sending it."""
        found = self.world.strange_to(self.repository.number, self.rng)
        if found is None:
            return
        commit_id, blob_id = found
        try:
            await self.fetch_into(Clone(), [commit_id])
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


def _digest(commit_id: str | None) -> bytes | None:
    return None if commit_id is None else parse_id(commit_id, Scheme.TYPED)


Way = Callable[[Operation, Any], Awaitable[dict[str, Any]]]

"""One run: a deployment of several daemons over one store and one index, clients at work, and what goes wrong.

First the weather is bad, then it is calm: everything that was begun comes to its end, and what is left is checked.
"""

from __future__ import annotations

import gc
import random
import shutil
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from storage.memory.index import MemoryIndex
from storage.rows import QUOTA_NONE, NewRepository, Repository, Visibility
from tests.clones import Clone
from tests.muse import plain
from tests.simulation import checks, clockwork
from tests.simulation.client import Client
from tests.simulation.clockwork import SimulatedEnvironment, Trace, stream
from tests.simulation.collecting import Collector
from tests.simulation.daemon import Daemon
from tests.simulation.faults import KINDS, RARE, Weather
from tests.simulation.library import Library
from tests.simulation.ports import SimulatedStore
from tests.simulation.witness import Witness
from tests.simulation.work import SETTINGS, JobLedger, types_drawn
from wire.ids import Scheme
from wire.limits import Limits

LONGEST_S = 8_000.0
"""Of simulated time; a run that takes longer hangs."""
_RESTART_S = (0.1, 5.0)
_LOOKS = 60
_OWNER = "alice"
_COLLECTORS = (0, 0, 0, 0, 0, 0, 0, 1, 2)


@dataclass(frozen=True)
class Plan:
    """What a run consists of; drawn from its seed, and made smaller to find what a failure needs."""

    seed: int
    daemons: int
    clients: int
    operations: int
    """Of each client."""
    repositories: int
    faults: frozenset[str]
    cache_bytes: int
    """Up to which size an object of a small push may wait in the index; 0 for never."""
    types: frozenset[str]
    """Of jobs; without any, no daemon works."""
    collectors: int
    """Which collect all the time, besides the jobs that do."""
    plain: int = 0
    """How many of the repositories are those of the public 0.1.x client."""
    quota: int = QUOTA_NONE
    """Bytes all repositories together may hold while the weather is bad."""
    deletes: bool = False
    """Whether repositories are deleted."""

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """Draw a plan; some have no faults at all."""
        rng = stream(seed, "plan")
        faults = (
            frozenset()
            if rng.random() < 0.1
            else frozenset(kind for kind in KINDS if rng.random() < RARE.get(kind, 0.5))
        )
        collectors = rng.choice(_COLLECTORS)
        return cls(
            seed, rng.choice([1, 2, 2, 3]), rng.choice([1, 2, 2, 3]), rng.choice([2, 2, 3, 4]), rng.choice([1, 2]),
            faults, rng.choice([0, 0, 100, 1024 * 1024]), types_drawn(rng, collecting=collectors > 0), collectors,
            rng.choice([0, 0, 0, 1, 1, 2]), rng.choice([QUOTA_NONE] * 5 + [4_000, 12_000]), rng.random() < 0.15,
        )  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    invariant: str
    detail: str


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    violations: list[Violation]
    trace: list[str]
    digest: str
    events: int
    counts: Mapping[str, int] = field(default_factory=dict)


class Abandoned(Exception):
    """A run has gone wrong and is not worth going on with."""


class World:
    """Everything of one run."""

    def __init__(self, plan: Plan, home: Path) -> None:
        self.plan = plan
        self.trace = Trace()
        self.limits = Limits(content_cache_object_bytes=plan.cache_bytes)
        self.weather = Weather(plan.faults, stream(plan.seed, "weather"), lagging=plan.collectors > 0)
        self.environment = SimulatedEnvironment(stream(plan.seed, "index"))
        self.store = SimulatedStore(self.environment)
        self.index = MemoryIndex(owner_quota=plan.quota, new_token=self.environment.uuid)
        self.witness = Witness(self, self.index)
        self.jobs = JobLedger(self)
        shared = 0.6 if plan.collectors else 0.4
        self.libraries = {
            Scheme.TYPED: Library(stream(plan.seed, "library"), shared),
            Scheme.PLAIN: Library(stream(plan.seed, "plain library"), shared, name=plain),
        }
        self.sent: dict[int, set[str]] = defaultdict(set)
        """Repository → ids of blobs any push of it has named."""
        self.repositories: list[Repository] = []
        self.deleted: set[int] = set()
        """Numbers of repositories somebody has asked to delete."""
        self.violations: list[Violation] = []
        self.daemons: list[Daemon] = []
        self._home = home
        self.calm_since = clockwork.START
        self._born = 0
        self._trouble = trio.CancelScope()

    @property
    def may_be_damaged(self) -> bool:
        """Whether stored bytes may be wrong, missing or unreadable through no fault of the server's."""
        return bool({"store garbles", "store forgets"} & self.plan.faults)

    def scheme(self, repo: int) -> Scheme:
        """Give the scheme of a repository's ids."""
        return Scheme.PLAIN if repo in [r.number for r in self.repositories[: self.plan.plain]] else Scheme.TYPED

    def library(self, repo: int) -> Library:
        """Give everything that was ever made with such ids."""
        return self.libraries[self.scheme(repo)]

    def draw(self, *names: object) -> random.Random:
        """Give the random numbers of one drawer."""
        return stream(self.plan.seed, *names)

    def some_daemon(self, rng: random.Random) -> Daemon:
        """Give the daemon a client's request goes to."""
        return rng.choice(self.daemons)

    def violated(self, invariant: str, detail: str, error: BaseException | None = None) -> None:
        """Take note of a promise that was not kept."""
        if error is not None:
            detail += "\n" + "".join(traceback.format_exception(error))
        self.violations.append(Violation(invariant, detail))
        self.trace.say("!", f"{invariant}: {detail.splitlines()[0]}")

    def logged(self, event: MutableMapping[str, Any]) -> None:
        """Take a line of the log; what a server calls an error is a mistake here."""
        told = event["event"] == "job"  # a job keeps its error, which is looked at by itself
        told = told or (self.may_be_damaged and "damage" in event["event"])
        if not told and (event["log_level"] in {"error", "critical", "exception"} or event.get("exc_info")):
            self.trace.say("log", f"{event['log_level']} {event['event']} {event.get('error', '')}")
            if not any(daemon.dead for daemon in self.daemons):
                self.violated("I8", f"logged: {dict(event)}", _active_error())

    async def run(self) -> None:
        """Run to the end and check."""
        with trio.move_on_after(LONGEST_S) as limit:
            await self._run()
        if limit.cancelled_caught:
            self.violated("I8", f"the run did not end within {LONGEST_S} s")

    async def _run(self) -> None:
        await self._make_repositories()
        async with trio.open_nursery() as nursery:
            for number in range(self.plan.daemons):
                nursery.start_soon(self._keep_daemon, number, await nursery.start(self._first, number))
            nursery.start_soon(self._make_trouble)
            for number in range(self.plan.collectors):
                nursery.start_soon(Collector(self, f"gc{number}").run)
            async with trio.open_nursery() as clients:
                for number in range(self.plan.clients):
                    repository = self.repositories[number % len(self.repositories)]
                    client = Client(self, f"client{number}", repository)
                    clients.start_soon(client.run, self.plan.operations)
            await self._calm_down()
            if self.plan.collectors:
                await Collector(self, "last gc").collect_all()
            await checks.check_calm(self)
            nursery.cancel_scope.cancel()
        await checks.check_end(self)

    async def _make_repositories(self) -> None:
        for number in range(self.plan.repositories):
            made = await self.index.create_repository(
                NewRepository(
                    self.environment.uuid(), _OWNER, f"r{number}", Visibility.PRIVATE, "main", "code",
                    self.environment.now(),
                )
            )  # fmt: skip
            assert made is not None
            self.repositories.append(made)

    def _new_daemon(self, number: int) -> Daemon:
        self._born += 1
        rng = self.draw("death", self._born)
        dies_at = rng.randrange(1, 200) if "crashes" in self.plan.faults and rng.random() < 0.7 else None
        name = f"d{number}.{self._born}"
        return Daemon(self, name, self._home / name, dies_at)

    async def _first(self, number: int, task_status: trio.TaskStatus[Daemon]) -> None:
        daemon = self._new_daemon(number)
        self.daemons.append(daemon)
        task_status.started(daemon)

    async def _keep_daemon(self, number: int, daemon: Daemon) -> None:
        """Run a daemon, and another one in its place when it was killed."""
        while True:
            await daemon.run()
            rng = self.draw("restart", daemon.name)
            await trio.sleep(0 if self.weather.calm else rng.uniform(*_RESTART_S))
            daemon = self._new_daemon(number)
            self.daemons[number] = daemon

    async def _make_trouble(self) -> None:
        """Kill and stop daemons now and then, while the weather is bad."""
        with self._trouble:
            await self._trouble_daemons()

    async def _trouble_daemons(self) -> None:
        rng = self.draw("trouble")
        kinds = sorted({"crashes", "drains", "power", "pauses"} & self.plan.faults)
        while kinds and not self.weather.calm:
            await trio.sleep(rng.expovariate(1 / 40))
            if self.weather.calm:
                return
            daemon = rng.choice(self.daemons)
            match rng.choice(kinds):
                case "crashes":
                    daemon.kill("at any time")
                case "drains":
                    await daemon.drain()
                case "power":
                    self.trace.say("power", "fails")
                    for each in self.daemons:
                        each.kill("by the power")
                    self.store.lose_power()
                case "pauses":
                    await self._pause(daemon, rng)

    async def _pause(self, daemon: Daemon, rng: random.Random) -> None:
        """Stop a daemon for a moment, or in the middle of a job and for so long that somebody else takes it over."""
        seconds = rng.uniform(0, 5)
        if self.plan.types and rng.random() < 0.7:
            for _ in range(_LOOKS):
                await trio.sleep(1)
                working = [each for each in self.daemons if len(each.work.runs)]
                if working:
                    daemon, seconds = rng.choice(working), 2 * SETTINGS.stale_s
                    break
        self.trace.say(daemon.name, "is stopped")
        daemon.stop()
        await trio.sleep(min(seconds, SETTINGS.stale_s))
        until = trio.current_time() + seconds - SETTINGS.stale_s
        while trio.current_time() < until and not self.jobs.taken_from(daemon.work.runs.beats()):
            await trio.sleep(5)
        if seconds > SETTINGS.stale_s:
            await trio.sleep(rng.uniform(0, 20))
        daemon.go_on()
        self.trace.say(daemon.name, "goes on")

    async def _calm_down(self) -> None:
        """End the bad weather, and wait until everything that runs has come to its end."""
        self.trace.say("weather", "is calm")
        self.weather.calm = True
        await self.index.set_quota(_OWNER, QUOTA_NONE)
        self.calm_since = self.environment.now()
        self._trouble.cancel()
        for daemon in self.daemons:
            daemon.go_on()
            if daemon.supervisor.draining:
                daemon.kill("in the middle of its drain")
        while not all(daemon.up.is_set() and not daemon.dead for daemon in self.daemons):
            await trio.sleep(1)

    def check_clone(self, client: Client, clone: Clone, heads: Mapping[str, str], began: int) -> None:
        """Compare what a client has fetched with what was made, and with where the branches were meanwhile."""
        for branch, head in heads.items():
            if not self._was_at(client.repository.number, branch, head, began):
                self.violated("I1", f"{client.name} saw {branch} at {head}, where it was not")
            checks.compare(self, clone, head, self.library(client.repository.number))

    def _was_at(self, repo: int, branch: str, head: str, began: int) -> bool:
        """Tell whether a branch was somewhere at any time since a moment."""
        changes = [c for c in self.witness.changes if (c.repo, c.branch) == (repo, branch)]
        before = [c for c in changes if c.moment <= began]
        return head in {c.new for c in changes if c.moment > began} | ({before[-1].new} if before else set())

    def strange_to(self, repo: int, rng: random.Random) -> tuple[str, str] | None:
        """Give a commit and a blob that only another repository has, if there are any."""
        changes = [c for c in self.witness.changes if self.scheme(c.repo) is self.scheme(repo)]
        own = {c.new for c in changes if c.repo == repo} | {o.new for o in self.witness.operations if o.repo == repo}
        commits = sorted({c.new for c in changes if c.repo != repo and c.new is not None} - own)
        blobs = sorted(
            {
                blob
                for number, ids in self.sent.items()
                if number != repo and self.scheme(number) is self.scheme(repo)
                for blob in ids
            }
            - self.sent[repo]
        )
        return (rng.choice(commits), rng.choice(blobs)) if commits and blobs else None


def simulate(plan: Plan) -> Outcome:
    """Run a plan; gives what came of it."""
    home = Path(tempfile.mkdtemp(prefix="mw-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    made: list[World] = []

    async def main() -> None:
        world = World(plan, home)
        made.append(world)
        with clockwork.logs_to(world.logged):
            await world.run()

    gc.disable()  # when garbage is looked for follows from everything this process did before
    try:
        clockwork.run(plan.seed, main)
    except Exception as error:
        made[0].violations.append(Violation("I8", "".join(traceback.format_exception(error))))
    finally:
        gc.enable()
        shutil.rmtree(home, ignore_errors=True)
    world = made[0]
    counts: dict[str, int] = defaultdict(int)
    for operation in world.witness.operations:
        counts[operation.outcome] += 1
    return Outcome(
        plan, world.violations, list(world.trace.events), world.trace.digest(), world.trace.count, dict(counts)
    )


def _active_error() -> BaseException | None:
    import sys

    return sys.exc_info()[1]

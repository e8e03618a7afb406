"""A process that stores objects and says what it is about to do, so that it can be killed right there.

    python -m tests.unit.writer_process ROOT SEED BATCHES group|each paced|free

Each line it writes names a step. Paced, it waits for a line before it takes the step.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from storage.objects import durability, filesystem
from storage.objects.durability import Durability, Settler
from storage.objects.filesystem import FilesystemStore

BATCH = 64


def batch_of(seed: int, number: int) -> list[tuple[str, bytes]]:
    """The objects of one batch, under keys that promise their contents."""
    rng = random.Random(f"{seed} {number}")
    contents = [rng.randbytes(2000) for _ in range(BATCH)]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    return [(f"objects/plain/{name[:2]}/{name[2:]}", content) for name, content in zip(names, contents, strict=True)]


class WriterProcess:
    """The other end: starts the process, lets it go as far as wanted, kills it."""

    def __init__(self, root: Path, seed: int, batches: int, durability: str = "group", paced: bool = True) -> None:
        arguments = [root, seed, batches, durability, "paced" if paced else "free"]
        self.acknowledged = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.writer_process", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def step(self) -> str:
        """Give the step it is about to take, or has announced; ``""`` when it has ended."""
        line = self._process.stdout.readline().strip()
        self.acknowledged += line == "acknowledged"
        return line

    def go(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill_before(self, step: str, number: int) -> None:
        """Kill it when it is about to take a step of this name for the n-th time."""
        count = 0
        while True:
            found = self.step()
            assert found, f"it ended before {step} number {number}"
            count += found == step
            if count == number:
                break
            self.go()
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self.finish()

    def finish(self) -> int:
        """Read what is left and wait for it to end; gives its exit code."""
        while self.step():
            pass
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(60)


def main(root: str, seed: str, batches: str, durability_name: str, pace: str) -> None:
    if pace == "paced":
        _announce_steps()

    async def write() -> None:
        store = await FilesystemStore.open(Path(root), Durability(durability_name))
        for number in range(int(batches)):
            await store.put_batch(batch_of(int(seed), number))
            _say("acknowledged", pace == "paced")

    trio.run(write)


def _say(step: str, wait: bool = True) -> None:
    print(step, flush=True)
    if wait:
        sys.stdin.readline()


def _announce_steps() -> None:
    def announced(step: str, function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            _say(step)
            return function(*arguments)

        return call

    def write_in_halves(fd: int, data: memoryview) -> int:
        if len(data) < 2000:
            return whole_write(fd, data)
        written = whole_write(fd, data[:1000])
        _say("half")
        return written

    whole_write = os.write
    durability.os.write = write_in_halves
    filesystem.write_new = announced("write", filesystem.write_new)
    Settler.settle = announced("settle", Settler.settle)
    Settler.settle_directories = announced("settle directories", Settler.settle_directories)
    Path.replace = announced("rename", Path.replace)


if __name__ == "__main__":
    main(*sys.argv[1:])

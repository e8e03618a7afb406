"""Fuzz every decoder for some seconds each: ``python -m tests.fuzz.run SECONDS [--seed N] [TARGET ...]``.

Inputs are mutated from the corpus, the same ones for the same seed. An input that makes a target raise anything but a
refusal, take more than five seconds or a gigabyte is saved under ``tests/fuzz/crashes/``; once the decoder is mended it
belongs into the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS
from wire.errors import Refusal

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"
SLOW_S = 5.0
MEMORY_BYTES = 1024 * 1024 * 1024


def corpus_of(target: str) -> list[bytes]:
    """Read the checked-in inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def fault_of(target: str, data: bytes) -> str | None:
    """Run a target; gives what is wrong, or ``None``."""
    began = time.perf_counter()
    try:
        TARGETS[target](data)
    except Refusal:
        pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    seconds = time.perf_counter() - began
    return f"took {seconds:.1f} s" if seconds > SLOW_S else None


def save(target: str, data: bytes) -> Path:
    CRASHES.mkdir(exist_ok=True)
    path = CRASHES / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path


def fuzz(target: str, seconds: float, seed: int) -> int:
    """Fuzz one target; gives the number of inputs that were at fault."""
    rng, corpus = random.Random(f"{seed} {target}"), corpus_of(target)
    runs, faults, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng, corpus)
        runs += 1
        fault = fault_of(target, data)
        if fault is not None:
            faults += 1
            print(f"{target}: {save(target, data)}\n{fault}", file=sys.stderr)
    print(f"{target:15} {runs:9} runs, {faults} at fault")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Fuzz the decoders.")
    parser.add_argument("seconds", type=float, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of: {', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    print(f"seed {arguments.seed}")
    faults = sum(fuzz(target, arguments.seconds, arguments.seed) for target in arguments.targets or TARGETS)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

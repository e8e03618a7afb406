"""CPU seconds of a server and of everything it starts, and peak memory of one process.

A server's processes come and go (``git http-backend`` lives for one request), so adding up what is running misses
most of it. Where the kernel lets us, a server runs in a control group of its own, and the group's counter is asked:
it misses nothing. Elsewhere /proc has to do: it counts living processes and the children they waited for, and a
process whose children nobody waits for cannot be measured by it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_V1_COUNTER = "cpuacct.usage"
_V2_COUNTER = "cpu.stat"
_ENTER = 'echo $$ >"$0" && exec "$@"'
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter(Protocol):
    """Counts the CPU time of a server's processes."""

    exact: bool
    """Whether children are counted that nobody waited for."""

    def launcher(self) -> list[str]:
        """Give what a command has to begin with, for its process to be counted."""

    def add(self, pid: int) -> None:
        """Count a process that was started with the launcher."""

    def cpu_s(self) -> float:
        """Give the seconds used so far."""

    def close(self) -> None:
        """Forget; all processes are gone."""


class GroupMeter:
    """A control group, of version 1 or 2."""

    exact = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        try:
            self.cpu_s()
        except OSError:
            directory.rmdir()
            raise

    def launcher(self) -> list[str]:
        """Give a shell that enters the group and becomes the command."""
        return ["/bin/sh", "-c", _ENTER, str(self._directory / "cgroup.procs")]

    def add(self, pid: int) -> None:
        """Do nothing: who is in the group is counted."""

    def cpu_s(self) -> float:
        """Read the group's counter."""
        counter = self._directory / _V1_COUNTER
        if counter.exists():
            return int(counter.read_text()) / 1e9
        facts = dict(line.split() for line in (self._directory / _V2_COUNTER).read_text().splitlines())
        return int(facts["usage_usec"]) / 1e6

    def close(self) -> None:
        """Remove the group; what just exited may be in it for a moment."""
        for _ in range(_REMOVE_ATTEMPTS):
            with suppress(OSError):
                self._directory.rmdir()
                return
            time.sleep(_REMOVE_PAUSE_S)


class TreeMeter:
    """The processes below those that were added, by /proc."""

    exact = False

    def __init__(self) -> None:
        self._roots: list[int] = []

    def launcher(self) -> list[str]:
        """Give nothing: any process can be added."""
        return []

    def add(self, pid: int) -> None:
        """Count a process and its descendants."""
        self._roots.append(pid)

    def cpu_s(self) -> float:
        """Add up what the processes and the children they waited for used."""
        found = _processes()
        counted: set[int] = set()
        fresh = {pid for pid in self._roots if pid in found}
        while fresh:
            counted |= fresh
            fresh = {pid for pid, (parent, _) in found.items() if parent in fresh} - counted
        return sum(found[pid][1] for pid in counted) / _TICKS

    def close(self) -> None:
        """Forget them."""
        self._roots.clear()


def make_meter(name: str) -> CpuMeter:
    """Make the best meter there is on this machine."""
    for parent in _group_directories():
        try:
            return GroupMeter(parent / f"museworkd-bench-{os.getpid()}-{name}")
        except OSError:
            continue
    return TreeMeter()


def _group_directories() -> list[Path]:
    """Find where this process's control groups are mounted and lie."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        relative = inside.strip("/")
        if "cpuacct" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup") / controllers / relative)
            found.append(Path("/sys/fs/cgroup/cpuacct") / relative)
        elif not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            # our own group holds processes; a sibling is as good, and may count where a child may not
            found += [Path("/sys/fs/cgroup") / relative, (Path("/sys/fs/cgroup") / relative).parent]
    return [path for path in found if path.is_dir()]


def _processes() -> dict[int, tuple[int, int]]:
    """Give every process's parent and ticks, those of its waited-for children included."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with suppress(OSError):
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            found[int(directory.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


def memory_bytes(pid: int, key: str) -> int:
    """Give a figure of /proc/PID/status, such as ``VmRSS`` or ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status does not tell {key}")


def reset_peak(pid: int) -> None:
    """Let ``VmHWM`` begin at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")

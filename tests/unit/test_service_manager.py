"""What systemd is told over its socket, and that nobody is disturbed when there is none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from museworkd.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def notified(request: pytest.FixtureRequest, tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = str(tmp_path / "notify") if request.param == "path" else f"@museworkd-test-{os.getpid()}"
        receiver.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        receiver.setblocking(False)
        yield name, receiver


def test_it_hears_ready_alive_and_stopping(notified) -> None:
    name, receiver = notified
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    for tell, words in [
        (manager.ready, b"READY=1"), (manager.alive, b"WATCHDOG=1"), (manager.stopping, b"STOPPING=1"),
    ]:  # fmt: skip
        tell()
        assert receiver.recv(100) == words


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}])
def test_without_a_watchdog_for_this_process_nobody_says_alive(notified, more: dict[str, str]) -> None:
    name, receiver = notified
    manager = ServiceManager({"NOTIFY_SOCKET": name, **more})
    manager.alive()
    with pytest.raises(BlockingIOError):
        receiver.recv(100)
    assert manager.round_s(10) == 10


def test_the_rounds_are_fast_enough_for_it() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "6000000"}).round_s(10) == 2
    assert ServiceManager({"WATCHDOG_USEC": "600000000"}).round_s(10) == 10


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nonexistent/socket", "WATCHDOG_USEC": "1"}])
def test_nothing_happens_without_a_service_manager(environment: dict[str, str]) -> None:
    manager = ServiceManager(environment)
    manager.ready()
    manager.alive()
    manager.stopping()

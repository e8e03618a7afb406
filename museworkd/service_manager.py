"""Telling systemd how the daemon is, over its notification socket: ready, stopping, and alive.

Nothing happens when no service manager listens. ``WATCHDOG_USEC`` says how often it wants to hear that the daemon is
alive; see sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_ROUNDS_PER_WATCHDOG = 3


class ServiceManager:
    """The service manager of this process, if there is one."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self._watchdog_s = int(usec) / 1_000_000 if ours and usec.isdigit() else 0.0

    def round_s(self, most: float) -> float:
        """Give how often to look whether the daemon is alive: often enough for the service manager."""
        return min(most, self._watchdog_s / _ROUNDS_PER_WATCHDOG) if self._watchdog_s else most

    def ready(self) -> None:
        """Tell that requests are answered."""
        self._tell("READY=1")

    def alive(self) -> None:
        """Tell that every part of the daemon has given a sign of life."""
        if self._watchdog_s:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the daemon drains."""
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # it may be slow: nobody waits for it here
            sender.sendto(words.encode(), self._address)

"""What goes wrong in a run, drawn from its seed: each kind can be left out by itself, to find what a failure needs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import trio

from storage.objects.faulty import Call, Fault

KINDS = (
    "store refuses",  # F1
    "store loses answers",  # F2
    "store garbles",  # F3
    "store slow",  # F11
    "store full",  # F10
    "store forgets",  # F4: what was acknowledged is not there; nothing wrong may come of it, and it must be told
    "credentials expire",  # F8: refused for a while, and not as something that passes
    "listing lags",  # F7
    "index refuses",  # F12, before the commit
    "index loses answers",  # F12, after it
    "index slow",
    "cuts",  # F28, F29, F32: connections end in the middle, answers are lost
    "crashes",  # F20
    "drains",  # F21
    "handlers fail",
    "power",  # F20 of the machine that holds the store
    "pauses",  # F27
    "skew",  # F9
)
_RATE = {
    "store refuses": 0.05, "store loses answers": 0.05, "store garbles": 0.04, "store slow": 0.1,
    "store full": 0.01, "store forgets": 0.04, "credentials expire": 0.01, "listing lags": 0.5,
    "index refuses": 0.02, "index loses answers": 0.03, "index slow": 0.2, "cuts": 0.15, "handlers fail": 0.15,
}  # fmt: skip
RARE = {"store forgets": 0.06, "credentials expire": 0.15}
"""Kinds that are drawn less often than others: they excuse what must not be otherwise."""
_BURST = {"store refuses", "index refuses", "store full", "credentials expire"}
_BURST_RATE = 0.7
_BURST_S = (5.0, 60.0)
_PUTS = {"put_batch", "put_file", "copy"}
_WRITES = {*_PUTS, "delete"}
_READS = {"get", "get_ranges", "stream"}
_SLOW_S = (0.01, 0.1, 1.0, 5.0)
_LAGS = {"index": (0.25, 0.1), "store": (0.5, 5.0)}
"""Port → how many of its answers take longer, and how long at most."""
_LISTING_LAGS_S = (1.0, 30.0, 200.0)
_HANGS_S = 90.0
"""Longer than any call may take."""


@dataclass
class Weather:
    """Decides of every call what goes wrong with it; nothing does while it is ``calm``."""

    kinds: frozenset[str]
    rng: random.Random
    lagging: bool = False
    """Whether answers take their time in any case, so that more happens between one call and the next."""
    calm: bool = False
    forgotten: set[str] = field(default_factory=set)
    """Keys that were put and went missing."""
    _bursts: dict[str, float] = field(default_factory=dict)
    """Kind → until when it hits most calls."""

    def strikes(self, kind: str) -> bool:
        """Tell whether a fault of a kind happens now."""
        if self.calm or kind not in self.kinds:
            return False
        now = trio.current_time()
        if kind in _BURST:
            if self._bursts.get(kind, 0.0) > now:
                return self.rng.random() < _BURST_RATE
            if self.rng.random() < _RATE[kind] / 5:
                self._bursts[kind] = now + self.rng.uniform(*_BURST_S)
        return self.rng.random() < _RATE[kind]

    def slowness(self, kind: str) -> float:
        """Give for how long a call has to wait."""
        if not self.strikes(kind):
            return 0.0
        return _HANGS_S if kind.startswith("store") and self.rng.random() < 0.03 else self.rng.choice(_SLOW_S)

    def listing_lag(self) -> float:
        """Give how old a listing is."""
        return self.rng.choice(_LISTING_LAGS_S) if self.strikes("listing lags") else 0.0

    def lag(self, port: str) -> float:
        """Give how long an answer takes to come back, in weather where more is to happen before it does."""
        share, longest_s = _LAGS[port]
        lags = self.lagging and not self.calm and self.rng.random() < share
        return self.rng.random() * longest_s if lags else 0.0

    def of_store(self, call: Call) -> Fault | None:
        """Decide of a call to the object store."""
        delay_s = self.slowness("store slow")
        if self.strikes("store refuses"):
            return Fault(fail_before=True, delay_s=delay_s)
        if self.strikes("credentials expire"):
            return Fault(fail_before=True, temporary=False, delay_s=delay_s)
        if call.operation in _PUTS and self.strikes("store full"):
            return Fault(full=True, delay_s=delay_s)
        if call.operation in _PUTS and self.strikes("store forgets"):
            self.forgotten.update(call.keys)
            return Fault(vanish=True, delay_s=delay_s)
        if call.operation in _WRITES and self.strikes("store loses answers"):
            return Fault(fail_after=True, delay_s=delay_s)
        if call.operation in _READS and self.strikes("store garbles"):
            flip = self.rng.random() < 0.5
            return Fault(flip=flip, cut=not flip, delay_s=delay_s)
        return Fault(delay_s=delay_s) if delay_s else None

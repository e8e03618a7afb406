"""How a daemon treats jobs: the settings under ``[jobs]``. Durations in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from storage.job_rows import STALE_CLAIM_S
from wire.limits import MIB

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class JobSettings:
    """``[jobs]``."""

    at_once: int = 4
    """Jobs of one daemon running at once; each type has a limit of its own beside it."""
    after_push_s: float = 5.0
    """How long the work behind a push waits: pushes come in groups, and it is done once for all of them."""
    poll_s: float = 5.0
    """How often a daemon looks for jobs when nothing wakes it."""
    stale_s: float = STALE_CLAIM_S
    """A job whose daemon was not heard of for so long goes to another one; the same in all daemons (protocol §12)."""
    retry_s: float = 10.0
    """Before the second attempt of a job that failed; before the third four times as long."""
    keep_s: float = 30 * _DAY_S
    """How long jobs that have ended are listed."""
    prebuild_bytes: int = 256 * MIB
    """Repositories up to this size have their clones made ahead after each push; 0: none has."""
    gc_every_s: float = _DAY_S
    """How often the collector runs; 0 for never."""
    gc_keep_s: float = 14 * _DAY_S
    """How long what no branch reaches any more is kept."""
    scrub_every_s: float = 7 * _DAY_S
    """How often everything stored is read and hashed again; 0 for never."""
    scrub_bytes_per_s: int = 32 * MIB
    """How fast it is read at most."""

"""How the HTTP server treats its connections. Durations in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from wire.limits import KIB, MIB


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The settings under ``[server]`` that concern connections."""

    max_connections: int = 512
    """Above it a connection is told 503 and closed; one pushing or cloning client uses one or two."""
    idle_s: float = 30.0
    """For a request's head to arrive, and between requests of a connection."""
    body_idle_s: float = 30.0
    """For the next piece of a body (protocol §12)."""
    body_grace_s: float = 10.0
    """Before the minimum rate counts (protocol §12)."""
    body_bytes_per_s: int = 64 * KIB
    """Slowest body, while the server waits for it (protocol §12)."""
    send_s: float = 60.0
    """For a client to take the next 256 KiB of an answer."""
    unpack_sync_s: float = 20.0
    """How long the request that starts an unpacking waits for its end (protocol §7)."""
    fetch_sync_s: float = 20.0
    """How long a fetch waits for its pack to be made, before the client is told to come again (protocol §8)."""
    control_body_bytes: int = MIB
    """Largest body of a control request."""
    id_list_bytes: int = 9 * MIB
    """Largest body that lists objects to upload or confirm: 50,000 ids with their sizes take 8 MiB."""
    linger_s: float = 30.0
    """After an answer that came before the request was complete: how long to read on so that it arrives."""
    linger_bytes: int = 256 * MIB
    """Bytes read on at most in that time."""
    head_bytes: int = 16 * KIB
    """Largest request head."""

"""What a client puts up with in a history."""

from __future__ import annotations

from wire.limits import Limits

CLIENT_LIMITS = Limits(
    mpack_bytes=1 << 50, objects_per_push=1 << 31, commits_per_push=1 << 31, manifest_entries=10_000_000,
    manifest_text_bytes=1 << 31, record_bytes=64 * 1024 * 1024,
)  # fmt: skip
"""A client takes what its server has accepted; only the checks of ids and paths are its own."""

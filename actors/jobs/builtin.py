"""The built-in types of jobs with their handlers, and how many of each one daemon runs at once."""

from __future__ import annotations

from actors.jobs.handlers import (
    file_last_commits,
    gc,
    intel_structural,
    mpack_gc,
    mpack_index,
    prebuild,
    profile_snapshot,
    promote,
    scrub,
)
from actors.jobs.registry import Registered, Registry

BUILT_IN = {
    registered.type: registered
    for registered in (
        Registered("mpack.index", mpack_index.run, 2),
        Registered("content.promote", promote.run, 2),
        Registered("fetch.mpack.prebuild", prebuild.run, 2),
        Registered("push.file_last_commits", file_last_commits.run, 2),
        Registered("intel.structural", intel_structural.run, 1),
        Registered("profile.snapshot", profile_snapshot.run, 1),
        Registered("mpack.gc", mpack_gc.run, 1),
        Registered("gc", gc.run, 1),
        Registered("scrub", scrub.run, 1),
    )
}


def builtin_registry() -> Registry:
    """Make a registry of the built-in types."""
    registry = Registry()
    for built_in in BUILT_IN.values():
        registry.register(built_in.type, built_in.handler, built_in.limit)
    return registry

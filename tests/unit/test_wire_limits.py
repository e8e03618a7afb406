"""The defaults of the limits are the contract's."""

from __future__ import annotations

import dataclasses

import pytest

from wire.limits import DEFAULT_LIMITS

MB = 1024 * 1024


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("object_frame_bytes", 50 * MB), ("object_bytes", 5 * 1024 * MB), ("object_chunk_bytes", MB),
        ("mpack_bytes", 512 * MB), ("objects_per_push", 500_000), ("commits_per_push", 50_000),
        ("manifest_entries", 1_000_000), ("inflated_push_bytes", 4 * 1024 * MB), ("path_bytes", 4096),
        ("path_component_bytes", 255), ("branch_name_bytes", 255), ("negotiate_ids", 1000),
    ],
)  # fmt: skip
def test_a_default_limit_is_the_protocols(name, value):
    assert getattr(DEFAULT_LIMITS, name) == value


def test_limits_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_LIMITS.path_bytes = 1

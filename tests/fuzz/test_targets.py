"""The fuzzer's claims hold for its seeds, and for no bytes."""

from __future__ import annotations

import pytest

from .targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    """Each seed, also truncated and with one byte changed."""
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    assert all(seeds)
    for seed in (b"", *seeds):
        for data in (seed, seed[: len(seed) // 2], seed[:9] + b"\xff" + seed[10:]):
            target.run(data)

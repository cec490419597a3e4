"""Programs in which gevent or eventlet has replaced threads, locks, sockets and waits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from .support.features import needs_lazy_pages

PROGRAM = Path(__file__).parents[0] / "programs" / "greenlets.py"
FAMILIES = (
    "dump_and_restore",
    "refused",
    "failed_child",
    "by_pidfd",
    "interrupted",
    "warm_workers",
    "batch",
    "page_server",
    "asynchronous",
    "judged",
    "cooperative",
    pytest.param("lazy_pages", marks=needs_lazy_pages),
    pytest.param("migrate", marks=needs_lazy_pages),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("patcher", ["gevent", "eventlet"])
def test_a_patched_program(patcher: str, when: str, family: str, tmp_path: Path) -> None:
    """Each call works, and the caller's thread blocks the signals that it blocked before."""
    if importlib.util.find_spec(patcher) is None:
        pytest.skip(f"{patcher} is not installed")
    if (patcher, family) == ("eventlet", "asynchronous"):
        pytest.skip("eventlet's patched standard library has no event loop of asyncio's")
    done = subprocess.run(
        [sys.executable, PROGRAM, patcher, when, family, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("fine\n"), done.stderr

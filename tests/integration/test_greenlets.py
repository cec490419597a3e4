"""Programs in which gevent or eventlet has replaced threads, locks, sockets and waits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.support.libraries import newest

from .support.certificates import Authority
from .support.features import needs_lazy_pages
from .support.processes import PATIENCE

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
    pytest.param("lazy_dump", marks=needs_lazy_pages),
    pytest.param("migrate", marks=needs_lazy_pages),
    pytest.param("migrate_with_tls", marks=needs_lazy_pages),
    "stream",
    "snapshot",
    "interrupted_start",
    "interrupted_take",
    "event_loops",
    "jobs",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("patcher", ["gevent", "eventlet"])
def test_a_patched_program(patcher: str, when: str, family: str, tmp_path: Path) -> None:
    """Each call works, and the signal mask of the caller's thread is the same afterwards."""
    if importlib.util.find_spec(patcher) is None:
        pytest.skip(f"{patcher} is not installed")
    if (patcher, family) == ("eventlet", "asynchronous"):
        pytest.skip("eventlet's patched standard library has no event loop of asyncio's")
    environment = dict(os.environ)
    if family == "stream":
        library = newest()
        criu = library.path.parents[1] / "bin" / "criu"
        environment = {**library.environment, "NEWEST_CRIU": str(criu)}
    if family == "migrate_with_tls":
        authority = Authority.make(tmp_path / "ca")
        for name in ("source", "destination"):
            authority.sign(name, "127.0.0.1")
    done = subprocess.run(
        [sys.executable, PROGRAM, patcher, when, family, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
    )
    assert done.stdout.endswith("fine\n"), done.stderr

"""Live migration between two hosts: network, pid and mount namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, MigrationMode, migrate_out

from .conftest import Spawn
from .hosts import OURS, Host, cable, host
from .migrating import Destination, destination, far_pid, reaped
from .processes import Target
from .test_lazy import requires_userfaultfd

PIPE_MAX_SIZE = Path("/proc/sys/fs/pipe-max-size")

Arrive = Callable[..., Destination]

WITH_MEMORY = """
    import hashlib, os
    memory = bytearray(os.urandom(1 << 20) * {mib})
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest(), first=lambda: memory[0])
"""


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Host, str]]:
    """Another host, and its address."""
    with host() as other, cable(OURS, other) as (_, address):
        yield other, address


@pytest.fixture(scope="module", autouse=True)
def large_pipes() -> Iterator[None]:
    """What CRIU needs to serve pages where there is no CAP_SYS_RESOURCE."""
    before = PIPE_MAX_SIZE.read_text()
    if int(before) < 2**22:
        PIPE_MAX_SIZE.write_text(str(2**22))
    yield
    PIPE_MAX_SIZE.write_text(before)


@pytest.fixture
def arrive(far: tuple[Host, str], tmp_path: Path) -> Iterator[Arrive]:
    """Start destinations there."""
    with ExitStack() as owned:

        def start(**given: Any) -> Destination:
            given["more"] = {"insecure": True, **given.get("more", {})}
            return owned.enter_context(destination(*far, tmp_path, **given))

        yield start


@pytest.fixture
def traveller(spawn: Spawn) -> Iterator[Target]:
    """A process with some memory, whose pid is free at the destination."""
    far_pid()
    target = spawn(WITH_MEMORY.format(mib=16))
    with reaped(target):
        yield target


BOTH = pytest.mark.parametrize(
    "mode",
    [
        MigrationMode.STOP_AND_COPY,
        pytest.param(MigrationMode.POST_COPY, marks=requires_userfaultfd),
    ],
    ids=str,
)


@BOTH
def test_a_process_changes_hosts(arrive: Arrive, traveller: Target, mode: MigrationMode) -> None:
    """It runs there with all its memory, is gone here, and both sides tell what was done."""
    checksum = traveller.ask("checksum")
    there = arrive()
    result = migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, insecure=True)
    told = there.until("result", "error")
    assert told.get("result") == result.pid == traveller.pid, told
    assert traveller.process.wait(10) == -9
    assert traveller.ask("checksum") == checksum
    assert traveller.runs_on()
    assert result.mode is mode
    assert result.bytes > 16 * 2**20
    assert (result.page_bytes > 16 * 2**20) is mode.lazy
    assert told["images"] == result.image_bytes
    assert 0 < result.downtime < result.duration
    assert (result.dump is None) is mode.lazy  # CRIU's account of a lazy dump is no account
    assert result.restore is not None
    assert set(there.pids()) == {there.init, there.pid, there.inside(result.pid)}
    assert not told["files"]
    assert set(told["descriptors"]) <= set(there.heard[0]["descriptors"])

"""Fixtures: the system, and a job in it as its unit of docs/schedulers.md."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..integration.conftest import WHY_NOT
from ..integration.support import ordinary_user
from .machine import Machine, why_not
from .unit import UnitJob

CHOSEN = "PYCRIU_NATIVE_SYSTEMD" in os.environ


def _why_not() -> str:
    return (WHY_NOT or why_not()) if CHOSEN else "these take some minutes: run make test-systemd"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests here, with the reason, without systemd or CRIU."""
    why = _why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents and why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(params=["jobs", "root"])
def unit(request: pytest.FixtureRequest) -> Iterator[UnitJob]:
    """The job of a user; its system was not started yet."""
    python = ordinary_user.python()
    with tempfile.TemporaryDirectory(prefix="systemd-", dir="/var/tmp") as name:
        machine = Machine(Path(name))
        try:
            yield UnitJob(machine, request.param, python)
        finally:
            machine.remove()

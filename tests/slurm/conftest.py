"""Fixtures: the cluster, and jobs in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..integration.conftest import WHY_NOT
from .batch import BatchJob
from .cluster import USER, Cluster, python_of

ROOT = os.environ.get("PYCRIU_NATIVE_SLURM", "")


def _why_not() -> str:
    return WHY_NOT if ROOT else "the programs of SLURM are missing: run make test-slurm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests here, with the reason, without SLURM or CRIU."""
    why = _why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents and why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; at the end its daemons are stopped."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        made = Cluster(Path(ROOT).absolute(), Path(name))
        made.start()
        yield made
        made.stop()


@pytest.fixture(params=[0, USER], ids=["root", "ordinary user"])
def user(request: pytest.FixtureRequest) -> int:
    """Root, and a user without any capability."""
    assert isinstance(request.param, int)
    return request.param


@pytest.fixture
def batch(cluster: Cluster, user: int) -> Iterator[BatchJob]:
    """A job of the user, not yet submitted."""
    python = python_of(user)
    if not python:
        pytest.skip("an ordinary user can run no Python 3.11 here")
    with tempfile.TemporaryDirectory(prefix="slurm-job-") as name:
        os.chown(name, user, user)
        made = BatchJob(cluster, Path(name), user, python)
        try:
            yield made
        finally:
            cluster.cancel_all()
        made.check_end()

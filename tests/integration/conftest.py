"""Fixtures of the tests with a real CRIU, which need root and leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycriu_native
from pycriu_native import CriuError, Notify, UnsupportedError

from .faults import matrix
from .support import cgroups, large_pipes, releases
from .support.failing_calls import Site
from .support.features import needs_lazy_pages
from .support.jobs import RunningJob, nothing_runs
from .support.leftovers import Snapshot
from .support.processes import Spawn as Spawn
from .support.processes import Target, adopt_orphans, eventually, remember_children, start
from .support.releases import refused_for_age
from .support.sample_images import SampleImages, make_sample


def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root"
    try:
        pycriu_native.check()
    except CriuError as error:
        return f"CRIU cannot work here: {error}"
    return ""


WHY_NOT = _why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here ``real``; skip them with the reason where CRIU cannot work."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            if WHY_NOT:
                item.add_marker(pytest.mark.skip(reason=WHY_NOT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip a test that ends in the library's refusal of an old CRIU, with that message."""
    try:
        return (yield)
    except UnsupportedError as error:
        if not (why := refused_for_age(error)):
            raise
    pytest.skip(why)


@pytest.fixture(autouse=True)
def _has_its_notification(request: pytest.FixtureRequest) -> None:
    """Skip a test of a notification that this CRIU does not send."""
    cases = getattr(request.node, "callspec", None)
    if cases is not None and Notify.QUERY_EXT_FILES in cases.params.values():
        releases.required("3.19", "query-ext-files")


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that no descriptor, child, thread, mount, cgroup, namespace, link or lock remains.

    This also applies to a failed test, since fixtures first undo their changes.
    """
    remember_children()
    before = Snapshot.take()
    yield
    gc.collect()
    grown: dict[str, object] = {}

    def clean() -> bool:
        nonlocal grown
        grown = Snapshot.take().grown_since(before)
        return not grown

    try:
        eventually(clean, "a clean end")
    except AssertionError:
        pytest.fail(f"{request.node.name} left behind: {grown}")


@pytest.fixture(autouse=True)
def _large_pipes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Allow large pipes in tests of lazy pages, which need them."""
    needed = needs_lazy_pages.mark in request.node.iter_markers("skipif")
    with large_pipes.allowed() if needed else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _settings_as_before() -> Iterator[None]:
    """Restore the machine's settings after the run."""
    yield
    large_pipes.restore_setting()


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleImages:
    """Images of a process with many kinds of objects, made once; tests only read them."""
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def make_cgroup() -> Iterator[cgroups.Make]:
    """Make cgroups, which are removed after the fixtures that a test requests later.

    A cgroup can be removed only when its processes have ended.
    """
    yield from cgroups.maker()


@pytest.fixture
def cgroup(make_cgroup: cgroups.Make) -> Path:
    """A new cgroup of the mounted version."""
    return make_cgroup(cgroups.find("") or cgroups.required("pids"))


@pytest.fixture
def orphans() -> Iterator[None]:
    """Make restored processes children of this process; ``reap_all`` reaps them after a dump."""
    adopt_orphans(True)
    yield
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    adopt_orphans(False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The images directory, which does not exist yet."""
    return tmp_path / "images"


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start targets (``processes.start``); their trees are ended by pid after the test."""
    started: list[Target] = []

    def spawn_one(scenario: str = "serve()", **options: Any) -> Target:
        target = start(tmp_path / f"target-{len(started)}", scenario, **options)
        started.append(target)
        return target

    yield spawn_one
    for target in started:
        target.end()


@pytest.fixture
def site(
    make_cgroup: cgroups.Make, orphans: None, spawn: Spawn, tmp_path: Path, images: Path
) -> Iterator[Site]:
    """The environment of a call that fails; cgroups are removed after its processes have ended."""
    with contextlib.ExitStack() as held:
        yield Site(spawn, tmp_path, images, held)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int | pytest.ExitCode
) -> None:
    """Print the tables of fault outcomes, which ``make reliability`` writes to a page."""
    for line in matrix.report():
        terminalreporter.write_line(line)
    if exitstatus == pytest.ExitCode.OK:
        matrix.keep()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[RunningJob]:
    """A job that was not started yet; no process of it remains."""
    made = RunningJob(tmp_path / "place")
    yield made
    made.end()
    assert nothing_runs(made)

"""CRIU is killed, stopped or disconnected at each of its notifications: nothing is lost.

The tests are the cells of docs/reliability.md. After a failed dump the process continues with its
memory, files, threads and connection, and another dump works; after a failed restore no process
remains, and the images can be restored. If CRIU had finished, the caller has the result. (A
pre-dump has no notifications: ``test_faults_pre_dump.py``.)
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    LazyPages,
    Notification,
    Notify,
    PidInUseError,
    WorkerDiedError,
    dump,
    restore,
)
from pycriu_native._calls import exchange

from ..conftest import Spawn
from ..support.features import needs_lazy_pages
from ..support.processes import is_alive
from ..support.workers import workers
from . import matrix
from .faults import DEADLINE, FAULTS, CheckedProcess, images_are, left, raised
from .matrix import Cell

DUMP = [Notify.PRE_DUMP, Notify.QUERY_EXT_FILES, Notify.POST_DUMP]
RESTORE = [Notify.PRE_RESTORE, Notify.POST_RESTORE, Notify.PRE_RESUME, Notify.POST_RESUME]

each_fault = pytest.mark.parametrize("what", FAULTS)


def at(moment: Notify, what: str) -> Callable[[Notification], None]:
    """A hook that does it then."""

    def hook(notification: Notification) -> None:
        if notification.action is moment:
            FAULTS[what]()

    return hook


def deadline_for(what: str) -> float | None:
    """The deadline, at which a stopped CRIU is given up."""
    return DEADLINE if "SIGSTOP" in what else None


@each_fault
@pytest.mark.parametrize("moment", DUMP)
def test_in_a_dump(spawn: Spawn, images: Path, orphans: None, what: str, moment: Notify) -> None:
    """The process runs, intact, or it was saved and its images restore; a new dump works."""
    checked = CheckedProcess.start(spawn)
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    error: BaseException | None = None
    try:
        dump(checked.pid, opts, on_notify=at(moment, what), deadline=deadline_for(what))
    except CriuError as caught:
        error = caught
    saved = images_are(images)
    if error is None or hasattr(error, "result"):
        process = "saved, and restored intact"
        assert saved == "complete"
        checked.restores(opts)
    else:
        process = "runs, intact"
        assert checked.is_intact()
        checked.dumps_and_restores(opts)
    assert not workers()
    matrix.cells.append(
        Cell("dump", what, f"`{moment}`", raised(error), process, saved, left(error))
    )


@needs_lazy_pages
@each_fault
@pytest.mark.parametrize("moment", [*DUMP, Notify.STATUS_READY])
def test_in_a_lazy_dump(
    spawn: Spawn,
    images: Path,
    orphans: None,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    moment: Notify,
) -> None:
    """The same while CRIU serves the memory, without a client."""
    if moment is Notify.STATUS_READY:
        monkeypatch.setattr(exchange, "GRACE", 1.0)  # no deadline applies while CRIU serves
    checked = CheckedProcess.start(spawn)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    opts = replace(common, lazy_pages=True, page_server=("127.0.0.1", port))
    with pytest.raises(CriuError) as caught:
        dump(checked.pid, opts, on_notify=at(moment, what), deadline=deadline_for(what))
    error = caught.value
    assert not hasattr(error, "result")
    saved = images_are(images)
    if saved == "complete":
        # Without memory for large pipes, CRIU saves all pages: the images are those of a dump.
        with pytest.raises((ImagesError, PidInUseError)) as refused:
            restore(common.only_for("restore"))
        if isinstance(refused.value, ImagesError):
            saved = "without memory, and refused"
            assert "lack memory" in str(refused.value)
    assert checked.is_intact()
    assert not workers()
    cell = Cell(
        *("dump, lazy pages", what, f"`{moment}`", raised(error), "runs, intact", saved),
        left(error),
    )
    matrix.cells.append(cell)
    checked.dumps_and_restores(common)


def _dumped(spawn: Spawn, opts: CriuOpts) -> CheckedProcess:
    checked = CheckedProcess.start(spawn)
    dump(checked.pid, opts)
    checked.target.reap()
    return checked


@each_fault
@pytest.mark.parametrize("moment", RESTORE)
def test_in_a_restore(spawn: Spawn, images: Path, orphans: None, what: str, moment: Notify) -> None:
    """No process is left and the images restore, or CRIU had finished and all are there."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    checked = _dumped(spawn, opts)
    error: BaseException | None = None
    try:
        restore(opts.only_for("restore"), on_notify=at(moment, what), deadline=deadline_for(what))
    except CriuError as caught:
        error = caught
    if error is None or hasattr(error, "result"):
        process, again = "runs, intact", "restored, once"
        assert checked.is_intact()
    else:
        process, again = "none", "restorable"
        assert not is_alive(checked.pid)
        checked.restores(opts)
    matrix.cells.append(
        Cell("restore", what, f"`{moment}`", raised(error), process, again, left(error))
    )


def _lazily(images: Path, work: Path) -> tuple[CriuOpts, CriuOpts]:
    """Options of a restore with memory from a daemon, and those of the daemon."""
    work.mkdir()
    daemon = CriuOpts(images_directory=images, work_directory=work)
    return replace(daemon, lazy_pages=True, tcp_established=True), daemon


@needs_lazy_pages
@each_fault
@pytest.mark.parametrize("moment", RESTORE)
def test_in_a_lazy_restore(
    spawn: Spawn, images: Path, tmp_path: Path, orphans: None, what: str, moment: Notify
) -> None:
    """The same during a restore with memory from a daemon, which ends too."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    checked = _dumped(spawn, opts)
    lazily, daemon_opts = _lazily(images, tmp_path / "work")
    error: BaseException | None = None
    process, again = "none", "restorable"
    with LazyPages(daemon_opts):
        try:
            restore(lazily, on_notify=at(moment, what), deadline=deadline_for(what))
        except CriuError as caught:
            error = caught
        if error is None or hasattr(error, "result"):
            process, again = "runs, intact", "restored, once"
            assert checked.is_intact()
        else:
            assert not is_alive(checked.pid)
    if process == "none":
        checked.restores(opts)
    matrix.cells.append(
        Cell("restore, lazy pages", what, f"`{moment}`", raised(error), process, again, left(error))
    )


@needs_lazy_pages
@pytest.mark.parametrize("moment", RESTORE[:2])
def test_the_lazy_daemon_is_killed(
    spawn: Spawn, images: Path, tmp_path: Path, orphans: None, moment: Notify
) -> None:
    """Without its daemon a restore with lazy pages fails, no process remains, and it can be
    repeated. The daemon's exit status is reported. (If the daemon is killed after the restore has
    returned, the process ends: docs/reliability.md.)
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    checked = _dumped(spawn, opts)
    lazily, daemon_opts = _lazily(images, tmp_path / "work")
    error: BaseException | None = None
    with LazyPages(daemon_opts) as daemon:

        def act(notification: Notification) -> None:
            if notification.action is moment:
                signal.pidfd_send_signal(daemon.pidfd, signal.SIGKILL)

        try:
            restore(lazily, on_notify=act)
        except CriuError as caught:
            error = caught
        assert daemon.wait(10) == -signal.SIGKILL
    process = "none" if error else "runs, or has ended for lack of memory"
    checked.restores(opts)
    what = "the lazy-pages daemon gets SIGKILL"
    gets = raised(error) if error else "the result; `LazyPages.wait` returns -9"
    matrix.cells.append(
        Cell("restore, lazy pages", what, f"`{moment}`", gets, process, "restorable")
    )


def test_the_worker_is_reaped(spawn: Spawn, images: Path) -> None:
    """The exception for a killed CRIU has the number of the signal."""
    checked = CheckedProcess.start(spawn)
    opts = CriuOpts(images_directory=images, tcp_established=True)
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL") as caught:
        dump(checked.pid, opts, on_notify=at(Notify.POST_DUMP, "CRIU gets SIGKILL"))
    assert caught.value.status == -signal.SIGKILL
    assert checked.is_intact()

"""``pycriu_native.testing``, which other programs use in their tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    NoSuchProcessError,
    Notification,
    PageServer,
    PidInUseError,
    UnsupportedError,
    Verb,
    Version,
    check,
    dump,
    feature_check,
    page_server,
    page_server_child,
    restore,
    version,
)
from pycriu_native.testing import Failure, ScriptedCriu, write_images

from .support import bystander

DUMP = partial(dump, bystander.PID)


@pytest.fixture
def opts(tmp_path: Path) -> CriuOpts:
    write_images(tmp_path)
    return CriuOpts(images_directory=tmp_path)


def test_scripted_calls_succeed(opts: CriuOpts, tmp_path: Path) -> None:
    """Calls succeed, and the requests can be inspected."""
    criu = ScriptedCriu(restored_pid=77)
    check(via=criu)
    dump(bystander.PID, opts, via=criu)
    assert restore(opts, via=criu).pid == 77
    assert [sent.verb for sent in criu.sent] == ["check", "dump", "restore"]
    assert criu.sent[1].opts["pid"] == bystander.PID
    assert criu.sent[2].directories == {"images_dir_fd": str(tmp_path)}


@pytest.mark.parametrize(
    ("deadline", "timeout", "expected"),
    [(None, None, None), (2.5, None, 3), (0.9, None, 1), (2.5, 7, 7), (60, None, None)],
)
def test_a_dump_waits_no_longer_for_processes_than_its_deadline(
    opts: CriuOpts, deadline: float | None, timeout: int | None, expected: int | None
) -> None:
    """CRIU cannot be interrupted while it waits for a process to stop."""
    criu = ScriptedCriu()
    opts = replace(opts, timeout=timeout)
    with contextlib.suppress(DeadlineError):  # on a busy machine
        dump(bystander.PID, opts, via=criu, deadline=deadline)
    if criu.sent or deadline is None:
        assert criu.sent[-1].opts.get("timeout") == expected


def test_its_release_and_its_kernel(opts: CriuOpts) -> None:
    """Options that a release or kernel lacks are refused as with a CRIU of that release."""
    old = ScriptedCriu("3.17.1", features=())
    assert str(version(via=old)) == "3.17.1"
    assert not feature_check(via=old).mem_track
    with pytest.raises(UnsupportedError, match=r"network_lock.*3\.19"):
        dump(bystander.PID, replace(opts, network_lock="skip"), via=old)
    with pytest.raises(UnsupportedError, match="lazy_pages"):
        restore(replace(opts, lazy_pages=True), via=old)


@pytest.mark.parametrize(
    ("failure", "verb", "error", "message"),
    [
        (Failure.PID_IN_USE, restore, PidInUseError, "Can.t fork for 77: File exists"),
        (Failure.NO_SUCH_PROCESS, DUMP, NoSuchProcessError, "No such process"),
        (Failure.TCP_CONNECTION, DUMP, CriuError, "tcp_established=True"),
        (Failure(message="the disk is on fire"), DUMP, CriuError, "the disk is on fire"),
    ],
)
def test_failures(
    opts: CriuOpts,
    failure: Failure,
    verb: Callable[..., object],
    error: type[CriuError],
    message: str,
) -> None:
    """Failures are raised like those of a real CRIU, with cause and cure."""
    criu = ScriptedCriu(failures={"dump": failure, "restore": failure})
    with pytest.raises(error, match=message):
        verb(opts, via=criu)


def test_notifications(opts: CriuOpts) -> None:
    """Notifications arrive in the scripted order; a refused one makes the call fail."""
    received: list[tuple[str, int | None]] = []
    criu = ScriptedCriu(notify={"restore": ("pre-restore", "post-restore", "of-the-future")})

    def hook(notification: Notification) -> None:
        received.append((str(notification.action), notification.pid))
        if notification.action == "of-the-future":
            raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        restore(opts, via=criu, on_notify=hook)
    assert received == [("pre-restore", None), ("post-restore", 1234), ("of-the-future", None)]
    assert restore(opts, via=criu).pid == 1234  # without a hook CRIU sends none


def test_page_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One can be waited for and closed, and has the pid of no process, since close() kills it."""
    criu, ended = ScriptedCriu(), list[int]()
    opts = CriuOpts(images_directory=tmp_path, page_server=PageServer("127.0.0.1", 0))
    with page_server_child(opts, via=criu) as server:
        assert server.wait(10) == 0
    monkeypatch.setattr(os, "kill", lambda pid, _: ended.append(pid))
    page_server_child(opts, via=criu).close()
    ended.append(page_server(opts, via=criu).pid)
    largest = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert all(pid > largest or not Path(f"/proc/{pid}").exists() for pid in ended)
    assert min(ended) >= 2**22  # the largest pid_max (proc_sys_kernel(5))


@pytest.mark.parametrize("verb", ["pre_dump", "restor", Verb.RESTORE_CHILD, "dedup"])
def test_verbs_that_are_no_requests(verb: str | Verb) -> None:
    """They are refused: a test whose failure never happens would pass."""
    with pytest.raises(ValueError, match=r"failures: .* is none that CRIU receives"):
        ScriptedCriu(failures={verb: Failure()})
    with pytest.raises(ValueError, match=r"notify: .* pre-dump, restore, check"):
        ScriptedCriu(notify={verb: ["pre-dump"]})


@pytest.mark.parametrize("text", ["4", "4.2-rc1", "", "4.-2", "4.2.1.0"])
def test_releases_that_cannot_be_read(text: str) -> None:
    """They are refused by name."""
    with pytest.raises(ValueError, match=r"is not a release such as 4\.2 or 4\.2\.1"):
        ScriptedCriu(text)


def test_the_order_of_releases() -> None:
    """A build from git counts as the next minor release, in each comparison and as a key."""
    git, last, release, later = (
        Version(major=4, minor=1, git="v4.1-27"),
        Version(major=4, minor=1, sublevel=1),
        Version(major=4, minor=2),
        Version(major=4, minor=2, sublevel=1),
    )
    assert last < git == release < later
    assert last <= git <= release <= git <= later
    assert not git > release
    assert not release > git
    assert hash(git) == hash(release)
    assert sorted([later, git, last, release]) == [last, git, release, later]
    text: Any = "4.3"
    assert release != text
    with pytest.raises(TypeError, match="not supported between"):
        assert release < text

"""``pycriu_native.testing``, which other programs use in their tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    NoSuchProcessError,
    Notification,
    PidInUseError,
    UnsupportedError,
    check,
    dump,
    feature_check,
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

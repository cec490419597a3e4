"""Notifications of CRIU are passed to a Python hook, on the caller's thread."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, Notification, Notify, Verb, dump, restore

from .conftest import Spawn
from .support.processes import eventually, state


def test_a_closure_receives_the_notifications(spawn: Spawn, images: Path) -> None:
    """Notifications have CRIU's order; the process runs before the dump and is stopped after it."""
    target = spawn()
    received: list[tuple[Notification, str, int]] = []
    dump(
        target.pid,
        CriuOpts(images_directory=images),
        on_notify=lambda n: received.append((n, state(target.pid), threading.get_ident())),
    )
    target.reap()
    actions = [notification.action for notification, _, _ in received]
    assert actions[0] is Notify.PRE_DUMP
    assert actions[-1] is Notify.POST_DUMP
    assert {notification.verb for notification, _, _ in received} == {Verb.DUMP}
    assert received[0][1] in "RS"
    assert received[-1][1] == "t"
    assert {ident for _, _, ident in received} == {threading.get_ident()}


def test_a_restore_passes_the_pid(spawn: Spawn, images: Path) -> None:
    """post-restore has the pid of the root task, which does not run yet."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    received: list[Notification] = []
    ticks: list[int] = []

    def hook(notification: Notification) -> None:
        received.append(notification)
        if notification.action == "post-restore":
            assert notification.pid is not None
            ticks.append(notification.pid)
            os.kill(notification.pid, 0)

    restore(opts, on_notify=hook)
    assert ticks == [target.pid]
    actions = [notification.action for notification in received]
    assert actions == [
        Notify.PRE_RESTORE,
        Notify.POST_RESTORE,
        Notify.PRE_RESUME,
        Notify.POST_RESUME,
    ]
    assert [n.pid for n in received if n.action != "post-restore"] == [None] * 3


def test_the_hook_may_use_the_library(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A hook can make other calls, since calls share no state."""
    first, second = spawn(), spawn()
    opts = CriuOpts(images_directory=images, leave_running=True)

    def hook(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            dump(second.pid, CriuOpts(images_directory=tmp_path / "second", leave_running=True))

    dump(first.pid, opts, on_notify=hook)
    assert first.runs_on()
    assert second.runs_on()
    assert (tmp_path / "second" / "inventory.img").exists()


@pytest.mark.parametrize("action", [Notify.PRE_DUMP, Notify.POST_DUMP])
def test_what_a_hook_raises_undoes_the_dump(spawn: Spawn, images: Path, action: Notify) -> None:
    """The same exception is raised when the process runs again and CRIU has ended."""
    target = spawn()
    refusal = ZeroDivisionError("not today")

    def hook(notification: Notification) -> None:
        if notification.action is action:
            raise refusal

    with pytest.raises(ZeroDivisionError) as caught:
        dump(target.pid, CriuOpts(images_directory=images), on_notify=hook)
    now = state(target.pid)
    assert caught.value is refusal
    assert now in ("R", "S", "D")
    assert target.runs_on()


def test_what_a_hook_raises_undoes_the_restore(spawn: Spawn, images: Path) -> None:
    """No process of the refused restore remains, and the images can be restored after it."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    target.dump(opts)

    def hook(notification: Notification) -> None:
        if notification.action is Notify.POST_RESTORE:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        restore(opts, on_notify=hook)
    assert state(target.pid) in ("", "Z")
    eventually(lambda: not state(target.pid), "the system's reaper")
    restore(opts)
    assert target.runs_on()


def test_a_coroutine_function_is_no_hook(spawn: Spawn, images: Path) -> None:
    """A coroutine would not be awaited: the dump is undone, and the error names ``aio``."""
    target = spawn()

    async def hook(notification: Notification) -> None:
        raise AssertionError("never awaited")

    with pytest.raises(TypeError, match=r"needs pycriu_native\.aio"):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=hook)
    assert target.runs_on()

"""orphan_pts_master: a container on a terminal whose master is held outside of it.

A runtime gives a container its console in this way: the pty is in the container's own devpts, its
slave is the controlling terminal of the first process, and the runtime has the master. With
``orphan_pts_master=True`` in dump and restore, only the slave is saved. The restore creates a new
pty with the same number, and passes its master to the hook: the ``orphan-pts-master`` notification
has it in ``Notification.fd``, which the hook then owns and closes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Notification, Notify, OptionError, dump, restore

from .support.containers import Container, container
from .support.descriptors import taken_from
from .support.processes import eventually, is_alive
from .support.terminals import Terminal

ON_A_TERMINAL = """
    import fcntl, os, termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2): os.dup2(slave, fd)
    os.close(slave)
    serve(
        master=lambda: master,
        leave=lambda: os.close(master),
        say=lambda words: os.write(1, words.encode() + b"\\n"),
        hear=lambda: os.read(0, 100).decode(),
        tty=lambda: os.ttyname(0),
    )
"""


class Holder:
    """A runtime, which holds the master end."""

    def __init__(self) -> None:
        self.owned = contextlib.ExitStack()
        self.terminal: Terminal | None = None

    def hold(self, master: int) -> Terminal:
        """Take ownership of a master end."""
        self.owned.callback(os.close, master)
        self.terminal = Terminal(master)
        return self.terminal

    def __call__(self, notification: Notification) -> None:
        """Take the master of CRIU's notification."""
        if notification.action is Notify.ORPHAN_PTS_MASTER:
            assert notification.fd is not None
            self.hold(notification.fd)
        else:
            assert notification.fd is None


@pytest.fixture
def holder() -> Iterator[Holder]:
    """A runtime whose masters are closed after the test."""
    holder = Holder()
    with holder.owned:
        yield holder


@pytest.fixture
def box(tmp_path: Path, holder: Holder) -> Iterator[Container]:
    """A container on a terminal of its own devpts, whose master only ``holder`` has."""
    with container(tmp_path / "box", ON_A_TERMINAL) as box:
        terminal = holder.hold(taken_from(box.pid, box.ask("master")))
        box.ask("leave")
        box.ask("say", "before")
        terminal.expect("^before$")
        yield box


def test_the_hook_gets_the_new_master(box: Container, images: Path, holder: Holder) -> None:
    """Output of the container can be read from Notification.fd, and it reads what is
    written there.
    """
    tty = box.ask("tty")
    dump(
        box.pid,
        CriuOpts(images_directory=images, external=box.given_on_dump, orphan_pts_master=True),
    )
    box.reap()
    holder.owned.close()
    holder.terminal = None

    opts = CriuOpts(
        images_directory=images,
        root=box.root,
        external=box.given_on_restore,
        orphan_pts_master=True,
    )
    box.pid = restore(opts, on_notify=holder).pid
    assert holder.terminal is not None
    assert box.ask("tty") == tty
    box.ask("say", "after")
    holder.terminal.expect("^after$")
    holder.terminal.type("typed\n")
    assert box.ask("hear") == "typed\n"
    holder.terminal.type("\x03")
    eventually(lambda: not is_alive(box.pid), "the end by Ctrl-C: it is the controlling terminal")


def test_without_it_the_dump_is_refused(box: Container, images: Path, holder: Holder) -> None:
    """The message names orphan_pts_master; the container and its terminal continue."""
    with pytest.raises(CriuError, match="orphan_pts_master=True") as caught:
        dump(box.pid, CriuOpts(images_directory=images, external=box.given_on_dump))
    assert "orphan_pts_master" in caught.value.options
    box.ask("say", "still here")
    assert holder.terminal is not None
    holder.terminal.expect("^still here$")


def _drop(notification: Notification) -> None:
    """Do not keep the master."""
    if notification.fd is not None:
        os.close(notification.fd)


@pytest.mark.cures("pts-master-lost")
def test_without_it_the_restore_is_refused(box: Container, images: Path, holder: Holder) -> None:
    """The restore also requires a hook that takes the master; the images are unchanged."""
    dump(
        box.pid,
        CriuOpts(images_directory=images, external=box.given_on_dump, orphan_pts_master=True),
    )
    box.reap()
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    with pytest.raises(CriuError, match="orphan_pts_master=True"):
        restore(opts, on_notify=holder)
    with pytest.raises(OptionError, match="on_notify"):
        restore(replace(opts, orphan_pts_master=True))  # without a hook
    with pytest.raises(CriuError, match=r"keeps Notification\.fd") as caught:
        restore(replace(opts, orphan_pts_master=True), on_notify=_drop)
    assert caught.value.options == ("orphan_pts_master",)
    assert not is_alive(box.pid)
    box.pid = restore(replace(opts, orphan_pts_master=True), on_notify=holder).pid
    assert box.runs_on()

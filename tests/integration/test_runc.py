"""Interchange with runc: its checkpoints are restored here, and it restores dumps of this library.

In both directions the container continues from its memory, with its bind mounts, its masked and
read-only paths, its cgroups with their limits, its host name, and with its standard streams
connected to new pipes. ``pycriu_native.oci`` determines the options for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CgroupMode,
    CriuError,
    CriuOpts,
    ImagesError,
    NoSuchProcessError,
    Notification,
    Notify,
    OptionError,
    dump,
    restore,
)
from pycriu_native.oci import Bundle, Container

from .support.bundles import Counting, Runtime, Streams, counting, repeated, runtime
from .support.containers import mount_point
from .support.hosts import host
from .support.processes import PATIENCE, children_of, eventually, kill


@pytest.fixture
def runc(tmp_path: Path) -> Runtime:
    """The runc runtime."""
    return runtime("runc", tmp_path)


@pytest.fixture
def box(runc: Runtime, tmp_path: Path) -> Iterator[Counting]:
    """A container of runc."""
    with counting(tmp_path, runc) as container:
        yield container


def asked(box: Counting) -> Container:
    """The container, from the state of its runtime."""
    return Container.from_runtime(box.id, "runc", root=box.runtime.state)


def dumped(box: Counting, images: Path, **more: Any) -> int:
    """Dump it with replaceable streams; returns its last number."""
    container = asked(box)
    container.write_descriptors(images)
    opts = container.dump_opts(images, **more)
    assert repeated(lambda: dump(container.pid, opts, reap_timeout=PATIENCE)).pid_free
    return box.count


def test_what_runc_checkpointed_is_restored_here(box: Counting, images: Path) -> None:
    """A checkpoint of runc is restored here, without lost or repeated output."""
    seen = box.run()
    stopped_at = box.checkpoint(images)
    box.prepare_cgroup()
    box.restore_here(images)
    assert box.continued_from(stopped_at)
    assert box.look() == seen


def test_what_is_dumped_here_runc_restores(box: Counting, images: Path) -> None:
    """runc restores a dump of this library, and manages the container again."""
    seen = box.run()
    container = asked(box)
    assert container.pid == box.pid
    container.write_descriptors(images)
    opts = container.dump_opts(images)
    assert repeated(lambda: dump(container.pid, opts, reap_timeout=PATIENCE)).pid_free
    stopped_at = box.count

    box.restored_by_runtime(images)
    assert box.continued_from(stopped_at)
    # runc shows a restored container its own cgroup as the container's.
    assert {**box.look(), "cgroup mounts": seen["cgroup mounts"]} == seen


def test_both_by_turns(box: Counting, images: Path, tmp_path: Path) -> None:
    """Dumped here, restored by runc, checkpointed by runc, restored here: it continues to count."""
    box.run()
    stopped_at = dumped(box, images)
    box.restored_by_runtime(images)
    assert box.continued_from(stopped_at)
    again = tmp_path / "again"
    stopped_at = box.checkpoint(again)
    box.prepare_cgroup()
    with Streams.opened() as last:
        with Bundle.load(box.bundle).restoring(again, stdio=(None, *last.theirs)) as opts:
            box.restored_here(restore(opts).pid)
        last.give()
        assert box.continued_from(stopped_at, last)


def test_without_the_helper_a_dump_is_refused(box: Counting, images: Path) -> None:
    """Each external mount needs an option, which the error of CRIU names."""
    box.run()
    with pytest.raises(CriuError, match="external") as caught:
        dump(box.pid, CriuOpts(images_directory=images))
    assert "external" in caught.value.options
    assert box.runs_on()


def test_without_the_helper_a_restore_is_refused(box: Counting, images: Path) -> None:
    """A restore without the helper is refused too, and the images are unchanged."""
    box.run()
    stopped_at = dumped(box, images)
    with mount_point(box.bundle / "rootfs") as root, pytest.raises(CriuError) as caught:
        restore(CriuOpts(images_directory=images, root=root, empty_ns="net"))
    assert "external" in caught.value.options
    box.restore_here(images)
    assert box.continued_from(stopped_at)


def test_a_bundle_on_another_place(box: Counting, images: Path, tmp_path: Path) -> None:
    """A bundle can be moved, and its root be new: missing mount points are created."""
    seen = box.run()
    stopped_at = dumped(box, images)
    moved = tmp_path / "elsewhere"
    shutil.copytree(box.bundle, moved, symlinks=True)
    shutil.rmtree(box.bundle)
    for place in ("data", "dev", "proc", "sys", "etc", "tmp"):
        shutil.rmtree(moved / "rootfs" / place)
    shutil.rmtree(moved / "data" / "inner")

    box.bundle = moved
    box.restore_here(images, moved)
    assert box.continued_from(stopped_at)
    assert box.look() == seen


def test_a_stream_without_a_descriptor(box: Counting, images: Path) -> None:
    """A stream without a descriptor is restored as a pipe without a reader."""
    box.run()
    dumped(box, images)
    with Bundle.load(box.bundle).restoring(images, stdio=(None, None, box.after.theirs[1])) as opts:
        box.restored_here(restore(opts).pid)
    assert box.runs_on()  # SIGPIPE does not kill the first process of a pid namespace
    eventually(lambda: "Broken pipe" in box.after.read()[1], "the error of a write to it")
    assert not box.after.read()[0]


def test_the_network_is_left_to_a_hook(box: Counting, images: Path) -> None:
    """As with runc, the network namespace is saved without contents; a hook configures the empty
    one.
    """
    box.run()
    assert "UP" in box.loopback()
    dumped(box, images)
    assert not list(images.glob("netdev-*"))

    def fill(notification: Notification) -> None:
        if notification.action is Notify.SETUP_NAMESPACES:
            box.pid = notification.pid or 0
            assert "UP" not in box.loopback()
            box.enter("ip", "link", "set", "lo", "up")

    with Bundle.load(box.bundle).restoring(images, stdio=(None, *box.after.theirs)) as opts:
        assert opts.empty_ns == CriuOpts(empty_ns="net").empty_ns
        box.restored_here(restore(opts, on_notify=fill).pid)
    assert "UP" in box.loopback()
    assert box.runs_on()


def test_the_network_can_be_saved(box: Counting, images: Path) -> None:
    """With empty_ns=None the contents of the network namespace are saved and restored."""
    box.run()
    dumped(box, images, empty_ns=None)
    assert list(images.glob("netdev-*"))
    with Bundle.load(box.bundle).restoring(images, stdio=(None, *box.after.theirs)) as opts:
        assert opts.empty_ns is None
        box.restored_here(restore(opts).pid)
    assert "UP" in box.loopback()
    assert box.runs_on()


@pytest.mark.parametrize("by", ["us", "runc"])
def test_a_network_namespace_that_exists(box: Counting, images: Path, by: str) -> None:
    """A namespace that config.json names by path is not saved, but joined again."""
    with host() as there:
        config = box.config
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = there.path
        box.config = config
        box.run()
        stopped_at = dumped(box, images)
        assert not list(images.glob("netdev-*"))
        if by == "us":
            box.restore_here(images)
        else:
            box.restored_by_runtime(images)
        assert box.continued_from(stopped_at)
        assert os.stat(f"/proc/{box.pid}/ns/net").st_ino == os.stat(there.path).st_ino
        box.remove()


FIRST = """
import os, time

print(flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.01)
"""
"""The first process of a pod: it holds the namespaces, and reaps."""


@contextlib.contextmanager
def pod(kind: str) -> Iterator[Path]:
    """A namespace that exists until its first process ends."""
    process = subprocess.Popen(
        ["unshare", f"--{kind}", "--fork", sys.executable, "-c", FIRST],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        with process.stdout as message:
            assert message.readline() == b"\n"
        [first] = children_of(process.pid)
        yield Path(f"/proc/{first}/ns/{kind}")
    finally:
        for pid in children_of(process.pid):
            kill(pid)
        process.wait()


@pytest.mark.parametrize("by", ["us", "runc"])
@pytest.mark.parametrize("kind", ["ipc", "uts", "pid"])
def test_a_namespace_of_a_pod(box: Counting, images: Path, kind: str, by: str) -> None:
    """The container of a pod, which shares a namespace, is restored into it."""
    with pod(kind) as there:
        config = box.config
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == kind:
                namespace["path"] = str(there)
        if kind == "uts":
            del config["hostname"]
        box.config = config
        box.run()
        stopped_at = dumped(box, images)
        if by == "us":
            box.restore_here(images)
        else:
            box.restored_by_runtime(images)
        assert box.continued_from(stopped_at)
        assert os.stat(f"/proc/{box.pid}/ns/{kind}").st_ino == os.stat(there).st_ino
        box.remove()


def test_a_terminal(box: Counting, images: Path, tmp_path: Path) -> None:
    """A container with a terminal gets a new one, whose master the hook receives."""
    config = box.config
    config["process"]["terminal"] = True
    box.config = config
    with socket.socket(socket.AF_UNIX) as console:
        console.bind(str(tmp_path / "console"))
        console.listen()
        box.run("--console-socket", str(tmp_path / "console"))
        connection, _ = console.accept()
        with connection:
            _, (old,), _, _ = socket.recv_fds(connection, 4096, 1)
    stopped_at = box.checkpoint(images)
    os.close(old)

    terminals: list[int] = []

    def hook(notification: Notification) -> None:
        if notification.action is Notify.ORPHAN_PTS_MASTER:
            assert notification.fd is not None
            terminals.append(notification.fd)

    with Bundle.load(box.bundle).restoring(images) as opts:
        with pytest.raises(OptionError, match="orphan_pts_master"):
            restore(opts)
        box.restored_here(restore(opts, on_notify=hook).pid)
    (new,) = terminals
    with open(new) as terminal:
        lines = [int(terminal.readline()) for _ in range(4)]  # each as output and as error
    assert lines[0] in (stopped_at, stopped_at + 1)
    assert lines == sorted(lines)
    assert lines[-1] - lines[0] in (1, 2)


def test_more_options(box: Counting, images: Path) -> None:
    """Further options are merged: lists are added to those of the bundle, other values replace
    them.
    """
    box.run()
    container = asked(box)
    opts = container.dump_opts(
        images, leave_running=True, log_level=4, manage_cgroups_mode="ignore", external=["unix[7]"]
    )
    assert opts.leave_running
    assert opts.manage_cgroups_mode == CgroupMode.IGNORE
    assert opts.external == ("unix[7]",)
    assert str(opts.freeze_cgroup).endswith(f"/{box.id}")
    assert not repeated(lambda: dump(container.pid, opts)).pid_free
    assert box.runs_on()


def test_a_mount_that_the_bundle_lacks(box: Counting, images: Path) -> None:
    """The error names the key of a mount that the images need and config.json lacks."""
    box.run()
    stopped_at = dumped(box, images)
    config = box.config
    config["mounts"] = [item for item in config["mounts"] if item["destination"] != "/data"]
    box.config = config
    bundle = Bundle.load(box.bundle)
    missing = r"ext_mounts=\[\('/data', SOURCE\)\]"
    with pytest.raises(ImagesError, match=missing), bundle.restoring(images):
        pass

    mine = [("/data", str(box.bundle / "data"))]
    stdio = (None, *box.after.theirs)
    with bundle.restoring(images, stdio=stdio, ext_mounts=mine) as opts:
        box.restored_here(restore(opts).pid)
    assert box.continued_from(stopped_at)


def test_a_restore_that_fails(box: Counting, images: Path) -> None:
    """After a failed restore nothing is mounted, and the images are unchanged."""
    box.run()
    stopped_at = dumped(box, images)
    bundle = Bundle.load(box.bundle)
    (images / "pages-1.img").rename(images / "away")
    with pytest.raises(CriuError), bundle.restoring(images, stdio=(None, None, None)) as opts:
        restore(opts)
    assert not os.path.exists(str(opts.root))
    (images / "away").rename(images / "pages-1.img")
    with bundle.restoring(images, stdio=(None, *box.after.theirs)) as opts:
        box.restored_here(restore(opts).pid)
    assert box.continued_from(stopped_at)


def test_images_without_descriptors(box: Counting, images: Path) -> None:
    """The images need the targets of the streams, for runc and for this library."""
    box.run()
    container = asked(box)
    repeated(lambda: dump(container.pid, container.dump_opts(images)))
    bundle = Bundle.load(box.bundle)
    missing = r"no usable descriptors\.json"
    with pytest.raises(ImagesError, match=missing), bundle.restoring(images):
        pass
    with pytest.raises(AssertionError, match=r"descriptors\.json"):
        box.restored_by_runtime(images)
    container.write_descriptors(images)  # the stored state of the container
    with bundle.restoring(images, stdio=(None, *box.after.theirs)) as opts:
        box.restored_here(restore(opts).pid)
    assert box.runs_on()


def test_a_container_that_is_unknown_or_gone(box: Counting) -> None:
    """The errors of an unknown and of an ended container are ProcessLookupErrors."""
    with pytest.raises(NoSuchProcessError, match="no container 'never'"):
        Container.from_runtime("never", root=box.runtime.state)
    with pytest.raises(ValueError, match="runc or crun"):
        Container.from_runtime("never", "docker")
    box.run()
    kill(box.pid)
    with pytest.raises(ProcessLookupError, match=f"process {box.pid} has ended"):
        asked(box)

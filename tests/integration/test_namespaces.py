"""join_ns and external namespaces: a process continues in existing namespaces.

``join_ns`` affects the restore only: a tree that had no separate namespace is restored into
existing ones, each given by its file. To leave a container's network namespace out of the images,
``external=["net[inode]:key"]`` names it in the dump, and the restore gets a descriptor of the
namespace to use in ``inherit_fds=[(fd, "key")]``; its devices and addresses are not changed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, OptionError, dump, restore

from .conftest import Spawn
from .support.containers import Container, container
from .support.processes import eventually, is_alive, kill, reap_all

SEES = """
    import os, socket

    listener = socket.create_server(("127.0.0.1", 7072))
    serve(
        hostname=socket.gethostname,
        links=lambda: sorted(name for _, name in socket.if_nameindex()),
        namespace=lambda kind: os.readlink(f"/proc/self/ns/{kind}"),
    )
"""


@dataclass
class Namespaces:
    """Network and UTS namespaces, held by a process in them."""

    pid: int

    def file(self, kind: str) -> str:
        """The path of a namespace."""
        return f"/proc/{self.pid}/ns/{kind}"

    def identity(self, kind: str) -> str:
        """The inode of a namespace."""
        return os.readlink(self.file(kind))

    def run(self, *command: str) -> None:
        """Run a command in the namespaces."""
        words = ["nsenter", f"--target={self.pid}", "--net", "--uts", *command]
        subprocess.run(words, check=True)


@pytest.fixture
def elsewhere() -> Iterator[Namespaces]:
    """A network namespace with a device ``blue0`` and loopback, and the hostname ``blue``."""
    ours = os.readlink("/proc/self/ns/uts")
    process = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
    held = Namespaces(process.pid)
    try:
        eventually(lambda: held.identity("uts") != ours, "the namespaces")
        held.run("ip", "link", "set", "lo", "up")
        held.run("ip", "link", "add", "blue0", "type", "bridge")
        held.run("hostname", "blue")
        yield held
    finally:
        kill(process.pid)
        process.wait()


# ---- join_ns ----


@pytest.mark.parametrize("kinds", [("net",), ("uts",), ("net", "uts")], ids="+".join)
def test_join_ns(spawn: Spawn, images: Path, elsewhere: Namespaces, kinds: tuple[str, ...]) -> None:
    """The process continues in the named namespaces, and otherwise in its old ones."""
    target = spawn(SEES)
    before = {kind: target.ask("namespace", kind) for kind in ("net", "uts")}
    assert before == {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in before}
    target.dump(CriuOpts(images_directory=images))

    opts = CriuOpts(
        images_directory=images, join_ns=[(kind, elsewhere.file(kind)) for kind in kinds]
    )
    restore(opts)
    joined = {kind: elsewhere.identity(kind) for kind in kinds}
    assert {kind: target.ask("namespace", kind) for kind in before} == {**before, **joined}
    assert ("blue0" in target.ask("links")) == ("net" in kinds)
    assert (target.ask("hostname") == "blue") == ("uts" in kinds)
    assert target.runs_on()


def test_without_join_ns(spawn: Spawn, images: Path, elsewhere: Namespaces) -> None:
    """A plain restore is in the namespaces of the caller."""
    target = spawn(SEES)
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    for kind in ("net", "uts"):
        assert target.ask("namespace", kind) == os.readlink(f"/proc/self/ns/{kind}")


def test_a_namespace_that_is_not_there(
    orphans: None, spawn: Spawn, images: Path, tmp_path: Path
) -> None:
    """A file that is not a namespace is refused before anything is touched; one of another type is
    refused by CRIU.
    """
    target = spawn(SEES)
    target.dump(CriuOpts(images_directory=images))
    with pytest.raises(OptionError, match="join_ns"):
        restore(CriuOpts(images_directory=images, join_ns=[("net", str(tmp_path / "none"))]))
    (tmp_path / "file").touch()
    with pytest.raises(CriuError, match="join_ns") as caught:
        restore(CriuOpts(images_directory=images, join_ns=[("net", str(tmp_path / "file"))]))
    assert "join_ns" in caught.value.options
    reap_all()
    assert not is_alive(target.pid)
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


# ---- external network namespaces ----


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container with a device ``green0`` that has an address."""
    with container(tmp_path / "box", SEES) as box:
        box.run("ip", "link", "set", "lo", "up")
        box.run("ip", "link", "add", "green0", "type", "bridge")
        box.run("ip", "addr", "add", "198.18.0.9/24", "dev", "green0")
        yield box


def _network(pid: int, owned: ExitStack) -> tuple[int, int]:
    """A descriptor of a process's network namespace, which keeps it alive, and its inode."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    owned.callback(os.close, fd)
    return fd, os.fstat(fd).st_ino


def test_an_external_network_namespace(box: Container, images: Path, elsewhere: Namespaces) -> None:
    """The namespace is not changed by the dump; the restore uses it, or another one."""
    with ExitStack() as owned:
        fd, inode = _network(box.pid, owned)
        other, other_inode = _network(elsewhere.pid, owned)
        assert inode != other_inode
        external = [*box.given_on_dump, f"net[{inode}]:network"]
        box.dump(CriuOpts(images_directory=images, external=external))
        assert not list(images.glob("netdev-*.img"))

        for descriptor, expected in ((fd, "green0"), (other, "blue0")):
            opts = CriuOpts(
                images_directory=images,
                root=box.root,
                external=box.given_on_restore,
                inherit_fds=[(descriptor, "network")],
            )
            box.pid = restore(opts).pid
            assert os.stat(f"/proc/{box.pid}/ns/net").st_ino == os.fstat(descriptor).st_ino
            assert box.ask("links") == [expected, "lo"]
            assert box.runs_on()
            kill(box.pid)


def test_an_external_namespace_without_a_descriptor(box: Container, images: Path) -> None:
    """The message names inherit_fds, which is not needed if the images have the namespace."""
    with ExitStack() as owned:
        _, inode = _network(box.pid, owned)
        opts = CriuOpts(
            images_directory=images,
            external=[*box.given_on_dump, f"net[{inode}]:network"],
            leave_running=True,
        )
        dump(box.pid, opts)
    own = images.with_name("own")
    box.dump(CriuOpts(images_directory=own, external=box.given_on_dump))

    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    with pytest.raises(CriuError, match="inherit_fds=") as caught:
        restore(opts)
    assert "inherit_fds" in caught.value.options
    opts = CriuOpts(images_directory=own, root=box.root, external=box.given_on_restore)
    box.pid = restore(opts).pid
    assert box.ask("links") == ["green0", "lo"]
    (green,) = box.ip("addr", "show", "green0")
    assert green["addr_info"][0]["local"] == "198.18.0.9"

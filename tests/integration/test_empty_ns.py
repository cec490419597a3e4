"""empty_ns: the network namespace is saved without contents, and a hook configures it on restore.

A dump with ``empty_ns="net"`` saves that the container has a network namespace, but not its
contents, so that devices that CRIU cannot save are no obstacle. A restore with it creates a
namespace with only a loopback device, which is down, independent of the images. The program that
runs the container (a CNI plugin, a runtime) configures it in the ``setup-namespaces`` hook, which
gets the pid of the first process in ``Notification.pid``, before the container runs.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, Notification, Notify, OptionError, dump, restore

from .support.containers import Container, container
from .support.leftovers import RUN
from .support.processes import eventually

PORT = 7071
SERVER = f"""
    import socket, threading

    listener = socket.create_server(("0.0.0.0", {PORT}))

    def answer():
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"served")

    threading.Thread(target=answer, daemon=True).start()
    serve()
"""
NUMBER = int(RUN, 16) % 65536
OUTER = f"out{NUMBER}"
NETWORK = f"198.18.{NUMBER % 256}"
HOST, INNER = f"{NETWORK}.1", f"{NETWORK}.2"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _fill(pid: int) -> None:
    """Configure a new network namespace, as a container runtime does."""
    inside = ["nsenter", f"--target={pid}", "--net"]
    _ip("link", "add", OUTER, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("addr", "add", f"{HOST}/24", "dev", OUTER)
    _ip("link", "set", OUTER, "up")
    subprocess.run([*inside, "ip", "addr", "add", f"{INNER}/24", "dev", "eth0"], check=True)
    for link in ("lo", "eth0"):
        subprocess.run([*inside, "ip", "link", "set", link, "up"], check=True)


def _served() -> str:
    with socket.create_connection((INNER, PORT), timeout=10) as connection:
        # Until its end: an open connection could not be dumped.
        return b"".join(iter(lambda: connection.recv(100), b"")).decode()


def _no_outer_end() -> bool:
    message = subprocess.run(["ip", "link", "show", OUTER], capture_output=True)
    return message.returncode != 0


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container with a server, in a network made by ``_fill``."""
    with container(tmp_path / "box", SERVER) as box, contextlib.ExitStack() as undo:
        undo.callback(subprocess.run, ["ip", "link", "delete", OUTER], capture_output=True)
        _fill(box.pid)
        assert _served() == "served"
        yield box


def _links(box: Container) -> dict[str, bool]:
    """The devices in the container, and whether each is up."""
    return {link["ifname"]: "UP" in link["flags"] for link in box.ip("link")}


def _add_unsavable(box: Container) -> None:
    """Add a device that CRIU cannot save, of a kind that this kernel has."""
    kinds = ("vxlan id 5 dstport 0", "dummy", "ifb")
    for kind in kinds:
        try:
            box.run("ip", "link", "add", "odd", "type", *kind.split())
        except subprocess.CalledProcessError:
            continue
        return
    pytest.skip(f"this kernel has no network device of the kinds {kinds}")


def _dumped(box: Container, images: Path, **options: Any) -> None:
    box.dump(CriuOpts(images_directory=images, external=box.given_on_dump, **options))
    eventually(_no_outer_end, "the end of the pair")


def _restoring(box: Container, images: Path, **options: Any) -> CriuOpts:
    return CriuOpts(
        images_directory=images, root=box.root, external=box.given_on_restore, **options
    )


def test_a_hook_fills_the_namespace(box: Container, images: Path) -> None:
    """The hook gets the pid in the empty namespace; then the server accepts connections again."""
    _dumped(box, images, empty_ns="net")
    results: list[dict[str, bool]] = []

    def hook(notification: Notification) -> None:
        if notification.action is Notify.SETUP_NAMESPACES:
            assert notification.pid is not None
            box.pid = notification.pid
            results.append(_links(box))
            _fill(notification.pid)

    result = restore(_restoring(box, images, empty_ns="net"), on_notify=hook)
    assert result.pid == box.pid
    assert results == [{"lo": False}]
    assert _links(box) == {"lo": True, "eth0": True}
    assert _served() == "served"
    assert box.runs_on()


def test_without_a_hook_the_network_is_empty(box: Container, images: Path) -> None:
    """Without a hook the container runs, and its network is empty."""
    _dumped(box, images, empty_ns="net")
    box.pid = restore(_restoring(box, images, empty_ns="net")).pid
    assert _links(box) == {"lo": False}
    assert box.runs_on()


def test_a_restore_without_it_rebuilds_the_network(box: Container, images: Path) -> None:
    """For images with network devices, a restore without the option needs their external ends; with
    the option the same images are restored with an empty network.
    """
    _dumped(box, images)
    assert list(images.glob("netdev-*.img"))
    with pytest.raises(CriuError, match="veth_pairs="):
        restore(_restoring(box, images))
    box.pid = restore(_restoring(box, images, empty_ns="net")).pid
    assert _links(box) == {"lo": False}
    assert box.runs_on()


def test_a_device_that_cannot_be_saved(box: Container, images: Path) -> None:
    """A dump with such a device is refused and names empty_ns; with the option the device is left
    out.
    """
    _add_unsavable(box)
    plain = CriuOpts(images_directory=images, external=box.given_on_dump)
    with pytest.raises(CriuError, match="empty_ns") as caught:
        dump(box.pid, plain)
    assert "empty_ns" in caught.value.options
    assert _served() == "served"
    assert box.runs_on()
    dump(box.pid, replace(plain, empty_ns="net", images_directory=images.with_name("empty")))
    assert not list(images.with_name("empty").glob("netdev-*.img"))
    box.reap()


def test_other_namespaces_are_refused(images: Path) -> None:
    """CRIU supports only the network namespace here; it refuses another one without a message."""
    with pytest.raises(OptionError, match="empty_ns"):
        CriuOpts(images_directory=images, empty_ns=0x08000000)

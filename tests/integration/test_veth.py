"""veth_pairs: the network of a container is restored, with a chosen name for its outer end.

A veth device is one end of a pair. The end in the container is saved with its name, hardware
address, MTU, addresses and routes; the other end belongs to the host and is not saved. The restore
creates a new pair, and needs a name for the outer end: ``veth_pairs=[("eth0", "outer")]``, or the
same as ``external=["veth[eth0]:outer"]``, the form that CRIU prefers now. ``"outer@bridge"`` also
adds it to a bridge and sets it up; without a bridge the host has to set it up and assign an
address.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, restore

from .support.containers import Container, container
from .support.leftovers import RUN
from .support.processes import eventually, is_alive

PORT = 7070
SERVER = f"""
    import socket, threading

    listener = socket.create_server(("0.0.0.0", {PORT}))
    served = 0

    def answer():
        global served
        while True:
            connection, _ = listener.accept()
            served += 1
            with connection:
                connection.sendall(b"%d" % served)

    threading.Thread(target=answer, daemon=True).start()
    serve()
"""
NUMBER = int(RUN, 16) % 65536
OUTER, OTHER, BRIDGE = f"out{NUMBER}", f"new{NUMBER}", f"br{NUMBER}"
NETWORK = f"198.18.{NUMBER % 256}"
HOST, INNER = f"{NETWORK}.1", f"{NETWORK}.2"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _link(name: str) -> dict[str, Any]:
    """A network device of the host; empty if it does not exist."""
    message = subprocess.run(["ip", "-json", "link", "show", name], capture_output=True)
    return json.loads(message.stdout)[0] if message.returncode == 0 else {}


def _served() -> int:
    """The response of the server in the container, over the pair."""
    with socket.create_connection((INNER, PORT), timeout=10) as connection:
        # Until its end: an open connection could not be dumped.
        return int(b"".join(iter(lambda: connection.recv(100), b"")))


def _network(box: Container) -> dict[str, object]:
    """The inner end's name, hardware address, MTU and addresses, and the routes."""
    (link,) = [link for link in box.ip("addr") if link["ifname"] != "lo"]
    addresses = [a["local"] for a in link["addr_info"] if a["family"] == "inet"]
    result = {name: link[name] for name in ("ifname", "address", "mtu", "ifindex")}
    routes = sorted((route["dst"], route.get("gateway")) for route in box.ip("route"))
    return {**result, "addresses": addresses, "routes": routes}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container with a server, connected by a veth pair from OUTER to eth0."""
    with container(tmp_path / "box", SERVER) as box, contextlib.ExitStack() as undo:
        _ip("link", "add", OUTER, "type", "veth", "peer", "name", "eth0", "netns", str(box.pid))
        for link in (OUTER, OTHER):
            undo.callback(subprocess.run, ["ip", "link", "delete", link], capture_output=True)
        _ip("addr", "add", f"{HOST}/24", "dev", OUTER)
        _ip("link", "set", OUTER, "up")
        box.run("ip", "addr", "add", f"{INNER}/24", "dev", "eth0")
        box.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:07", "mtu", "1400", "up")
        box.run("ip", "route", "add", "default", "via", HOST)
        yield box


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge with the host's address."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        yield BRIDGE
    finally:
        _ip("link", "delete", BRIDGE)


def _dumped(box: Container, images: Path) -> dict[str, object]:
    """Dump the container; returns the state of its network."""
    before = _network(box)
    assert _served() == 1
    box.dump(CriuOpts(images_directory=images, external=box.given_on_dump))
    # The kernel removes a namespace's devices, and so the outer end, a moment later.
    eventually(lambda: not _link(OUTER), "the end of the pair")
    return before


def _expect_connected(box: Container, before: dict[str, object]) -> None:
    eventually(lambda: _network(box) == before, "the return of the whole network")
    assert _served() == 2
    assert box.runs_on()


@pytest.mark.parametrize("form", ["veth_pairs", "external"])
def test_the_outer_end_has_the_given_name(box: Container, images: Path, form: str) -> None:
    """Inner device, address and routes are restored; the host assigns an address to the new outer
    end.
    """
    before = _dumped(box, images)
    given = {
        "veth_pairs": CriuOpts(
            images_directory=images,
            root=box.root,
            external=box.given_on_restore,
            veth_pairs=[("eth0", OTHER)],
        ),
        "external": CriuOpts(
            images_directory=images,
            root=box.root,
            external=[*box.given_on_restore, f"veth[eth0]:{OTHER}"],
        ),
    }
    box.pid = restore(given[form]).pid
    assert not _link(OUTER)
    assert "UP" not in _link(OTHER)["flags"]
    _ip("addr", "add", f"{HOST}/24", "dev", OTHER)
    _ip("link", "set", OTHER, "up")
    _expect_connected(box, before)


@pytest.mark.parametrize("form", ["veth_pairs", "external"])
def test_the_outer_end_goes_on_a_bridge(
    box: Container, images: Path, bridge: str, form: str
) -> None:
    """``name@bridge``: the outer end is a port of the bridge and up when the container runs."""
    before = _dumped(box, images)
    _ip("addr", "add", f"{HOST}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    outer = f"{OTHER}@{bridge}"
    given = list(box.given_on_restore) + ([f"veth[eth0]:{outer}"] if form == "external" else [])
    opts = CriuOpts(
        images_directory=images,
        root=box.root,
        external=given,
        veth_pairs=[("eth0", outer)] if form == "veth_pairs" else None,
    )
    box.pid = restore(opts).pid
    assert _link(OTHER)["master"] == bridge
    assert "UP" in _link(OTHER)["flags"]
    _expect_connected(box, before)


@pytest.mark.cures("veth-peer")
def test_a_restore_without_a_name_is_refused(box: Container, images: Path) -> None:
    """CRIU does not invent a name; the message has the required value, and the images are
    unchanged.
    """
    before = _dumped(box, images)
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    with pytest.raises(CriuError, match=r"veth_pairs=\[") as caught:
        restore(opts)
    assert "veth_pairs" in caught.value.options
    assert not is_alive(box.pid)
    box.pid = restore(
        CriuOpts(
            images_directory=images,
            root=box.root,
            external=box.given_on_restore,
            veth_pairs=[("eth0", OUTER)],
        )
    ).pid
    assert _network(box)["addresses"] == before["addresses"]
    assert box.runs_on()

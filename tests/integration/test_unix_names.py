"""Unix sockets whose file was renamed, linked or removed after bind(2)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, PreflightError, Verdict, dump, preflight, restore

from .conftest import Spawn

SERVER = """
    import os, socket
    os.chdir(HERE)
    os.mkdir("x")
    os.symlink(".", "link")
    server = socket.socket(socket.AF_UNIX)
    server.bind({name})
    server.listen()
    {then}
    serve()
"""
RENAMED = 'os.rename("new", "final")'
REFUSED = {
    "renamed": ('"new"', RENAMED),
    "dots": ('"x/../new"', ""),
}
GOOD = {
    "absolute": ('str(HERE / "new")', ""),
    "dots": ('str(HERE / "x" / ".." / "new")', ""),
    "link": ('str(HERE / "link" / "new")', ""),
    "relative": ('"./new"', ""),
    "removed": ('str(HERE / "new")', 'os.unlink("new")'),
    "abstract": ('"\\0" + str(HERE)', ""),
}


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.cures("preflight:unix-renamed")
def test_a_listener_that_was_renamed(spawn: Spawn, images: Path) -> None:
    """Clients cannot reach it after a restore, but can after the file is renamed again."""
    target = spawn(SERVER.format(name='str(HERE / "new")', then=RENAMED))
    new, final = target.directory / "new", target.directory / "final"
    [finding] = preflight(target.pid).lost
    assert finding.id == "unix-renamed"
    assert finding.path == str(new)
    assert str(final) in finding.message
    assert "rename the file again" in finding.cure
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert not _connects(final)
    os.rename(new, final)
    assert _connects(final)


def test_a_datagram_socket_that_was_renamed(spawn: Spawn, images: Path) -> None:
    """Nobody can send to its name after a restore, but can after the file is renamed again."""
    target = spawn("""
        import os, socket
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(str(HERE / "new"))
        os.rename(HERE / "new", HERE / "final")
        serve(receive=lambda: server.recv(10).decode())
    """)
    new, final = target.directory / "new", target.directory / "final"
    [finding] = preflight(target.pid).lost
    assert finding.id == "unix-renamed"
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        with pytest.raises(ConnectionRefusedError):
            client.sendto(b"text", str(final))
        os.rename(new, final)
        client.sendto(b"text", str(final))
    assert target.ask("receive") == "text"


def test_a_listener_that_has_another_link(spawn: Spawn) -> None:
    """Preflight reports a listener whose name was removed and whose file has another link."""
    target = spawn(
        SERVER.format(name='str(HERE / "new")', then='os.link("new", "final"); os.unlink("new")')
    )
    assert [finding.id for finding in preflight(target.pid).lost] == ["unix-renamed"]


@pytest.mark.cures("unix-relative")
@pytest.mark.parametrize("case", REFUSED)
def test_a_relative_name_that_is_not_found(case: str, spawn: Spawn, images: Path) -> None:
    """CRIU cannot separate the name from the path of the file; preflight has the same cause and
    cure.
    """
    name, then = REFUSED[case]
    target = spawn(SERVER.format(name=name, then=then))
    prediction = preflight(target.pid)
    assert [finding.id for finding in prediction.stops] == ["unix-relative"]
    with pytest.raises(PreflightError, match="absolute path"):
        prediction.require()
    with pytest.raises(CriuError, match="relative name") as caught:
        dump(target.pid, CriuOpts(images_directory=images))
    assert caught.value.cure == prediction.stops[0].cure
    assert target.runs_on()


@pytest.mark.parametrize("case", GOOD)
def test_a_name_that_leads_to_the_socket(case: str, spawn: Spawn, images: Path) -> None:
    """A socket without a name, or with a name that leads to it, loses nothing in a restore."""
    name, then = GOOD[case]
    target = spawn(SERVER.format(name=name, then=then))
    prediction = preflight(target.pid)
    assert prediction.verdict is Verdict.WORKS
    assert prediction.lost == ()
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()

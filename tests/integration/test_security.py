"""Protection of a CRIU that runs as root against other users of the machine and of the network.

The other user is real: files belong to uid 65534. Tests that need only modes and links are in
``tests/unit/test_trust.py``; those of incomplete images, in ``test_security_images.py``.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    MigrationError,
    OptionError,
    PageServer,
    PeerLostError,
    PermissionDeniedError,
    Service,
    Worker,
    dump,
    page_server,
    page_server_child,
    restore,
)
from pycriu_native._transport.program import find_program
from pycriu_native.migration.control_channel import MAGIC
from pycriu_native.migration.deadline import MigrationDeadline
from pycriu_native.migration.endpoint import accept, connect

from .conftest import Spawn
from .support.hosts import OURS, cable, host
from .support.processes import kill

ANOTHER = 65534


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user, to which no one else has access."""
    directory = tmp_path / "theirs"
    directory.mkdir(0o700)
    os.chown(directory, ANOTHER, ANOTHER)
    return directory


# ---- directories ----


def test_a_directory_of_the_user_behind_sudo(
    spawn: Spawn, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who became root by sudo can use a directory of that user, who has the same rights
    anyway.
    """
    target = spawn()
    opts = CriuOpts(images_directory=theirs / "images", leave_running=True)
    monkeypatch.setenv("SUDO_UID", str(ANOTHER - 1))
    with pytest.raises(OptionError, match=f"belongs to user {ANOTHER}"):
        dump(target.pid, opts)
    monkeypatch.setenv("SUDO_UID", str(ANOTHER))
    dump(target.pid, opts)
    assert (theirs / "images").stat().st_uid == 0


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("images_directory", ""),
        ("images_directory", "below"),
        ("images_directory", "missing"),
        ("work_directory", ""),
        ("work_directory", "below"),
    ],
)
def test_a_directory_of_another_user(
    spawn: Spawn, tmp_path: Path, theirs: Path, field: str, place: str
) -> None:
    """It is refused, and so is one of root in it, which the other user could replace."""
    target = spawn()
    directory = theirs / place
    if place == "below":
        directory.mkdir()
    directories: dict[str, Any] = {"images_directory": tmp_path / "images", field: directory}
    with pytest.raises(OptionError, match=f"belongs to user {ANOTHER}") as caught:
        dump(target.pid, CriuOpts(**directories))
    assert caught.value.options == (field,)
    assert not (tmp_path / "images").exists()
    assert not list(theirs.glob("*/*"))
    assert target.runs_on()


def test_a_sticky_directory_with_an_entry_of_theirs(spawn: Spawn, tmp_path: Path) -> None:
    """In /tmp and similar directories an existing entry of another user is refused."""
    target = spawn()
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "images").mkdir()
    os.chown(shared / "images", ANOTHER, ANOTHER)
    with pytest.raises(OptionError, match=f"images belongs to user {ANOTHER}"):
        dump(target.pid, CriuOpts(images_directory=shared / "images"))
    dump(target.pid, CriuOpts(images_directory=shared / "ours", leave_running=True))
    (shared / "link").symlink_to("ours")
    os.chown(shared / "link", ANOTHER, ANOTHER, follow_symlinks=False)
    (shared / "ours" / "below").mkdir()
    with pytest.raises(OptionError, match=f"link belongs to user {ANOTHER}"):
        dump(target.pid, CriuOpts(images_directory=shared / "link" / "below"))


def test_the_reason_of_the_checks(spawn: Spawn, tmp_path: Path) -> None:
    """The reason: in a directory that others can write to, root would write through a symbolic
    link. CRIU does so with allow_untrusted; without it nothing is touched.
    """
    target = spawn()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (shared / "stats-dump").symlink_to(victim)
    opts = CriuOpts(images_directory=shared, leave_running=True)
    with pytest.raises(OptionError, match="can be written by everybody"):
        dump(target.pid, opts)
    assert victim.read_text() == "precious"
    assert os.listdir(shared) == ["stats-dump"]
    dump(target.pid, opts, via=Worker(allow_untrusted=True))
    assert victim.read_bytes() != b"precious"


def test_images_are_for_their_user_only(spawn: Spawn, tmp_path: Path) -> None:
    """Only the owner can read images, under any umask and in any directory: they contain memory."""
    target = spawn("secret = b'precious'\nserve()")
    images = tmp_path / "images"
    images.mkdir()
    images.chmod(0o755)
    before = os.umask(0)
    try:
        dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
        dump(target.pid, CriuOpts(images_directory=tmp_path / "made", leave_running=True))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in images.iterdir()}
    assert "pages-1.img" in modes
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_the_umask_of_the_restored(orphans: None, spawn: Spawn, images: Path) -> None:
    """The umask is that of the process, not of the worker that saved it."""
    target = spawn("import os\nos.umask(0o027)\nserve(umask=lambda: os.umask(0o027))")
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert target.ask("umask") == 0o027


# ---- the program, and what steers it ----


@pytest.mark.parametrize("what", ["the program", "its directory"])
def test_a_program_of_another_user(spawn: Spawn, tmp_path: Path, theirs: Path, what: str) -> None:
    """Root does not run a program of another user."""
    target = spawn()
    directory = theirs if what == "its directory" else tmp_path
    program = directory / "criu"
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\nexec {find_program()} "$@"\n')
    program.chmod(0o755)
    if what == "the program":
        os.chown(program, ANOTHER, ANOTHER)
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
    with pytest.raises(PermissionDeniedError, match=f"belongs to user {ANOTHER}"):
        dump(target.pid, opts, via=Worker(program=program))
    assert not (tmp_path / "ran").exists()
    dump(target.pid, opts, via=Worker(program=program, allow_untrusted=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["config_file", "HOME", "CRIU_CONFIG_FILE", "CRIU_LIBS_DIR"])
def test_files_of_another_user_that_steer(
    spawn: Spawn, tmp_path: Path, theirs: Path, kind: str
) -> None:
    """A configuration file of another user could run a program as root; so could a plugin."""
    target = spawn()
    script = theirs / "script"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    (theirs / ".criu").mkdir()
    config = theirs / ".criu" / "default.conf"
    config.write_text(f"action-script {script}\n")
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
    env = {"HOME": theirs, "CRIU_CONFIG_FILE": config, "CRIU_LIBS_DIR": theirs}
    if kind == "config_file":
        opts = CriuOpts(images_directory=opts.images_directory, config_file=config)
        env = {}
    else:
        env = {kind: env[kind]}
    with pytest.raises(OptionError, match=f"belongs to user {ANOTHER}"):
        dump(target.pid, opts, via=Worker(env={name: str(path) for name, path in env.items()}))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "images").exists()
    assert target.runs_on()


# ---- the network ----


@pytest.fixture
def far() -> Iterator[tuple[str, str]]:
    """A network address of this host, and that of another host."""
    with host() as other, cable(OURS, other) as addresses:
        yield addresses


def test_a_server_off_loopback_needs_an_option(tmp_path: Path, far: tuple[str, str]) -> None:
    """Without TLS any host could read the memory; without clear_text the server does not listen."""
    ours, _ = far
    opts = CriuOpts(images_directory=tmp_path / "pages", page_server=(ours, 0))
    for serve in (page_server, page_server_child):
        with pytest.raises(OptionError, match="clear_text=True"):
            serve(opts)
    assert not (tmp_path / "pages").exists()
    meant = CriuOpts(
        images_directory=tmp_path / "pages", page_server=PageServer(ours, 0, clear_text=True)
    )
    with page_server_child(meant) as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.result.port), 5)


@pytest.mark.parametrize("lazily", [None, True])
def test_a_dump_to_another_host_needs_an_option(
    spawn: Spawn, images: Path, far: tuple[str, str], lazily: bool | None
) -> None:
    """A dump that sends or serves pages there is refused, also over a given connection."""
    target = spawn()
    ours, other = far
    opts = CriuOpts(
        images_directory=images, page_server=(ours if lazily else other, 7), lazy_pages=lazily
    )
    with pytest.raises(OptionError, match="clear_text=True") as caught:
        dump(target.pid, opts)
    assert caught.value.options == ("page_server",)
    assert not images.exists()
    assert target.runs_on()


def test_a_connection_that_is_handed_over(spawn: Spawn, images: Path) -> None:
    """A connection to an address other than loopback needs clear_text as well."""
    target = spawn()
    with host() as other, cable(OURS, other) as (_, address):
        with other.entered():
            server = socket.create_server((address, 0))
        with server, socket.create_connection(server.getsockname()) as connection:
            to = PageServer(fd=connection.fileno())
            with pytest.raises(OptionError, match="clear_text=True"):
                dump(target.pid, CriuOpts(images_directory=images, page_server=to))
    assert not images.exists()
    assert target.runs_on()


def test_a_service_of_another_user(spawn: Spawn, tmp_path: Path, images: Path) -> None:
    """A socket at the path of a ``criu service`` is used only if it belongs to root or
    the caller.
    """
    target = spawn()
    path = str(tmp_path / "socket")
    ready, message = os.pipe()
    pid = os.fork()
    if pid == 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            os.setresuid(-1, ANOTHER, -1)  # the kernel stores the listener's owner
            listener.listen()
            os.write(message, b".")
            signal.pause()
        os._exit(0)
    try:
        os.close(message)
        assert os.read(ready, 1) == b"."
        with pytest.raises(PermissionDeniedError, match=f"was started by user {ANOTHER}"):
            dump(target.pid, CriuOpts(images_directory=images), via=Service(path))
    finally:
        os.close(ready)
        kill(pid)
    assert target.runs_on()


def _as_another(work: Callable[[], object]) -> int:
    """A process of another user that runs a function, and then waits to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(ANOTHER, ANOTHER, ANOTHER)
            kept = work()
            signal.pause()
            del kept
        finally:
            os._exit(1)
    return pid


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_source_of_another_user(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """A source can run any program at the destination: over loopback only root and the caller are
    accepted.
    """
    host = "::1" if address == "::1" else "127.0.0.1"

    def speak() -> socket.socket:
        sock = socket.socket(_family(address))
        sock.connect((address, port))
        sock.sendall(MAGIC)
        return sock

    with socket.create_server((host, 0), family=_family(host)) as listener:
        port = listener.getsockname()[1]
        pid = _as_another(speak)
        try:
            with pytest.raises(MigrationError, match="no source connected before the deadline"):
                accept(listener, CriuOpts(), MigrationDeadline(1.0), False)
            assert f"belongs to user {ANOTHER}" in caplog.text
            theirs = _as_another(speak)
            try:
                accept(
                    listener, CriuOpts(), MigrationDeadline(5.0), True
                ).close()  # insecure=True accepts every user
            finally:
                kill(theirs)
            with speak():
                accept(listener, CriuOpts(), MigrationDeadline(5.0), False).close()
        finally:
            kill(pid)


def test_a_destination_of_another_user() -> None:
    """A listener of another user at the destination's address receives nothing of the process."""

    def listen() -> tuple[socket.socket, socket.socket]:
        sock, _ = listener.accept()
        sock.sendall(MAGIC)
        return listener, sock

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        pid = _as_another(listen)
        try:
            with pytest.raises(PeerLostError, match=f"belongs to user {ANOTHER}"):
                connect(address, CriuOpts(), MigrationDeadline(5.0), False)
        finally:
            kill(pid)

"""inherit_fds: descriptors of the caller replace those of the process.

After a restore, a descriptor to something outside of the tree has lost its other end.
``inherit_fds=[(descriptor, key)]`` replaces it by a descriptor of the caller; the key identifies
it: ``pipe:[inode]`` (as in /proc/PID/fd), ``socket:[inode]``, ``file[mnt_id:inode]``,
``tty[rdev:dev]``. Pipes are saved without an option; the others have to be named in the dump:
``external=["unix[inode]"]``, ``["file[mnt_id:inode]"]``, ``["tty[rdev:dev]"]``, the last two with
hexadecimal numbers. The caller's descriptor remains open, and can be one of 0 to 2.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, dump, restore

from .conftest import Spawn
from .support.containers import container
from .support.processes import Target, reap_all
from .support.terminals import Terminal

SPEAKS = """
    import os

    def say(fd, words):
        return os.write(fd, words.encode())

    def hear(fd):
        return os.read(fd, 100).decode()

    serve(say=say, hear=hear)
"""


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    """Closes the descriptors of the test at its end."""
    with ExitStack() as stack:
        yield stack


def _pipe(owned: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    for fd in (reader, writer):
        owned.callback(os.close, fd)
    os.set_blocking(reader, False)
    return reader, writer


def _link(target: Target, fd: int) -> str:
    return os.readlink(f"/proc/{target.pid}/fd/{fd}")


def _identity(fd: int) -> tuple[int, int]:
    result = os.fstat(fd)
    return result.st_dev, result.st_ino


@contextlib.contextmanager
def _as_number(fd: int, number: int) -> Iterator[int]:
    """The descriptor with the number of a standard stream."""
    saved = os.dup(number)
    os.dup2(fd, number, inheritable=False)
    try:
        yield number
    finally:
        os.dup2(saved, number)
        os.close(saved)


# ---- pipes ----


@pytest.mark.parametrize("number", [0, 1, 2, None], ids=["0", "1", "2", "other"])
def test_a_pipe(spawn: Spawn, images: Path, owned: ExitStack, number: int | None) -> None:
    """The output of the restored process is read from the new pipe, for any number of its
    descriptor.
    """
    reader, writer = _pipe(owned)
    target = spawn(SPEAKS, stdout=writer)
    target.ask("say", 1, "before")
    assert os.read(reader, 100) == b"before"
    key = _link(target, 1)
    target.dump(CriuOpts(images_directory=images))

    new_reader, new_writer = _pipe(owned)
    with ExitStack() as numbered:
        ours = (
            new_writer if number is None else numbered.enter_context(_as_number(new_writer, number))
        )
        restore(CriuOpts(images_directory=images, inherit_fds=[(ours, key)]))
        assert _identity(ours) == _identity(new_writer)
    target.ask("say", 1, "after")
    assert os.read(new_reader, 100) == b"after"
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    assert target.runs_on()


def test_one_descriptor_for_two_pipes(spawn: Spawn, images: Path, owned: ExitStack) -> None:
    """One descriptor can replace several, such as standard output and standard error."""
    _, first = _pipe(owned)
    _, second = _pipe(owned)
    target = spawn(SPEAKS, stdout=first, stderr=second)
    keys = [_link(target, fd) for fd in (1, 2)]
    target.dump(CriuOpts(images_directory=images))

    reader, writer = _pipe(owned)
    restore(CriuOpts(images_directory=images, inherit_fds=[(writer, key) for key in keys]))
    for fd in (1, 2):
        target.ask("say", fd, "after")
        assert os.read(reader, 100) == b"after"


def test_a_pipe_that_is_not_given(spawn: Spawn, images: Path, owned: ExitStack) -> None:
    """Without inherit_fds the process gets a pipe without another end."""
    _, writer = _pipe(owned)
    target = spawn(SPEAKS, stdout=writer)
    key = _link(target, 1)
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert _link(target, 1) != key
    with pytest.raises(AssertionError, match="BrokenPipeError"):
        target.ask("say", 1, "after")
    assert target.runs_on()


# ---- sockets ----


def _sockets(owned: ExitStack) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        owned.enter_context(end)
        end.settimeout(10)
    return pair


def test_half_of_a_connection(spawn: Spawn, images: Path, owned: ExitStack) -> None:
    """A stream socket with a peer outside of the tree: named in the dump, replaced in
    the restore.
    """
    ours, theirs = _sockets(owned)
    number = theirs.fileno()
    target = spawn(SPEAKS, pass_fds=[number])
    theirs.close()
    target.ask("say", number, "before")
    assert ours.recv(100) == b"before"
    inode = os.stat(f"/proc/{target.pid}/fd/{number}").st_ino
    assert _link(target, number) == f"socket:[{inode}]"

    opts = CriuOpts(images_directory=images, external=[f"unix[{inode}]"])
    target.dump(opts)
    ours, theirs = _sockets(owned)
    restore(CriuOpts(images_directory=images, inherit_fds=[(theirs, f"socket:[{inode}]")]))
    target.ask("say", number, "after")
    assert ours.recv(100) == b"after"
    ours.sendall(b"answer")
    assert target.ask("hear", number) == "answer"


def test_half_of_a_connection_that_is_not_named(
    spawn: Spawn, images: Path, owned: ExitStack
) -> None:
    """The dump is refused and names external and inherit_fds; the connection is kept."""
    ours, theirs = _sockets(owned)
    target = spawn(SPEAKS, pass_fds=[theirs.fileno()])
    with pytest.raises(CriuError, match=r"external=.unix\[ino\].*inherit_fd") as caught:
        dump(target.pid, CriuOpts(images_directory=images))
    assert {"external", "inherit_fds"} <= set(caught.value.options)
    target.ask("say", theirs.fileno(), "still here")
    assert ours.recv(100) == b"still here"


def test_half_of_a_connection_that_is_not_given(
    orphans: None, spawn: Spawn, images: Path, owned: ExitStack
) -> None:
    """The restore is refused and names inherit_fds; the images are unchanged."""
    _, theirs = _sockets(owned)
    target = spawn(SPEAKS, pass_fds=[theirs.fileno()])
    inode = os.fstat(theirs.fileno()).st_ino
    target.dump(CriuOpts(images_directory=images, external=[f"unix[{inode}]"]))
    with pytest.raises(CriuError, match="inherit_fds") as caught:
        restore(CriuOpts(images_directory=images))
    assert "inherit_fds" in caught.value.options
    reap_all()
    restore(CriuOpts(images_directory=images, inherit_fds=[(theirs, f"socket:[{inode}]")]))
    assert target.runs_on()


# ---- files ----


def test_a_file_of_another_mount_namespace(tmp_path: Path, images: Path, owned: ExitStack) -> None:
    """A container's log that the host opened: named in the dump, replaced in the restore."""
    logs = [tmp_path / name for name in ("log", "log.1")]
    first, second = (os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for log in logs)
    for fd in (first, second):
        owned.callback(os.close, fd)
    with container(tmp_path / "box", SPEAKS, keep=[first]) as box:
        box.ask("say", first, "before\n")
        message = Path(f"/proc/{box.pid}/fdinfo/{first}").read_text()
        mount = next(line.split()[1] for line in message.splitlines() if line.startswith("mnt_id:"))
        key = f"file[{int(mount):x}:{os.fstat(first).st_ino:x}]"

        with pytest.raises(CriuError, match=r"external=.file\[") as caught:
            dump(box.pid, CriuOpts(images_directory=images, external=box.given_on_dump))
        assert {"external", "inherit_fds"} <= set(caught.value.options)
        box.ask("say", first, "refused\n")

        opts = CriuOpts(images_directory=images, external=[*box.given_on_dump, key])
        box.dump(opts)
        opts = CriuOpts(
            images_directory=images,
            root=box.root,
            external=box.given_on_restore,
            inherit_fds=[(second, key)],
        )
        box.pid = restore(opts).pid
        box.ask("say", first, "after\n")
    assert [log.read_text() for log in logs] == ["before\nrefused\n", "after\n"]


# ---- terminals ----


def _terminal(owned: ExitStack) -> tuple[Terminal, int]:
    master, slave = os.openpty()
    for fd in (master, slave):
        owned.callback(os.close, fd)
    return Terminal(master), slave


def test_a_terminal(spawn: Spawn, images: Path, owned: ExitStack) -> None:
    """A terminal that is only written to: named in the dump, replaced in the restore."""
    first, slave = _terminal(owned)
    target = spawn(SPEAKS, stdout=slave)
    target.ask("say", 1, "before\n")
    first.expect("^before$")
    result = os.fstat(slave)
    key = f"tty[{result.st_rdev:x}:{result.st_dev:x}]"

    with pytest.raises(CriuError, match=r"external=\[\"tty\["):
        dump(target.pid, CriuOpts(images_directory=images))
    target.ask("say", 1, "refused\n")
    first.expect("^refused$")

    target.dump(CriuOpts(images_directory=images, external=[key]))
    second, slave = _terminal(owned)
    restore(CriuOpts(images_directory=images, inherit_fds=[(slave, key)]))
    assert _link(target, 1) == os.ttyname(slave)
    target.ask("say", 1, "after\n")
    second.expect("^after$")
    assert target.runs_on()

"""``Preflight.restore_needs`` and ``for_restore``: resources that a restore needs in addition to
options.
"""

from __future__ import annotations

import ctypes
import json
import os
import pty
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    OptionError,
    Preflight,
    PreflightWarning,
    dump,
    preflight,
    restore,
)
from pycriu_native.diagnostics.preflight import RestoreNeed
from pycriu_native.diagnostics.preflight.restore_needs import filled, options_of

from .conftest import Spawn
from .support.containers import container
from .support.processes import Target, eventually

SPEAKS = """
    import os
    serve(
        say=lambda fd, words: os.write(fd, words.encode()),
        hear=lambda fd: os.read(fd, 100).decode(),
    )
"""


@pytest.fixture
def connected(spawn: Spawn, images: Path) -> Iterator[tuple[Target, Preflight]]:
    """A process whose standard input is connected to this one, and its preflight."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            target = spawn(SPEAKS, stdin=theirs.fileno())
        yield target, preflight(target.pid, CriuOpts(images_directory=images))


def test_a_connection_to_outside(connected: tuple[Target, Preflight]) -> None:
    """The reported need is sufficient: the restore works with a new connection for its key."""
    target, result = connected
    [need] = result.restore_needs
    assert (need.option, need.required) == ("inherit_fds", True)
    assert need.key == os.readlink(f"/proc/{target.pid}/fd/0")
    with pytest.warns(PreflightWarning, match="the restore needs inherit_fds="):
        dump(target.pid, result.require())
    target.reap()
    with pytest.raises(OptionError, match="the restore needs inherit_fds="):
        result.for_restore()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        restore(result.for_restore({need.key: theirs}))
        target.ask("say", 0, "restored")
        assert ours.recv(100) == b"restored"


@pytest.mark.cures("preflight:pipe-outside")
def test_a_pipe_may_be_left_out(spawn: Spawn, images: Path) -> None:
    """Without a pipe the process gets a closed one; with one, the caller reads it."""
    reader, writer = os.pipe()
    target = spawn(SPEAKS, stdout=writer)
    result = preflight(target.pid, CriuOpts(images_directory=images))
    [need] = result.restore_needs
    assert (need.option, need.required) == ("inherit_fds", False)
    dump(target.pid, result.opts)
    target.reap()
    assert result.for_restore() == CriuOpts(images_directory=images)
    restore(result.for_restore({need.key: writer}))
    os.close(writer)
    target.ask("say", 1, "restored")
    assert os.read(reader, 100) == b"restored"
    os.close(reader)


def test_a_container(tmp_path: Path, images: Path) -> None:
    """The needs are the root, and each external mount by its name in the dump."""
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("data", "other"):
        (tmp_path / name / "file").write_text(name)
    reads = "from pathlib import Path\nserve(read=lambda: Path('/data/file').read_text())"
    with container(tmp_path / "box", reads, binds={"/data": tmp_path / "data"}) as box:
        result = preflight(box.pid, CriuOpts(images_directory=images))
        needs = {need.key: need for need in result.restore_needs}
        assert needs["root"].option == "root"
        assert needs["mnt[/data]"].option == "external"
        assert set(needs) == {"root", *(f"mnt[{place}]" for place in box.binds)}
        dump(box.pid, result.opts)
        box.reap()
        with pytest.raises(OptionError) as caught:
            result.for_restore()
        assert len(caught.value.problems) == len(needs)
        given = {f"mnt[{place}]": source for place, source in box.binds.items()}
        opts = result.for_restore({**given, "root": box.root, "mnt[/data]": tmp_path / "other"})
        box.pid = restore(opts).pid
        assert box.ask("read") == "other"


@pytest.mark.cures("ctty")
def test_a_terminal_that_a_process_has_open(spawn: Spawn, images: Path) -> None:
    """/dev/tty is passed with the key of the dump."""
    target = spawn("""
        import os, pty, signal
        child, master = pty.fork()
        if not child:
            tty = os.open("/dev/tty", os.O_RDWR)
            assert tty == 3
            signal.pause()
        serve(child=lambda: child)
    """)
    child = target.ask("child")
    eventually(lambda: os.path.exists(f"/proc/{child}/fd/3"), "the child's terminal")
    result = preflight(target.pid, CriuOpts(images_directory=images))
    [need] = result.restore_needs
    assert need.key.startswith("tty[500:")
    dump(target.pid, result.opts)
    target.reap()
    taken = os.openpty()  # the images have the lowest number
    master, slave = pty.openpty()
    for fd in taken:
        os.close(fd)
    restore(result.for_restore({need.key: slave}))
    assert os.readlink(f"/proc/{child}/fd/3") == os.ttyname(slave)
    os.close(master)
    os.close(slave)


@pytest.mark.cures("preflight:message-queue")
def test_a_message_queue(spawn: Spawn, images: Path) -> None:
    """CRIU cannot save it; with external, as in the cure, the caller passes another one."""
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    name = f"/pycriu-native-{os.getpid()}".encode()
    queue = rt.mq_open(name, os.O_RDWR | os.O_CREAT, 0o600, None)
    if queue < 0:
        pytest.skip(f"no message queue can be made here: {os.strerror(ctypes.get_errno())}")
    try:
        target = spawn(f"""
            import ctypes
            rt = ctypes.CDLL("librt.so.1")
            queue = rt.mq_open({name!r}, 2)
            serve(send=lambda: rt.mq_send(queue, b"restored", 8, 0))
        """)
        [finding] = preflight(target.pid).stops
        assert finding.id == "message-queue"
        [key] = re.findall(r'external=\["(.*?)"\]', finding.cure)
        result = preflight(target.pid, CriuOpts(images_directory=images, external=[key]))
        dump(target.pid, result.opts)
        target.reap()
        restore(result.for_restore({key: queue}))
        assert target.ask("send") == 0
        message = ctypes.create_string_buffer(8192)
        assert rt.mq_receive(queue, message, len(message), None) == 8
        assert message.value == b"restored"
    finally:
        os.close(queue)
        rt.mq_unlink(name)


def test_as_text_and_as_data(spawn: Spawn, images: Path) -> None:
    """A report has the needs in the form of options, and can be converted to JSON."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = preflight(spawn(SPEAKS, stdin=theirs.fileno()).pid)
        [need] = result.restore_needs
        assert f'the restore needs:\n    inherit_fds=[(fd, "{need.key}")]: pid' in str(result)
        data = json.loads(json.dumps(result.to_dict()))
        assert data["restore_needs"] == [need.to_dict()]
        assert data["restore_options"] == {}


OPTIONS = {
    "unix[7]": ("inherit_fds", "socket:[7]"),
    "tty[8801:5]": ("inherit_fds", "tty[8801:5]"),
    "file[a:b]": ("inherit_fds", "file[a:b]"),
    "net[7]:outside": ("inherit_fds", "outside"),
    "pid[7]:outside": ("inherit_fds", "outside"),
    "mnt[/data]:data": ("external", "mnt[data]"),
    "dev[8/1]:disk": ("external", "dev[disk]"),
}


@pytest.mark.parametrize("entry", OPTIONS)
def test_what_the_caller_has_named(entry: str, spawn: Spawn) -> None:
    """Each kind of ``external`` is a need, not an option of the restore."""
    opts = CriuOpts(external=[entry, "mnt[]"], tcp_established=True)
    result = preflight(spawn().pid, opts)
    [need] = result.restore_needs
    assert (need.option, need.key) == OPTIONS[entry]
    assert result.restore_opts == CriuOpts(external=["mnt[]"], tcp_established=True)
    assert options_of(opts) == result.restore_opts


def test_keys_that_are_no_need() -> None:
    """All wrong keys are reported at once, and needs of one option are combined."""
    needs = (
        RestoreNeed(option="inherit_fds", key="socket:[1]", message="one"),
        RestoreNeed(option="inherit_fds", key="socket:[2]", message="two"),
        RestoreNeed(option="root", key="root", message="its root"),
    )
    with pytest.raises(OptionError) as caught:
        filled(CriuOpts(), needs, {"socket:[1]": 1, "socket:[3]": 3})
    message = str(caught.value)
    assert "socket:[2]" in message
    assert 'root="PATH"' in message
    assert "given='socket:[3]'" in message
    opts = filled(CriuOpts(), needs, {"socket:[1]": 1, "socket:[2]": 2, "root": "/"})
    assert opts == CriuOpts(inherit_fds=[(1, "socket:[1]"), (2, "socket:[2]")], root="/")


@pytest.mark.cures("crash")
def test_half_of_a_connection_by_its_name(
    connected: tuple[Target, Preflight], images: Path
) -> None:
    """CRIU crashes if a restore has to find one of a pair by name; the cure works."""
    target, result = connected
    dump(target.pid, result.opts)
    target.reap()
    with pytest.raises(CriuError, match="inherit_fds instead of external_unix_connections"):
        restore(CriuOpts(images_directory=images, external_unix_connections=True))
    target.until_free()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        restore(result.for_restore({result.restore_needs[0].key: theirs}))
        assert target.runs_on()

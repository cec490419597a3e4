"""``docs/not_restored.md``: the state of a process after a restore, by property."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, dump, preflight, restore, restore_child
from pycriu_native.diagnostics.preflight.attributes import ATTRIBUTES

from .conftest import Spawn
from .support.processes import eventually
from .support.system_calls import NUMBERS

PROGRAM = Path(__file__).parents[0] / "programs" / "properties.py"

LOST = {
    "coredump_filter", "affinity", "io_priority", "keys", "landlock", "mce_kill", "mdwe",
    "mempolicy", "merge_memory", "personality", "sealed", "timer_slack",
}  # fmt: skip
KEPT = {
    "capabilities", "child_subreaper", "dumpable", "madvise", "mlock", "nice", "no_new_privs",
    "oom_score_adj", "pdeathsig", "scheduler", "securebits", "thp_disable", "umask",
}  # fmt: skip


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in which each property is set, if this kernel supports it."""
    null = subprocess.DEVNULL
    (tmp_path / "out").touch()
    (tmp_path / "denied").touch()
    started = subprocess.Popen(
        [sys.executable, PROGRAM, tmp_path, json.dumps(NUMBERS)],
        stdin=null, stdout=null, stderr=null, start_new_session=True,
    )  # fmt: skip
    yield started
    started.kill()
    started.wait()


def _look(directory: Path, count: int) -> dict[str, Any]:
    (directory / f"ask{count}").touch()

    def answer() -> str | None:
        lines = (directory / "out").read_text().splitlines(keepends=True)
        return lines[count] if len(lines) > count and lines[count].endswith("\n") else None

    result: dict[str, Any] = json.loads(eventually(answer, "an answer"))
    return result


def test_the_list_is_true(process: subprocess.Popen[bytes], images: Path, tmp_path: Path) -> None:
    """Lost properties are lost, kept ones are kept, and preflight reports the ones that it can
    detect.
    """
    before = _look(tmp_path, 0)
    findings = {finding.id for finding in preflight(process.pid).findings}
    dump(process.pid, CriuOpts(images_directory=images))
    process.wait()
    pid = restore_child(CriuOpts(images_directory=images)).pid
    try:
        after = _look(tmp_path, 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    changed = {name for name in before if before[name] != after[name]}
    could_not = set(before["not_set"])  # not possible with this kernel or these rights
    assert changed - could_not == LOST - could_not
    assert set(before) - {"not_set"} == LOST | KEPT
    seen = {"affinity": "cpu-affinity", "io_priority": "io-priority", "timer_slack": "timer-slack"}
    named = {seen.get(name, name.replace("_", "-")) for name in LOST - could_not}
    assert findings >= named & set(ATTRIBUTES)


WATCHES = """
    import ctypes, fcntl, os, struct, termios
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result):
        assert result >= 0, os.strerror(ctypes.get_errno())
        return result

    (HERE / "watched").mkdir()
    watch = checked({start})
    checked({mark})
    (HERE / "watched" / "new").write_text("new")

    def queued():
        answer = fcntl.ioctl(watch, termios.FIONREAD, bytes(4))
        return struct.unpack("i", answer)[0]

    def marks():
        text = open(f"/proc/self/fdinfo/{{watch}}").read()
        return sum(line.startswith(("inotify ", "fanotify sdev", "fanotify ino"))
                   for line in text.splitlines())

    def again():
        checked({mark})
        (HERE / "watched" / "newer").write_text("newer")

    serve(queued=queued, marks=marks, again=again, listed=lambda: os.listdir(HERE / "watched"))
"""
NOTICES = {
    "inotify": (
        "libc.inotify_init1(0)",
        "libc.inotify_add_watch(watch, os.fsencode(HERE / 'watched'), 0x100)",
        {"events"},
        1,
    ),
    "fanotify of a file system": (
        "libc.fanotify_init(0x200, 0)",
        "libc.fanotify_mark(watch, 0x101, ctypes.c_uint64(0x100), -100, os.fsencode(HERE))",
        {"events", "watch-of-a-file-system"},
        0,
    ),
}


@pytest.mark.cures("preflight:events", "preflight:watch-of-a-file-system")
@pytest.mark.parametrize("kind", NOTICES)
def test_watches(kind: str, spawn: Spawn, images: Path) -> None:
    """Unread events are lost, and so are marks of whole file systems; the program looks again, and
    marks them again.
    """
    start, mark, ids, marks = NOTICES[kind]
    target = spawn(WATCHES.format(start=start, mark=mark))
    assert target.ask("queued") > 0
    assert target.ask("marks") == 1
    assert {finding.id for finding in preflight(target.pid).lost} == ids
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    restore(CriuOpts(images_directory=images))
    assert target.ask("queued") == 0
    assert target.ask("marks") == marks
    assert target.ask("listed") == ["new"]
    target.ask("again")
    assert target.ask("marks") == 1
    assert target.ask("queued") > 0


def test_a_wait_without_a_timeout(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """poll(2) returns EINTR once after a restore, as after any stop of a process."""
    target = spawn("""
        import ctypes, threading
        libc = ctypes.CDLL(None, use_errno=True)
        results = []

        def wait():
            libc.poll(None, 0, -1)
            results.append(ctypes.get_errno())
            threading.Event().wait()

        threading.Thread(target=wait, daemon=True).start()
        serve(results=lambda: results)
    """)
    assert target.ask("results") == []
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    restore(CriuOpts(images_directory=images))
    eventually(lambda: target.ask("results") == [errno.EINTR], "the end of poll")


RAW = """
    import socket
    sock = socket.socket({family}, {kind}, {protocol})
    sock.{call}(({address!r}, {port}))
    def again(host, identifier):
        global sock
        sock.close()
        sock = socket.socket({family}, {kind}, {protocol})
        if {ping}: sock.bind((host, identifier))
        sock.{call}(({address!r}, {port}))
    serve(address=lambda: sock.getsockname()[:2], again=again)
"""


@pytest.fixture
def ping_sockets() -> Iterator[None]:
    """Permission for ping sockets in the network namespace of the tests (icmp(7))."""
    setting = Path("/proc/sys/net/ipv4/ping_group_range")
    before = setting.read_text()
    try:
        setting.write_text("0 0")
    except OSError as error:
        pytest.skip(f"net.ipv4.ping_group_range cannot be set: {error.strerror}")
    yield
    setting.write_text(before)


V4, V6 = ("socket.AF_INET", "127.0.0.1", 1), ("socket.AF_INET6", "::1", 58)


@pytest.mark.cures("preflight:raw-address")
@pytest.mark.parametrize("call", ["bind", "connect"])
@pytest.mark.parametrize(("family", "address", "protocol"), [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["RAW", "DGRAM"])
@pytest.mark.usefixtures("orphans", "ping_sockets")
def test_addresses_of_raw_sockets(
    kind: str, family: str, address: str, protocol: int, call: str, spawn: Spawn, images: Path
) -> None:
    """The addresses, and the identifier of a ping socket, are lost; preflight reports both."""
    ping = kind == "DGRAM"
    target = spawn(
        RAW.format(
            family=family, kind=f"socket.SOCK_{kind}", protocol=protocol, call=call,
            address=address, port=77 if ping else 0, ping=ping and call == "connect",
        )
    )  # fmt: skip
    before = target.ask("address")
    assert before[0] == address
    result = preflight(target.pid, CriuOpts(images_directory=images))
    (found,) = [each for each in result.findings if each.id == "raw-address"]
    connected = ping and call == "connect"  # with a port, which only a ping socket has
    assert (address in found.message) is not connected
    assert (f"identifier {before[1]}" in found.message) is ping
    dump(target.pid, result.opts)
    target.reap()
    restore(result.restore_opts)
    after = target.ask("address")
    assert after[0] == address if connected else after[0] in ("0.0.0.0", "::")
    assert (after[1] != before[1]) is ping
    target.ask("again", *before)
    assert target.ask("address") == before


@pytest.mark.usefixtures("orphans")
def test_a_raw_socket_without_an_address(spawn: Spawn) -> None:
    """Preflight reports no loss for a raw socket without an address."""
    target = spawn("import socket\nsock = socket.socket(2, socket.SOCK_RAW, 1)\nserve()")
    assert "raw-address" not in {each.id for each in preflight(target.pid).findings}

"""Descriptors that CRIU cannot save or restore: the verdict is that of CRIU, and the cure works."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, Verdict, dump, preflight, restore
from pycriu_native._failures.log_excerpt import known
from pycriu_native.images import check_images

from .conftest import Spawn
from .support import releases
from .support.predictions import check_continues
from .support.processes import reap_all

pytestmark = pytest.mark.usefixtures("orphans")

FAILS, NO_RESTORE = Verdict.FAILS, Verdict.NO_RESTORE


@dataclass(frozen=True)
class Case:
    """A descriptor, and the known failure of its dump or restore."""

    opened: str
    """An expression, whose value is the descriptor."""
    failure: str
    verdict: Verdict
    network: bool = False
    """Whether the process has a separate network namespace."""
    link_remap: bool | None = None
    """The option, without which CRIU names another cause, for files."""


O_PATH = "path-descriptor"
CASES = {
    "socket": Case("path_of(bound())", O_PATH, FAILS),
    "named pipe": Case("path_of(named_pipe())", O_PATH, FAILS),
    "pipe": Case("again(os.pipe()[0])", O_PATH, NO_RESTORE),
    "closed pipe": Case("again(os.pipe()[0], close=True)", O_PATH, FAILS),
    "master of terminals": Case("path_of('/dev/ptmx')", O_PATH, FAILS),
    "terminal": Case("path_of(os.ttyname(os.openpty()[1]))", O_PATH, NO_RESTORE),
    "memfd": Case("again(os.memfd_create('memory'))", O_PATH, NO_RESTORE),
    "eventfd": Case("again(os.eventfd(0))", O_PATH, FAILS),
    "timer that wakes the system": Case("libc.timerfd_create(9, 0)", "timerfd-clock", FAILS),
    "namespace of CRIU": Case("left_network()", "ns-of-no-process", NO_RESTORE),
    "tun without a device": Case("os.open('/dev/net/tun', os.O_RDWR)", "tun-of-the-host", FAILS),
    "path of tun": Case("path_of('/dev/net/tun')", O_PATH, FAILS, network=True),
    "file of a thread": Case("of_thread()", "thread-file", NO_RESTORE),
    "removed cgroup": Case("removed_cgroup()", "removed-directory", FAILS, link_remap=True),
    "terminal 0": Case("os.open('/dev/tty0', os.O_RDWR | os.O_NOCTTY)", "device-fd", FAILS),
}
SCENARIO = """
    import ctypes, os, socket
    libc = ctypes.CDLL(None)
    held = []
    def path_of(path):
        return os.open(path, os.O_PATH)
    def again(fd, close=False):
        held.append(fd)
        result = path_of(f"/proc/self/fd/{{fd}}")
        if close: os.close(held.pop())
        return result
    def bound():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(HERE / "socket"))
        return HERE / "socket"
    def named_pipe():
        os.mkfifo(HERE / "pipe")
        return HERE / "pipe"
    def of_thread():
        import threading
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        return os.open(f"/proc/self/task/{{thread.native_id}}/stat", os.O_RDONLY)
    def removed_cgroup():
        for line in open("/proc/self/mountinfo"):
            if " - cgroup2 " in line:
                path = f"{{line.split()[4]}}/pycriu-native-{{os.getpid()}}-removed"
                os.mkdir(path)
                result = os.open(path, os.O_RDONLY)
                os.rmdir(path)
                return result
        return -1
    def left_network():
        result = os.open("/proc/self/ns/net", os.O_RDONLY)
        assert libc.unshare(0x40000000) == 0
        return result
    try:
        fd = {opened}
    except OSError:
        fd = -1
    serve(fd=lambda: fd, close=lambda: os.close(fd))
"""


@pytest.mark.cures(
    "path-descriptor",
    "timerfd-clock",
    "ns-of-no-process",
    "tun-of-the-host",
    "thread-file",
    "removed-directory",
)
@pytest.mark.parametrize("name", CASES)
def test_a_descriptor(name: str, spawn: Spawn, images: Path) -> None:
    """Preflight reports the reason of CRIU's error; after the descriptor is closed all works."""
    case = CASES[name]
    prefix = ["unshare", "--net"] if case.network else []
    target = spawn(SCENARIO.format(opened=case.opened), prefix=prefix)
    if target.ask("fd") < 0:
        pytest.skip("this kernel has no such thing")
    opts = CriuOpts(images_directory=images, link_remap=case.link_remap)
    result = preflight(target.pid, opts)
    assert result.verdict is case.verdict, str(result)
    (finding,) = (*result.stops, *result.no_restore)
    assert finding.failure == case.failure
    if case.verdict is FAILS:
        with pytest.raises(CriuError) as caught:
            dump(target.pid, opts)
        assert target.runs_on()
    else:
        target.dump(opts)
        (refused,) = (each for each in check_images(images) if each.severity is Severity.STOPS)
        assert refused.message == known(case.failure).cause
        with pytest.raises(CriuError) as caught:
            restore(opts)
        reap_all()
        target = spawn(SCENARIO.format(opened=case.opened), prefix=prefix)
    assert caught.value.cause == known(case.failure).cause, caught.value.lines
    assert "close" in str(caught.value.cure)
    assert "close" in finding.cure
    target.ask("close")
    check_continues(target, opts)


UNREAD = """
    import socket
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.{kind})
    receiver.setsockopt(socket.SOL_SOCKET, {option}, 1)
    sender.send(b"text")
    serve(read=lambda: receiver.recv(10).decode())
"""


@pytest.mark.cures("unread-credentials")
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("SOCK_STREAM", "socket.SO_PASSCRED"),
        ("SOCK_DGRAM", "29"),
        ("SOCK_DGRAM", "35"),
        ("SOCK_DGRAM", "63"),
        ("SOCK_SEQPACKET", "29"),
        ("SOCK_SEQPACKET", "76"),
    ],
)
def test_messages_with_credentials(kind: str, option: str, spawn: Spawn, images: Path) -> None:
    """The dump fails as long as they are not read."""
    target = spawn(UNREAD.format(kind=kind, option=option))
    opts = CriuOpts(images_directory=images)
    (finding,) = preflight(target.pid, opts).stops
    with pytest.raises(CriuError) as caught:
        dump(target.pid, opts)
    assert finding.failure == "unread-credentials"
    assert caught.value.cause == known("unread-credentials").cause
    assert finding.cure == caught.value.cure
    assert target.ask("read") == "text"
    check_continues(target, opts)


DEADLINE = """
    import ctypes, os, struct
    libc = ctypes.CDLL(None)
    attributes = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**7, 10**7)
    serve(
        set=lambda: libc.syscall({sched_setattr}, 0, attributes, 0),
        unset=lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
    )
"""


@pytest.mark.cures("sched-policy")
def test_a_scheduling_policy(spawn: Spawn, images: Path) -> None:
    """The dump works, and the restore only with another policy."""
    number = 314 if os.uname().machine == "x86_64" else 274
    opts = CriuOpts(images_directory=images)
    target = spawn(DEADLINE.format(sched_setattr=number))
    if target.ask("set"):
        pytest.skip("the kernel refuses SCHED_DEADLINE here")
    (finding,) = preflight(target.pid, opts).no_restore
    target.dump(opts)
    entry = known("sched-policy")
    assert [e.message for e in check_images(images) if e.severity is Severity.STOPS] == [
        entry.cause
    ]
    with pytest.raises(CriuError) as caught:
        restore(opts)
    assert (caught.value.cause, finding.cure) == (entry.cause, entry.cure)
    reap_all()
    target = spawn(DEADLINE.format(sched_setattr=number))
    assert not target.ask("set")
    command = finding.cure.partition("(")[2].partition(")")[0]
    subprocess.run(command.replace("TID", str(target.pid)).split(), check=True)
    check_continues(target, opts)


@pytest.mark.cures("sched-policy")
def test_a_policy_that_children_do_not_get(spawn: Spawn, images: Path) -> None:
    """Since CRIU 4.0 SCHED_RESET_ON_FORK is restored; an older one fails, as is predicted."""
    set_policy = "os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, param)"
    target = spawn(f"""
        import os
        param = os.sched_param(0)
        {set_policy}
        serve(policy=lambda: os.sched_getscheduler(0))
    """)
    opts = CriuOpts(images_directory=images)
    predicted = [each.failure for each in preflight(target.pid, opts).findings]
    dump(target.pid, opts)
    target.reap()
    stops = [e.message for e in check_images(images) if e.severity is Severity.STOPS]
    if releases.has("4.0"):
        assert not predicted
        assert not stops
        restore(opts)
        assert target.ask("policy") == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
    else:
        assert predicted == ["sched-policy"]
        assert stops == [known("sched-policy").cause]
        with pytest.raises(CriuError, match=re.escape(stops[0])):
            restore(opts)


ENDED = """
    import socket, struct
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()  # a reset
    serve(receive=lambda: type(client.recv(1)).__name__)
"""


@pytest.mark.parametrize("how", ["options of preflight", "tcp_close"])
def test_a_connection_that_has_ended(how: str, spawn: Spawn, images: Path) -> None:
    """It is in no table of the kernel, and in the images: the restore needs an option."""
    target = spawn(ENDED)
    opts = CriuOpts(images_directory=images, tcp_close=True if how == "tcp_close" else None)
    result = preflight(target.pid, opts)
    assert result.verdict is (Verdict.WORKS if how == "tcp_close" else Verdict.NEEDS_OPTIONS), str(
        result
    )
    target.dump(result.opts)
    (refused,) = (e for e in check_images(images) if e.severity is Severity.STOPS)
    with pytest.raises(CriuError):
        restore(CriuOpts(images_directory=images))
    assert "tcp_close" in refused.options
    reap_all()
    assert not [
        e for e in check_images(images, result.restore_opts) if e.severity is Severity.STOPS
    ]
    restore(result.restore_opts)
    assert target.runs_on()


OPTIONS = """
    import socket
    sock = socket.{make}
    def change():
        for level, number in {options}:
            sock.setsockopt(level, number, 2)
    serve(change=change, values=lambda: str([sock.getsockopt(*each) for each in {options}]))
"""


@pytest.mark.cures("preflight:socket-options")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        ("create_server(('127.0.0.1', 0))", {"TCP_USER_TIMEOUT": (6, 18), "IP_MINTTL": (0, 21)}),
        ("socket(type=socket.SOCK_DGRAM)", {"IP_MTU_DISCOVER": (0, 10), "UDP_ENCAP": (17, 100)}),
        ("socket(socket.AF_INET6)", {"IPV6_UNICAST_HOPS": (41, 16)}),
    ],
)
def test_options_of_sockets(
    make: str, options: dict[str, tuple[int, int]], spawn: Spawn, images: Path
) -> None:
    """A restored socket has the defaults until the program sets the options again."""
    target = spawn(OPTIONS.format(make=make, options=list(options.values())))
    opts = CriuOpts(images_directory=images)
    assert not preflight(target.pid, opts).findings
    default = target.ask("values")
    target.ask("change")
    changed = target.ask("values")
    (finding,) = preflight(target.pid, opts).lost
    assert sorted(finding.message.partition(": ")[2].split(", ")) == sorted(options)
    target.dump(opts)
    restore(opts)
    assert target.ask("values") == default != changed
    target.ask("change")  # as the cure says
    assert target.ask("values") == changed


DEFAULTS = """
    import socket
    held = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        server = socket.create_server((address, 0), family=family)
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        for end in (client, accepted):
            end.send(b"text")
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.connect(server.getsockname())
        held += [server, client, accepted, udp]
    serve()
"""


def test_sockets_with_the_default_options(spawn: Spawn, images: Path) -> None:
    """Connections of which the program has set no option lose none."""
    target = spawn(DEFAULTS)
    result = preflight(target.pid, CriuOpts(images_directory=images, tcp_established=True))
    assert not result.lost


WATCH = """
    import ctypes
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init()
    assert libc.inotify_add_watch(fd, {path!r}, 0x100) >= 0  # IN_CREATE
    serve()
"""


@pytest.mark.parametrize("path", ["/proc", "/proc/sys/kernel", "/dev/pts", "/sys/kernel"])
def test_a_watch_in_a_file_system_without_handles(path: str, spawn: Spawn, images: Path) -> None:
    """CRIU finds the path if the options of preflight name the file system."""
    target = spawn(WATCH.format(path=path.encode()))
    opts = CriuOpts(images_directory=images)
    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.NEEDS_OPTIONS, str(result)
    with pytest.raises(CriuError) as caught:
        dump(target.pid, opts)
    assert caught.value.cause == known("irmap").cause
    assert preflight(target.pid, result.opts).verdict is Verdict.WORKS
    target.dump(result.opts)
    restore(result.restore_opts)
    assert target.runs_on()


@pytest.mark.cures("too-many-pipes")
@pytest.mark.parametrize("count", [1024, 1025])
def test_many_pipes(count: int, spawn: Spawn, images: Path) -> None:
    """CRIU's table of pipes holds 1024 that can be read."""
    target = spawn(f"""
        import os, resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        pipes = [os.pipe() for _ in range({count})]
        serve(close=lambda: os.close(pipes.pop()[0]))
    """)
    opts = CriuOpts(images_directory=images)
    if count > 1024:
        (finding,) = preflight(target.pid, opts).stops
        with pytest.raises(CriuError) as caught:
            dump(target.pid, opts)
        assert finding.failure == "too-many-pipes"
        assert caught.value.cause == known(finding.failure).cause, caught.value.lines
        assert target.runs_on()
        target.ask("close")
    check_continues(target, opts)

"""Verdicts of preflight, compared with the results of CRIU.

``test_failures.py`` also runs preflight for each of its failures. The other situations are here:
processes that can be dumped without options, processes that can be dumped with the options that
preflight names, and some that cannot. The last test requires that at least 95 % of the verdicts of
the run were right. Situations that cannot be predicted are in ``predictions.py`` and in
``docs/preflight.md``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import pycriu_native
from pycriu_native import (
    CriuError,
    CriuOpts,
    NoSuchProcessError,
    OptionError,
    PreflightError,
    Severity,
    Verdict,
    Version,
    Worker,
    dump,
    preflight,
    restore,
)
from pycriu_native._calls import requirements
from pycriu_native._failures.log_excerpt import failures
from pycriu_native._system import descriptors, process_snapshot
from pycriu_native._system.huge_pages import setting_of
from pycriu_native._system.inet_sockets import address_of
from pycriu_native._system.mountinfo import parse
from pycriu_native._system.process_tree import is_above
from pycriu_native.diagnostics.preflight.context import Context, stops

from .conftest import Spawn
from .support import huge_pages, releases
from .support.containers import container, mount_point
from .support.failing_calls import CONNECTED, LISTENS, Site, job, wrapped
from .support.hosts import host, run
from .support.predictions import enter, ledger, works
from .support.processes import OWN_STDIO, Target, eventually, reap_all, user_namespace

FEWEST = 40
"""Number of situations from which the proportion is meaningful."""

Build = Callable[[Site], Target]
situations: dict[str, tuple[Build, Verdict]] = {}


def situation(verdict: Verdict = Verdict.WORKS) -> Callable[[Build], Build]:
    """A situation, and the result of CRIU."""

    def add(build: Build) -> Build:
        situations[build.__name__] = (build, verdict)
        return build

    return add


def plainly(name: str, scenario: str, verdict: Verdict = Verdict.WORKS, **options: Any) -> None:
    """A situation that a scenario creates."""

    def build(at: Site) -> Target:
        at.options |= options
        return at.spawn(scenario)

    situations[name] = (build, verdict)


NEEDS = Verdict.NEEDS_OPTIONS

# ---- processes ----

plainly("nothing_special", "serve()")
plainly(
    "threads",
    "import threading\nthreading.Thread(target=serve).start()\nthreading.Event().wait()",
)
plainly("a_zombie_child", "import os\nif os.fork() == 0: os._exit(0)\nserve()")
plainly(
    "children",
    """
    import os, time
    for _ in range(3):
        if os.fork() == 0:
            while True: time.sleep(1)
    serve()
""",
)
plainly(
    "a_session_below",
    "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(1000)\nserve()",
)


@situation()
def names_and_ipc_of_its_own(at: Site) -> Target:
    return at.spawn(prefix=["unshare", "--uts", "--ipc"])


@situation(Verdict.FAILS)
def a_user_namespace_without_user_0(at: Site) -> Target:
    return at.spawn(prefix=user_namespace("--map-user=1000"))


@situation(Verdict.FAILS)
def a_user_namespace_without_group_0(at: Site) -> Target:
    return at.spawn(prefix=user_namespace("--map-user=0", "--map-group=5"))


@situation()
def a_network_of_its_own(at: Site) -> Target:
    at.options["network_lock"] = "nftables"
    blue = at.held.enter_context(host())
    with blue.entered():
        return at.spawn(LISTENS)


@situation(Verdict.FAILS)
def children_of_another_time(at: Site) -> Target:
    """``unshare`` itself remains in the old time namespace."""
    return at.spawn(prefix=["unshare", "--time", "--fork", "--kill-child"])


plainly(
    "children_that_are_to_have_another_time",
    "import ctypes\nassert ctypes.CDLL(None).unshare(0x80) == 0\nserve()",
    Verdict.FAILS,
)


DEEP = """
    import os
    os.chdir(HERE)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
"""
"""The path of its directory is longer than the kernel can return."""

plainly("a_directory_of_a_long_path", DEEP + "    serve()", Verdict.FAILS)
plainly(
    "an_open_file_of_a_long_path",
    DEEP + '    file = open("file", "w"); os.chdir("/")\n    serve()',
    Verdict.FAILS,
)
plainly(
    "a_mapped_file_of_a_long_path",
    DEEP
    + """
    import mmap
    with open("file", "w+") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
    os.chdir("/")
    serve()
""",
    Verdict.FAILS,
)


def test_a_long_path_is_named_as_the_cause(spawn: Spawn) -> None:
    """Preflight and the error of the dump name the long path as the cause."""
    target = spawn(DEEP + "    serve()")
    (finding,) = preflight(target.pid).findings
    assert (finding.id, finding.failure) == ("path-too-long", "path-too-long")
    assert "longer than the 4095 bytes that CRIU can read" in finding.message


@situation(NEEDS)
def a_job_of_a_shell(at: Site) -> Target:
    return job(at)


@situation(NEEDS)
def frozen_in_a_cgroup(at: Site) -> Target:
    from .support.leftovers import RUN

    cgroup = Path("/sys/fs/cgroup/unified") / f"pycriu-native-{RUN}-preflight"
    if not cgroup.parent.is_dir():
        pytest.skip("cgroups of version 2 are not at /sys/fs/cgroup/unified")
    target = at.spawn()
    cgroup.mkdir()
    (cgroup / "cgroup.procs").write_text(str(target.pid))
    (cgroup / "cgroup.freeze").write_text("1")
    eventually(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text(), "the freeze")

    def thaw() -> None:
        (cgroup / "cgroup.freeze").write_text("0")
        target.end()
        target.reap()
        eventually(lambda: not (cgroup / "cgroup.procs").read_text(), "an empty cgroup")
        cgroup.rmdir()

    at.held.callback(thaw)
    at.survives = False
    return target


@situation()
def a_worker_without_rights_to_the_network(at: Site) -> Target:
    """A process without connections does not need them."""
    at.via = wrapped(at, "setpriv", "--bounding-set=-net_admin")
    return at.spawn()


CONNECTED_6 = """
    import socket
    server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    client = socket.create_connection(server.getsockname()[:2])
    accepted, _ = server.accept()
    serve()
"""
CLOSED = """
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    server.close()
    client.shutdown(socket.SHUT_WR)
    accepted.recv(1)
    accepted.shutdown(socket.SHUT_WR)
    client.recv(1)
    serve()
"""


def _with_programs(at: Site, *names: str) -> None:
    """A PATH of CRIU with these programs only."""
    programs = at.directory / "programs"
    programs.mkdir()
    for name in names:
        program = shutil.which(name)
        if program is None:
            pytest.skip(f"there is no {name}")
        (programs / name).symlink_to(program)
    at.via = Worker(env={"PATH": str(programs)})


def connections(name: str, scenario: str, *programs: str, verdict: Verdict = NEEDS) -> None:
    """A situation with ``tcp_established``, in which CRIU finds these programs only."""

    def build(at: Site) -> Target:
        _with_programs(at, *programs)
        at.options["tcp_established"] = True
        return at.spawn(scenario)

    situations[name] = (build, verdict)


# CRIU locks a connection by default with iptables or ip6tables, which sh runs.
connections("a_connection_without_iptables", CONNECTED, "sh")
connections("a_connection_without_sh", CONNECTED, "iptables", "ip6tables")
connections("a_connection_without_ip6tables", CONNECTED, "sh", "iptables", verdict=Verdict.WORKS)
connections("an_ipv6_connection_without_ip6tables", CONNECTED_6, "sh", "iptables")
# It is in no table of the kernel, and CRIU locks it.
connections("a_connection_that_both_ends_have_closed", CLOSED, "sh")
connections("no_connection_and_no_iptables", LISTENS, "sh", verdict=Verdict.WORKS)


@situation(NEEDS)
def a_network_of_its_own_without_iptables(at: Site) -> Target:
    """CRIU locks a network namespace, even if no process has a connection."""
    _with_programs(at, "sh", "ip")
    blue = at.held.enter_context(host())
    with blue.entered():
        return at.spawn()


# ---- containers ----


@situation(NEEDS)
def a_container(at: Site) -> Target:
    """A container has many external mounts, each of which must be named."""
    return at.held.enter_context(container(at.directory / "box"))


@situation()
def a_container_whose_mounts_are_named(at: Site) -> Target:
    box = at.held.enter_context(container(at.directory / "box", mounts={"/mem": "tmpfs"}))
    at.options["external"] = box.given_on_dump
    return box


@situation()
def a_container_whose_mounts_are_found(at: Site) -> Target:
    at.options["auto_ext_mnt"] = True
    return at.held.enter_context(container(at.directory / "box"))


@situation()
def a_container_whose_mounts_are_found_by_an_external(at: Site) -> Target:
    at.options["external"] = ["mnt[]"]
    return at.held.enter_context(container(at.directory / "box"))


@situation(NEEDS)
def a_container_with_a_disk(at: Site) -> Target:
    box = at.held.enter_context(container(at.directory / "box", mounts={"/disk": "ramfs"}))
    at.options["external"] = box.given_on_dump
    return box


@situation(NEEDS)
def a_container_that_follows_the_host(at: Site) -> Target:
    """The mounts of the container are slaves of shared mounts of the host."""
    volume = at.held.enter_context(mount_point(at.directory / "volume"))
    subprocess.run(["mount", "--make-shared", volume], check=True)
    at.options["auto_ext_mnt"] = True
    return at.held.enter_context(
        container(at.directory / "box", binds={"/volume": volume}, propagation="slave")
    )


@situation(NEEDS)
def a_container_with_a_device_of_a_network(at: Site) -> Target:
    box = at.held.enter_context(container(at.directory / "box"))
    at.options["external"] = box.given_on_dump
    try:
        box.ip("link", "add", "d0", "type", "vxlan", "id", "5", "dstport", "0")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no vxlan")
    return box


# ---- files ----

plainly(
    "ordinary_files",
    'import os\nf = open(HERE / "f", "w")\nd = os.open(HERE, os.O_RDONLY)\n'
    'os.mkfifo(HERE / "fifo")\np = os.open(HERE / "fifo", os.O_RDWR)\n'
    'z = open("/dev/zero")\nr = open("/dev/urandom")\nserve()',
)
plainly("files_of_proc", 'f = open("/proc/self/maps")\ng = open("/proc/cpuinfo")\nserve()')
plainly(
    "a_small_deleted_file",
    'import os\nf = open(HERE / "f", "w")\nf.write("x")\nf.flush()\nos.unlink(HERE / "f")\nserve()',
)
plainly(
    "a_large_deleted_file_with_holes",
    'import os\nf = open(HERE / "f", "w")\nos.truncate(f.fileno(), 1 << 26)\n'
    'os.unlink(HERE / "f")\nserve()',
)
plainly(
    "a_large_deleted_file_that_is_mapped",
    'import mmap, os\nf = open(HERE / "f", "w+b")\nf.write(bytes(2 << 20))\nf.flush()\n'
    'm = mmap.mmap(f.fileno(), 2 << 20)\nf.close()\nos.unlink(HERE / "f")\nserve()',
    NEEDS,
)
plainly(
    "a_deleted_directory",
    'import os\n(HERE / "d").mkdir()\nos.chdir(HERE / "d")\nos.rmdir(HERE / "d")\nserve()',
)
plainly(
    "a_renamed_file",
    'f = open(HERE / "f", "w")\n(HERE / "f").rename(HERE / "g")\nserve()',
)
plainly(
    "a_file_whose_name_is_taken",
    'import os\nf = open(HERE / "f", "w")\nos.link(HERE / "f", HERE / "g")\n'
    'os.unlink(HERE / "f")\ng = open(HERE / "f", "w")\nserve()',
    NEEDS,
)
plainly(
    "a_posix_lock",
    'import fcntl\nf = open(HERE / "f", "w")\nfcntl.lockf(f, fcntl.LOCK_EX)\nserve()',
    NEEDS,
)
plainly(
    "a_lease", 'import fcntl\nf = open(HERE / "f", "a")\nfcntl.fcntl(f, 1024, 1)\nserve()', NEEDS
)
plainly("pipes_inside", "import os\np = os.pipe()\nserve()")
plainly("a_pipe_whose_end_is_closed", "import os\np, q = os.pipe()\nos.close(q)\nserve()")


@situation()
def the_pipe_of_autofs(at: Site) -> Target:
    """The kernel makes the pipe of autofs a packet pipe, which CRIU saves nevertheless."""
    if "\tautofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")
    place = at.directory / "auto"
    place.mkdir()
    at.held.callback(lambda: subprocess.run(["umount", "--lazy", place], check=True))
    return at.spawn(f"""
        import ctypes, os
        reader, writer = os.pipe()
        options = f"fd={{writer}},pgrp={{os.getpgid(0)}},minproto=5,maxproto=5"
        libc = ctypes.CDLL(None, use_errno=True)
        made = libc.mount(b"auto", {os.fsencode(place)!r}, b"autofs", 0, options.encode())
        assert made == 0, os.strerror(ctypes.get_errno())
        serve()
    """)


@situation()
def a_pipe_to_us(at: Site) -> Target:
    reader, writer = os.pipe()
    at.held.callback(os.close, reader)
    at.held.callback(os.close, writer)
    return at.spawn(stdin=reader)


# ---- objects ----

OBJECTS = """
    import ctypes, os, select, signal
    libc = ctypes.CDLL(None)
    e = os.eventfd(0)
    t = libc.timerfd_create(1, 0)
    s = libc.signalfd(-1, bytes(128), 0)
    m = os.memfd_create("memory")
    os.write(m, bytes(10000))
    i = libc.inotify_init()
    assert libc.inotify_add_watch(i, os.fsencode(HERE), 2) > 0
    p = os.pipe()
    epoll = select.epoll()
    epoll.register(p[0])
    epoll.register(e)
    serve()
"""
plainly("objects_of_the_kernel", OBJECTS)
plainly(
    "a_pidfd_of_a_child",
    "import os, time\nchild = os.fork()\nwhile not child: time.sleep(1)\n"
    "p = os.pidfd_open(child)\nserve()",
)
plainly(
    "an_epoll_of_a_copied_number",
    """
    import os, select
    reader, writer = os.pipe()
    epoll = select.epoll()
    epoll.register(reader)
    copy = os.dup(reader)
    os.close(reader)
    serve()
""",
)
EPOLL = """
    import os, select, signal
    reader, writer = os.pipe()
    epoll = select.epoll()
    epoll.register(reader)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    child = os.fork()
    if not child:
        {child}
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.pause()
    signal.sigwait([signal.SIGUSR1])
    {parent}
    serve()
"""
plainly("an_epoll_whose_file_the_child_closed", EPOLL.format(child="os.close(reader)", parent=""))
plainly(
    "an_epoll_whose_file_the_parent_closed",
    EPOLL.format(child="", parent="os.close(reader)"),
    Verdict.FAILS,
)
plainly(
    "an_epoll_that_only_the_child_has",
    EPOLL.format(child="", parent="os.close(reader); epoll.close()"),
)
plainly(
    "an_epoll_of_a_file_saved_with_the_parent",
    EPOLL.format(child="os.dup(reader); os.close(reader)", parent="epoll.close()"),
    Verdict.FAILS,
)
plainly(
    "an_epoll_with_one_number_many_times",
    """
    import os, select
    epoll = select.epoll()
    pipes = [os.pipe() for _ in range(12)]
    for reader, _ in pipes:
        os.dup2(reader, 99)
        epoll.register(99)
        os.close(99)
    serve()
""",
)
plainly(
    "shared_memory_opened_as_a_file",
    """
    import mmap, os
    memory = mmap.mmap(-1, 4096)
    line = next(line for line in open("/proc/self/maps") if "/dev/zero" in line)
    start, end = (int(number, 16) for number in line.split()[0].split("-"))
    fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDWR)
    memory.close()
    serve()
""",
)
plainly(
    "shared_memory",
    "import mmap\nm = mmap.mmap(-1, 1 << 20)\nm[:] = bytes(range(256)) * 4096\nserve()",
)
plainly("a_namespace_of_its_own_open", 'f = open("/proc/self/ns/net")\nserve()')
plainly(
    "a_filter_of_system_calls",
    """
    import ctypes, struct
    libc = ctypes.CDLL(None)
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
    serve()
""",
)

# ---- sockets ----

plainly(
    "sockets_that_listen",
    """
    import socket
    a = socket.create_server(("127.0.0.1", 0))
    b = socket.create_server(("::1", 0), family=socket.AF_INET6)
    c = socket.socket(socket.AF_UNIX); c.bind("\\0" + str(HERE)); c.listen()
    d = socket.socket()
    e = socket.socket(); e.bind(("127.0.0.1", 0))
    serve()
""",
)
plainly(
    "sockets_without_connections",
    """
    import socket
    a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0))
    b = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    c = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    d = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    e = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); e.bind((0, 0))
    f = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    serve()
""",
)
plainly(
    "unix_sockets_inside",
    """
    import socket
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in
             (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
    pairs[0][0].send(b"on the way")
    half = socket.socketpair()
    half[1].close()
    serve()
""",
)
plainly(
    "a_unix_connection_not_accepted",
    """
    import socket
    server = socket.socket(socket.AF_UNIX); server.bind("\\0" + str(HERE)); server.listen()
    client = socket.socket(socket.AF_UNIX); client.connect("\\0" + str(HERE))
    serve()
""",
)
NETLINK = """
    import socket
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    {bind}
    s.setsockopt(270, 1, {group})
    serve()
"""
plainly("a_netlink_group", NETLINK.format(bind="s.bind((0, 0))", group=5))
plainly("a_netlink_group_above_32", NETLINK.format(bind="s.bind((0, 0))", group=35), Verdict.FAILS)
plainly("a_netlink_group_of_an_unbound_socket", NETLINK.format(bind="", group=5), Verdict.FAILS)
plainly(
    "udp_that_holds_back",
    """
    import socket
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_UDP, 1, 1)
    serve()
""",
    Verdict.FAILS,
)
plainly("a_tcp_connection_that_is_kept", CONNECTED, tcp_established=True)
plainly("a_tcp_connection_that_is_dropped", CONNECTED, tcp_close=True)
plainly("a_tcp_connection", CONNECTED, NEEDS)
plainly(
    "a_tcp_connection_and_a_lock",
    CONNECTED.replace(
        "serve()", 'import fcntl; f = open(HERE / "f", "w"); fcntl.flock(f, 2)\n    serve()'
    ),
    NEEDS,
)
plainly(
    "a_socket_of_express_data",
    """
    import socket
    s = socket.socket(44, socket.SOCK_RAW)
    serve()
""",
    Verdict.FAILS,
)


@situation(NEEDS)
def a_stream_to_outside(at: Site) -> Target:
    ours, theirs = socket.socketpair()
    at.held.enter_context(ours)
    with theirs:
        return at.spawn(stdin=theirs.fileno())


@situation()
def a_terminal_inside(at: Site) -> Target:
    return at.spawn("import os\nmaster, slave = os.openpty()\nserve()")


TERMINAL = """
    import fcntl, os, pty, signal, termios
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 1)
    {rest}
    serve()
"""
plainly("a_terminal_that_hung_up", TERMINAL.format(rest="os.close(master)"))
plainly("the_terminal_of_its_session", TERMINAL.format(rest='os.open("/dev/tty", os.O_RDWR)'))
plainly(
    "the_terminal_of_a_session_below",
    """
    import os, pty, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    child, master = pty.fork()
    if not child:
        os.open("/dev/tty", os.O_RDWR)
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.pause()
    signal.sigwait([signal.SIGUSR1])
    serve()
""",
    NEEDS,
)
plainly(
    "the_terminal_of_its_session_in_another_group",
    TERMINAL.format(
        rest="""os.open("/dev/tty", os.O_RDWR)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        signal.pause()
    while os.getpgid(child) != child: pass
    os.tcsetpgrp(slave, child)"""
    ),
    NEEDS,
)


def _in_a_cgroup(at: Site) -> Target:
    from .support.leftovers import RUN

    line = Path("/proc/self/cgroup").read_text().splitlines()[0]
    number, names, _ = line.split(":", 2)
    place = Path("/sys/fs/cgroup", names.removeprefix("name=") or ".")
    if not (place / "cgroup.procs").exists():
        pytest.skip(f"the cgroups of hierarchy {number} are not at {place}")
    cgroup = place / f"pycriu-native-{RUN}-preflight"
    target = at.spawn()
    cgroup.mkdir()

    def remove() -> None:
        target.end()
        target.reap()
        eventually(lambda: not (cgroup / "cgroup.procs").read_text(), "an empty cgroup")
        cgroup.rmdir()

    at.held.callback(remove)
    (cgroup / "cgroup.procs").write_text(str(target.pid))
    at.survives = False
    return target


@situation(Verdict.FAILS)
def a_cgroup_yard_that_is_not_there(at: Site) -> Target:
    at.options["cg_yard"] = at.directory / "yard"
    return _in_a_cgroup(at)


@situation()
def a_cgroup_yard_that_is_not_needed(at: Site) -> Target:
    """CRIU saves no cgroups of a process that is in the cgroup of CRIU."""
    at.options["cg_yard"] = at.directory / "yard"
    return at.spawn()


# ---- the tests ----


OTHERWISE = {
    "a_large_deleted_file_with_holes": ("3.18", NEEDS),
    "a_pidfd_of_a_child": ("4.1", Verdict.FAILS),
}
"""The results of situations with a CRIU before this release."""


@pytest.mark.parametrize("name", situations)
def test_a_situation(name: str, site: Site) -> None:
    """CRIU's result is that of preflight, with and without the options that preflight named."""
    build, expected = situations[name]
    since, before = OTHERWISE.get(name, ("", expected))
    expected = before if since and not releases.has(since) else expected
    target = build(site)
    foretold = preflight(target.pid, site.opts, via=site.via)
    did = Verdict.FAILS
    if foretold.verdict is Verdict.NEEDS_OPTIONS and foretold.needs[0].id == "frozen":
        did = NEEDS if works(target.pid, foretold.opts, site.via) else Verdict.FAILS
    elif works(target.pid, site.opts, site.via):
        did = Verdict.WORKS
    elif works(target.pid, foretold.opts, site.via):
        did = Verdict.NEEDS_OPTIONS
    enter(name, foretold.verdict, did)
    assert did is expected
    if site.survives:
        assert target.runs_on()


FULL = """
    import contextlib, socket
    {pair}
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    a.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True: a.send(bytes(60_000))
    serve()
"""
"""A socket whose queues are full."""
SIZES = {
    "small": "serve()",
    "memory": "memory = bytes(range(256)) * 200_000\nserve()",
    "shared": "import mmap\nm = mmap.mmap(-1, 32 << 20)\nm[:] = bytes([1]) * (32 << 20)\nserve()",
    "children": "import os, time\nmemory = bytes(range(256)) * 80_000\n"
    "for _ in range(3):\n  if os.fork() == 0:\n    while True: time.sleep(1)\nserve()",
    "deleted": 'import os\nf = open(HERE / "f", "wb", buffering=0)\nf.write(b"1" * (20 << 20))\n'
    'os.unlink(HERE / "f")\nserve()',
    "pipe": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(w, 1031, 1 << 20)\n"
    "os.write(w, bytes(1 << 20))\nserve()",
    "unix": FULL.format(pair="a, b = socket.socketpair()"),
    "datagrams": FULL.format(pair="a, b = socket.socketpair(type=socket.SOCK_DGRAM)"),
    "tcp": FULL.format(
        pair="s = socket.create_server(('127.0.0.1', 0)); "
        "a = socket.create_connection(s.getsockname()); b, _ = s.accept()"
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_size_to_expect(name: str, site: Site, spawn: Spawn) -> None:
    """The images have the expected size, within a fifth and 300 KB."""
    target = spawn(SIZES[name])
    site.options |= {"ghost_limit": 64 << 20, "tcp_established": True}
    message = preflight(target.pid, site.opts).size.total
    dump(target.pid, site.opts)
    reap_all()
    took = sum(file.stat().st_blocks * 512 for file in site.images.iterdir())
    print(f"{name}: predicted {message}, is {took}")
    assert abs(message - took) < took / 5 + 300_000


@pytest.fixture
def huge_page() -> Iterator[int]:
    """The default size of huge pages, of which eight exist."""
    default = re.search(r"Hugepagesize: *(\d+)", Path("/proc/meminfo").read_text())
    setting = Path(setting_of(size := int(default[1]) << 10 if default else 0))
    if not os.access(setting, os.W_OK):
        pytest.skip("huge pages cannot be reserved here")
    with huge_pages.changed(setting, 8):
        yield size


HUGE = """
    import mmap, os, time
    memory = mmap.mmap(-1, {size}, flags={kind} | 0x40020)
    memory[:] = bytes([1]) * {size}
    if os.fork() == 0:
        while True: time.sleep(1)
    serve()
"""


@pytest.mark.parametrize("kind", [1, 2], ids=["shared", "private"])
def test_the_size_of_huge_pages(kind: int, huge_page: int, site: Site, spawn: Spawn) -> None:
    """The expected size includes huge pages; shared ones are counted once."""
    size = 2 * huge_page
    target = spawn(HUGE.format(size=size, kind=kind))
    message = preflight(target.pid, site.opts).size.total
    try:
        dump(target.pid, site.opts)
    except CriuError as error:
        pytest.skip(f"CRIU does not save huge pages here: {error}")
    reap_all()
    took = sum(file.stat().st_blocks * 512 for file in site.images.iterdir())
    assert abs(message - took) < took / 5


@pytest.mark.cures("tmpfs-content")
def test_a_tmpfs_that_others_write_to(spawn: Spawn, tmp_path: Path) -> None:
    """A copy of the host's mount namespace has the tmpfs mounts of the host."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", place], check=True)
    try:
        target = spawn(prefix=["unshare", "--mount", "--propagation", "private"])
        notes = {finding.path: finding for finding in preflight(target.pid).findings}
        assert notes[str(place)].id == "tmpfs-of-the-host"
        assert "skip_mnts" in notes[str(place)].cure
        opts = CriuOpts(external=[f"mnt[{place}]:shared"])
        assert str(place) not in {finding.path for finding in preflight(target.pid, opts).findings}
    finally:
        target.end()
        subprocess.run(["umount", place], check=True)


@pytest.mark.cures("child-overmount")
def test_a_tmpfs_below_another_in_a_user_namespace(
    spawn: Spawn, images: Path, tmp_path: Path
) -> None:
    """Both are inherited by the user namespace; without the mount the dump works."""
    place = tmp_path / "twice"
    place.mkdir()
    with ExitStack() as mounted:
        for name in ("lower", "upper"):
            subprocess.run(["mount", "-t", "tmpfs", name, place], check=True)
            mounted.callback(run, "umount", "--lazy", str(place))
        # Pairs of the machine itself are left out as well.
        places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        others = sorted({p for p in places if places.count(p) > 1} - {str(place)})
        target = spawn(OWN_STDIO, prefix=user_namespace("--map-root-user", "--mount"))
        opts = CriuOpts(images_directory=images, leave_running=True, skip_mnts=others)
        needs = {finding.id: finding for finding in preflight(target.pid, opts).needs}
        finding = needs["child-overmount"]
        assert finding.path == str(place)
        with pytest.raises(CriuError, match="covered by another one at the same place") as caught:
            dump(target.pid, opts)
        assert "skip_mnts" in caught.value.options
        assert target.runs_on()
        dump(target.pid, replace(opts, skip_mnts=[*others, *dict(finding.sets)["skip_mnts"]]))
        assert target.runs_on()
        target.end()


CHANGES = """
    import os, select, socket, subprocess, time

    def forever(step):
        if not os.fork():
            while True: step()

    def files():
        (HERE / "new").write_text("new")
        os.rename(HERE / "new", HERE / "old")
        with open(HERE / "old"): pass

    def processes():
        child = subprocess.Popen(["true"])
        pidfd = os.pidfd_open(child.pid)
        child.wait()
        os.close(pidfd)

    def epolls():
        pair = os.pipe()
        with select.epoll() as epoll:
            for fd in pair: epoll.register(fd)
            time.sleep(0.0005)
        for fd in pair: os.close(fd)

    def sockets():
        child = os.fork()
        if not child:
            pair = socket.socketpair()
            time.sleep(0.01)
            os._exit(0)
        os.waitpid(child, 0)

    for step in (files, processes, epolls, sockets): forever(step)
    serve()
"""


DROPPABLE = """
    import ctypes, mmap
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), 3, 0x28, -1, 0)
    assert place != ctypes.c_void_p(-1).value
    serve()
"""
"""Memory with MAP_DROPPABLE, in which glibc from 2.41 on keeps the state of ``getrandom()``."""


@pytest.mark.parametrize("server", [None, "127.0.0.1:9"])
@pytest.mark.parametrize("release", ["4.1.1", "4.2"])
def test_equal_random_numbers(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, release: str, server: str | None
) -> None:
    """CRIU before 4.2 saves the content of droppable memory, which stays with a page server."""
    try:
        target = spawn(DROPPABLE)
    except AssertionError:
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    monkeypatch.setattr(requirements, "program_version", lambda via: Version.parse(release))
    opts = CriuOpts(page_server=server)
    found = {finding.id for finding in preflight(target.pid, opts).findings}
    assert ("random-numbers" in found) is (release == "4.1.1" and server is not None)


def test_a_process_that_ends_while_it_is_read_is_not_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parents cannot be read any more, so it seems to belong to no tree."""
    tree = SimpleNamespace(pids=(os.getpid(),), root=SimpleNamespace(pid=os.getpid()))
    with subprocess.Popen(["sleep", "100"]) as child:

        def ends(above: int, below: int) -> bool:
            child.kill()
            child.wait()
            return is_above(above, below)

        monkeypatch.setattr(f"{Context.__module__}.is_above", ends)
        assert not Context.is_outside(cast(Context, SimpleNamespace(tree=tree)), child.pid)


def test_a_tree_that_changes_all_the_time(spawn: Spawn) -> None:
    """Each reading has another state, and all give the same verdict."""
    target = spawn(CHANGES)
    findings = [preflight(target.pid) for _ in range(25)]
    assert {finding for each in findings for finding in (*each.stops, *each.needs)} == set()
    assert {each.verdict for each in findings} == {Verdict.WORKS}


@pytest.mark.parametrize(
    ("readings", "verdict", "count"),
    [
        ([[]], Verdict.WORKS, 1),
        ([[1]] * 2, Verdict.FAILS, 2),
        ([[1], []], Verdict.WORKS, 2),
        ([[1, 2], [1]], Verdict.FAILS, 2),
        ([[n] for n in range(6)], Verdict.FAILS, 6),
        ([[1], [2], []], Verdict.WORKS, 3),
    ],
    ids=["none", "lasting", "passing", "one of two", "another each time", "another twice"],
)
def test_an_obstacle_is_confirmed(
    readings: list[list[int]],
    verdict: Verdict,
    count: int,
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finding is confirmed by the next reading, or if all six have one of its kind."""
    import pycriu_native.diagnostics.preflight.looks as module

    left = iter(readings)
    monkeypatch.setattr(
        module, "_findings", lambda context: (stops("kind", str(n)) for n in next(left))
    )
    assert preflight(spawn().pid).verdict is verdict
    assert len(list(left)) == len(readings) - count


def test_options_for_a_process(site: Site) -> None:
    """The options of ``require`` dump and restore the process."""
    target = site.spawn(
        CONNECTED.replace("serve()", 'import fcntl; f = open(HERE / "f", "w"); fcntl.flock(f, 2)\n'
        "    serve(same=lambda: client.getpeername() == server.getsockname())")
    )  # fmt: skip
    with pytest.raises(CriuError):
        dump(target.pid, site.opts)
    opts = preflight(target.pid, site.opts).require()
    assert opts == CriuOpts(images_directory=site.images, tcp_established=True, file_locks=True)
    dump(target.pid, opts)
    reap_all()
    restored = restore(opts.only_for("restore")).pid
    assert restored == target.pid
    assert target.ask("same") is True


def test_every_obstacle_at_once(site: Site) -> None:
    """One error lists all obstacles of a dump, each with its process and cure."""
    target = site.spawn("""
        import os, socket
        inside = os.pidfd_open(1)
        packets = os.pipe2(os.O_DIRECT)
        express = socket.socket(44, socket.SOCK_RAW)
        serve()
    """)
    with pytest.raises(PreflightError) as caught:
        preflight(target.pid).require()
    result = {finding.id for finding in caught.value.findings}
    assert result == {"pidfd-outside", "packet-pipe", "socket-family"}
    assert caught.value.pid == target.pid
    for finding in caught.value.findings:
        assert finding.pid == target.pid
        assert finding.message in str(caught.value)
        assert finding.cure
        assert finding.cure in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.findings == caught.value.findings
    assert target.runs_on()


def test_namespaces_that_cannot_be_read(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to read its namespaces, they are not reported as separate."""
    target = spawn("serve()")
    hidden = f"/proc/{target.pid}/ns/"
    read = descriptors.link
    monkeypatch.setattr(
        process_snapshot, "link", lambda path: "" if path.startswith(hidden) else read(path)
    )
    assert not [found for found in preflight(target.pid).findings if "namespace" in str(found)]


def test_no_process() -> None:
    """An unused pid raises NoSuchProcessError, which is also a ProcessLookupError."""
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    assert preflight(pid).verdict is Verdict.FAILS
    with pytest.raises(NoSuchProcessError, match="there is no process"):
        preflight(pid).require()


@pytest.mark.parametrize("pid", [0, -1, True, "1", None])
def test_what_is_no_pid(pid: Any) -> None:
    """An invalid pid is refused with the name of the argument."""
    with pytest.raises(OptionError, match="pid="):
        preflight(pid)


def test_options_that_no_dump_takes(spawn: Spawn) -> None:
    """Options that a dump refuses are refused."""
    with pytest.raises(OptionError, match="tcp_close"):
        preflight(spawn().pid, CriuOpts(tcp_close=True, tcp_established=True))


def test_nothing_is_touched(spawn: Spawn) -> None:
    """The process is not stopped, has the same open files, and continues to work."""
    target = spawn(OBJECTS)
    before = sorted(os.listdir(f"/proc/{target.pid}/fd"))
    for _ in range(3):
        preflight(target.pid)
    assert sorted(os.listdir(f"/proc/{target.pid}/fd")) == before
    assert "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text()
    assert target.runs_on()


def test_as_data_and_as_text(spawn: Spawn) -> None:
    """A preflight can be converted to JSON and text."""
    result = preflight(spawn(CONNECTED).pid)
    message = json.loads(json.dumps(result.to_dict()))
    assert message["verdict"] == "needs options"
    assert message["options"] == {"tcp_established": True}
    found = [results["id"] for results in message["findings"]]
    assert found == ["tcp-connection"] * 2
    assert message["findings"][0]["severity"] == "needs option"
    assert message["size"]["total"] > 1 << 20
    text = str(result)
    assert f"process {result.pid}: can be dumped with these options\n" in text
    assert "    tcp_established=True\n" in text
    assert "a TCP connection is open" in text
    assert "images: about" in text


def test_the_worst_comes_first(spawn: Spawn) -> None:
    """Findings are in the order of their severity."""
    result = preflight(spawn("""
        import os, socket
        a, b = os.pipe2(os.O_DIRECT)
        f = open(HERE / "f", "w"); os.unlink(HERE / "f")
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        serve()
    """).pid)  # fmt: skip
    severities = [finding.severity for finding in result.findings]
    assert severities == sorted(severities, key=list(Severity).index)
    assert severities[0] is Severity.STOPS
    assert Severity.NOTE in severities


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("0100007F:0016", ("127.0.0.1", 22)),
        ("00000000000000000000000001000000:1F90", ("::1", 8080)),
        ("B80D0120000000000000000001000000:0050", ("2001:db8::1", 80)),
    ],
)
def test_addresses_of_the_kernel(words: str, address: tuple[str, int]) -> None:
    """Addresses of /proc/net/tcp are in the byte order of the processor."""
    assert address_of(words) == address


def test_lines_of_mountinfo() -> None:
    """Escapes, several optional fields, and blanks in the source of a file system are parsed."""
    line = "36 35 98:0 /m\\040t1 /mnt\\0112 rw shared:1 master:7 unbindable - ext3 /dev/root rw"
    mount = parse(line, "mnt:[1]")
    assert (mount.number, mount.parent, mount.device) == (36, 35, "98:0")
    assert (mount.root, mount.place, mount.kind) == ("/m t1", "/mnt\t2", "ext3")
    assert (mount.shared, mount.master) == (1, 7)


def test_it_is_loaded_when_it_is_asked_for() -> None:
    """``import pycriu_native`` does not import it."""
    code = (
        "import sys, pycriu_native\n"
        "assert not any('diagnostics.preflight' in name for name in sys.modules)\n"
        "pycriu_native.preflight\n"
        "assert any('diagnostics.preflight' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_findings_name_failures_that_there_are() -> None:
    """Each failure that a finding names is an entry of ``known_failures.json``."""
    known = {failure.id for failure in failures()}
    source = Path(pycriu_native.__file__).parent / "diagnostics" / "preflight"
    named = set()
    for file in source.glob("*.py"):
        for line in file.read_text().splitlines():
            if 'failure="' in line:
                named.add(line.partition('failure="')[2].partition('"')[0])
    assert len(named) > 30
    assert named <= known


def test_how_often_it_was_right() -> None:
    """At least 95 % of the verdicts of this run are right."""
    if len(ledger) < FEWEST:
        pytest.skip(f"only {len(ledger)} situations ran: run test_failures.py too")
    right = [name for name, result in ledger.items() if result.right]
    share = len(right) / len(ledger)
    print(f"preflight was right in {len(right)} of {len(ledger)} situations: {share:.1%}")
    for name, result in ledger.items():
        if not result.right:
            print(f"  {name}: predicted {result.predicted}, actual {result.actual}")
    assert share >= 0.95

"""Failed dumps: the exception has the cause, and the cure works.

Each case below is a real failure. The exception must have the right class, name the cause and the
cure, and list the best option first; then the cure is applied, and the same call succeeds. In
addition:

* preflight has predicted the failure, or named the required options,
* the process continues after the failed dump,
* the diagnosis is the same with CRIU's longest log, in which many lines only look like errors,
* nothing is printed.

The texts are in ``known_failures.json``: ``tests/unit/test_failures.py`` checks the table, and
``test_restore_failures.py`` has the same tests for restores.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DumpResult,
    ImagesError,
    NoSuchProcessError,
    OptionError,
    PageServer,
    PermissionDeniedError,
    ProgramError,
    Worker,
    WorkerDiedError,
    dump,
    preflight,
    restore,
)
from pycriu_native._failures.log_excerpt import diagnose, error_lines
from pycriu_native._transport.program import find_program
from pycriu_native.enums import Verb

from .support import releases
from .support.failing_calls import (
    CONNECTED,
    GUARD_PAGES,
    LISTENS,
    Case,
    Collection,
    Site,
    check_explanation,
    ids,
    job,
    older,
    wrapped,
)
from .support.mounts import WITHOUT_SHARED_TMPFS, make_read_only, tmpfs
from .support.predictions import compare
from .support.processes import (
    Target,
    children_of,
    eventually,
    free_pid,
    kill,
    reap_all,
    state,
    tree,
    user_namespace,
)
from .support.system_calls import NUMBERS

PTRACE_SEIZE, PTRACE_DETACH, PTRACE_INTERRUPT = 0x4206, 17, 0x4207

dump_fails = Collection()

# ---- sockets ----

OPENS = """
    import ctypes, os, socket, struct
    libc = ctypes.CDLL(None, use_errno=True)
    def syscall(*arguments):
        result = libc.syscall(*arguments)
        if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
    N = {numbers}
    thing = {thing}
"""
CLOSES = """
    def close():
        global thing
        if isinstance(thing, int): os.close(thing)
        else: thing.close()
        thing = None
    serve(close=close)
"""


@functools.cache
def why_not(thing: str) -> str:
    """Why this machine cannot open this file; None if it can."""
    program = textwrap.dedent(OPENS.format(thing=thing, numbers=NUMBERS))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    reason = done.stderr.splitlines()[-1]
    assert "Error: [Errno" in reason, done.stderr
    return reason


def has_open(at: Site, thing: str) -> Target:
    """A process with this file open; the cure is to close it."""
    if reason := why_not(thing):
        pytest.skip(f"{thing}: {reason}")
    return at.spawn_curable(OPENS.format(thing=thing, numbers=NUMBERS) + CLOSES)


@dump_fails("TCP connection is open", "tcp_established=True", "tcp_established", "tcp_close")
def tcp_connection(at: Site) -> Target:
    at.cure = {"tcp_established": True}
    return at.spawn(CONNECTED)


@dump_fails("not yet accepted", "tcp_skip_in_flight=True", "tcp_skip_in_flight")
def tcp_not_accepted(at: Site) -> Target:
    target = at.spawn(LISTENS)
    at.held.enter_context(socket.create_connection(("127.0.0.1", target.ask("port"))))
    at.cure = {"tcp_skip_in_flight": True}
    return target


@dump_fails("262 is MPTCP", "GODEBUG=multipathtcp=0")
def mptcp_socket(at: Site) -> Target:
    return has_open(at, "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)")


@dump_fails("40 is AF_VSOCK", "make the program close it")
def vsock_socket(at: Site) -> Target:
    return has_open(at, "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)")


@dump_fails(
    "connected to a process outside", "external_unix_connections=True", "external_unix_connections"
)
def unix_datagrams_to_outside(at: Site) -> Target:
    log = at.held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    log.bind(str(at.directory / "log"))
    at.cure = {"external_unix_connections": True}
    return at.spawn(f"""
        import socket
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.connect({str(at.directory / "log")!r})
        serve()
    """)


@dump_fails("half of the connection is missing", 'external="unix[ino]"', "external", "inherit_fds")
def unix_half_of_a_stream(at: Site) -> Target:
    ours, theirs = socket.socketpair()
    at.held.enter_context(ours)
    inode = os.fstat(theirs.fileno()).st_ino
    with theirs:
        target = at.spawn(stdin=theirs.fileno())
    at.options["external_unix_connections"] = True
    at.cure = {"external": [f"unix[{inode}]"]}
    return target


@dump_fails("outside without a name", "bind the other end to a name")
def unix_datagrams_to_nobody(at: Site) -> Target:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    at.held.enter_context(ours)
    with theirs:
        target = at.spawn(
            "import os\nserve(close=lambda: os.dup2(os.open(os.devnull, os.O_RDWR), 0))",
            stdin=theirs.fileno(),
        )
    at.options["external_unix_connections"] = True
    at.cure = lambda: target.ask("close")
    return target


# ---- files and other things that are open ----


@dump_fails("holds file locks", "file_locks=True on dump and restore", "file_locks")
def file_lock(at: Site) -> Target:
    at.cure = {"file_locks": True}
    return at.spawn('import fcntl\nf = open(HERE / "f", "w")\nfcntl.flock(f, 2)\nserve()')


DELETED = """
    import os
    file = open(HERE / "file", "wb", buffering=0)
    file.write(bytes(2 << 20))
    {more}
    os.unlink(HERE / "file")
    serve()
"""


@dump_fails("larger than ghost_limit", "above its size in bytes", "ghost_limit", "link_remap")
def large_deleted_file(at: Site) -> Target:
    at.cure = {"ghost_limit": 4 << 20}
    return at.spawn(DELETED.format(more=""))


@dump_fails("has other names", "link_remap=True", "link_remap")
def deleted_file_with_another_name(at: Site) -> Target:
    at.cure = {"link_remap": True}
    return at.spawn(DELETED.format(more='os.link(HERE / "file", HERE / "other")'))


@dump_fails("no mount of its mount namespace", "close it", "external", "inherit_fds")
def file_from_outside_of_the_mount_namespace(at: Site) -> Target:
    """``unshare --mount`` copies all mounts, but open files remain on the old ones."""
    return at.spawn(prefix=["unshare", "--mount"])


@dump_fails("no mount of its mount namespace", "unmounted", "external")
def file_on_something_unmounted(at: Site) -> Target:
    return at.spawn_curable("""
        import os, subprocess
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3): os.dup2(null, number)
        os.close(null)
        (HERE / "place").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", HERE / "place"], check=True)
        file = open(HERE / "place/file", "w")
        subprocess.run(["umount", "--lazy", HERE / "place"], check=True)
        serve(close=file.close)
    """, prefix=WITHOUT_SHARED_TMPFS)  # fmt: skip


RING = "syscall(N['io_uring_setup'], 4, ctypes.create_string_buffer(120))"


@dump_fails("uses io_uring", "UV_USE_IO_URING=0")
def io_uring(at: Site) -> Target:
    return has_open(at, RING)


@dump_fails("uses io_uring", "kernel.io_uring_disabled=2")
def io_uring_that_is_mapped(at: Site) -> Target:
    """CRIU examines mappings before descriptors, and prints an error about an option."""
    if reason := why_not(RING):
        pytest.skip(f"io_uring: {reason}")
    return at.spawn_curable(f"""
        import ctypes, mmap, os
        parameters = ctypes.create_string_buffer(120)
        ring = ctypes.CDLL(None).syscall({NUMBERS["io_uring_setup"]}, 4, parameters)
        assert ring >= 0
        memory = mmap.mmap(ring, mmap.PAGESIZE)
        def close():
            memory.close()
            os.close(ring)
        serve(close=close)
    """)


@dump_fails("kernel object", "no option saves it")
def userfaultfd(at: Site) -> Target:
    return has_open(at, "syscall(N['userfaultfd'], 1)")


@dump_fails("kernel object", "close it before the dump")
def perf_event(at: Site) -> Target:
    return has_open(
        at, "syscall(N['perf_event_open'], struct.pack('IIQ', 1, 112, 0) + bytes(96), 0, -1, -1, 0)"
    )


@dump_fails("kernel object", "close it before the dump")
def bpf_map(at: Site) -> Target:
    if b"libbpf" in Path(find_program(None)).read_bytes():
        pytest.skip("this criu was built with libbpf, which saves maps")
    return has_open(at, "syscall(N['bpf'], 0, struct.pack('5I', 2, 4, 8, 4, 0) + bytes(100), 120)")


@dump_fails("tun or tap device of the host", "close it before the dump")
def tun_device(at: Site) -> Target:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun")
    return at.spawn_curable("""
        import fcntl, os, struct
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH", b"pn-test", 0x1001))
        serve(close=lambda: os.close(tun))
    """)


@dump_fails("has a device open", "make the program close it")
def device(at: Site) -> Target:
    """A device that exists on every Linux and has state in the kernel."""
    with contextlib.suppress(FileExistsError):
        os.mknod(at.directory / "device", stat.S_IFCHR | 0o600, os.makedev(10, 237))
    return has_open(at, f"os.open({str(at.directory / 'device')!r}, os.O_RDONLY)")


@dump_fails("pidfd of a process outside", "dump a tree that has both", since="4.1")
def pidfd_of_a_process_outside(at: Site) -> Target:
    return has_open(at, "os.pidfd_open(os.getppid())")


@dump_fails("System V shared memory of the host", "in a new ipc namespace")
def sysv_shared_memory(at: Site) -> Target:
    return at.spawn_curable("""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        libc.shmdt.argtypes = [ctypes.c_void_p]
        number = libc.shmget(0, 4096, 0o1600)
        address = libc.shmat(number, None, 0)
        libc.shmctl(number, 0, None)
        serve(close=lambda: libc.shmdt(address))
    """)


@dump_fails("longer than the 4095 bytes", "make the process leave that directory")
def directory_with_a_long_path(at: Site) -> Target:
    return at.spawn_curable("""
        import os
        os.chdir(HERE)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        serve(leave=lambda: os.chdir("/"))
    """)


# ---- terminals and sessions ----


@dump_fails("started from a shell", "shell_job=True", "shell_job")
def started_from_a_shell(at: Site) -> Target:
    return job(at)


@dump_fails("outside of its pid namespace", "in a new session")
def led_from_outside(at: Site) -> Target:
    """A process whose session leader is outside of its pid namespace."""
    target = at.spawn(
        "import os\nserve(lead=os.setsid)",
        prefix=["unshare", "--pid", "--fork"],
        start_new_session=False,
    )
    first = tree(target.pid)[1]
    at.held.callback(kill, first)
    at.cure = lambda: target.ask("lead")
    return Target(first, target.directory, target.process)


@dump_fails("outside the dumped tree", "shell_job=True", "shell_job", "orphan_pts_master")
def terminal_that_is_held_outside(at: Site) -> Target:
    master, slave = os.openpty()
    at.held.callback(os.close, master)
    try:
        target = at.spawn(stdin=slave)
    finally:
        os.close(slave)
    at.cure = {"shell_job": True}
    return target


@dump_fails("session outside of the dumped tree", "shell_job=True", "shell_job")
def terminal_of_a_shell(at: Site) -> Target:
    """A job of a shell: its terminal belongs to the shell's session."""
    master, slave = os.openpty()
    at.held.callback(os.close, master)
    try:
        return job(at, stdin=slave)
    finally:
        os.close(slave)


# ---- processes that cannot be stopped, or are none ----

libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def traced(pid: int) -> Iterator[Callable[[], None]]:
    """Trace this process; yields a function that detaches."""

    def trace(request: int) -> None:
        if libc.ptrace(request, pid, None, None):
            raise OSError(ctypes.get_errno(), "ptrace")

    def detach() -> None:
        trace(PTRACE_INTERRUPT)
        os.waitpid(pid, 0x40000000)  # __WALL: it need not be our child
        trace(PTRACE_DETACH)

    trace(PTRACE_SEIZE)
    yield detach
    with contextlib.suppress(OSError):
        detach()


@dump_fails("is traced by process", "end that debugger", error=PermissionDeniedError)
def process_that_is_traced(at: Site) -> Target:
    target = at.spawn()
    at.cure = at.held.enter_context(traced(target.pid))
    return target


@dump_fails("is traced by process", "end that debugger", error=PermissionDeniedError)
def child_that_is_traced(at: Site) -> Target:
    target = at.spawn("""
        import os, time
        child = os.fork()
        while not child: time.sleep(0.01)
        serve(child=lambda: child)
    """)
    at.cure = at.held.enter_context(traced(target.ask("child")))
    return target


@dump_fails("there is no process", "read the pid", error=NoSuchProcessError)
def process_that_is_gone(at: Site) -> int:
    at.survives = False
    return free_pid()


@dump_fails("zombie: there is nothing to dump", "reap it", error=NoSuchProcessError)
def zombie(at: Site) -> int:
    child = subprocess.Popen(["true"])
    at.held.callback(child.wait)
    eventually(lambda: state(child.pid) == "Z", "the end of the child")
    at.survives = False
    return child.pid


@dump_fails("the main thread of process", "make the main thread wait")
def main_thread_that_ended(at: Site) -> Target:
    waits = "import threading\nthreading.Thread(target=serve).start()\nthreading.Event().wait()"
    at.cure = lambda: at.spawn(waits)
    target = at.spawn(f"""
        import ctypes, threading
        threading.Thread(target=serve).start()
        while not (HERE / "ready").exists(): pass
        ctypes.CDLL(None).syscall({NUMBERS["exit"]}, 0)
    """)
    eventually(lambda: state(target.pid) == "Z", "the end of the main thread")
    return target


@dump_fails("is a thread of the kernel", "check the pid", error=PermissionDeniedError)
def thread_of_the_kernel(at: Site) -> int:
    comm = Path("/proc/2/comm")
    if not comm.exists() or comm.read_text() != "kthreadd\n":
        pytest.skip("the kernel's threads are not in this pid namespace")
    at.survives = False
    return 2


@dump_fails("belongs to another user", "CAP_SYS_RESOURCE", error=PermissionDeniedError)
def process_of_another_user(at: Site) -> Target:
    effective = int(Path("/proc/self/status").read_text().split("CapEff:\t")[1].split()[0], 16)
    if effective >> 24 & 1:
        pytest.skip("the tests have CAP_SYS_RESOURCE")
    return at.spawn("""
        import os, time
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setuid(1000)
            os.close(writer)
            while True: time.sleep(0.01)
        os.close(writer)
        os.read(reader, 1)
        serve()
    """)


NESTED = """
    import ctypes, os, time
    if os.fork() == 0:
        os.setsid()
        assert ctypes.CDLL(None).unshare({flag}) == 0
        serve()
    while True: time.sleep(0.01)
"""


@dump_fails("another namespace than its parent", "dump the inner container alone")
def nested_namespace(at: Site) -> Target:
    target = at.spawn(NESTED.format(flag="0x04000000"))  # uts
    [inner] = children_of(target.pid)
    at.cure = lambda: replace(target, pid=inner)
    return target


@dump_fails("is not its first one", "first process", "external")
def process_inside_of_a_pid_namespace(at: Site) -> Target:
    inside = ["setsid", "sh", "-c", 'setsid "$@" & wait', "sh"]
    target = at.spawn(prefix=["unshare", "--pid", "--fork", "--kill-child", *inside])
    [first] = children_of(target.pid)
    [target.pid] = children_of(first)
    at.cure = lambda: replace(target, pid=first)
    return target


# ---- options, programs, directories ----


@dump_fails("freeze_cgroup is not a freezer", "full path", "freeze_cgroup")
def freeze_cgroup_that_is_none(at: Site) -> Target:
    at.options["freeze_cgroup"] = "/tmp"
    at.cure = {"freeze_cgroup": None}
    return at.spawn()


@dump_fails("cannot be reached", "start it before the dump", "page_server")
def page_server_that_is_not_there(at: Site) -> Target:
    with socket.create_server(("127.0.0.1", 0)) as server:
        at.options["page_server"] = server.getsockname()  # the listener is closed
    at.cure = {"page_server": None}
    return at.spawn()


@dump_fails("cannot be reached", "page_server", "page_server", error=WorkerDiedError)
def page_server_without_an_address(at: Site) -> Target:
    """CRIU aborts; its earlier messages are reported nevertheless."""
    at.options["page_server"] = PageServer("nowhere.invalid", 1, clear_text=True)
    at.cure = {"page_server": None}
    return at.spawn()


@dump_fails("has an option that this CRIU does not support", "config_file", "config_file")
def configuration_file_with_an_unknown_option(at: Site) -> Target:
    at.options["config_file"] = at.directory / "criu.conf"
    (at.directory / "criu.conf").write_text("make-coffee\n")
    at.cure = {"config_file": None}
    return at.spawn()


@dump_fails("narrow form", '"strategy"', "cg_props", "cg_props_file")
def cgroup_properties_that_are_nonsense(at: Site) -> Target:
    at.options["cg_props"] = "nonsense"
    at.cure = {"cg_props": None}
    return at.spawn()


@dump_fails("names a security module", "leave lsm_profile unset", "lsm_profile")
def security_module_that_is_not_there(at: Site) -> Target:
    modules = Path("/sys/kernel/security/lsm")
    running = modules.read_text() if modules.exists() else ""
    name = next(name for name in ("selinux", "apparmor") if name not in running)
    at.options["lsm_profile"] = f"{name}:x"
    at.cure = {"lsm_profile": None}
    return at.spawn()


@dump_fails("cannot be written", "that CRIU can write to", "images_directory", error=ImagesError)
def directory_that_is_read_only(at: Site) -> Target:
    place = at.held.enter_context(tmpfs(at.directory / "place"))
    make_read_only(place)
    at.options["images_directory"] = place
    at.cure = {"images_directory": at.images}
    return at.spawn()


@dump_fails("is full", "make room", "images_directory", "page_server", error=ImagesError)
def directory_that_is_full(at: Site) -> Target:
    at.options["images_directory"] = at.held.enter_context(tmpfs(at.directory / "place", "1m"))
    at.cure = {"images_directory": at.images}
    return at.spawn("memory = bytes(range(256)) * 20000\nserve()")


@dump_fails(
    "neither CAP_SYS_ADMIN nor",
    "run as root",
    "unprivileged",
    error=PermissionDeniedError,
    since="4.1",
)
def worker_without_capabilities(at: Site) -> Target:
    at.via = wrapped(at, "setpriv", "--bounding-set=-sys_admin,-checkpoint_restore")
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn()


@dump_fails("lacks CAP_SYS_PTRACE", "the same capabilities", error=PermissionDeniedError)
def worker_that_may_not_look_at_us(at: Site) -> Target:
    at.via = wrapped(at, "setpriv", "--bounding-set=-sys_ptrace")
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn()


@dump_fails("cannot lock the network", 'network_lock="nftables"', "network_lock")
def network_that_cannot_be_locked(at: Site) -> Target:
    """Without a PATH there is neither ``sh`` nor ``iptables-restore``."""
    at.options |= {"tcp_established": True, "network_lock": "iptables"}
    at.via = Worker(env={"PATH": str(at.directory)})
    at.cure = {"network_lock": "nftables"}
    return at.spawn(CONNECTED)


@dump_fails("too old for this kernel", "install a newer CRIU", error=ProgramError)
def program_too_old_to_start(at: Site) -> Target:
    at.via = older(at, "3.17")
    return at.spawn()


@dump_fails("too old for this kernel", "install CRIU 4.2 or later", error=ProgramError)
def program_too_old_for_sockets(at: Site) -> Target:
    at.via = older(at, "4.1")
    return at.spawn(LISTENS)


@dump_fails("guard pages", "install CRIU 4.2 or later", error=ProgramError)
def program_too_old_for_guard_pages(at: Site) -> Target:
    at.via = older(at, "4.1")
    at.cure = lambda: setattr(at, "via", Worker())
    try:
        return at.spawn(GUARD_PAGES)
    except AssertionError:
        pytest.skip("the kernel has no guard pages (MADV_GUARD_INSTALL): they need Linux 6.13")


# ---- less usual things, each by itself ----


@dump_fails("messages that the program has not read", "make the program read them")
def netlink_with_messages(at: Site) -> Target:
    return at.spawn_curable("""
        import contextlib, socket, struct
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        line.send(struct.pack("=IHHIIB3x12x", 32, 18, 0x301, 1, 0, 0))  # all links, please
        def read():
            with contextlib.suppress(BlockingIOError):
                while line.recv(1 << 20, socket.MSG_DONTWAIT): pass
        serve(read=read)
    """)


@dump_fails("multicast group above 32", "NETLINK_DROP_MEMBERSHIP")
def netlink_group_above_32(at: Site) -> Target:
    return at.spawn_curable("""
        import socket
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        line.bind((0, 0))
        line.setsockopt(270, 1, 35)  # NETLINK_ADD_MEMBERSHIP
        serve(leave=lambda: line.setsockopt(270, 2, 35))
    """)


@dump_fails("group without being bound", "make the program bind the socket")
def netlink_group_of_an_unbound_socket(at: Site) -> Target:
    return at.spawn_curable("""
        import socket
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        line.setsockopt(270, 1, 5)
        serve(bind=lambda: line.bind((0, 0)))
    """)


@dump_fails("has data, or", "make the program accept it", since="4.1")
def unix_data_before_it_is_accepted(at: Site) -> Target:
    return at.spawn_curable("""
        import socket
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind("\\0" + str(HERE))
        server.listen()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect("\\0" + str(HERE))
        client.send(b"hello")
        accepted = []
        serve(accept=lambda: accepted.append(server.accept()[0]))
    """)


@dump_fails("was closed", "make the program accept it", since="4.1")
def unix_closed_before_it_is_accepted(at: Site) -> Target:
    return at.spawn_curable("""
        import socket
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind("\\0" + str(HERE))
        server.listen()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect("\\0" + str(HERE))
        client.close()
        serve(accept=lambda: server.accept()[0].close())
    """)


@dump_fails("in packet mode", "without O_DIRECT")
def pipe_that_keeps_packets(at: Site) -> Target:
    return has_open(at, "os.pipe2(os.O_DIRECT)[1]")


@dump_fails("delays its data", "switch that off")
def udp_that_is_corked(at: Site) -> Target:
    return at.spawn_curable("""
        import socket
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_UDP, 1, 1)
        serve(close=lambda: sock.setsockopt(socket.IPPROTO_UDP, 1, 0))
    """)


@dump_fails("pidfd of a thread", "close it before the dump")
def pidfd_of_a_thread(at: Site) -> Target:
    return has_open(at, "syscall(N['pidfd_open'], os.getpid(), os.O_EXCL)")


@dump_fails("masters of several terminals", "close the terminals", "external")
def terminals_that_are_held_outside(at: Site) -> Target:
    pairs = [os.openpty() for _ in range(2)]
    for master, slave in pairs:
        at.held.callback(os.close, master)
        at.held.callback(os.close, slave)
    names = [os.ttyname(slave) for _, slave in pairs]
    at.options["shell_job"] = True
    return at.spawn_curable(f"""
        import os
        slaves = [os.open(name, os.O_RDWR | os.O_NOCTTY) for name in {names}]
        serve(close=lambda: os.close(slaves.pop()))
    """)


@dump_fails("a file that the process has closed", "EPOLL_CTL_DEL")
def epoll_of_a_closed_file(at: Site) -> Target:
    return at.spawn_curable("""
        import os, select, time
        reader, writer = os.pipe()
        epoll = select.epoll()
        epoll.register(reader)
        child = os.fork()
        while child == 0: time.sleep(0.01)
        os.close(reader)
        serve(close=epoll.close)
    """)


@dump_fails("file of a namespace open", "close it before the dump")
def file_of_a_namespace_outside(at: Site) -> Target:
    holder = subprocess.Popen(["unshare", "--uts", "sleep", "1000"])
    at.held.callback(holder.wait)
    at.held.callback(holder.kill)
    ours = os.stat("/proc/self/ns/uts").st_ino
    path = f"/proc/{holder.pid}/ns/uts"
    eventually(lambda: os.stat(path).st_ino != ours, "a namespace")
    return has_open(at, f"os.open({path!r}, os.O_RDONLY)")


@dump_fails("does not find the path", "force_irmap=True", "force_irmap")
def watch_of_a_file_that_is_gone(at: Site) -> Target:
    place = at.held.enter_context(tmpfs(at.directory / "place"))
    (place / "file").touch()
    target = at.spawn(f"""
        import ctypes, os
        libc = ctypes.CDLL(None)
        watch = libc.inotify_init()
        file = open("{place}/file")
        assert libc.inotify_add_watch(watch, b"{place}/file", 2) > 0
        os.unlink("{place}/file")
        serve(close=lambda: [os.close(watch), file.close()])
    """)
    at.cure = lambda: target.ask("close")
    at.held.callback(target.end)
    return target


@dump_fails("share their memory", "use a thread instead")
def processes_that_share_memory(at: Site) -> Target:
    at.cure = lambda: at.spawn("import threading\nthreading.Thread(target=serve).start()")
    return at.spawn("""
        import ctypes, time
        libc = ctypes.CDLL(None)
        stack = ctypes.create_string_buffer(1 << 16)
        top = (ctypes.addressof(stack) + (1 << 16)) & ~15
        pause = ctypes.cast(libc.pause, ctypes.c_void_p)
        libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        assert libc.clone(pause, top, 0x100 | 17, None) > 0
        serve()
    """)


@dump_fails("larger than ghost_limit", "above its size in bytes", "ghost_limit", "link_remap")
def program_that_was_removed(at: Site) -> Target:
    """The program file was removed, as by an upgrade."""
    program = at.directory / "python"
    shutil.copy(os.path.realpath(sys.executable), program)
    target = at.spawn(prefix=["sh", "-c", 'shift; exec "$0" "$@"', str(program)])
    program.unlink()
    at.options["ghost_limit"] = 4096
    at.cure = {"ghost_limit": 64 << 20}
    return target


@dump_fails("did not stop in time", "larger timeout", "timeout", "freeze_cgroup")
def thread_that_waits_in_vfork(at: Site) -> Target:
    """A thread in vfork cannot be stopped until its child has called exec or ended."""
    target = at.spawn("""
        import ctypes, os, signal, threading
        libc = ctypes.CDLL(None)
        stack = ctypes.create_string_buffer(1 << 16)
        top = (ctypes.addressof(stack) + (1 << 16)) & ~15
        pause = ctypes.cast(libc.pause, ctypes.c_void_p)
        libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        def fork():
            libc.clone(pause, top, 0x100 | 0x4000 | signal.SIGCHLD, None)
            os.wait()
        thread = threading.Thread(target=fork, daemon=True)
        thread.start()
        children = f"/proc/self/task/{thread.native_id}/children"
        while not open(children).read(): pass
        def end():
            os.kill(int(open(children).read()), signal.SIGKILL)
            thread.join()
        serve(end=end)
    """)
    at.options["timeout"] = 1
    at.cure = lambda: target.ask("end")
    return target


@dump_fails("SIGTRAP is pending", "handle the signal first")
def signal_of_a_debugger(at: Site) -> Target:
    return at.spawn_curable("""
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP])
        os.kill(os.getpid(), signal.SIGTRAP)
        serve(take=lambda: int(signal.sigtimedwait([signal.SIGTRAP], 5).si_signo))
    """)


@dump_fails("covered by another mount", "close it before the dump")
def file_that_is_covered(at: Site) -> Target:
    return at.spawn_curable("""
        import os, subprocess
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3): os.dup2(null, number)
        os.close(null)
        (HERE / "place").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", HERE / "place"], check=True)
        file = open(HERE / "place/file", "w")
        subprocess.run(["mount", "-t", "tmpfs", "none", HERE / "place"], check=True)
        serve(close=file.close)
    """, prefix=WITHOUT_SHARED_TMPFS)  # fmt: skip


@dump_fails(
    "does not belong to its user namespace", "make the other namespaces together", since="4.1"
)
def namespace_of_another_user_namespace(at: Site) -> Target:
    at.cure = lambda: at.spawn(prefix=user_namespace("--map-root-user", "--uts"))
    return at.spawn(prefix=["unshare", "--uts", *user_namespace("--map-root-user")])


@dump_fails("a device of a kind that CRIU cannot rebuild", 'empty_ns="net"', "empty_ns", "external")
def device_of_the_network(at: Site) -> Target:
    vxlan = "ip link add d0 type vxlan id 5 dstport 0"
    done = subprocess.run(["unshare", "--net", *vxlan.split()], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{vxlan}: {done.stderr.strip()}")
    at.cure = {"empty_ns": "net"}
    return at.spawn(prefix=["unshare", "--net", "sh", "-c", f'{vxlan}; exec "$@"', "sh"])


@dump_fails("a library that it needs is missing", "reinstall it", error=WorkerDiedError)
def program_without_its_libraries(at: Site) -> Target:
    """The program was copied from another system without its libraries."""
    program = Path(find_program(None)).read_bytes()
    name = b"\0libprotobuf-c.so.1\0"
    if name not in program:
        pytest.skip("this criu needs no library of that name")
    copy = at.directory / "criu"
    copy.write_bytes(program.replace(name, b"\0libprotobuf-c.so.0\0"))
    copy.chmod(0o755)
    at.via = Worker(program=copy)
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn()


NOT_ROOT = "setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps={0} --ambient-caps={0}"


@dump_fails(
    "not run as root",
    "set unprivileged=True",
    "unprivileged",
    error=PermissionDeniedError,
    since="4.1",
)
def worker_that_is_not_root(at: Site) -> Target:
    at.via = wrapped(at, NOT_ROOT.format("+checkpoint_restore,+sys_ptrace,+dac_override"))
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn()


@dump_fails(
    "lacks CAP_NET_ADMIN", "tcp_close=True", "tcp_close", error=PermissionDeniedError, since="4.1"
)
def worker_that_may_not_repair_connections(at: Site) -> Target:
    at.options |= {"tcp_established": True, "network_lock": "skip"}
    at.via = wrapped(at, "setpriv", "--bounding-set=-net_admin")
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn(CONNECTED)


@dump_fails("with nftables", "nf_tables", "network_lock", since="4.1")
def worker_that_may_not_lock_the_network(at: Site) -> Target:
    at.options |= {"tcp_established": True, "network_lock": "nftables"}
    at.via = wrapped(at, "setpriv", "--bounding-set=-net_admin")
    at.cure = lambda: setattr(at, "via", Worker())
    return at.spawn(CONNECTED)


# ---- the tests ----


WITHOUT_A_CURE = {"process_of_another_user", "file_from_outside_of_the_mount_namespace"}
"""Cases whose cure needs a capability that the tests do not have, or saves mounts of the host that
other programs write to.
"""


@pytest.mark.parametrize("log_level", [None, 4], ids=["", "long log"])
@pytest.mark.parametrize("case", dump_fails, ids=ids)
def test_a_dump_that_fails(
    case: Case, log_level: int | None, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names cause and cure, the process continues, and with the cure the dump works."""
    releases.required(case.since, "this failure, or its message")
    target = case.build(site)
    site.options["log_level"] = log_level
    pid = target if isinstance(target, int) else target.pid
    prediction = preflight(pid, site.opts, via=site.via)
    capfd.readouterr()
    with pytest.raises(CriuError) as caught:
        dump(pid, site.opts, via=site.via)
    assert capfd.readouterr() == ("", "")
    check_explanation(case, caught.value)
    assert caught.value.verb == "dump"
    assert caught.value.pid == pid

    compare(ids(case), prediction, site)
    if isinstance(target, int) or not site.survives:
        return
    assert target.runs_on()
    if site.cure is None:
        assert ids(case) in WITHOUT_A_CURE
    else:
        target = site.apply_cure() or target
        site.options["leave_running"] = True
        assert isinstance(dump(target.pid, site.opts, via=site.via), DumpResult)
        assert target.runs_on()


FINE: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("serve()", {}),
    "tcp": (CONNECTED, {"tcp_established": True}),
    "lock": (
        'import fcntl\nf = open(HERE / "f", "w")\nfcntl.flock(f, 2)\nserve()',
        {"file_locks": True},
    ),
    "zombie": ("import os\nif os.fork() == 0: os._exit(0)\nserve()", {}),
    "threads": (
        "import threading\nthreading.Thread(target=serve).start()\nthreading.Event().wait()",
        {},
    ),
    "deleted": (DELETED.format(more=""), {"ghost_limit": 4 << 20}),
}
"""Scenarios and options that can be dumped and restored."""


@pytest.mark.parametrize("name", FINE)
def test_what_successful_runs_print_is_no_cause(name: str, site: Site) -> None:
    """No line of a successful run, at the highest log level, is reported as an error."""
    scenario, options = FINE[name]
    target = site.spawn(scenario)
    opts = CriuOpts(images_directory=site.images, log_level=4, **options)
    logs = {Verb.DUMP: dump(target.pid, opts).log}
    reap_all()
    logs[Verb.RESTORE] = restore(opts.only_for("restore")).log
    complains = False
    for verb, log in logs.items():
        assert log is not None
        text = Path(log).read_text(errors="replace")
        assert text.count("\n") > 100
        complains = complains or any(word in text for word in ("Error (", "Can't", "Warn "))
        lines = error_lines(text, target.pid)
        assert lines == []
        assert diagnose(lines, verb).cause is None
    if not complains:
        pytest.skip("CRIU writes no warning into its logs here")


@pytest.mark.parametrize("name", ["images_directory", "work_directory"])
def test_a_descriptor_that_is_no_directory(site: Site, name: str) -> None:
    """The descriptor is refused with the library's message before anything is touched."""
    target = site.spawn()
    with open(site.directory / "file", "w") as file:
        site.options[name] = file
        with pytest.raises(OptionError, match=f"{name}=.*an open directory is accepted") as caught:
            dump(target.pid, site.opts)
    assert caught.value.options == (name,)
    assert target.runs_on()

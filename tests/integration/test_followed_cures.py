"""Cures that change the program, its caller or the machine: each is followed, and the call works.

``tests/unit/test_cures.py`` lists the cures that no test follows.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    Finding,
    Notification,
    Notify,
    Severity,
    Verdict,
    Worker,
    dump,
    feature_check,
    preflight,
    restore,
)
from pycriu_native import version as criu_version
from pycriu_native._failures.log_excerpt import known
from pycriu_native.images import check_images
from pycriu_native.results import Version

from .support import releases
from .support.failing_calls import Site, older, wrapped
from .support.ordinary_user import BEGIN, as_user, python
from .support.processes import Target, eventually, reap_all, state

pytestmark = pytest.mark.usefixtures("orphans")


def found(site: Site, pid: int, id: str, **fields: Any) -> Finding:
    """The finding of preflight with this id."""
    result = preflight(pid, site.opts, via=site.via, **fields)
    [finding] = [each for each in result.findings if each.id == id]
    return finding


def works(site: Site, target: Target, **fields: Any) -> None:
    """Preflight has no obstacle, and the dump works."""
    result = preflight(target.pid, site.opts, **fields)
    assert result.verdict is Verdict.WORKS, str(result)
    dump(target.pid, replace(site.opts, leave_running=True), **fields)
    assert target.runs_on()


# ---- another process, another program ----


@pytest.mark.cures("preflight:thread-number")
def test_the_process_of_a_thread(site: Site) -> None:
    """The finding on a thread names the process, which can be dumped."""
    target = site.spawn("""
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        serve()
    """)
    thread = max(map(int, os.listdir(f"/proc/{target.pid}/task")))
    assert found(site, thread, "thread-number").cure == f"dump pid {target.pid}"
    works(site, target)


OF_ANOTHER_NETWORK = {
    "unix": ("socket.socket(socket.AF_UNIX)", Severity.STOPS),
    "packet": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768)", Severity.STOPS),
    "listening": ("socket.create_server(('127.0.0.1', 0))", Severity.STOPS),
    "udp": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", Severity.LOST),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", Severity.LOST),
}


@pytest.mark.cures("socket-of-another-network", "preflight:socket-of-another-network")
@pytest.mark.parametrize("kind", OF_ANOTHER_NETWORK)
def test_a_socket_from_before_its_network(site: Site, kind: str) -> None:
    """A process has entered another network namespace; without the socket it can be dumped."""
    make, severity = OF_ANOTHER_NETWORK[kind]
    target = site.spawn(f"""
        import ctypes, socket
        sock = {make}
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        serve(close=sock.close)
    """)
    finding = found(site, target.pid, "socket-of-another-network")
    assert finding.severity is severity
    assert finding.cure.startswith("close it before the dump")
    if severity is Severity.STOPS:
        with pytest.raises(CriuError) as caught:
            dump(target.pid, site.opts)
        assert caught.value.cause == known("socket-of-another-network").cause
        assert target.runs_on()
    target.ask("close")
    works(site, target)


@pytest.mark.parametrize(
    ("make", "failure"),
    [
        ("socket.socket(socket.AF_VSOCK)", "socket-family"),
        ("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)", "mptcp"),
    ],
)
def test_an_unsupported_socket_from_before_its_network(site: Site, make: str, failure: str) -> None:
    """CRIU does not support the socket in any network namespace: the dump fails."""
    target = site.spawn(f"""
        import ctypes, socket
        try:
            sock = {make}
        except OSError:
            sock = None
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        serve(exists=lambda: str(sock is not None))
    """)
    if target.ask("exists") != "True":
        pytest.skip("the kernel has no such sockets")
    result = preflight(target.pid, site.opts)
    assert result.verdict is Verdict.FAILS
    assert [each.failure for each in result.stops] == [failure]
    with pytest.raises(CriuError) as caught:
        dump(target.pid, site.opts)
    assert caught.value.cause == known(failure).cause


FORK_FIRST = """
    import ctypes, os, time
    ready, done = os.pipe()
    if os.fork() == 0:
        os.setsid()
        while True: time.sleep(0.01)
    assert ctypes.CDLL(None).unshare({flag}) == 0
    serve()
"""


@pytest.mark.cures("host-ns", "nested-ns-root")
@pytest.mark.parametrize(
    ("kind", "flag"), [("uts", 0x04000000), ("ipc", 0x08000000), ("net", 0x40000000)]
)
def test_a_child_from_before_the_namespace(site: Site, kind: str, flag: int) -> None:
    """A program that enters a namespace after it has forked cannot be restored, or not dumped."""
    target = site.spawn(FORK_FIRST.format(flag=flag))
    result = preflight(target.pid, site.opts)
    [finding] = [each for each in result.findings if each.id == "nested-namespace"]
    if kind == "net":
        assert result.verdict is Verdict.FAILS
        with pytest.raises(CriuError) as caught:
            dump(target.pid, site.opts)
        assert caught.value.cause == known("host-ns").cause
        assert target.runs_on()
        target.end()
    else:
        assert result.verdict is Verdict.NO_RESTORE
        target.dump(result.opts)
        reap_all()
        refused = [f for f in check_images(site.images) if f.severity is Severity.STOPS]
        assert known("nested-ns-root").cause in {each.message for each in refused}
        with pytest.raises(CriuError) as caught:
            restore(site.opts)
        assert caught.value.cause == known("nested-ns-root").cause
    assert "start all processes of the tree in one namespace" in str(caught.value.cure)
    assert finding.cure == caught.value.cure
    reap_all()
    cured = site.spawn(FORK_FIRST.format(flag=0), prefix=["unshare", f"--{kind}"])
    result = preflight(cured.pid, site.opts)
    cured.dump(result.opts)
    reap_all()
    restore(result.restore_opts)
    assert cured.runs_on()


@pytest.mark.cures("preflight:file-not-saved")
def test_a_file_that_cannot_be_saved(site: Site) -> None:
    """A file that has lost its name is refused; when it is closed, the dump works."""
    target = site.spawn("""
        import os
        file = open(HERE / "file", "w")
        other = open(HERE / "other", "w")
        os.link(HERE / "file", HERE / "link")
        os.unlink(HERE / "file")
        serve(close=file.close)
    """)
    assert found(site, target.pid, "file-not-saved", files="rollback").cure.startswith("close it")
    with pytest.raises(CriuError, match="has other names"):
        dump(target.pid, site.opts, files="rollback")
    target.ask("close")
    works(site, target, files="rollback")


# ---- another caller, another CRIU ----

PREFLIGHT = """
from pycriu_native import preflight
for finding in preflight(int(sys.argv[1])).findings:
    print(finding.id, finding.cure, sep=": ")
"""


@pytest.mark.cures("preflight:hidden")
def test_a_process_that_the_caller_may_not_read(site: Site) -> None:
    """An ordinary user cannot check a process of root; root can."""
    target = site.spawn()
    words = [*as_user(), python("pycriu_native"), "-c", BEGIN + PREFLIGHT, str(target.pid)]
    text = subprocess.run(words, capture_output=True, text=True, check=True, cwd="/").stdout
    assert "hidden: run as root" in text
    works(site, target)


@pytest.mark.cures("preflight:option")
def test_an_option_that_this_criu_lacks(site: Site) -> None:
    """Without the option the dump works."""
    if criu_version() >= Version(major=4, minor=3):
        pytest.skip("this CRIU has all options")
    target = site.spawn()
    site.options["compress"] = "block"
    findings = preflight(target.pid, site.opts).findings
    assert {each.cure for each in findings if each.id == "option"} == {"leave compress unset"}
    with pytest.raises(CriuError, match=r"needs CRIU 4\.3"):
        dump(target.pid, site.opts)
    del site.options["compress"]
    works(site, target)


@pytest.mark.cures("preflight:program")
def test_a_program_that_does_not_start(site: Site) -> None:
    """With another program the dump works."""
    target = site.spawn()
    script = site.directory / "criu"
    script.write_text("#!/bin/sh\necho error while loading shared libraries: x >&2\nexit 127\n")
    script.chmod(0o755)
    site.via = Worker(program=script)
    assert "reinstall it" in found(site, target.pid, "program").cure
    works(site, target)


@pytest.mark.cures("preflight:random-numbers")
def test_random_numbers_with_a_newer_criu(site: Site) -> None:
    """CRIU before 4.2 restores the memory of getrandom() as ordinary memory."""
    target = site.spawn("import os\nos.getrandom(8)\nserve()")
    site.via = older(site, "4.1")
    lost = {each.id: each for each in preflight(target.pid, site.opts, via=site.via).lost}
    if "random-numbers" not in lost:
        pytest.skip("this libc does not keep the state of getrandom() in the program's memory")
    assert lost["random-numbers"].cure == "CRIU 4.2 or later"
    works(site, target)


@pytest.mark.cures("seize-refused")
def test_a_worker_without_cap_sys_ptrace(site: Site) -> None:
    """With CAP_SYS_PTRACE it dumps the process."""
    target = site.spawn()
    feature_check()  # if there is no /run/criu.kdat, this worker would write one with less in it
    site.images.mkdir()
    site.options["images_dir"] = site.images
    del site.options["images_directory"]
    via = wrapped(site, "setpriv", "--bounding-set=-sys_ptrace")
    site.via = replace(via, allow_untrusted=True)  # it opens the directory itself
    with pytest.raises(CriuError, match="does not let CRIU stop the process") as caught:
        dump(target.pid, site.opts, via=site.via)
    assert "give CRIU CAP_SYS_PTRACE" in str(caught.value.cure)
    assert caught.value.log == str(site.images / "dump.log")
    del site.options["images_dir"]
    site.options["images_directory"] = site.images
    works(site, target)


@pytest.mark.cures("script")
def test_a_script_that_fails(site: Site) -> None:
    """When the script succeeds, so does the dump."""
    target = site.spawn()
    script = site.directory / "script"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    site.options["action_scripts"] = [script]
    with pytest.raises(CriuError) as caught:
        dump(target.pid, site.opts)
    assert "a script in CRIU's configuration, failed" in str(caught.value.cause)
    assert target.runs_on()
    script.write_text("#!/bin/sh\nexit 0\n")
    works(site, target)


CHILD = """
    import os, signal
    child = os.fork()
    if child == 0:
        while True: signal.pause()
    serve(child=lambda: child, reap=os.wait)
"""


def signal_during_a_dump(site: Site, pid: int, number: int, root: int) -> str:
    """The cause of a dump in which a process gets a signal while it is frozen."""
    releases.required("3.19", "the notification query-ext-files")

    def send(notification: Notification) -> None:
        if notification.action is Notify.QUERY_EXT_FILES:
            os.kill(pid, number)

    with pytest.raises(CriuError) as caught:
        dump(root, site.opts, on_notify=send)
    return str(caught.value.cause)


@pytest.mark.cures("stop-signal-in-dump")
def test_a_signal_that_stops_a_process_during_a_dump(site: Site) -> None:
    """The process runs, without the signal. When the signal is sent again it stops."""
    target = site.spawn()
    cause = signal_during_a_dump(site, target.pid, signal.SIGSTOP, target.pid)
    assert "SIGSTOP" in cause
    assert target.runs_on()
    os.kill(target.pid, signal.SIGSTOP)
    eventually(lambda: state(target.pid) == "T", "the stop")
    dump(target.pid, replace(site.opts, leave_running=True))
    os.kill(target.pid, signal.SIGCONT)
    assert target.runs_on()


def left_by_a_kill(site: Site) -> Target | None:
    """A process whose child was killed during a failed dump; None if CRIU has ended it too."""
    target = site.spawn(CHILD)
    cause = signal_during_a_dump(site, target.ask("child"), signal.SIGKILL, target.pid)
    assert "was killed" in cause
    reaped = target.put("reap")
    eventually(lambda: reaped.exists() or target.process.poll() is not None, "the child's end")
    if target.process.poll() is None:
        return target
    assert target.process.returncode == -signal.SIGTRAP
    return None


@pytest.mark.cures("ended-in-dump")
def test_a_process_that_is_killed_during_a_dump(site: Site) -> None:
    """The other processes of the tree run, and can be dumped.

    If CRIU sees the end of the killed process while it waits for the first one to leave its code,
    it leaves a breakpoint in the first one (``compel_stop_on_syscall`` of 4.2.1).
    """
    for target in filter(None, (left_by_a_kill(site) for _ in range(6))):
        works(site, target)
        return
    pytest.skip("CRIU has ended the first process of six trees too")


@pytest.mark.cures("no-parent-mount")
def test_a_criu_in_a_chroot(site: Site) -> None:
    """Outside of it, CRIU dumps the process."""
    target = site.spawn()
    root = site.directory / "root"
    with ExitStack() as mounts:
        for name in ("usr", "opt", "proc", "dev", "tmp", "run", "etc", "sys"):
            (root / name).mkdir(parents=True)
            words = ["mount", "--rbind", "--make-rslave", f"/{name}", str(root / name)]
            subprocess.run(words, check=True)
            mounts.callback(_unmount, root / name)
        for name in ("bin", "sbin", "lib", "lib64"):
            if os.path.islink(f"/{name}"):
                (root / name).symlink_to(os.readlink(f"/{name}"))
        site.via = wrapped(site, "chroot", str(root))
        with pytest.raises(CriuError) as caught:
            dump(target.pid, site.opts, via=site.via)
    assert "is no mount point, as in a chroot" in str(caught.value.cause)
    assert "outside of the chroot" in str(caught.value.cure)
    works(site, target)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--recursive", "--lazy", str(place)], check=True)


NESTED = """
    import os
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3): os.dup2(null, number)
    os.close(null)
    os.chdir("/")
    child = os.fork()
    if child == 0: os.execvp("unshare", ["unshare", "--{kind}", "sleep", "1000"])
    while open("/proc/%d/comm" % child).read() != "sleep\\n": pass
    serve()
"""


@pytest.mark.cures("nested-ns-root")
@pytest.mark.parametrize("kind", ["net", "mount"])
def test_a_nested_namespace(site: Site, kind: str) -> None:
    """A nested namespace is restored only if the root of the tree has a separate one too."""
    target = site.spawn(NESTED.format(kind=kind))
    result = preflight(target.pid, site.opts)
    assert result.verdict is Verdict.NO_RESTORE
    [finding] = result.no_restore
    assert finding.id == "nested-namespace"
    target.dump(result.opts)
    reap_all()
    cause = known("nested-ns-root").cause
    [refused] = [f for f in check_images(site.images) if f.severity is Severity.STOPS]
    assert refused.message == cause
    with pytest.raises(CriuError) as caught:
        restore(site.opts)
    assert caught.value.cause == cause
    assert "start the root too in a new" in str(caught.value.cure)
    reap_all()

    if kind == "mount":
        return  # the cure would save the mounts of the host too, in which other programs write
    cured = site.spawn(NESTED.format(kind=kind), prefix=["unshare", f"--{kind}"])
    result = preflight(cured.pid, site.opts)
    assert result.verdict in (Verdict.WORKS, Verdict.NEEDS_OPTIONS), str(result)
    cured.dump(result.opts)
    reap_all()
    opts = result.for_restore({each.key: "/" for each in result.restore_needs})
    assert not [f for f in check_images(site.images, opts) if f.severity is Severity.STOPS]
    restore(opts)
    assert cured.runs_on()


# ---- the machine at the restore ----


@pytest.mark.cures("pty-index")
def test_a_terminal_whose_number_is_taken(site: Site) -> None:
    """The restore works when the other program has closed its terminal."""
    target = site.dumped("""
        import os
        master, slave = os.openpty()
        serve(number=lambda: os.ttyname(slave))
    """)
    taken: list[tuple[int, int]] = []
    try:
        while not taken or not os.path.exists(f"/dev/pts/{_number(site)}"):
            taken.append(os.openpty())
        with pytest.raises(CriuError) as caught:
            restore(site.opts)
        assert "is in use here" in str(caught.value.cause)
        assert "end the program that has it" in str(caught.value.cure)
    finally:
        for pair in taken:
            for fd in pair:
                os.close(fd)
    restore(site.opts)
    assert target.runs_on()


def _number(site: Site) -> int:
    """The number of the only terminal in the images."""
    from pycriu_native.images import inspect

    [terminal] = {each.index for each in inspect(site.images).files if hasattr(each, "index")}
    return int(terminal)


@pytest.mark.cures("cg-namespace")
def test_a_cgroup_namespace(site: Site) -> None:
    """Several processes with one that are in the cgroups of CRIU need an option."""
    scenario = "import os, time\nwhile os.fork() == 0: time.sleep(1000)\nserve()"
    target = site.spawn(scenario, prefix=["unshare", "--cgroup"])
    result = preflight(target.pid, site.opts)
    at_root = all(line.endswith(":/") for line in Path("/proc/self/cgroup").read_text().split())
    assert result.verdict is (Verdict.WORKS if at_root else Verdict.NEEDS_OPTIONS)
    target.dump(site.opts)
    reap_all()
    if at_root:  # the namespace has the same root as CRIU's
        assert not [f for f in check_images(site.images) if f.severity is Severity.STOPS]
        restore(site.opts)
        assert target.runs_on()
        return
    [refused] = [f for f in check_images(site.images) if f.severity is Severity.STOPS]
    with pytest.raises(CriuError) as caught:
        restore(site.opts)
    assert caught.value.cause == refused.message == known("cg-namespace").cause
    reap_all()
    assert not [
        f for f in check_images(site.images, result.restore_opts) if f.severity is Severity.STOPS
    ]
    restore(result.restore_opts)
    assert target.runs_on()


def test_the_check_of_a_connection_to_outside(site: Site) -> None:
    """``check_images`` names the key of ``inherit_fds`` that the restore accepts."""
    ours, theirs = socket.socketpair()
    site.held.enter_context(ours)
    with theirs:
        target = site.spawn(stdin=theirs.fileno())
    result = preflight(target.pid, site.opts)
    target.dump(result.opts)
    [need] = result.restore_needs
    [refused] = [f for f in check_images(site.images) if f.severity is Severity.STOPS]
    assert refused.cure == f"inherit_fds=[(fd, {need.key!r})]"
    new, end = socket.socketpair()
    with new, end:
        opts = result.for_restore({need.key: end.fileno()})
        assert not [f for f in check_images(site.images, opts) if f.severity is Severity.STOPS]
        restore(opts)
    assert target.runs_on()

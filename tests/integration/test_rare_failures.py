"""Failures that need a special state of the machine: with the error's cure the call works."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, PidInUseError, Severity, dump, preflight, restore
from pycriu_native.images import check_images

from .conftest import Spawn
from .support import cgroups
from .support.cgroups import Make
from .support.failing_calls import Site, wrapped
from .support.hosts import host
from .support.processes import Target, eventually, reap_all, state, user_namespace

pytestmark = pytest.mark.usefixtures("orphans")


def fails(site: Site, cause: str, cure: str, **fields: Any) -> None:
    """A restore fails with this cause and this cure, and leaves no process."""
    with pytest.raises(CriuError) as caught:
        restore(replace(site.opts, **fields), via=site.via)
    assert cause in str(caught.value.cause)
    assert cure in str(caught.value.cure)
    reap_all()


def works(site: Site, target: Target, **fields: Any) -> None:
    """A restore succeeds."""
    restore(replace(site.opts, **fields), via=site.via)
    assert target.runs_on()


# ---- cgroups ----

HAS_A_SESSION = """
    import os, signal
    child = os.fork()
    if child == 0:
        os.setsid()
        while True: signal.pause()
    serve(child=lambda: child)
"""


HAS_THREADS = """
    import threading
    for _ in range(20):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    serve()
"""


@pytest.mark.cures("pids-limit")
@pytest.mark.parametrize(
    ("limit", "scenario"), [(1, HAS_A_SESSION), (2, HAS_A_SESSION), (12, HAS_THREADS)]
)
def test_a_limit_of_processes(limit: int, scenario: str, site: Site, make_cgroup: Make) -> None:
    """At a limit of processes, CRIU cannot start its helpers, the restored process or a thread."""
    target = site.dumped(scenario)
    reap_all()
    cgroup = make_cgroup(cgroups.required("pids"))
    (cgroup / "pids.max").write_text(str(limit))
    enter = f"'echo 0 > {cgroup}/cgroup.procs; exec \"$@\"'"
    site.via = wrapped(site, "sh", "-c", enter, "sh")
    fails(site, "may not start so many processes", "raise the limit")
    (cgroup / "pids.max").write_text("max")
    works(site, target)


def dumped_in(site: Site, cgroup: Path, controller: str) -> Target:
    """A process that was dumped in a cgroup, with its place in this hierarchy."""
    target = site.spawn()
    cgroups.enter(cgroup, target.pid)
    opts = CriuOpts(images_directory=site.images, cg_dump_controllers=[controller])
    target.dump(opts)
    return target


@pytest.mark.cures("cg-move")
def test_a_cgroup_that_takes_no_process(site: Site, make_cgroup: Make) -> None:
    """Beside a threaded cgroup, one of the type domain is invalid (cgroups(7))."""
    parent = make_cgroup(cgroups.required(""))
    (parent / "own").mkdir()
    target = dumped_in(site, parent / "own", "")
    (parent / "threaded").mkdir()
    (parent / "threaded/cgroup.type").write_text("threaded")
    fails(site, "cannot enter its cgroup", "manage_cgroups_mode=")
    works(site, target, manage_cgroups_mode="ignore")


@pytest.mark.cures("cg-ctrl")
def test_a_controller_that_is_not_here(site: Site, make_cgroup: Make) -> None:
    """The images name a controller that this kernel does not have."""
    target = dumped_in(site, make_cgroup(cgroups.required("pids")), "pids")
    image = site.images / "cgroup.img"
    image.write_bytes(image.read_bytes().replace(b"pids", b"none"))
    fails(site, "does not find here", "manage_cgroups_mode=")
    (refused,) = (each for each in check_images(site.images) if each.severity is Severity.STOPS)
    assert "manage_cgroups_mode='ignore'" in refused.cure
    ignores = replace(site.opts, manage_cgroups_mode="ignore")
    assert not [f for f in check_images(site.images, ignores) if f.severity is Severity.STOPS]
    works(site, target, manage_cgroups_mode="ignore")


# ---- others ----


@pytest.mark.cures("userns-no-root")
def test_a_user_namespace_without_root(spawn: Spawn, images: Path) -> None:
    """With user 0 and group 0 in the user namespace, the program can be dumped."""
    opts = CriuOpts(images_directory=images)
    target = spawn(prefix=user_namespace("--map-user=1000", "--map-group=1000"))
    assert "userns-no-root" in {each.failure for each in preflight(target.pid, opts).findings}
    with pytest.raises(CriuError, match="no user 0") as caught:
        dump(target.pid, opts)
    assert target.runs_on()
    assert "unshare -r" in str(caught.value.cure)
    mapped = spawn(prefix=user_namespace("-r"))
    mapped.dump(preflight(mapped.pid, opts).opts)


HAS_A_THREAD = """
    import threading
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    serve(thread=lambda: thread.native_id)
"""


def test_the_number_of_a_thread_is_taken(site: Site) -> None:
    """A process has the number of a thread of the images; when it has ended the restore works."""
    target = site.spawn(HAS_A_THREAD)
    number = target.ask("thread")
    dump(target.pid, site.opts)
    target.reap()

    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    other = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    assert other.pid == number
    with other:
        try:
            with pytest.raises(PidInUseError, match=f"pid {number} is taken by a running process"):
                restore(site.opts)
        finally:
            other.kill()
        eventually(lambda: state(number) == "Z", "its end")
        with pytest.raises(PidInUseError, match="is a zombie child of this process"):
            restore(site.opts)
    works(site, target)


RESTORES = """
import sys
import pycriu_native as criu
try:
    criu.restore(criu.CriuOpts(images_directory=sys.argv[1], shell_job=True))
except criu.CriuError as error:
    print(error.cause, error.cure, sep="\\n")
"""


@pytest.mark.cures("sid-clash")
def test_a_caller_whose_session_has_a_pid_of_the_images(site: Site) -> None:
    """A session of the images has the number of that of the caller; from another one it works."""
    target = site.spawn(HAS_A_SESSION, start_new_session=False)
    number = target.ask("child")
    site.options["shell_job"] = True
    target.dump(site.opts)
    reap_all()
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    caller = subprocess.Popen(
        [sys.executable, "-c", RESTORES, str(site.images)],
        start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    output, _ = caller.communicate()
    assert caller.pid == number
    assert "session or process group of the caller" in output
    assert "start_new_session" in output
    works(site, target)


CONNECTED = """
    import socket
    sock = socket.create_connection(("127.0.0.1", {port}))
    serve(fd=sock.fileno)
"""
PIDFD_GETFD = 438


SENDS = """
    import socket
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("198.18.7.1", 7))
    serve()
"""


@pytest.mark.cures("udp-connect")
def test_a_udp_socket_without_a_route(site: Site) -> None:
    """CRIU connects a UDP socket again, for which the host needs a route; so says the check."""

    def route(verb: str) -> None:
        there.run("ip", "route", verb, "198.18.7.0/24", "dev", "lo", "src", "127.0.0.1")

    with host() as there, there.entered():
        route("add")
        target = site.dumped(SENDS)
        assert not check_images(site.images)
        route("del")
        (found,) = check_images(site.images)
        assert (found.id, found.severity) == ("inet_sockets", Severity.STOPS)
        assert "no route here" in found.message
        fails(site, "no route here", "give it a route")
        route("add")
        works(site, target)


@pytest.mark.cures("tcp-connect")
def test_a_connection_that_is_here_still(site: Site) -> None:
    """Another process has the connection of the images; without it the restore works."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = site.spawn(CONNECTED.format(port=server.getsockname()[1]))
        peer, _ = server.accept()
        with peer, open(os.pidfd_open(target.pid), "rb") as pidfd:
            get = (PIDFD_GETFD, pidfd.fileno(), target.ask("fd"), 0)
            with socket.socket(fileno=ctypes.CDLL(None).syscall(*get)):
                target.dump(replace(site.opts, tcp_established=True))
                fails(site, "cannot be restored", "tcp_close=True", tcp_established=True)
            works(site, target, tcp_close=True)

"""Uses of the package for a type checker; nothing here is run.

mypy in strict mode must accept the whole file. ``assert_type`` checks the type of a result. A wrong
use has a ``type: ignore`` comment with the expected error: strict mode also reports a comment that
is not needed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_type

import pycriu_native
from pycriu_native import (
    CgroupMode,
    CgroupRoot,
    CheckResult,
    CompressMode,
    CpuinfoResult,
    CriuError,
    CriuOpts,
    DumpItersResult,
    DumpResult,
    DumpStatistics,
    ExtMount,
    Features,
    ImageIOMode,
    InheritFd,
    JoinNamespace,
    LazyPages,
    NetworkLock,
    Notification,
    Notify,
    OptionError,
    PageServer,
    PageServerChild,
    PageServerResult,
    PreDumpMode,
    Problem,
    RestoreResult,
    Round,
    Service,
    ShrinkingRounds,
    Socket,
    Verb,
    Version,
    VethPair,
    Worker,
    WorkerDiedError,
    aio,
    check,
    cpuinfo_check,
    cpuinfo_dump,
    dump,
    dump_iters,
    feature_check,
    ffi,
    lib,
    libcriu_version,
    page_server,
    page_server_child,
    pre_dump,
    restore,
    restore_child,
    seal,
    verify,
    version,
)

OPTS = CriuOpts(images_directory="images")
PID = 4242

# ---- options: each documented form ----


def directories(path: Path, sock: socket.socket) -> None:
    """A path of any kind, a descriptor's number, or an object that owns one."""
    CriuOpts(images_directory="images", work_directory=b"work", parent_image=Path("../1"))
    CriuOpts(images_directory=path, work_directory=os.open(path, os.O_RDONLY))
    with open(path) as file:
        CriuOpts(images_directory=file, status_fd=sock, pidfd_store_sk=sock)
    CriuOpts(images_dir=path, root=path, config_file=path, cg_props_file="props")
    CriuOpts(images_directory=3.5)  # type: ignore[arg-type]
    CriuOpts(images_directory=["images"])  # type: ignore[arg-type]
    CriuOpts(log_file=path)  # type: ignore[arg-type]  # a name in the work directory, no path


def words() -> None:
    """A member of the enumeration, its word, or its number."""
    CriuOpts(manage_cgroups_mode=CgroupMode.SOFT, network_lock=NetworkLock.SKIP)
    CriuOpts(manage_cgroups_mode="soft", network_lock="skip", pre_dump_mode="read")
    CriuOpts(manage_cgroups_mode=3, pre_dump_mode=PreDumpMode.READ, empty_ns="net")
    CriuOpts(compress=CompressMode.BLOCK, image_io_mode=ImageIOMode.DIRECT, empty_ns=0x40000000)
    CriuOpts(manage_cgroups_mode=["soft"])  # type: ignore[arg-type]
    CriuOpts(compress=None, image_io_mode=1.5)  # type: ignore[arg-type]


def values(sock: socket.socket) -> None:
    """The structured values: an object, a tuple or text; several in any iterable."""
    CriuOpts(page_server="h:1")
    CriuOpts(page_server=("10.0.0.2", 27))
    CriuOpts(page_server=PageServer("10.0.0.2", 27))
    CriuOpts(page_server=PageServer(fd=sock.fileno()))
    CriuOpts(veth_pairs=["eth0=veth0"])
    CriuOpts(veth_pairs=[("eth0", "veth0"), VethPair("eth1", "veth1"), "eth2=veth2"])
    CriuOpts(veth_pairs=(f"eth{n}=veth{n}" for n in range(2)))
    CriuOpts(inherit_fds=[(sock, "socket:[1]"), InheritFd(3, "pipe:[2]"), "fd[4]:key"])
    CriuOpts(join_ns=[("net", "/run/netns/blue"), ("user", "1", "0,0"), "uts:/proc/1/ns/uts"])
    CriuOpts(join_ns={JoinNamespace("net", "/run/netns/blue")})
    CriuOpts(ext_mounts=[("/data", "data"), ExtMount("/etc", "etc"), "/a:b"])
    CriuOpts(cg_roots=[("/pods", "cpu"), ("/pods",), CgroupRoot("/pods"), "cpu:/pods", "/pods"])
    CriuOpts(external=["mnt[/data]:data"], unix_sks=range(3), skip_mnts=[Path("/a"), b"/b"])
    CriuOpts(exec_cmd=["/bin/true", Path("/tmp")], enable_fs=("all",), irmap_paths=["/etc"])
    CriuOpts(page_server=27)  # type: ignore[arg-type]
    CriuOpts(page_server=("10.0.0.2", "27"))  # type: ignore[arg-type]
    CriuOpts(veth_pairs=[("eth0",)])  # type: ignore[list-item]
    CriuOpts(unix_sks=["1"])  # type: ignore[list-item]
    CriuOpts(unix_sks=1)  # type: ignore[arg-type]
    CriuOpts(inherit_fds=[("key", 3)])  # type: ignore[list-item]


def plain() -> None:
    """Options are keywords; unknown ones, values of other types, and assignments are errors."""
    CriuOpts(leave_running=True, tcp_established=None, ghost_limit=2**20, log_level=4)
    CriuOpts("images")  # type: ignore[call-arg]
    CriuOpts(leave_runing=True)  # type: ignore[call-arg]
    CriuOpts(leave_running="yes")  # type: ignore[arg-type]
    CriuOpts(ghost_limit="1M")  # type: ignore[arg-type]
    assert_type(replace(OPTS, leave_running=True), CriuOpts)
    assert_type(OPTS.leave_running, bool | None)
    assert_type(OPTS.ghost_limit, int | None)
    OPTS.leave_running = True  # type: ignore[misc]


def conversions() -> None:
    """Conversions to other forms and back."""
    assert_type(OPTS.to_dict(), dict[str, Any])
    assert_type(CriuOpts.from_dict({"leave_running": True}), CriuOpts)
    assert_type(OPTS.to_argv(Verb.DUMP, PID), list[str])
    assert_type(OPTS.to_argv("restore"), list[str])
    assert_type(CriuOpts.from_argv(["dump"]), tuple[Verb, int | None, CriuOpts])
    assert_type(OPTS.to_config(), str)
    assert_type(CriuOpts.from_config(""), CriuOpts)
    assert_type(OPTS.to_runc(), dict[str, Any])
    assert_type(CriuOpts.from_runc({}), CriuOpts)
    assert_type(OPTS.only_for("restore"), CriuOpts)
    CriuOpts.from_dict([("leave_running", True)])  # type: ignore[arg-type]


# ---- verbs ----


def verbs() -> None:
    """A verb takes a process or images, the options, and keywords; each has its own result."""
    assert_type(dump(PID, OPTS), DumpResult)
    assert_type(dump(None, OPTS, via=Worker(), on_notify=print, deadline=5), DumpResult)
    assert_type(pre_dump(PID, OPTS), DumpResult)
    assert_type(restore(OPTS), RestoreResult)
    assert_type(restore_child(OPTS, deadline=1.5), RestoreResult)
    assert_type(check(), CheckResult)
    assert_type(version(via=Service("/run/criu.socket")), Version)
    assert_type(libcriu_version(), Version)
    assert_type(feature_check(via=Socket(3)), Features)
    assert_type(cpuinfo_dump(OPTS), CpuinfoResult)
    assert_type(cpuinfo_check(OPTS), CpuinfoResult)
    assert_type(page_server(OPTS), PageServerResult)
    assert_type(page_server_child(OPTS), PageServerChild)
    dump(PID)  # type: ignore[call-arg]
    dump("4242", OPTS)  # type: ignore[arg-type]
    dump(PID, {"images_directory": "images"})  # type: ignore[arg-type]
    dump(PID, OPTS, Worker())  # type: ignore[call-arg, arg-type]
    dump(PID, OPTS, timeout=3)  # type: ignore[call-arg]
    dump(PID, OPTS, via="/usr/sbin/criu")  # type: ignore[arg-type]
    dump(PID, OPTS, deadline="5")  # type: ignore[arg-type]
    pre_dump(None, OPTS)  # type: ignore[arg-type]
    restore(PID, OPTS)  # type: ignore[arg-type, call-arg]
    Worker("/usr/sbin/criu")  # type: ignore[call-arg]
    check(on_notify=print)  # type: ignore[call-arg]


def results() -> None:
    """Attributes of results have types; those that can be missing are optional."""
    dumped = dump(PID, OPTS)
    assert_type(dumped.pid, int)
    assert_type(dumped.duration, float)
    assert_type(dumped.pid_free, bool)
    assert_type(dumped.log, str | None)
    assert_type(dumped.statistics, DumpStatistics | None)
    dumped.statistics.pages_written  # type: ignore[union-attr]  # noqa: B018
    dumped.pid = 1  # type: ignore[misc]
    restored = restore(OPTS)
    assert_type(restored.wait(), int | None)
    assert_type(restored.open_pidfd(), int)
    assert_type(version() >= version(), bool)
    assert_type(version().number, int)
    assert_type(feature_check().mem_track, bool)
    print(version() >= "4.2")  # type: ignore[operator]


# ---- hooks ----


class Runtime:
    """Hooks are functions, methods, or objects that can be called."""

    def hook(self, notification: Notification) -> None:
        """A hook that is a method."""
        assert_type(notification.action, Notify | str)
        assert_type(notification.verb, Verb)
        assert_type(notification.pid, int | None)
        assert_type(notification.fd, int | None)

    def __call__(self, notification: Notification) -> str:
        """What a hook returns does not matter."""
        return str(notification.action)


async def coroutine(notification: Notification) -> None:
    """A hook for the verbs of ``aio``."""


def of_nothing() -> None:
    """No hook: it takes no notification."""


def of_text(action: str) -> None:
    """No hook: its parameter has another type."""


def hooks(received: list[Notification]) -> None:
    """Any callable that takes a notification."""
    dump(PID, OPTS, on_notify=received.append)
    dump(PID, OPTS, on_notify=Runtime())
    restore(OPTS, on_notify=Runtime().hook)
    restore(OPTS, on_notify=lambda notification: print(notification.pid))
    dump(PID, OPTS, on_notify=of_nothing)  # type: ignore[arg-type]
    dump(PID, OPTS, on_notify=of_text)  # type: ignore[arg-type]
    dump(PID, OPTS, on_notify={"post-dump": of_nothing})  # type: ignore[arg-type]


async def awaited() -> None:
    """The hooks of ``aio``, which may be coroutine functions."""
    assert_type(await aio.dump(PID, OPTS, on_notify=coroutine), DumpResult)
    assert_type(await aio.dump(PID, OPTS, on_notify=print, deadline=5), DumpResult)
    assert_type(await aio.pre_dump(PID, OPTS), DumpResult)
    assert_type(await aio.restore(OPTS, on_notify=coroutine), RestoreResult)
    assert_type(await aio.restore_child(OPTS), RestoreResult)
    assert_type(await aio.check(), CheckResult)
    assert_type(await aio.version(), Version)
    assert_type(await aio.feature_check(), Features)
    later: Awaitable[DumpResult] = aio.dump(PID, OPTS)
    await later
    aio.dump(PID, OPTS).pid  # type: ignore[attr-defined]  # noqa: B018
    await aio.dump(PID, OPTS, on_notify=of_text)  # type: ignore[arg-type]


# ---- rounds, daemons ----


def a_policy(round: Round) -> bool:
    """A function for ``should_continue``, which decides after each round."""
    assert_type(round.bytes_written, int)
    return round.number < 3


def rounds() -> None:
    """The result of dump_iters."""
    assert_type(dump_iters(PID, OPTS), DumpItersResult)
    assert_type(dump_iters(PID, OPTS, a_policy).rounds, tuple[Round, ...])
    assert_type(dump_iters(PID, OPTS, ShrinkingRounds(most=3)).final, DumpResult)
    dump_iters(PID, OPTS, 3)  # type: ignore[arg-type]
    ShrinkingRounds(3)  # type: ignore[call-arg]


def manifests(descriptor: int) -> None:
    """The arguments and results of seal and verify."""
    assert_type(seal("ckpt"), str)
    assert_type(seal(descriptor), str)
    verify("ckpt", "00")
    verify("ckpt", b"00")  # type: ignore[arg-type]


def daemons() -> None:
    """Objects that own a process are context managers."""
    with LazyPages(OPTS) as daemon:
        assert_type(daemon, LazyPages)
        assert_type(daemon.pid, int)


# ---- errors ----


def errors() -> None:
    """Each error is also a builtin exception, and has typed attributes."""
    try:
        dump(PID, OPTS)
    except ProcessLookupError as error:
        error.log  # type: ignore[attr-defined]  # noqa: B018  # the builtin has none
    except OptionError as refused:
        assert_type(refused.problems, tuple[Problem, ...])
    except WorkerDiedError as died:
        assert_type(died.status, int | None)
    except CriuError as failed:
        assert_type(failed.code, int | None)
        assert_type(failed.cause, str | None)
        assert_type(failed.lines, tuple[str, ...])
        assert_type(failed.options, tuple[str, ...])
    exited: ProcessLookupError = pycriu_native.NoSuchProcessError("gone")
    taken: FileExistsError = pycriu_native.PidInUseError("taken")
    late: TimeoutError = pycriu_native.DeadlineError("late")
    wrong: ValueError = pycriu_native.OptionError([])
    print(exited, taken, late, wrong)


def names() -> None:
    """Submodules are typed attributes; an unknown name is an error."""
    assert_type(pycriu_native.images.inspect("ckpt"), pycriu_native.images.ImageSet)
    pycriu_native.oci.Bundle.load("bundle")
    pycriu_native.nonsense  # type: ignore[attr-defined]  # noqa: B018
    pycriu_native.images.nonsense  # type: ignore[attr-defined]  # noqa: B018
    pycriu_native.snapshots.nonsense  # type: ignore[attr-defined]  # noqa: B018


# ---- the low level: C, so anything goes ----


def low_level() -> None:
    """``lib`` and ``ffi`` have no types."""
    handle = ffi.new("criu_opts **")
    lib.criu_local_init_opts(handle)
    assert_type(lib.has("criu_dump"), bool)
    assert_type(lib.missing(), list[str])

"""The guarantees of libcriu's header, checked through ``pycriu_native.lib``.

Each test comes from a comment of ``criu.h`` and makes the calls of a C program. If this package has
a call for the same purpose, the test also compares the two results.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native import (
    CriuError,
    CriuOpts,
    Notification,
    OptionError,
    PidInUseError,
    ProgramNotFoundError,
    ProtocolError,
    Service,
    Socket,
    WorkerDiedError,
    dump,
    restore,
)

from .conftest import Spawn
from .support import releases
from .support.containers import container
from .support.descriptors import taken_from
from .support.features import needs_soft_dirty
from .support.ported import environment, run, words
from .support.processes import eventually, free_pid, is_alive, kill, reap_all, state
from .test_orphan_pts_master import ON_A_TERMINAL

# ---- options: "set opts to defaults, must be called first; 0 on success" ----


def test_dump_and_restore(spawn: Spawn, images: Path) -> None:
    """Success in the table: ``criu_dump`` returns 0, ``criu_restore`` the pid, which is > 0."""
    target = spawn()
    [dumped] = run(
        "begin(sys.argv[1], sys.argv[2], 'my.log'); tell(lib.criu_dump())", images, target.pid
    )
    assert dumped == 0
    target.reap()
    assert (images / "my.log").exists()
    [restored] = run("begin(sys.argv[1]); tell(lib.criu_restore())", images)
    assert restored == target.pid
    assert target.runs_on()


def test_images_of_both_ways_are_the_same(spawn: Spawn, images: Path) -> None:
    """``restore`` restores the images of ``criu_dump``, with the same pid as ``criu_restore``."""
    target = spawn()
    run("begin(sys.argv[1], sys.argv[2]); tell(lib.criu_dump())", images, target.pid)
    target.reap()
    opts = CriuOpts(images_directory=images)
    assert restore(opts).pid == target.pid
    assert target.runs_on()
    dump(target.pid, opts)
    assert run("begin(sys.argv[1]); tell(lib.criu_restore())", images) == [target.pid]
    assert target.runs_on()


def test_own_options_beside_the_global_ones(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """``criu_local_*`` uses local options, independent of the global ones."""
    target = spawn()
    other = tmp_path / "other"
    message = run(
        """
        begin(sys.argv[1], sys.argv[3], "global.log")
        lib.criu_set_leave_running(True)

        handle = ffi.new("criu_opts **")
        assert lib.criu_local_init_opts(handle) == 0
        assert lib.criu_local_set_service_binary(handle[0], sys.argv[4].encode()) == 0
        os.mkdir(sys.argv[2])
        lib.criu_local_set_images_dir_fd(handle[0], os.open(sys.argv[2], os.O_RDONLY))
        lib.criu_local_set_pid(handle[0], int(sys.argv[3]))
        assert lib.criu_local_set_log_file(handle[0], b"local.log") == 0

        one = lib.criu_dump()
        two = lib.criu_local_dump(handle[0])
        lib.criu_local_free_opts(handle[0])
        lib.criu_free_opts()
        tell(one, two)
        """,
        images,
        other,
        target.pid,
        pycriu_native.Worker().name(),
    )
    assert message == [0, 0]
    target.reap()  # only the global options, used first, had leave_running
    assert sorted(path.name for path in (*images.glob("*.log"), *other.glob("*.log"))) == [
        "global.log",
        "local.log",
    ]


def test_options_are_reset(spawn: Spawn, images: Path) -> None:
    """A second ``criu_init_opts`` resets all options: leave_running is unset."""
    target = spawn()
    message = run(
        """
        begin(sys.argv[1], sys.argv[2])
        lib.criu_set_leave_running(True)
        begin(sys.argv[1], sys.argv[2])
        tell(lib.criu_dump())
        """,
        images,
        target.pid,
    )
    assert message == [0]
    target.reap()
    assert not is_alive(target.pid)


def test_images_dir_fd_must_be_set(spawn: Spawn) -> None:
    """It "must be set for dump/restore": CRIU refuses without it; the calls of this library name
    the field.
    """
    target = spawn()
    [dumped, restored] = run(
        "begin(pid=sys.argv[1]); tell(lib.criu_dump(), lib.criu_restore())", target.pid
    )
    assert dumped == restored == -errno.EBADE
    assert target.runs_on()
    with pytest.raises(OptionError, match="images_directory"):
        dump(target.pid, CriuOpts())


# ---- the table of return values and errno ----


def test_ebade_the_request_has_failed(images: Path) -> None:
    """-EBADE: CRIU reports a failure, and errno is CRIU's. The exception has both numbers."""
    pid = free_pid()
    assert run(
        "begin(sys.argv[1], sys.argv[2]); tell(lib.criu_dump(), ffi.errno)", images, pid
    ) == [-errno.EBADE, errno.ESRCH]
    with pytest.raises(ProcessLookupError) as caught:
        dump(pid, CriuOpts(images_directory=images))
    assert isinstance(caught.value, CriuError)
    assert (caught.value.code, caught.value.errno) == (-errno.EBADE, errno.ESRCH)


def test_ebade_of_a_restore(spawn: Spawn, images: Path) -> None:
    """-EBADE with EEXIST: the pid is in use.

    The exception is PidInUseError with the same two numbers.
    """
    target = spawn()
    opts = CriuOpts(images_directory=images)
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    assert run("begin(sys.argv[1]); tell(lib.criu_restore(), ffi.errno)", images) == [
        -errno.EBADE,
        errno.EEXIST,
    ]
    with pytest.raises(PidInUseError) as caught:
        restore(opts)
    assert (caught.value.code, caught.value.errno) == (-errno.EBADE, errno.EEXIST)
    assert target.runs_on()


def test_ebade_of_refused_options(spawn: Spawn, images: Path) -> None:
    """-EBADE with EBADRQC: CRIU refuses an option. Here the log can be in another directory."""
    target = spawn()
    program = "begin(sys.argv[1], sys.argv[2], '../up.log'); tell(lib.criu_dump(), ffi.errno)"
    assert run(program, images, target.pid) == [-errno.EBADE, errno.EBADRQC]
    assert target.runs_on()
    with pytest.raises(OptionError, match="log_file"):
        dump(target.pid, CriuOpts(images_directory=images, log_file="none/up.log"))
    dump(target.pid, CriuOpts(images_directory=images, log_file="../up.log"))
    assert images.with_name("up.log").exists()


def test_econnrefused_nobody_listens(tmp_path: Path) -> None:
    """-ECONNREFUSED: unable to connect; errno is the cause. The exception names the socket."""
    address = tmp_path / "nobody"
    program = """
        assert lib.criu_init_opts() == 0
        assert lib.criu_set_service_address(sys.argv[1].encode()) == 0
        tell(lib.criu_check(), ffi.errno, lib.criu_get_version(), lib.criu_check_version(0))
        """
    refused = -errno.ECONNREFUSED
    assert run(program, address) == [refused, errno.ENOENT, refused, refused]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.bind(str(address))
        assert run(program, address) == [refused, errno.ECONNREFUSED, refused, refused]
        with pytest.raises(ProgramNotFoundError, match="no criu service"):
            pycriu_native.check(via=Service(address))


def test_ecomm_the_other_end_is_gone() -> None:
    """-ECOMM: a message could not be sent or received. The exception is WorkerDiedError."""
    program = """
        import signal
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        assert lib.criu_init_opts() == 0
        assert lib.criu_set_service_binary(sys.argv[1].encode()) == 0
        tell(lib.criu_check())
        """
    for not_criu in ("/bin/true", "/nonexistent/criu"):
        assert run(program, not_criu) == [-errno.ECOMM]
    with pytest.raises(WorkerDiedError):
        pycriu_native.check(via=pycriu_native.Worker(program="/bin/true"))
    with pytest.raises(ProgramNotFoundError):
        pycriu_native.check(via=pycriu_native.Worker(program="/nonexistent/criu"))


@pytest.mark.parametrize(
    ("answer", "code", "ours"),
    [
        ("0803 1001", 0, None),
        ("0803 1000", -errno.EBADE, CriuError),
        ("0803 1000 3826", -errno.EBADE, CriuError),
        ("0800 1000", -errno.EINVAL, CriuError),
        ("0801 1001", -errno.EBADMSG, ProtocolError),
    ],
    ids=["yes", "no", "no, with an errno", "an empty no", "an answer to another request"],
)
def test_the_table(answer: str, code: int, ours: type[CriuError] | None) -> None:
    """Each response to a check and its return value: the table, row by row.

    A CRIU without the request type (-EINVAL) and a response of another type (-EBADMSG) are
    scripted: no supported release of CRIU does either.
    """
    program = """
        assert lib.criu_init_opts() == 0
        service, requests = scripted(sys.argv[1])
        lib.criu_set_service_fd(service)
        tell(lib.criu_check(), ffi.errno, requests())
        """
    message, hint, requests = run(program, answer)
    assert message == code
    assert requests == [3]  # one check
    if "38" in answer:
        assert hint == 0x26
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.send(bytes.fromhex(answer))
        if ours is None:
            pycriu_native.check(via=Socket(there))
            return
        with pytest.raises(ours) as caught:
            pycriu_native.check(via=Socket(there))
    if ours is CriuError:
        assert type(caught.value) is CriuError
        assert caught.value.code == code
        assert caught.value.errno == (0x26 if "38" in answer else 0)


def test_check() -> None:
    """``criu_check`` returns 0 if CRIU works, and ``check`` raises no exception.

    libcriu's request has no options, on which CRIU before 4.2 crashes; that of this library has
    options.
    """
    pycriu_native.check()
    expected = [0] if releases.has("4.2") else [-52]
    assert run("begin(); tell(lib.criu_check())") == expected


# ---- notifications ----

HEARS = """
    received = []

    @ffi.def_extern()
    def on_notify(action, argument):
        received.append([ffi.string(action).decode(), lib.criu_notify_pid(argument)])
        return 0
    """


def test_notifications(spawn: Spawn, images: Path) -> None:
    """Callback and hook get the same notifications; ``criu_notify_pid`` is 0 where the hook gets
    None. (A restored process has a separate time namespace for its clocks, so its next restore sets
    up namespaces.)
    """
    target = spawn()
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    restore(opts)
    message: list[Notification] = []

    def ours() -> list[list[object]]:
        received = [[str(one.action), one.pid or 0] for one in message]
        message.clear()
        return received

    dump(target.pid, opts, on_notify=message.append)
    dumped = ours()
    restore(opts, on_notify=message.append)
    restored = ours()
    assert dumped[0] == ["pre-dump", 0]
    assert ["setup-namespaces", target.pid] in restored
    assert ["post-restore", target.pid] in restored

    program = f"""{HEARS}
    begin(sys.argv[2], sys.argv[3] if sys.argv[1] == "dump" else None)
    lib.criu_set_notify_cb(lib.on_notify)
    result = getattr(lib, "criu_" + sys.argv[1])()
    tell(result, received, lib.criu_get_orphan_pts_master_fd())
    """
    assert run(program, "dump", images, target.pid) == [0, dumped, -1]
    target.until_free()
    assert run(program, "restore", images, target.pid) == [target.pid, restored, -1]
    assert target.runs_on()


@pytest.mark.parametrize("answer", [-errno.ECANCELED, -1, 7])
def test_a_refusing_callback(spawn: Spawn, images: Path, answer: int) -> None:
    """A callback that returns non-zero undoes the dump; ``criu_dump`` returns the same value."""
    target = spawn()
    program = """
        @ffi.def_extern()
        def on_notify(action, argument):
            return int(sys.argv[3]) if ffi.string(action) == b"post-dump" else 0

        begin(sys.argv[1], sys.argv[2])
        lib.criu_set_notify_cb(lib.on_notify)
        tell(lib.criu_dump())
        """
    assert run(program, images, target.pid, answer) == [answer]
    eventually(lambda: state(target.pid) in "RS", "the undoing")
    assert target.runs_on()


def test_the_master_of_an_orphaned_pty(tmp_path: Path, images: Path) -> None:
    """-1 before one is received; from ``orphan-pts-master`` on, the descriptor of the pty."""
    with container(tmp_path / "box", ON_A_TERMINAL) as box:
        master = taken_from(box.pid, box.ask("master"))
        try:
            box.ask("leave")
            opts = CriuOpts(
                images_directory=images, external=box.given_on_dump, orphan_pts_master=True
            )
            dump(box.pid, opts)
        finally:
            os.close(master)
        box.reap()
        program = """
            masters = {}

            @ffi.def_extern()
            def on_notify(action, argument):
                masters[ffi.string(action).decode()] = lib.criu_get_orphan_pts_master_fd()
                return 0

            begin(sys.argv[1])
            assert lib.criu_set_root(sys.argv[2].encode()) == 0
            lib.criu_set_orphan_pts_master(True)
            for key in sys.argv[3:]:
                assert lib.criu_add_external(key.encode()) == 0
            lib.criu_set_notify_cb(lib.on_notify)
            pid = lib.criu_restore()
            master = lib.criu_get_orphan_pts_master_fd()
            os.write(master, b"typed\\n")
            tell(pid, masters["pre-restore"], masters["orphan-pts-master"] == master > 2)
            sys.stdout.flush()
            sys.stdin.read()
            """
        holder = subprocess.Popen(
            words(program, images, box.root, *box.given_on_restore),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=environment(),
        )
        with holder:
            assert holder.stdout is not None
            box.pid, before, came = json.loads(holder.stdout.readline())
            assert (before, came) == (-1, True)
            assert box.ask("hear") == "typed\n"


# ---- versions ----


def test_version() -> None:
    """(major * 10000) + (minor * 100) + sublevel of the program, as ``version().number``."""
    version = pycriu_native.version()
    [number] = run("begin(); tell(lib.criu_get_version())")
    assert number == version.number
    if version.git is None:
        assert number == version.major * 10000 + version.minor * 100 + version.sublevel


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        # type 10, success, version 4.2, 4.2.1, and 4.2.1 with a git description
        ("080a 1001 5204 0804 1002", 40200),
        ("080a 1001 5206 0804 1002 2001", 40201),
        ("080a 1001 520b 0804 1002 1a03763432 2001", 40300),
    ],
    ids=["4.2", "4.2.1", "4.2.1 from git"],
)
def test_the_format_of_versions(answer: str, number: int) -> None:
    """A build "from a git checkout" counts as the next minor, in C and in Python."""
    program = """
        assert lib.criu_init_opts() == 0
        service, requests = scripted(sys.argv[1])
        lib.criu_set_service_fd(service)
        tell(lib.criu_get_version(), requests())
        """
    assert run(program, answer) == [number, [10]]
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.send(bytes.fromhex(answer))
        assert pycriu_native.version(via=Socket(there)).number == number


def test_check_version() -> None:
    """1 if CRIU is at least the minimum, 0 if it is too old; this library compares versions."""
    number = pycriu_native.version().number
    minima = [0, number - 1, number, number + 1, 2**31 - 1]
    message = run("begin(); tell(*[lib.criu_check_version(int(m)) for m in sys.argv[1:]])", *minima)
    assert message == [1, 1, 1, 0, 0]


# ---- features ----


def test_feature_check() -> None:
    """Requested features are false if missing, true if available, as in ``feature_check``."""
    program = """
        begin()
        results = []
        for requested in ([1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]):
            features = ffi.new("struct criu_feature_check *", requested)
            assert lib.criu_feature_check(features, 3) == 0
            results.append([features.mem_track, features.lazy_pages, features.pidfd_store])
        tell(*results)
        """
    ours = pycriu_native.feature_check()
    here = [ours.mem_track, ours.lazy_pages, ours.pidfd_store]
    everything, nothing, *each = run(program)
    assert everything == here
    assert nothing == [False, False, False]
    for number, message in enumerate(each):
        assert message == [have and at == number for at, have in enumerate(here)]


def test_a_feature_check_that_fails() -> None:
    """Only a successful check changes the structure, so callers read the return value first.

    A structure larger than libcriu's own and a null pointer are refused; the header does not
    define the return value.
    """
    program = """
        assert lib.criu_init_opts() == 0
        service, requests = scripted("0809 1000")
        lib.criu_set_service_fd(service)
        features = ffi.new("struct criu_feature_check *", [1, 1, 1, 1])
        failed = lib.criu_feature_check(features, 3)
        begin()
        tell(
            failed, features.mem_track, features.lazy_pages,
            lib.criu_feature_check(features, 64), lib.criu_feature_check(ffi.NULL, 3),
        )
        """
    assert run(program) == [-errno.EBADE, True, True, -1, -1]


# ---- joining namespaces ----


@pytest.fixture
def other_uts() -> Iterator[int]:
    """A process in a separate UTS namespace."""
    process = subprocess.Popen(
        ["unshare", "--uts", "sleep", "infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        mine = os.readlink("/proc/self/ns/uts")
        eventually(lambda: os.readlink(f"/proc/{process.pid}/ns/uts") != mine, "its namespace")
        yield process.pid
    finally:
        kill(process.pid)
        process.wait()


@pytest.mark.parametrize("by", ["file", "pid"])
def test_join_ns(spawn: Spawn, images: Path, other_uts: int, by: str) -> None:
    """``criu_join_ns_add``: the restored process is in that namespace; join_ns does the same."""
    if by == "pid" and other_uts > 65535:
        pytest.skip("CRIU accepts pids up to 65535 in join_ns, and this machine gives larger ones")
    target = spawn(prefix=("unshare", "--uts"))
    uts = f"/proc/{target.pid}/ns/uts"
    where = f"/proc/{other_uts}/ns/uts" if by == "file" else str(other_uts)
    expected = os.readlink(f"/proc/{other_uts}/ns/uts")
    assert os.readlink(uts) not in (expected, os.readlink("/proc/self/ns/uts"))
    run("begin(sys.argv[1], sys.argv[2]); tell(lib.criu_dump())", images, target.pid)
    target.reap()

    program = """
        begin(sys.argv[1])
        added = lib.criu_join_ns_add(b"uts", sys.argv[2].encode(), ffi.NULL)
        tell(added, lib.criu_restore())
        """
    assert run(program, images, where) == [0, target.pid]
    assert os.readlink(uts) == expected
    target.end()
    target.until_free()

    restore(CriuOpts(images_directory=images, join_ns=[("uts", where)]))
    assert os.readlink(uts) == expected
    target.end()
    target.until_free()

    restore(CriuOpts(images_directory=images))
    assert os.readlink(uts) != expected


# ---- self-dump ----

SELF = """
    import time
    here = sys.argv[1]
    begin(os.path.join(here, "images"))
    lib.criu_set_leave_running(True)
    result = lib.criu_dump()
    with open(os.path.join(here, f"returned-{result}.partial"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, file.name.removesuffix(".partial"))
    while result == 1 and not os.path.exists(os.path.join(here, "end")):
        time.sleep(0.01)
    tell(result)
    """


def test_self_dump(orphans: None, tmp_path: Path) -> None:
    """Without a pid the caller is dumped: 0 in the original, 1 in the restored copy.

    ``restore`` restores the images; ``DumpResult.restored`` corresponds to 1. (Not in the header:
    the process through which libcriu detaches CRIU stays a zombie in the caller's session; the
    number is free once that is reaped too.)
    """
    process = subprocess.Popen(
        words(SELF, tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment(),
        start_new_session=True,
    )
    try:
        assert process.wait() == 0
        reap_all()
        assert (tmp_path / "returned-0").read_text() == str(process.pid)
        assert not (tmp_path / "returned-1").exists()
        assert restore(CriuOpts(images_directory=tmp_path / "images")).pid == process.pid
        copy = tmp_path / "returned-1"
        eventually(copy.exists, "the return in the copy")
        assert copy.read_text() == str(process.pid)
        (tmp_path / "end").touch()
        eventually(lambda: not is_alive(process.pid), "the copy's end")
    finally:
        (tmp_path / "end").touch()
        kill(process.pid)


# ---- iterations ----

MORE = """
    answers = [int(word) for word in sys.argv[1].split(",")]
    infos = []

    @ffi.def_extern()
    def on_more(info):
        infos.append(info == ffi.NULL)
        return answers[len(infos) - 1]
    """


@pytest.mark.parametrize("verb", ["criu_dump_iters", "criu_local_dump_iters"])
def test_iterations_need_a_process_and_a_callback(verb: str) -> None:
    """-EINVAL for a self-dump and for a missing callback; no process is started."""
    program = f"""{MORE}
    begin()
    handle = ffi.new("criu_opts **")
    lib.criu_local_init_opts(handle)
    own = (handle[0],) if "local" in {verb!r} else ()
    no_pid = lib.{verb}(*own, lib.on_more)
    lib.criu_set_pid(1); lib.criu_local_set_pid(handle[0], 1)
    tell(no_pid, lib.{verb}(*own, ffi.NULL), infos)
    """
    assert run(program, "0") == [-errno.EINVAL, -errno.EINVAL, []]


@pytest.mark.parametrize(
    ("answers", "result", "requests"),
    [
        ([0], 0, [4, 1]),  # a pre-dump, the final dump
        ([1, 5, 0], 0, [4, 4, 4, 1]),
        ([1, -42], -42, [4, 4]),
    ],
    ids=["zero", "positive", "negative"],
)
def test_the_callback_decides(answers: list[int], result: int, requests: list[int]) -> None:
    """Positive: one more iteration. Zero: the final dump. Negative: abort, and the return value.

    A scripted CRIU accepts every request, so no kernel feature is needed.
    """
    program = f"""{MORE}
    assert lib.criu_init_opts() == 0
    lib.criu_set_pid(1)
    service, requests = scripted(*["0804 1001"] * len(answers), "0801 1001 1a00")
    lib.criu_set_service_fd(service)
    tell(lib.criu_dump_iters(lib.on_more), infos, requests())
    """
    message = run(program, ",".join(map(str, answers)))
    assert message == [result, [True] * len(answers), requests]


def test_an_iteration_that_fails(images: Path) -> None:
    """A failed iteration returns -EBADE without a call of the callback."""
    program = f"""{MORE}
    begin(sys.argv[2], sys.argv[3])
    tell(lib.criu_dump_iters(lib.on_more), infos)
    """
    assert run(program, "0", images, free_pid()) == [-errno.EBADE, []]


@needs_soft_dirty
def test_iterations(spawn: Spawn, tmp_path: Path) -> None:
    """Two iterations and a final dump; the callback sets the directory of the next step."""
    target = spawn()
    program = """
        here, number = sys.argv[1], 1

        def directory():
            path = os.path.join(here, str(number))
            os.mkdir(path)
            lib.criu_set_images_dir_fd(os.open(path, os.O_RDONLY))

        @ffi.def_extern()
        def on_more(info):
            global number
            lib.criu_set_parent_images(f"../{number}".encode())
            number += 1
            directory()
            return number < 3

        begin(pid=sys.argv[2])
        directory()
        tell(lib.criu_dump_iters(lib.on_more), number)
        """
    assert run(program, tmp_path, target.pid) == [0, 3]
    target.reap()
    assert restore(CriuOpts(images_directory=tmp_path / "3")).pid == target.pid
    assert target.runs_on()


# ---- restoring as a child ----


@pytest.mark.parametrize("service", ["binary", "PATH"])
def test_restore_child(spawn: Spawn, images: Path, service: str) -> None:
    """``criu_restore_child`` makes a child of the caller; ``waitpid`` returns its exit status.

    Without a program it runs ``criu`` from PATH.
    """
    target = spawn("import os\nserve(exit=lambda: os._exit(42))")
    target.dump(CriuOpts(images_directory=images))
    program = """
        if sys.argv[2] == "PATH":
            from pycriu_native import Worker
            os.environ["PATH"] = os.path.dirname(Worker().name()) + ":" + os.environ["PATH"]
            assert lib.criu_init_opts() == 0
            lib.criu_set_images_dir_fd(os.open(sys.argv[1], os.O_RDONLY))
        else:
            begin(sys.argv[1])
        pid = lib.criu_restore_child()
        with open(f"/proc/{pid}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
        with open(sys.argv[3] + ".partial", "w") as file:
            file.write('[0, "exit"]')
        os.rename(file.name, sys.argv[3])
        ended, status = os.waitpid(pid, 0)
        tell(pid, parent == os.getpid(), ended, os.waitstatus_to_exitcode(status))
        """
    message = run(program, images, service, target.directory / "request")
    assert message == [target.pid, True, target.pid, 42]


def test_restore_is_no_child(spawn: Spawn, images: Path) -> None:
    """``criu_restore`` creates no child: ``waitpid`` fails, as after ``restore``."""
    target = spawn()
    target.dump(CriuOpts(images_directory=images))
    program = """
        begin(sys.argv[1])
        pid = lib.criu_restore()
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            tell(pid)
        """
    assert run(program, images) == [target.pid]
    assert target.runs_on()

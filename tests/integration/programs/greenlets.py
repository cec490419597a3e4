"""Runs each verb under gevent's or eventlet's patches, then checks the signal mask.

Usage: ``greenlets.py {gevent,eventlet} {before,after} FAMILY DIRECTORY``; prints ``fine``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PATCHER, WHEN, FAMILY, DIRECTORY = sys.argv[1:]
warnings.simplefilter("ignore")


def _replace() -> Any:
    if PATCHER == "gevent":
        from gevent import monkey

        monkey.patch_all()
        return monkey
    import eventlet

    eventlet.monkey_patch()
    return eventlet


if WHEN == "before":
    _replace()
import pycriu_native as criu  # noqa: E402
from pycriu_native import CriuOpts  # noqa: E402

if WHEN == "after":
    criu.preload()  # what modules take from others when they are loaded is not replaced
    _replace()

started: list[subprocess.Popen[bytes]] = []


def _target() -> int:
    null = subprocess.DEVNULL
    started.append(
        subprocess.Popen(
            ["sleep", "600"], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
    )
    return started[-1].pid


def _options(**more: Any) -> CriuOpts:
    images = Path(DIRECTORY, str(len(os.listdir(DIRECTORY))))
    images.mkdir()
    return CriuOpts(images_directory=images, **more)


def _dumped(**more: Any) -> CriuOpts:
    opts = _options()
    criu.dump(_target(), opts, **more)
    started.pop().wait()
    return opts


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def dump_and_restore() -> None:
    """With a hook, a deadline and progress; a restore, and one of a child."""
    received: list[object] = []
    opts = _dumped(on_notify=lambda n: received.append(n.action), deadline=60)
    assert received
    _end(criu.restore(opts, deadline=60, on_progress=lambda _: None).pid)
    child = criu.restore_child(_dumped())
    _end(child.pid)
    assert child.wait(30) == -signal.SIGKILL


def refused() -> None:
    """A hook refuses; the process continues."""
    pid = _target()

    def refuse(notification: object) -> None:
        raise RuntimeError("refused")

    try:
        criu.dump(pid, _options(), on_notify=refuse)
    except RuntimeError as error:
        if str(error) != "refused":
            raise
    else:
        raise AssertionError("not refused")
    assert started[-1].poll() is None


def failed_child() -> None:
    """A child that a failed restore made is reaped; the next restore finds its pid free."""
    opts = _dumped()

    def refuse(notification: criu.Notification) -> None:
        if notification.action is criu.Notify.POST_RESTORE:
            raise RuntimeError("refused")

    try:
        criu.restore_child(opts, on_notify=refuse)
    except RuntimeError:
        child = criu.restore_child(opts)
    else:
        raise AssertionError("not refused")
    _end(child.pid)
    assert child.wait(30) == -signal.SIGKILL


def by_pidfd() -> None:
    """The process is named by a pidfd."""
    fd = os.pidfd_open(_target())
    criu.dump(criu.Pidfd(fd), _options())
    os.close(fd)
    started.pop().wait()


def interrupted() -> None:
    """Ctrl-C during a hook is raised after the dump is undone."""
    pid = _target()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the process inherited
    try:
        criu.dump(pid, _options(), on_notify=lambda _: os.kill(os.getpid(), signal.SIGINT))
    except KeyboardInterrupt:
        assert started[-1].poll() is None
    else:
        raise AssertionError("not interrupted")


def warm_workers() -> None:
    """Several calls on one pool."""
    with criu.WorkerPool(2) as pool:
        for _ in range(3):
            _end(criu.restore(_dumped(via=pool), via=pool).pid)


def batch() -> None:
    """Several dumps in parallel."""
    pids = [_target() for _ in range(4)]
    finished = criu.dump_many(pids, lambda _: _options(leave_running=True))
    assert [each.error for each in finished] == [None] * 4


def page_server() -> None:
    """A child that receives the pages of a dump."""
    opts = _options(page_server=criu.PageServer("127.0.0.1", 0))
    with criu.page_server_child(opts) as server:
        address = criu.PageServer("127.0.0.1", server.result.port)
        criu.dump(_target(), CriuOpts(images_directory=opts.images_directory, page_server=address))
        assert server.wait(30) == 0
    started.pop().wait()


def asynchronous() -> None:
    """asyncio's verbs; the loop is asyncio's own."""
    from pycriu_native import aio

    opts = _options()

    async def work() -> int:
        await aio.dump(_target(), opts)
        started.pop().wait()
        return (await aio.restore(opts)).pid

    _end(asyncio.run(work()))


def judged() -> None:
    """The checks before a call."""
    pid = _target()
    assert criu.preflight(pid).verdict
    assert str(criu.doctor())


def cooperative() -> None:
    """A call in the hub's thread pool does not block other greenlets."""
    ticks: list[int] = []

    def tick(sleep: Callable[[float], object]) -> None:
        for _ in range(5):
            ticks.append(1)
            sleep(0.001)

    opts = _options()
    pid = _target()
    if PATCHER == "gevent":
        import gevent

        ticker = gevent.spawn(tick, gevent.sleep)
        gevent.get_hub().threadpool.apply(criu.dump, (pid, opts))
        ticker.join()
    else:
        import eventlet
        from eventlet import tpool

        eventlet.spawn(tick, eventlet.sleep)
        tpool.execute(criu.dump, pid, opts)
        tpool.killall()  # it has separate sockets
    started.pop().wait()
    assert ticks


def lazy_pages() -> None:
    """A restore with memory from a daemon."""
    opts = _dumped()
    with criu.LazyPages(opts) as daemon:
        pid = criu.restore(replace(opts, lazy_pages=True)).pid
        assert daemon.wait(60) == 0
    _end(pid)


def stream() -> None:
    """A dump into a stream that fails, one that works, and a restore from it."""
    from pycriu_native.archive.streaming import dump_stream, restore_stream

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                raise OSError(errno.ENOSPC, "full")
            return super().write(data)

    via = criu.Worker(program=os.environ["NEWEST_CRIU"])
    pid = _target()
    try:
        dump_stream(pid, CriuOpts(), Full(), via=via)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    assert started[-1].poll() is None
    to = io.BytesIO()
    dump_stream(pid, CriuOpts(), to, via=via, deadline=60)
    started.pop().wait()
    to.seek(0)
    _end(restore_stream(CriuOpts(), to, via=via, deadline=60).pid)


def lazy_dump() -> None:
    """A dump that serves its memory is refused; pages of images are served to a daemon."""
    pid = _target()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = criu.PageServer("127.0.0.1", probe.getsockname()[1])

    def refuse(notification: criu.Notification) -> None:
        if notification.action is criu.Notify.STATUS_READY:
            raise RuntimeError("refused")

    try:
        criu.dump(pid, _options(lazy_pages=True, page_server=address), on_notify=refuse)
    except RuntimeError as error:
        if str(error) != "refused":
            raise
    assert started[-1].poll() is None
    opts = _dumped()
    served = replace(opts, lazy_pages=True, page_server=criu.PageServer("127.0.0.1", 0))
    with criu.page_server_child(served) as server:
        address = criu.PageServer("127.0.0.1", server.result.port)
        with criu.LazyPages(replace(opts, page_server=address)) as daemon:
            restored = criu.restore(replace(opts, lazy_pages=True)).pid
            assert daemon.wait(60) == 0
        assert server.wait(60) == 0
    _end(restored)


def snapshot() -> None:
    """Taken, started, its input and output, copies of a zygote; a ``Popen`` is taken and reaped."""
    from pycriu_native.snapshots import Snapshot

    _target()
    with Snapshot.take(started[-1], Path(DIRECTORY, "process"), without_guest=True):
        assert started.pop().wait(60) == -signal.SIGKILL
    program = "from pycriu_native import guest; guest.wait(); print(input())"
    pipe = subprocess.PIPE
    place = Path(DIRECTORY, "snapshot")
    with Snapshot.take([sys.executable, "-c", program], place) as taken:
        for _ in range(2):
            copy = taken.start(stdin=pipe, stdout=pipe, text=True)
            assert copy.communicate("word\n", timeout=60) == ("word\n", None)
            assert copy.returncode == 0
        with taken.zygote() as zygote:
            copy = zygote.start(stdin=pipe, stdout=pipe, text=True)
            assert copy.communicate("word\n", timeout=60) == ("word\n", None)
            copy = zygote.start(stdin=pipe)
            copy.kill()
            assert copy.wait(60) == -signal.SIGKILL


def _waiting() -> Any:
    """A snapshot of a program that waits."""
    from pycriu_native.snapshots import Snapshot

    program = "from pycriu_native import guest; guest.wait(); input()"
    return Snapshot.take([sys.executable, "-c", program], Path(DIRECTORY, "waiting"))


def interrupted_start() -> None:
    """Ctrl-C in the middle of a start is raised after the start is undone."""
    from pycriu_native.snapshots import namespaces

    original = namespaces.Namespaces.open

    def interrupting(self: namespaces.Namespaces, kind: str) -> int:
        result = original(self, kind)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _waiting() as taken:
        namespaces.Namespaces.open = interrupting  # type: ignore[method-assign]
        try:
            taken.start(stdin=subprocess.PIPE)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        finally:
            namespaces.Namespaces.open = original  # type: ignore[method-assign]
        with taken.start(stdin=subprocess.PIPE) as copy:
            copy.kill()


def interrupted_take() -> None:
    """Ctrl-C while a program that is to be saved starts ends it."""
    from pycriu_native.snapshots import Snapshot, parked

    original = parked.ParkedProgram.wait_until_parked
    pids = []

    def interrupting(self: parked.ParkedProgram, until: float | None) -> None:
        pids.append(self.process.pid)
        os.kill(os.getpid(), signal.SIGINT)
        original(self, until)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    parked.ParkedProgram.wait_until_parked = interrupting  # type: ignore[method-assign]
    place = Path(DIRECTORY, "interrupted")
    try:
        Snapshot.take(["sleep", "600"], place)
    except KeyboardInterrupt:
        assert not place.exists()
        assert not os.path.exists(f"/proc/{pids[0]}")
    else:
        raise AssertionError("not interrupted")
    finally:
        parked.ParkedProgram.wait_until_parked = original  # type: ignore[method-assign]
    with _waiting() as taken, taken.start(stdin=subprocess.PIPE) as copy:
        copy.kill()


def _loops() -> int:
    return sum("[event" in link for link in _links())


def event_loops() -> None:
    """No call leaves the event loop of its thread."""
    gc.disable()
    loops = []
    with _waiting() as taken:
        for _ in range(3):
            child = criu.restore_child(_dumped())
            _end(child.pid)
            child.wait(30)
            for share_memory in (False, True):
                with taken.start(stdin=subprocess.PIPE, share_memory=share_memory) as copy:
                    copy.kill()
            with taken.zygote() as zygote, zygote.start(stdin=subprocess.PIPE) as copy:
                copy.kill()
            loops.append(_loops())
    assert loops[2] == loops[0], loops


def jobs() -> None:
    """A job that ends, and one that is stopped for a checkpoint and resumed."""
    from pycriu_native.jobs import Job

    work = Path(DIRECTORY, "job")
    result = Job(work, ["sh", "-c", "exit 3"]).run()
    assert result.exit_code == 3, result


def _with_tls(name: str) -> CriuOpts:
    """Options with the certificate of this name, if the test has made one."""
    place = Path(DIRECTORY, "ca")
    if not place.exists():
        return CriuOpts()
    pem, key = place / f"{name}.pem", place / f"{name}.key"
    return CriuOpts(tls=True, tls_cacert=place / "ca.pem", tls_cert=pem, tls_key=key)


def migrate() -> None:
    """To a patched destination in a separate pid namespace, in two modes."""
    for mode in ("stop-and-copy", "post-copy"):
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["--propagation", "private", sys.executable, __file__]
        destination = subprocess.Popen(
            [*command, PATCHER, WHEN, "receive", DIRECTORY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert destination.stdin is not None
        assert destination.stdout is not None
        try:
            port = int(destination.stdout.readline())
            pid = _target()
            result = criu.migrate_out(
                pid, _with_tls("source"), to=("127.0.0.1", port), mode=mode, deadline=60
            )
            assert result.pid == pid
            started.pop().wait()
            destination.stdin.close()
            assert destination.stdout.readlines() == [b"fine\n"]
            assert destination.wait() == 0
        finally:
            destination.kill()
            destination.wait()


migrate_with_tls = migrate


def receive() -> None:
    """The destination of ``migrate``, which listens on a patched socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        result = criu.migrate_in(_with_tls("destination"), listen=listener, deadline=60)
    sys.stdin.read()
    _end(result.pid)


def _mask() -> str:
    return next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "SigBlk" in line
    )


def _links() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory itself
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return links


def _open() -> list[str]:
    """The open descriptors, without those of an event loop."""
    kinds = (link.partition(":[")[0] for link in _links() if "[event" not in link)
    return sorted(kinds)


before = _mask()
opened = _open()
try:
    globals()[FAMILY]()
    assert _mask() == before, "the signal mask has changed"
    until = time.monotonic() + 60
    while _open() != opened and time.monotonic() < until:
        time.sleep(0.01)  # the loop closes what the standard library has closed
    assert _open() == opened, (_open(), opened)
finally:
    for process in started:
        process.kill()
        process.wait()
print("fine")

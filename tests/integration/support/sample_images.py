"""Images of processes with many kinds of objects, for tests that read images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycriu_native import CriuOpts, dump

from .containers import container
from .processes import start

SCENARIO = """
    import array, ctypes, fcntl, mmap, os, resource, select, signal, socket, struct, sys
    import tempfile, termios, threading, time

    libc = ctypes.CDLL(None, use_errno=True)
    kept = []

    # Memory of each kind.
    secret = bytearray(b"the-secret-" + bytes(range(256)) * 64)
    secret_at = ctypes.addressof((ctypes.c_char * len(secret)).from_buffer(secret))
    untouched = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    guarded = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    guards = []
    try:
        guarded.madvise(102, mmap.PAGESIZE, mmap.PAGESIZE)  # MADV_GUARD_INSTALL, Linux 6.13
        at = ctypes.addressof((ctypes.c_char * len(guarded)).from_buffer(guarded))
        guards.append((at + mmap.PAGESIZE, at + 2 * mmap.PAGESIZE))
    except OSError: pass
    shared = mmap.mmap(-1, 1 << 18)
    shared[100_000:100_013] = b"shared-secret"
    (HERE / "mapped").write_bytes(b"on the disk " * 2000)
    mapped_file = open(HERE / "mapped", "r+b")
    private = mmap.mmap(mapped_file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    private[4096:4108] = b"not on disk!"
    of_file = mmap.mmap(mapped_file.fileno(), 0, flags=mmap.MAP_SHARED)
    memfd = os.memfd_create("some-memory")
    os.write(memfd, b"in the memfd" * 1000)
    of_memfd = mmap.mmap(memfd, 12000)

    # Files.
    log = open(HERE / "log", "w+b", buffering=0)
    log.write(b"0123456789" * 100); log.seek(321)
    ghost = open(HERE / "ghost", "w+b", buffering=0)
    ghost.write(b"a deleted file" * 500); os.unlink(HERE / "ghost")
    holes = open(HERE / "holes", "w+b", buffering=0)
    for place in (0, 1 << 16, 1 << 18):
        holes.seek(place); holes.write(b"an island")
    os.unlink(HERE / "holes")
    odd = open(os.fsencode(HERE) + b"/\\xff\\xfename", "w")
    directory = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    locked = open(HERE / "locked", "w")
    fcntl.lockf(locked, fcntl.LOCK_EX, 10, 5)
    flocked = open(HERE / "flocked", "w")
    fcntl.flock(flocked, fcntl.LOCK_SH)

    # Pipes.
    reader, writer = os.pipe()
    os.write(writer, b"still in the pipe")
    os.mkfifo(HERE / "fifo")
    fifo = os.open(HERE / "fifo", os.O_RDWR)
    os.write(fifo, b"in the fifo")

    # Sockets.
    server = socket.create_server(("127.0.0.1", 0), backlog=7)
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.send(b"unread bytes"); time.sleep(0.05)
    server6 = socket.create_server(("::1", 0), family=socket.AF_INET6)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
    one, two = socket.socketpair(); one.send(b"through a pair")
    dgrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    dgrams[0].send(b"first"); dgrams[0].send(b"second datagram")
    named = socket.socket(socket.AF_UNIX); named.bind(str(HERE / "named")); named.listen(3)
    abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0sample-" + os.urandom(4).hex())
    abstract.listen()
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); netlink.bind((0, 0))
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)

    # Descriptors of other kinds.
    event = os.eventfd(42)
    poll = select.epoll(); poll.register(reader, select.EPOLLIN)
    timer = libc.timerfd_create(1, 0)
    libc.timerfd_settime(timer, 0, struct.pack("4q", 7, 0, 3000, 500), None)
    signals = libc.signalfd(-1, struct.pack("Q", 1 << 11), 8)
    watch = libc.inotify_init1(0); libc.inotify_add_watch(watch, os.fsencode(HERE), 2)
    master, slave = os.openpty()
    os.write(slave, b"shown"); os.write(master, b"typed\\n")

    # The process itself.
    libc.prctl(15, b"sample")
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (1000, 2000))
    signal.setitimer(signal.ITIMER_REAL, 5000, 60)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)
    stop = threading.Event()
    for _ in range(3): threading.Thread(target=stop.wait, daemon=True).start()

    def forked(body):
        pid = os.fork()
        if pid == 0:
            try: body()
            finally: os._exit(3)
        return pid

    def sleeps():
        while True: time.sleep(0.01)
    child = forked(lambda: (forked(sleeps), sleeps()))
    stopped = forked(lambda: (os.kill(os.getpid(), signal.SIGSTOP), sleeps()))
    zombie = forked(lambda: None)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    os.waitpid(stopped, os.WUNTRACED)
    time.sleep(0.05)

    def descendants(pid):
        found = [pid]
        for each in found:
            for task in os.listdir(f"/proc/{each}/task"):
                found += map(int, open(f"/proc/{each}/task/{task}/children").read().split())
        return found

    def change():
        secret[:10] = b"THE-SECRET"
        untouched[:4096] = b"x" * 4096
        os.read(reader, 5)
        log.seek(11)
        kept.append(os.open(HERE / "log", os.O_RDONLY))
        os.close(event)
        stop.set()

    serve(
        facts=lambda: dict(
            secret=secret_at, child=child, stopped=stopped, zombie=zombie,
            tree=descendants(os.getpid()),
            guards=guards,
            threads=[open(f"/proc/self/task/{tid}/comm").read().strip()
                     for tid in sorted(map(int, os.listdir("/proc/self/task")))],
            server=server.getsockname()[1], client=client.getsockname()[1], cmdline=open(
                "/proc/self/cmdline", "rb").read().decode().split("\\0")[:-1],
            fds={name: one if isinstance(one, int) else one.fileno() for name, one in dict(
                log=log, ghost=ghost, holes=holes, reader=reader, writer=writer, fifo=fifo,
                server=server, client=client, accepted=accepted, server6=server6, udp=udp, one=one,
                two=two, named=named, abstract=abstract, event=event, timer=timer, slave=slave,
                memfd=memfd, odd=odd).items()},
            maps=[line.split()[0] + " " + line.split()[1] for line in open("/proc/self/maps")],
        ),
        change=change,
        stop=stop.set,
    )
"""

INSIDE = """
    import ctypes, os, socket, struct, time
    libc = ctypes.CDLL(None, use_errno=True)

    # System V: a segment, semaphores, and a queue with two messages.
    segment = libc.shmget(0x1234, 10000, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(segment, None, 0)
    ctypes.memmove(at, b"in the segment", 14)
    semaphores = libc.semget(0x99, 3, 0o1600)
    for number in range(3): libc.semctl(semaphores, number, 16, 10 + number)
    queue = libc.msgget(0x77, 0o1600)
    for text in (b"one message", b"and another one"):
        libc.msgsnd(queue, struct.pack("l", 5) + text, len(text), 0)

    os.makedirs("/scratch/deep", exist_ok=True)
    open("/scratch/deep/file", "w").write("in the tmpfs")
    opened = open("/scratch/deep/file")
    server = socket.socket(); server.bind(("0.0.0.0", 7073)); server.listen()
    serve(at=lambda: at)
"""


@dataclass
class SampleImages:
    """Images of the process, and its own report of its state."""

    images: Path
    pid: int
    facts: dict[str, Any]
    changed: Path
    """Later images of the same process, with changes."""
    home: Path


def make_sample(directory: Path) -> SampleImages:
    """Start the process, dump it, change it, dump it again, end it."""
    target = start(directory / "target", SCENARIO)
    try:
        facts = target.ask("facts")
        first = CriuOpts(
            images_directory=directory / "images",
            leave_running=True,
            tcp_established=True,
            file_locks=True,
            log_level=4,
        )
        dump(target.pid, first)
        target.ask("change")
        dump(target.pid, replace(first, images_directory=directory / "changed"))
    finally:
        target.end()
    return SampleImages(
        directory / "images", target.pid, facts, directory / "changed", target.directory
    )


@contextmanager
def contained(directory: Path) -> Iterator[tuple[Path, int]]:
    """Images of a container, and the address of its segment."""
    with container(directory / "box", INSIDE, mounts={"/scratch": "tmpfs"}) as box:
        at = box.ask("at")
        opts = CriuOpts(
            images_directory=directory / "images", external=box.given_on_dump, leave_running=True
        )
        dump(box.pid, opts)
        yield directory / "images", at

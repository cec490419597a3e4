"""After a restore that fails the file system is as it was before, and the next restore works.

CRIU makes names for what has none: deleted files, directories, pipes and sockets, and files under
another name. The process here has all of these, a connection, and a cgroup that the restore makes
again; it is harmed at each notification, and at random instants.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Notification, Notify, dump, restore

from .conftest import Spawn
from .containers import container
from .faults import DEADLINE, FAULTS
from .processes import Target, is_alive, kill, reap_all
from .test_faults_random import Striker, kill_workers
from .workers import workers

INSTANTS = int(os.environ.get("PYCRIU_NATIVE_INSTANTS", "12"))
"""How many random instants."""
SEED = int(os.environ.get("PYCRIU_NATIVE_SEED", "6"))

RESTORE = (
    Notify.PRE_RESTORE,
    Notify.SETUP_NAMESPACES,
    Notify.POST_SETUP_NAMESPACES,
    Notify.POST_RESTORE,
    Notify.PRE_RESUME,
    Notify.POST_RESUME,
)

NAMELESS = """
    import os, shutil, socket, subprocess
    from pathlib import Path

    if HERE == Path("/box"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    place = HERE / "place"
    place.mkdir()

    def text(name):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0123456789" * 500)
        return open(path, "r+")

    regular, below, beside = text("regular"), text("gone/deep/below"), text("taken")
    os.link(place / "taken", place / "other-name")
    for name in ("regular", "taken"):
        os.unlink(place / name)
    (place / "taken").write_text("somebody else's")
    os.mkdir(place / "directory")
    directory = os.open(place / "directory", os.O_RDONLY)
    os.rmdir(place / "directory")
    os.mkfifo(place / "fifo")
    fifo = os.open(place / "fifo", os.O_RDWR)
    os.unlink(place / "fifo")
    os.chdir(place)
    bound = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for one, name in zip(bound, ("bound", "unbound")):
        one.bind(str(place / name))
    os.unlink(place / "unbound")
    os.chdir("/")
    shutil.rmtree(place / "gone")
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()

    def whole():
        for file in (regular, below, beside):
            file.seek(0)
            assert file.read() == "0123456789" * 500, file
        assert os.listdir(directory) == []
        os.write(fifo, b"word")
        assert os.read(fifo, 10) == b"word"
        assert os.path.samestat(os.fstat(beside.fileno()), os.stat(place / "other-name"))
        client.sendall(b"word")
        assert accepted.recv(10) == b"word"
        return True

    serve(whole=whole)
"""


def entries(place: Path) -> dict[str, tuple[int, int, int]]:
    """What there is below a directory: type and permissions, owner, and size of each."""
    found = {}
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            path = os.path.relpath(os.path.join(directory, name), place)
            size = status.st_size if os.path.isfile(os.path.join(directory, name)) else 0
            found[path] = (status.st_mode, status.st_uid, size)
    return found


def temporary() -> set[str]:
    """CRIU's temporary directories."""
    return {
        os.path.join(place, name)
        for place in ("/tmp", "/")
        for name in os.listdir(place)
        if name.startswith((".criu.", "crtools-", "cr-tmpfs."))
    } | {path for path in ["/run/criu.kdat.tmp"] if os.path.exists(path)}


class Nameless:
    """The process, saved, and its surroundings as they are before a restore."""

    def __init__(self, target: Target, opts: CriuOpts, restoring: CriuOpts, place: Path) -> None:
        self.target = target
        self.place = place
        self.restoring = restoring
        assert target.ask("whole")
        dump(target.pid, opts)
        target.reap()
        self.before = self.look()
        self.images = sorted(os.listdir(str(opts.images_directory)))

    def look(self) -> object:
        mounts = Path("/proc/self/mountinfo").read_text().count(" /tmp/.criu.")
        return entries(self.place), temporary(), mounts

    def is_as_before(self) -> None:
        """Nothing of a failed restore is left."""
        assert not workers()
        assert self.look() == self.before
        assert "pycriu-native.links" not in os.listdir(str(self.restoring.images_directory))

    def restores(self) -> None:
        """The images restore; then the process ends."""
        self.target.pid = restore(self.restoring).pid
        self.ends()

    def ends(self) -> None:
        assert self.target.ask("whole")
        kill(self.target.pid)
        reap_all()


@pytest.fixture
def nameless(spawn: Spawn, images: Path, orphans: None) -> Nameless:
    """A process in our namespaces."""
    target = spawn(NAMELESS)
    opts = CriuOpts(
        images_directory=images, link_remap=True, tcp_established=True, network_lock="nftables"
    )
    return Nameless(target, opts, opts.only_for("restore"), target.directory / "place")


@pytest.fixture
def in_container(tmp_path: Path, images: Path) -> Iterator[Nameless]:
    """The same process in namespaces of its own."""
    with container(tmp_path / "box", NAMELESS) as box:
        opts = CriuOpts(images_directory=images, link_remap=True, tcp_established=True, log_level=4)
        saving = replace(opts, external=box.given_on_dump)
        restoring = replace(opts.only_for("restore"), external=box.given_on_restore, root=box.root)
        yield Nameless(box, saving, restoring, box.binds["/box"] / "place")


class Refused(Exception):
    """What a hook raises."""


def _refuse() -> None:
    raise Refused


DONE = {**FAULTS, "the hook refuses": _refuse}


def _harmed(subject: Nameless, what: str, moment: Notify) -> BaseException | None:
    """What a restore raises to which this is done at a notification."""

    def strike(notification: Notification) -> None:
        if notification.action is moment:
            DONE[what]()

    deadline = DEADLINE if "SIGSTOP" in what else None
    try:
        subject.target.pid = restore(subject.restoring, on_notify=strike, deadline=deadline).pid
    except (CriuError, Refused) as error:
        if hasattr(error, "result"):
            subject.target.pid = error.result.pid
            return None
        reap_all()
        return error
    return None


@pytest.mark.parametrize("moment", RESTORE)
@pytest.mark.parametrize("what", DONE)
def test_at_a_notification(nameless: Nameless, what: str, moment: Notify) -> None:
    """As before, and the images restore, twice."""
    if _harmed(nameless, what, moment) is None:
        nameless.ends()
    else:
        nameless.is_as_before()
    for _ in range(2):
        nameless.restores()


@pytest.mark.parametrize("moment", RESTORE)
@pytest.mark.parametrize("what", ["CRIU gets SIGKILL", "the hook refuses"])
def test_in_namespaces(in_container: Nameless, what: str, moment: Notify) -> None:
    """The same below the root of a container, whose files are in a mount from outside."""
    if _harmed(in_container, what, moment) is None:
        in_container.ends()
    else:
        in_container.is_as_before()
    for _ in range(2):
        in_container.restores()


def test_at_random_instants(nameless: Nameless) -> None:
    """Killed anywhere in a restore: as before, and the images restore."""
    chance = random.Random(SEED)
    opts = nameless.restoring = replace(nameless.restoring, log_level=4)
    log = Path(str(opts.images_directory)) / "restore.log"
    nameless.restores()
    size = log.stat().st_size
    kept = [name for name in os.listdir(str(opts.images_directory)) if name.endswith("links")]
    for _ in range(INSTANTS):
        log.unlink(missing_ok=True)
        strike = partial(kill_workers, signal.SIGKILL)
        striker = Striker(log, int(size * chance.random()), strike)
        error: BaseException | None = None
        try:
            nameless.target.pid = restore(opts).pid
        except CriuError as caught:
            error = caught
        finally:
            striker.stop()
        if error is None:
            nameless.ends()
        else:
            assert not is_alive(nameless.target.pid)
            reap_all()
            assert not workers()
            assert nameless.look() == nameless.before
            nameless.restores()
    assert kept == ["pycriu-native.links"]

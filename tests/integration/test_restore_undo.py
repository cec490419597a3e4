"""After a failed restore the file system is unchanged, and the next restore works.

CRIU creates names for deleted files, directories, pipes and sockets, and for files under another
name. The process here has all of these, a connection, and a cgroup that the restore creates again;
the restore is interrupted at each notification, and at random times.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    Notification,
    Notify,
    WorkerDiedError,
    dump,
    restore,
)
from pycriu_native.images import check_images

from .conftest import Spawn
from .faults.faults import DEADLINE, FAULTS
from .faults.test_faults_random import LogTrigger, kill_workers
from .support import cgroups
from .support.cgroups import Make
from .support.containers import container
from .support.hosts import cable, host
from .support.processes import Target, eventually, is_alive, kill, reap_all
from .support.streams import Stream, each_lock, needs_both, start_stream
from .support.workers import the_worker, workers

INSTANTS = int(os.environ.get("PYCRIU_NATIVE_INSTANTS", "12"))
"""The number of random times."""
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
    """The entries below a directory: type and permissions, owner, and size of each."""
    result = {}
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            path = os.path.relpath(os.path.join(directory, name), place)
            size = status.st_size if os.path.isfile(os.path.join(directory, name)) else 0
            result[path] = (status.st_mode, status.st_uid, size)
    return result


def temporary() -> set[str]:
    """CRIU's temporary directories."""
    return {
        os.path.join(place, name)
        for place in ("/tmp", "/")
        for name in os.listdir(place)
        if name.startswith((".criu.", "crtools-", "cr-tmpfs."))
    } | {path for path in ["/run/criu.kdat.tmp"] if os.path.exists(path)}


class Nameless:
    """The dumped process, and the state of its files before a restore."""

    def __init__(self, target: Target, opts: CriuOpts, restoring: CriuOpts, place: Path) -> None:
        self.target = target
        self.place = place
        self.restoring = restoring
        assert target.ask("whole")
        target.dump(opts)
        self.before = self.look()
        self.temporary = temporary()
        self.images = sorted(os.listdir(str(opts.images_directory)))

    def look(self) -> object:
        """Files, and the number of CRIU's mounts."""
        mounts = Path("/proc/self/mountinfo").read_text().count("/.criu.")
        return entries(self.place), mounts

    def is_clean(self) -> bool:
        """Whether the state is as before; other CRIU processes have temporary directories for a
        short time.
        """
        return self.look() == self.before and temporary() <= self.temporary

    def is_as_before(self) -> None:
        """Nothing of a failed restore remains."""
        assert not workers()
        eventually(self.is_clean, "the state before")
        assert "pycriu-native.links" not in os.listdir(str(self.restoring.images_directory))

    def restores(self) -> None:
        """The images can be restored; then the process ends."""
        self.target.pid = restore(self.restoring).pid
        self.ends()

    def ends(self) -> None:
        assert self.target.ask("whole")
        kill(self.target.pid)
        reap_all()


@pytest.fixture
def nameless(spawn: Spawn, images: Path, orphans: None) -> Nameless:
    """A process in the namespaces of the test."""
    target = spawn(NAMELESS)
    opts = CriuOpts(
        images_directory=images, link_remap=True, tcp_established=True, network_lock="nftables"
    )
    return Nameless(target, opts, opts.only_for("restore"), target.directory / "place")


@pytest.fixture
def in_container(tmp_path: Path, images: Path) -> Iterator[Nameless]:
    """The same process in separate namespaces."""
    with container(tmp_path / "box", NAMELESS) as box:
        opts = CriuOpts(images_directory=images, link_remap=True, tcp_established=True, log_level=4)
        saving = replace(opts, external=box.given_on_dump)
        restoring = replace(opts.only_for("restore"), external=box.given_on_restore, root=box.root)
        yield Nameless(box, saving, restoring, box.binds["/box"] / "place")


@pytest.fixture
def stream(spawn: Spawn, orphans: None) -> Iterator[Stream]:
    """A connection between two hosts, with data in transit."""
    with host() as home, host() as far, cable(home, far) as (address, _):
        yield start_stream((home, far, address), spawn)


class Refused(Exception):
    """The exception of a hook."""


def _refuse() -> None:
    raise Refused


DONE = {**FAULTS, "the hook refuses": _refuse}


def _harmed(subject: Nameless, what: str, moment: Notify) -> BaseException | None:
    """The exception of a restore with this action at a notification."""

    def act(notification: Notification) -> None:
        if notification.action is moment:
            DONE[what]()

    deadline = DEADLINE if "SIGSTOP" in what else None
    try:
        subject.target.pid = restore(subject.restoring, on_notify=act, deadline=deadline).pid
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
    """The state is as before, and the images can be restored, twice."""
    if _harmed(nameless, what, moment) is None:
        nameless.ends()
    else:
        nameless.is_as_before()
    for _ in range(2):
        nameless.restores()


@pytest.mark.parametrize("moment", RESTORE)
@pytest.mark.parametrize("what", ["CRIU gets SIGKILL", "the hook refuses"])
def test_in_namespaces(in_container: Nameless, what: str, moment: Notify) -> None:
    """Restores in a container, with files in an external mount, are undone as well."""
    if _harmed(in_container, what, moment) is None:
        in_container.ends()
    else:
        in_container.is_as_before()
    for _ in range(2):
        in_container.restores()


def test_at_random_instants(nameless: Nameless) -> None:
    """CRIU is killed at any time of a restore: the state is as before, and the images can be
    restored.
    """
    chance = random.Random(SEED)
    opts = nameless.restoring = replace(nameless.restoring, log_level=4)
    log = Path(str(opts.images_directory)) / "restore.log"
    nameless.restores()
    size = log.stat().st_size
    kept = [name for name in os.listdir(str(opts.images_directory)) if name.endswith("links")]
    for _ in range(INSTANTS):
        log.unlink(missing_ok=True)
        act = partial(kill_workers, signal.SIGKILL)
        trigger = LogTrigger(log, int(size * chance.random()), act)
        error: BaseException | None = None
        try:
            nameless.target.pid = restore(opts).pid
        except CriuError as caught:
            error = caught
        finally:
            trigger.stop()
        if error is None:
            nameless.ends()
        else:
            assert not is_alive(nameless.target.pid)
            reap_all()
            assert not workers()
            eventually(nameless.is_clean, "the state before")
            nameless.restores()
    assert kept == ["pycriu-native.links"]


# ---- links of link_remap ----

LINKED = """
    import os
    (HERE / "first").write_text("content")
    os.link(HERE / "first", HERE / "second")
    file = open(HERE / "first", "r+")
    os.unlink(HERE / "first")
    serve(same=lambda: os.path.samestat(os.fstat(file.fileno()), os.stat(HERE / "second")))
"""


def _links(target: Target) -> list[str]:
    return [name for name in os.listdir(target.directory) if name.startswith("link_remap")]


def test_images_of_a_process_that_runs_on(spawn: Spawn, images: Path, orphans: None) -> None:
    """CRIU removes its link next to the process's file; the images can be restored nevertheless,
    twice.
    """
    target = spawn(LINKED)
    opts = CriuOpts(images_directory=images, link_remap=True)
    dump(target.pid, replace(opts, leave_running=True))
    assert _links(target) == []
    target.end()
    for _ in range(2):
        assert check_images(images) == ()
        restore(opts.only_for("restore"))
        assert _links(target) == []
        assert target.ask("same")
        kill(target.pid)
        reap_all()


@pytest.mark.cures("link-remap-gone")
def test_a_copy_of_images_whose_link_is_gone(
    spawn: Spawn, images: Path, tmp_path: Path, orphans: None
) -> None:
    """A copy has no link to the file: the check and the error report it, and the cure works."""
    target = spawn(LINKED)
    opts = CriuOpts(images_directory=images, link_remap=True)
    target.dump(opts)
    [link] = _links(target)
    restore(opts.only_for("restore"))
    kill(target.pid)
    reap_all()
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    [finding] = check_images(copy)
    assert f"ln OTHER-NAME {target.directory / link}" in str(finding)
    restoring = CriuOpts(images_directory=copy)
    with pytest.raises(CriuError, match=r"link_remap\.NUMBER, .* is gone"):
        restore(restoring)
    reap_all()
    os.link(target.directory / "second", target.directory / link)
    assert check_images(copy) == ()
    restore(restoring)
    assert target.ask("same")


def test_a_dump_that_is_killed(spawn: Spawn, images: Path) -> None:
    """The link of the killed dump is removed; that of an earlier dump remains."""
    target = spawn("memory = bytearray(b'x') * (1 << 27)\n" + textwrap.dedent(LINKED))
    os.link(target.directory / "second", target.directory / "link_remap.7777")
    over = threading.Event()

    def act() -> None:
        while not over.is_set():
            if len(_links(target)) > 1:
                kill_workers(signal.SIGKILL)
                return

    thread = threading.Thread(target=act)
    thread.start()
    try:
        with pytest.raises(WorkerDiedError):
            dump(target.pid, CriuOpts(images_directory=images, link_remap=True))
    finally:
        over.set()
        thread.join()
    assert _links(target) == ["link_remap.7777"]
    assert target.ask("same")


def test_a_dump_that_is_killed_when_all_is_saved(spawn: Spawn, images: Path) -> None:
    """The images are complete and need the link, which the error names."""
    target = spawn(LINKED)

    def act(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            os.kill(the_worker(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError) as caught:
        dump(target.pid, CriuOpts(images_directory=images, link_remap=True), on_notify=act)
    [link] = _links(target)
    assert [link in remaining for remaining in caught.value.left_behind] == [True]
    assert target.ask("same")


# ---- what was there before ----


@pytest.mark.cures("cr-link-exists")
def test_what_is_in_the_way(spawn: Spawn, images: Path, tmp_path: Path, orphans: None) -> None:
    """Existing files are not removed; the error and check_images name them."""
    target = spawn(
        "(HERE / 'file').touch()\nfile = open(HERE / 'file')\n(HERE / 'file').unlink()\nserve()"
    )
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    for name in ("file", "file.cr_link"):
        (target.directory / name).write_text("kept")
    subject = str(target.directory / "file.cr_link")
    assert [finding.subject for finding in check_images(images)] == [subject]
    with pytest.raises(CriuError, match=r"remove NAME\.cr_link") as caught:
        restore(opts)
    reap_all()
    assert caught.value.left_behind == (f"{subject}, which the restore must create",)
    assert (target.directory / "file.cr_link").read_text() == "kept"
    (target.directory / "file.cr_link").unlink()
    restore(opts)
    assert (target.directory / "file").read_text() == "kept"
    assert target.runs_on()


@pytest.mark.cures("ghost-exists")
def test_a_ghost_in_the_way(spawn: Spawn, images: Path, orphans: None) -> None:
    """CRIU fails, and removes a file that it did not create: the cure, a second restore, works."""
    target = spawn(
        "(HERE / 'file').touch()\nfile = open(HERE / 'file')\n(HERE / 'file').unlink()\nserve()"
    )
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    taken = target.directory / "file.cr.1.ghost"
    taken.touch()
    assert [finding.subject for finding in check_images(images)] == [str(taken)]
    with pytest.raises(CriuError, match=r"NAME\.cr\.NUMBER\.ghost, exists") as caught:
        restore(opts)
    reap_all()
    assert caught.value.left_behind == (
        (f"{taken}, which the restore must create",) if taken.exists() else ()
    )
    taken.unlink(missing_ok=True)
    restore(opts)
    assert target.runs_on()


@pytest.mark.cures("link-remap-exists")
def test_a_link_in_the_way_of_a_dump(spawn: Spawn, images: Path, orphans: None) -> None:
    """The process continues; after the link was removed the dump works."""
    target = spawn(LINKED)
    opts = CriuOpts(images_directory=images, link_remap=True)
    dump(target.pid, replace(opts, leave_running=True))
    [kept] = os.listdir(images / "pycriu-native.links")
    taken = target.directory / f"link_remap.{kept.partition('-')[0]}"
    taken.touch()
    with pytest.raises(CriuError, match=r"link_remap\.NUMBER of an earlier"):
        dump(target.pid, opts)
    assert target.ask("same")
    taken.unlink()
    target.dump(opts)


@pytest.mark.parametrize("controller", ["freezer", ""], ids=["v1", "v2"])
def test_cgroups(
    make_cgroup: Make, spawn: Spawn, images: Path, orphans: None, controller: str
) -> None:
    """Cgroups that CRIU created for a failed restore are removed; existing ones remain."""
    outer = make_cgroup(cgroups.required(controller))
    (outer / "inner").mkdir()
    target = spawn()
    cgroups.enter(outer / "inner", target.pid)
    opts = CriuOpts(images_directory=images, manage_cgroups_mode="soft")
    target.dump(opts)
    (outer / "inner").rmdir()
    before = temporary()

    def act(notification: Notification) -> None:
        if notification.action is Notify.POST_RESTORE:
            assert (outer / "inner").exists()
            os.kill(the_worker(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError) as caught:
        restore(opts, on_notify=act)
    reap_all()
    assert caught.value.left_behind == ()
    assert outer.exists()
    assert not (outer / "inner").exists()
    eventually(lambda: temporary() <= before, "the state before")
    restore(opts)
    assert target.runs_on()


@needs_both
@each_lock
def test_the_lock_of_the_dump_is_named(stream: Stream, images: Path, lock: str) -> None:
    """The connection is locked until a restore succeeds, as the error reports."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock=lock)
    with stream.home.entered():
        dump(stream.server.pid, opts)
        stream.server.reap()

        def refuse(notification: Notification) -> None:
            if notification.action is Notify.POST_RESTORE:
                os.kill(the_worker(), signal.SIGKILL)

        with pytest.raises(WorkerDiedError) as caught:
            restore(opts.only_for("restore"), on_notify=refuse)
        [remaining] = caught.value.left_behind
        assert "which the dump made" in remaining
        assert (":7000 - " in remaining) == (lock == "iptables")
        restore(opts.only_for("restore"))
    stream.goes_on()

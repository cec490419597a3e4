"""Failed restores: the exception has the cause, and the cure works.

As in ``test_failures.py``, each case is a real failure; the exception names the cause and the cure,
and with the cure the same restore succeeds. Before that, no process of the failed restore remains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    PidInUseError,
    ProgramError,
    dump,
    restore,
)

from .support.failing_calls import (
    CONNECTED,
    LISTENS,
    Build,
    Case,
    Collection,
    Site,
    check_explanation,
    ids,
    job,
    older,
)
from .support.mounts import make_read_only, tmpfs
from .support.processes import PATIENCE, TARGET, Target, eventually, kill, state

restore_fails = Collection()

# ---- pids ----


@restore_fails("is taken by a running process", "end the process", error=PidInUseError)
def pid_of_a_running_process(at: Site) -> Target:
    target = at.spawn()
    dump(target.pid, CriuOpts(images_directory=at.images, leave_running=True))
    at.cure = target.end
    at.survives = True
    return target


@restore_fails("is a zombie child of this process", "os.waitpid(", error=PidInUseError)
def pid_of_a_zombie_of_ours(at: Site) -> Target:
    target = at.spawn()
    dump(target.pid, at.opts)
    at.cure = target.reap
    return target


PARENT = """
import os, subprocess, sys, time
job = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
job.wait()
"""


@restore_fails("is a zombie that its parent", "reap it, or end pid", error=PidInUseError)
def pid_of_a_zombie_of_others(at: Site) -> Target:
    job, asked = at.directory / "job", at.directory / "reap"
    job.mkdir()
    (job / "scenario.py").write_text("serve()")
    words = [sys.executable, "-c", PARENT, str(asked), sys.executable, str(TARGET), str(job)]
    nothing = subprocess.DEVNULL
    parent = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)
    at.held.callback(parent.wait, PATIENCE)
    at.held.callback(kill, parent.pid)
    eventually((job / "ready").exists, "the job's start")
    pid = int((job / "ready").read_text())
    target = Target(pid, job, parent)
    at.held.callback(kill, pid)
    dump(pid, at.opts)
    assert state(pid) == "Z"

    def have_it_reaped() -> None:
        asked.touch()
        parent.wait(PATIENCE)

    at.cure = have_it_reaped
    return target


@restore_fails("the leader of their session", "shell_job=True", "shell_job", error=PidInUseError)
def pid_of_the_shell(at: Site) -> Target:
    target = job(at)
    dump(target.pid, CriuOpts(images_directory=at.images, shell_job=True))
    target.until_free()
    return target


# ---- images ----


def with_changed_images(at: Site, pattern: str, change: Callable[[Path], object]) -> Target:
    """A dump with changed images; the cure is to restore the originals."""
    target = at.dumped()
    saved = at.directory / "saved"
    shutil.copytree(at.images, saved)
    result = list(at.images.glob(pattern))
    assert result
    for image in result:
        change(image)
    at.cure = {"images_directory": saved}
    return target


def images_fail(cause: str, cure: str) -> Callable[[Build], Build]:
    """The decorator of a restore from incomplete or damaged images."""
    return restore_fails(cause, cure, "images_directory", error=ImagesError)


def cut(image: Path) -> None:
    """Truncate a file, as an interrupted copy does."""
    os.truncate(image, 20)


@images_fail("has no images", "of a complete dump")
def images_that_are_not_there(at: Site) -> Target:
    return with_changed_images(at, "*.img", Path.unlink)


@images_fail("or not all of them", "of a complete dump")
def images_of_a_task_missing(at: Site) -> Target:
    return with_changed_images(at, "core-*.img", Path.unlink)


@images_fail("or not all of them", "of a complete dump")
def images_of_namespaces_missing(at: Site) -> Target:
    return with_changed_images(at, "ids-*.img", Path.unlink)


@images_fail("cut short", "copy the images")
def images_cut_short(at: Site) -> Target:
    return with_changed_images(at, "pstree.img", cut)


@images_fail("cut short", "copy the images")
def images_that_are_empty(at: Site) -> Target:
    return with_changed_images(at, "inventory.img", lambda image: os.truncate(image, 0))


@images_fail("damaged", "of a complete dump")
def images_that_are_garbage(at: Site) -> Target:
    return with_changed_images(
        at, "inventory.img", lambda image: image.write_bytes(b"garbage " * 20)
    )


@images_fail("damaged", "of a complete dump")
def images_of_memory_that_are_garbage(at: Site) -> Target:
    return with_changed_images(at, "mm-*.img", lambda image: image.write_bytes(b"garbage " * 20))


@images_fail("contents of memory", "images_directory that is complete")
def images_of_pages_missing(at: Site) -> Target:
    return with_changed_images(at, "pages-*.img", Path.unlink)


@images_fail("there is no files.img", "of a complete dump")
def images_of_files_missing(at: Site) -> Target:
    """CRIU would take them for a tree without files, and crash."""
    return with_changed_images(at, "files.img", Path.unlink)


@images_fail("cannot be written", "that CRIU can write to")
def images_on_a_read_only_disk(at: Site) -> Target:
    at.images = at.held.enter_context(tmpfs(at.directory / "place"))
    at.options["images_directory"] = at.images
    target = at.dumped()
    make_read_only(at.images)
    writable = at.directory / "work"
    writable.mkdir()
    at.cure = {"work_directory": writable}
    return target


# ---- files ----

WRITES = """
    file = open(HERE / "file", "w")
    file.write("as it was")
    file.flush()
    serve()
"""


@restore_fails("size of a file has changed", "restore the file of that time")
def file_that_grew(at: Site) -> Target:
    target = at.dumped(WRITES)
    with open(target.directory / "file", "a") as file:
        file.write(", and more")
    at.cure = lambda: os.truncate(target.directory / "file", len("as it was"))
    return target


def with_a_fifo_instead(at: Site, opens: str) -> Target:
    """A dump of a process that has opened a file, in whose place there is a FIFO now.

    CRIU would wait for the other end of a FIFO that it opens for reading or for writing only.
    """
    target = at.dumped(f"""
        import mmap
        (HERE / "file").write_text("as it was")
        {opens}
        serve()
    """)
    path = target.directory / "file"
    saved = path.rename(target.directory / "saved")
    os.mkfifo(path)
    at.cure = lambda: saved.replace(path)
    return target


fifo_instead = restore_fails("is a named pipe, and was a file", "put back what it was")


@fifo_instead
def fifo_instead_of_a_file_that_is_read(at: Site) -> Target:
    return with_a_fifo_instead(at, 'file = open(HERE / "file")')


@fifo_instead
def fifo_instead_of_a_file_that_is_appended_to(at: Site) -> Target:
    return with_a_fifo_instead(at, 'file = open(HERE / "file", "a")')


@fifo_instead
def fifo_instead_of_a_file_that_is_updated(at: Site) -> Target:
    return with_a_fifo_instead(at, 'file = open(HERE / "file", "r+")')


@fifo_instead
def fifo_instead_of_a_mapped_file(at: Site) -> Target:
    return with_a_fifo_instead(
        at,
        'with open(HERE / "file") as file: '
        "memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)",
    )


@restore_fails("does not exist", "put it back", "root", "inherit_fds")
def file_that_is_gone(at: Site) -> Target:
    target = at.dumped(WRITES)
    path = target.directory / "file"
    saved = path.rename(target.directory / "saved")
    at.cure = lambda: saved.rename(path)
    return target


@restore_fails("permissions of a file changed", "skip_file_rwx_check=True", "skip_file_rwx_check")
def file_with_other_permissions(at: Site) -> Target:
    target = at.dumped(WRITES)
    (target.directory / "file").chmod(0o400)
    at.cure = {"skip_file_rwx_check": True}
    return target


@restore_fails("does not exist", "put it back", "root")
def directory_that_is_gone(at: Site) -> Target:
    target = at.dumped('import os\n(HERE / "d").mkdir()\nos.chdir(HERE / "d")\nserve()')
    (target.directory / "d").rmdir()
    at.cure = (target.directory / "d").mkdir
    return target


NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
"""The beginning of the note with the build id of an ELF file."""


@restore_fails("another build than at the dump", "install that build", "file_validation")
def library_of_another_build(at: Site) -> Target:
    library = shutil.which("true")
    target = at.dumped(f"""
        import mmap, shutil
        shutil.copy({library!r}, HERE / "library")
        with open(HERE / "library", "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        serve()
    """)
    path = target.directory / "library"
    old = path.read_bytes()
    start = old.index(NOTE) + len(NOTE)
    path.write_bytes(old[:start] + b"another build" + old[start + len(b"another build") :])
    at.cure = lambda: path.write_bytes(old)
    return target


# ---- sockets, namespaces, options ----


@restore_fails("have an open TCP connection", "on restore too", "tcp_established", "tcp_close")
def tcp_without_a_word(at: Site) -> Target:
    at.cure = {"tcp_established": True}
    return at.dumped(CONNECTED, tcp_established=True)


@restore_fails("the dump had tcp_close=True", "tcp_close=True on restore", "tcp_close")
def tcp_close_on_dump_only(at: Site) -> Target:
    at.cure = {"tcp_close": True}
    return at.dumped(CONNECTED, tcp_close=True)


@restore_fails("TCP port", "end pid ", "join_ns")
def port_that_is_taken(at: Site) -> Target:
    target = at.spawn(LISTENS)
    address = ("127.0.0.1", target.ask("port"))
    target.dump(at.opts)
    other = at.held.enter_context(socket.create_server(address))
    at.cure = other.close
    return target


@restore_fails("path of a unix socket", "remove that file")
def path_of_a_socket_that_is_taken(at: Site) -> Target:
    target = at.dumped("""
        import socket
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(HERE / "socket"))
        server.listen()
        serve()
    """)
    path = target.directory / "socket"
    path.unlink()
    path.mkdir()
    at.cure = path.rmdir
    return target


@restore_fails("connected to one outside", "inherit_fds=", "inherit_fds")
def unix_connection_that_is_not_given(at: Site) -> Target:
    ours, theirs = socket.socketpair()
    inode = os.fstat(theirs.fileno()).st_ino
    with ours, theirs:
        target = at.spawn(stdin=theirs.fileno())
        target.dump(CriuOpts(images_directory=at.images, external=[f"unix[{inode}]"]))
    new, end = socket.socketpair()
    at.held.enter_context(new)
    at.held.enter_context(end)
    at.cure = {"inherit_fds": [(end.fileno(), f"socket:[{inode}]")]}
    return target


@restore_fails("to which the process was connected", "start its owner before")
def unix_socket_whose_owner_is_gone(at: Site) -> Target:
    path = str(at.directory / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        target = at.spawn(f"""
            import socket
            client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            client.connect({path!r})
            serve()
        """)
        at.options["external_unix_connections"] = True
        target.dump(at.opts)
    new = at.held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))

    def start_again() -> None:
        os.unlink(path)
        new.bind(path)

    at.cure = start_again
    return target


@restore_fails("dumped as external", "inherit_fds=[(fd, KEY)]", "inherit_fds", "external")
def network_namespace_that_is_not_given(at: Site) -> Target:
    target = at.spawn(prefix=["unshare", "--net"])
    path = f"/proc/{target.pid}/ns/net"
    at.options["external"] = [f"net[{os.stat(path).st_ino}]:blue"]
    namespace = os.open(path, os.O_RDONLY)
    at.held.callback(os.close, namespace)
    target.dump(at.opts)
    at.cure = {"inherit_fds": [(namespace, "blue")]}
    return target


@restore_fails("cannot be joined", "join_ns=[(kind, file)]", "join_ns")
def namespace_of_another_kind(at: Site) -> Target:
    at.options["join_ns"] = ["uts:/proc/self/ns/net"]
    target = at.dumped()
    at.cure = {"join_ns": ["uts:/proc/self/ns/uts"]}
    return target


@restore_fails("no lazy-pages daemon", "start the daemon", "lazy_pages", "work_directory")
def lazy_pages_without_a_daemon(at: Site) -> Target:
    at.options["lazy_pages"] = True
    at.cure = {"lazy_pages": None}
    return at.dumped()


@restore_fails("too old for this kernel", "the CRIU that made the images", error=ProgramError)
def program_too_old_for_the_images(at: Site) -> Target:
    target = at.dumped()
    at.via = older(at, "4.1")
    return target


# ---- the tests ----


def reaped(target: Target) -> bool:
    """Whether the pid is free, after processes of a failed restore were reaped."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(target.pid, os.WNOHANG)
    return not state(target.pid)


@pytest.mark.parametrize("log_level", [None, 4], ids=["", "long log"])
@pytest.mark.parametrize("case", restore_fails, ids=ids)
def test_a_restore_that_fails(
    case: Case, log_level: int | None, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names cause and cure, no process remains, and with the cure the restore works."""
    target = case.build(site)
    assert isinstance(target, Target)
    site.options["log_level"] = log_level
    was = state(target.pid)
    capfd.readouterr()
    with pytest.raises(CriuError) as caught:
        restore(site.opts, via=site.via)
    assert capfd.readouterr() == ("", "")
    check_explanation(case, caught.value)
    assert caught.value.verb == "restore"
    assert caught.value.pid is None

    if not was:
        eventually(lambda: reaped(target), "the end of what was being restored")
    assert site.cure is not None
    site.apply_cure()
    assert restore(site.opts, via=site.via).pid == target.pid
    site.held.callback(kill, target.pid)
    assert target.runs_on()


def test_pages_cut_short(site: Site) -> None:
    """Truncated pages are refused: CRIU up to 4.2 would wait endlessly for the missing ones."""
    target = site.dumped()
    for pages in site.images.glob("pages-*.img"):
        os.truncate(pages, 100)
    with pytest.raises(ImagesError, match="shorter than"):
        restore(site.opts, deadline=PATIENCE)
    assert reaped(target)


def test_a_fifo_that_no_restore_opens(site: Site) -> None:
    """A FIFO at the name of a deleted file, and a link to one, do not prevent a restore."""
    target = site.dumped("""
        import os
        os.mkfifo(HERE / "pipe")
        (HERE / "link").symlink_to("pipe")
        link = os.open(HERE / "link", os.O_PATH | os.O_NOFOLLOW)
        pipe = os.open(HERE / "pipe", os.O_RDWR)
        file = open(HERE / "file", "w+")
        os.unlink(HERE / "file")
        serve()
    """)
    os.mkfifo(target.directory / "file")
    assert restore(site.opts, deadline=PATIENCE).pid == target.pid
    site.held.callback(kill, target.pid)
    assert target.runs_on()

"""``check_images`` predicts whether a restore fails, with the cause and the cure.

Each case dumps a process, changes something on the machine or in the images, and runs the check. If
it reports an error, the restore must fail; after the cure there is no error, and the restore
succeeds.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    Finding,
    Severity,
    Version,
    Worker,
    cpuinfo_dump,
    dump,
    restore,
    version,
)
from pycriu_native.images import check_images, decode, encode, inspect

from .conftest import Spawn
from .support.cgroups import find
from .support.containers import container
from .support.failing_calls import OLDER
from .support.features import needs_cpuinfo
from .support.leftovers import RUN
from .support.processes import Target, eventually, reap_all

Undo = Callable[[], object]
HOLDS_FILE = """
    file = open(HERE / "held", "w+b", buffering=0)
    file.write(b"as it was")
    serve(read=lambda: os.pread(file.fileno(), 100, 0).decode())
"""


@dataclass(frozen=True)
class Case:
    """One obstacle to a restore."""

    scenario: str
    change: Callable[[Target, Path], Undo | None]
    subject: str
    """Text in the finding's subject; ``{here}`` is the process's directory."""
    what: str
    saving: dict[str, Any] = field(default_factory=dict)
    """Options of the dump."""
    cure: dict[str, Any] = field(default_factory=dict)
    """Options of the restore that solve it."""
    reap: bool = True
    spawn: dict[str, Any] = field(default_factory=dict)


def _nothing(target: Target, images: Path) -> None:
    """Change nothing: only an option is missing."""


def _removed(name: str) -> Callable[[Target, Path], Undo]:
    def change(target: Target, images: Path) -> Undo:
        path, kept = target.directory / name, target.directory / "kept"
        path.rename(kept)
        return lambda: kept.rename(path)

    return change


def _grown(target: Target, images: Path) -> Undo:
    with open(target.directory / "held", "ab") as file:
        file.write(b"!")
    return lambda: os.truncate(target.directory / "held", len("as it was"))


def _mode(target: Target, images: Path) -> Undo:
    path = target.directory / "held"
    before = path.stat().st_mode
    path.chmod(0o600 if before & 0o7777 != 0o600 else 0o640)
    return lambda: path.chmod(before & 0o7777)


def _directory(target: Target, images: Path) -> Undo:
    path, kept = target.directory / "held", target.directory / "kept"
    path.rename(kept)
    path.mkdir()
    return lambda: [undo() for undo in (path.rmdir, lambda: kept.rename(path))]


def _other_build(target: Target, images: Path) -> Undo:
    path = target.directory / "library"
    data = path.read_bytes()
    at = data.index(b"GNU\0", data.index(b"\x14\0\0\0\x03\0\0\0")) + 4
    path.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    return lambda: path.write_bytes(data)


def _listens(target: Target, images: Path) -> Undo:
    other = socket.create_server(("127.0.0.1", int((target.directory / "port").read_text())))
    return other.close


def _has_name(target: Target, images: Path) -> Undo:
    other = socket.socket(socket.AF_UNIX)
    other.bind(f"\0check-{target.pid}")
    return other.close


def _shorter(target: Target, images: Path) -> Undo:
    path = max(images.glob("pages-*.img"), key=lambda each: each.stat().st_size)
    data = path.read_bytes()
    os.truncate(path, len(data) - 4096)
    return lambda: path.write_bytes(data)


def _without(name: str) -> Callable[[Target, Path], Undo]:
    def change(target: Target, images: Path) -> Undo:
        path = images / name.format(pid=target.pid)
        data = path.read_bytes()
        path.unlink()
        return lambda: path.write_bytes(data)

    return change


def _no_parent(target: Target, images: Path) -> Undo:
    """Change the images to those of an incremental dump whose parent is missing."""
    path = images / f"pagemap-{target.pid}.img"
    data = path.read_bytes()
    described = decode(path)
    described["entries"][-1] |= {"flags": 1}
    path.write_bytes(encode(described))
    link = images / "parent"
    link.symlink_to("../pre-dump")
    return lambda: [undo() for undo in (lambda: path.write_bytes(data), link.unlink)]


def _newer_format(target: Target, images: Path) -> Undo:
    path = images / "inventory.img"
    data = path.read_bytes()
    described = decode(path)
    described["entries"][0]["img_version"] = 77
    path.write_bytes(encode(described))
    return lambda: path.write_bytes(data)


def _pages_of(entry: dict[str, Any]) -> int:
    """The number of pages of an entry of a pagemap; CRIU before 4.2 writes it in 32 bits."""
    number: int = entry.get("nr_pages") or entry["compat_nr_pages"]
    return number


def _lazy(target: Target, images: Path) -> Undo:
    """Change the images to those of a lazy dump, in which pages are missing."""
    path = images / f"pagemap-{target.pid}.img"
    data = path.read_bytes()
    described = decode(path)
    head, *_, last = described["entries"]
    last |= {"flags": 2}
    path.write_bytes(encode(described))
    pages = images / f"pages-{head['pages_id']}.img"
    memory = pages.read_bytes()
    os.truncate(pages, len(memory) - _pages_of(last) * mmap.PAGESIZE)

    def undo() -> None:
        path.write_bytes(data)
        pages.write_bytes(memory)

    return undo


LISTENS = """
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    (HERE / "port").write_text(str(server.getsockname()[1]))
    serve()
"""
CONNECTED = """
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    serve()
"""
ABSTRACT = """
    import os, socket
    server = socket.socket(socket.AF_UNIX); server.bind("\\0check-" + str(os.getpid()))
    server.listen()
    serve()
"""
IN_A_DIRECTORY = """
    import os, socket
    (HERE / "deep").mkdir()
    {what}
    serve()
"""
LIBRARY = """
    import mmap, os, shutil
    shutil.copy("/proc/self/exe", HERE / "library")
    file = open(HERE / "library", "rb")
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    serve()
"""

CASES = {
    "a pid is taken by the process itself": Case(
        "serve()", lambda target, images: target.end, "pid {pid}",
        "which this process has started",
        saving={"leave_running": True}, reap=False,
    ),
    "a pid is a zombie": Case(
        "serve()", lambda target, images: target.reap, "pid {pid}", "a zombie", reap=False,
    ),
    "a file is gone": Case(HOLDS_FILE, _removed("held"), "{here}/held", "does not exist"),
    "a file has grown": Case(HOLDS_FILE, _grown, "{here}/held", "has 10 bytes, and had 9"),
    "a file that is appended to has grown": Case(
        HOLDS_FILE.replace('file =', 'log = open(HERE / "held", "ab"); file ='), _grown,
        "{here}/held", "has 10 bytes, and had 9",
    ),
    "a file has another mode": Case(HOLDS_FILE, _mode, "{here}/held", "has the mode"),
    "the mode may be another": Case(
        HOLDS_FILE, lambda target, images: (_mode(target, images), None)[1], "{here}/held",
        "has the mode", cure={"skip_file_rwx_check": True},
    ),
    "a directory is in its place": Case(HOLDS_FILE, _directory, "{here}/held", "is a directory"),
    "another build of a library": Case(LIBRARY, _other_build, "{here}/library", "build id"),
    "a port is listened to": Case(LISTENS, _listens, "LISTEN", "listens there"),
    "connections, and no option": Case(
        CONNECTED, _nothing, "tcp 127.0.0.1", "a connection is in the images",
        saving={"tcp_established": True}, cure={"tcp_established": True},
    ),
    "connections, to be dropped": Case(
        CONNECTED, _nothing, "TCP", "made with tcp_close",
        saving={"tcp_close": True}, cure={"tcp_close": True},
    ),
    "an abstract name is taken": Case(ABSTRACT, _has_name, "@check-", "another process has"),
    "the directory of a socket is gone": Case(
        IN_A_DIRECTORY.format(
            what='server = socket.socket(socket.AF_UNIX); server.bind(str(HERE / "deep/socket"));'
            " server.listen()"
        ),
        _removed("deep"), "{here}/deep/socket", "deep does not exist",
    ),
    "the working directory is gone": Case(
        IN_A_DIRECTORY.format(what='os.chdir(HERE / "deep")'),
        _removed("deep"), "{here}/deep", "does not exist",
    ),
    "an image is missing": Case("serve()", _without("core-{pid}.img"), "{images}", "no core-"),
    "the memory map is missing": Case(
        "serve()", _without("mm-{pid}.img"), "{images}", "no mm-"
    ),
    "the parent is missing": Case("serve()", _no_parent, "{images}", "No such file or directory"),
    "a format to come": Case("serve()", _newer_format, "criu", "version 77"),
    "a session led from outside": Case(
        "serve()", _nothing, "pid {pid}", "its session was led by",
        saving={"shell_job": True}, cure={"shell_job": True},
        spawn={"start_new_session": False},
    ),
}  # fmt: skip


def _errors(images: Path, **options: Any) -> list[Finding]:
    result = check_images(images, CriuOpts(images_directory=images, **options))
    return [each for each in result if each.severity is Severity.STOPS]


FINE = {
    "no descriptors": """
        import time
        (HERE / "ready").touch()
        os.closerange(0, 1000)
        while True: time.sleep(0.01)
    """,
    "a pseudo terminal with both ends": """
        kept = os.openpty()
        serve()
    """,
    "an IPv6 address that is not here": """
        import socket
        server = socket.socket(socket.AF_INET6)
        server.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        server.bind(("fd00::77", 7777)); server.listen()
        serve()
    """,
    "a deleted socket whose directory is gone": IN_A_DIRECTORY.format(
        what='server = socket.socket(socket.AF_UNIX); server.bind(str(HERE / "deep/socket"));'
        ' server.listen(); os.unlink(HERE / "deep/socket"); (HERE / "deep").rmdir()'
    ),
    "a symbolic link itself": """
        (HERE / "link").symlink_to("nowhere")
        link = os.open(HERE / "link", os.O_PATH | os.O_NOFOLLOW)
        serve()
    """,
}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.usefixtures("orphans")
def test_what_is_no_obstacle(name: str, spawn: Spawn, images: Path) -> None:
    """A restore that works has no error."""
    target = spawn("import os\n" + textwrap.dedent(FINE[name]))
    eventually(lambda: "serve()" in FINE[name] or _has_no_descriptor(target.pid), "its closing")
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    assert _errors(images) == []
    assert restore(CriuOpts(images_directory=images)).pid == target.pid


def _has_no_descriptor(pid: int) -> bool:
    return not os.listdir(f"/proc/{pid}/fd")


@pytest.mark.skipif(find("") is None, reason="no cgroup hierarchy of version 2 can be written to")
def test_modes_of_cgroups(spawn: Spawn, images: Path) -> None:
    """One mode refuses existing directories, the others refuse missing ones."""
    hierarchy = find("")
    assert hierarchy is not None
    group = hierarchy.mount / f"pycriu-native-modes-{RUN}"
    group.mkdir()
    try:
        target = spawn()
        (group / "cgroup.procs").write_text(str(target.pid))
        dump(target.pid, CriuOpts(images_directory=images, manage_cgroups_mode="soft"))
        target.reap()

        def errors(mode: str) -> list[str]:
            result = _errors(images, manage_cgroups_mode=mode)  # others have cgroups too
            return [each.message for each in result if group.name in str(each.subject)]

        assert ["exists" in each for each in errors("strict")] == [True]
        assert errors("none") == errors("props") == errors("soft") == []
        with pytest.raises(CriuError):
            restore(CriuOpts(images_directory=images, manage_cgroups_mode="strict"))
        group.rmdir()
        for mode in ("none", "props"):
            assert ["does not exist" in each for each in errors(mode)] == [True]
            with pytest.raises(CriuError):
                restore(CriuOpts(images_directory=images, manage_cgroups_mode=mode))
            assert not group.exists()
        assert errors("strict") == []
        restore(CriuOpts(images_directory=images, manage_cgroups_mode="soft"))
        target.end()
    finally:
        eventually(
            lambda: not group.exists() or not (group / "cgroup.procs").read_text(), "its end"
        )
        if group.exists():
            group.rmdir()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("orphans")
def test_what_it_says_is_what_a_restore_does(name: str, spawn: Spawn, images: Path) -> None:
    """With an error the restore fails; with the cure there is no error, and the restore works."""
    case = CASES[name]
    if case.spawn and os.getsid(0) == 0:
        pytest.skip("our own session is led from outside of this pid namespace")
    target = spawn("import os\n" + textwrap.dedent(case.scenario), **case.spawn)
    dump(target.pid, CriuOpts(images_directory=images, **case.saving))
    if case.reap:
        target.reap()
    undo = case.change(target, images)
    message = {"pid": target.pid, "here": target.directory, "images": images}

    errors = _errors(images)
    assert errors, "it found nothing"
    assert case.subject.format(**message) in errors[0].subject
    assert case.what in errors[0].message
    assert set(case.cure) <= {name for each in errors for name in each.options}
    work = images.with_name("work")
    work.mkdir()
    opts = CriuOpts(images_directory=images, work_directory=work)
    with pytest.raises(CriuError):
        restore(opts)
    if case.reap:
        reap_all()
        target.until_free()

    if undo is not None:
        undo()
    assert _errors(images, **case.cure) == []
    restored = restore(replace(opts, **case.cure))
    assert restored.pid == target.pid
    assert target.runs_on()


def test_lazy_memory_needs_its_option(spawn: Spawn, images: Path) -> None:
    """CRIU would restore without it, with wrong memory."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    undo = _lazy(target, images)
    errors = _errors(images)
    assert ["lazy_pages" in each.options for each in errors] == [True]
    assert "bytes are lazy" in errors[0].message
    assert _errors(images, lazy_pages=True) == []
    undo()
    assert _errors(images) == []


def test_pages_that_are_cut_short(spawn: Spawn, images: Path) -> None:
    """CRIU 4.2 does not fail, but waits endlessly for the missing data."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    undo = _shorter(target, images)
    (error,) = _errors(images)
    assert "is 4096 bytes shorter than" in error.message
    undo()
    assert _errors(images) == []


def test_nothing_is_found_and_nothing_touched(spawn: Spawn, images: Path) -> None:
    """Images that can be restored have no finding, and the check changes no file."""
    target = spawn(HOLDS_FILE.replace("serve(", "import os\n    serve("))
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    before = {
        path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in images.iterdir()
    }
    assert check_images(images) == ()
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in images.iterdir()}
    assert after == before
    restore(CriuOpts(images_directory=images))
    assert target.ask("read") == "as it was"


def test_locks_come_back_only_if_asked_for(spawn: Spawn, images: Path) -> None:
    """A warning and not an error, since the restore works but loses the locks."""
    target = spawn("""
        import fcntl
        file = open(HERE / "locked", "w"); fcntl.flock(file, fcntl.LOCK_EX)
        serve()
    """)
    dump(target.pid, CriuOpts(images_directory=images, file_locks=True))
    target.reap()
    (finding,) = check_images(images)
    assert (finding.severity, finding.options) == (Severity.WARNING, ("file_locks",))
    assert check_images(images, CriuOpts(file_locks=True)) == ()
    assert str(finding).startswith("1 file locks: ")


@needs_cpuinfo
def test_the_processor(spawn: Spawn, images: Path) -> None:
    """CRIU compares ``cpuinfo.img``, if it exists."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    cpuinfo_dump(CriuOpts(images_directory=images))
    assert check_images(images) == ()
    path = images / "cpuinfo.img"
    described = decode(path)
    for entry in described["entries"][0]["x86_entry"]:
        entry["capability"] = [0xFFFFFFFF for _ in entry["capability"]]
    path.write_bytes(encode(described))
    result = check_images(images)
    assert [each.subject for each in result] == ["processor"]
    assert "cpu_cap" in result[0].options
    restore(CriuOpts(images_directory=images))


def test_a_taken_pid_is_free_in_a_namespace(spawn: Spawn, images: Path) -> None:
    """The findings can be converted to data."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    (finding,) = check_images(str(images))
    assert finding.to_dict() == {
        "id": "pids",
        "severity": "stops",
        "message": finding.message,
        "subject": f"pid {target.pid}",
        "pid": target.pid,
        "fd": None,
        "path": None,
        "group": "",
        "costs": "",
        "cure": finding.cure,
        "options": [],
        "sets": {},
        "failure": None,
    }


def test_a_container_needs_its_mounts(images: Path, tmp_path: Path) -> None:
    """Each external mount is reported with its key; with all keys there is no finding."""
    with container(tmp_path / "box", "serve()", mounts={"/.scratch": "tmpfs"}) as box:
        dump(box.pid, CriuOpts(images_directory=images, external=box.given_on_dump))
        box.reap()
        assert {"/", "/.scratch", "/proc"} <= {each.point for each in inspect(images).mounts}
        missing = {
            each.message.split("'")[1] for each in _errors(images) if "external" in each.options
        }
        assert missing == {key.split("[")[1].split("]")[0] for key in box.given_on_restore}
        opts = CriuOpts(images_directory=images, external=box.given_on_restore, root=box.root)
        result = check_images(images, opts)
        assert [each for each in result if each.severity is not Severity.NOTE] == []
        assert "not checked" in result[0].message
        box.pid = restore(opts).pid
        assert box.runs_on()


@pytest.mark.skipif(not os.path.exists(OLDER["4.1"]), reason="there is no CRIU 4.1 here")
def test_images_of_a_newer_criu(spawn: Spawn, images: Path) -> None:
    """An older CRIU is reported with the release that made the images."""
    target = spawn("serve()")
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    inventory = images / "inventory.img"
    content = decode(inventory)
    content["entries"][0]["allow_uprobes"] = True  # a field of CRIU 4.2
    inventory.write_bytes(encode(content))
    cure = "CRIU 4.2 or later: an older one ignores fields that it does not have"
    older = check_images(images, via=Worker(program=OLDER["4.1"]))
    assert cure in {each.cure for each in older}
    if version() >= Version.parse("4.2"):
        assert cure not in {each.cure for each in check_images(images)}


LOWERED = """
import subprocess, sys
from pycriu_native import CriuOpts, Severity, restore
from pycriu_native.images import check_images
def refusals():
    return [f for f in check_images(sys.argv[1]) if f.severity is Severity.STOPS]
subprocess.run(["sysctl", "-q", "kernel.pid_max=1000"], check=True)
(finding,) = refusals()
assert finding.message == "kernel.pid_max is 1000 here", finding
subprocess.run(finding.cure.split(), check=True, stdout=subprocess.DEVNULL)
assert not refusals(), refusals()
restore(CriuOpts(images_directory=sys.argv[1]))
"""


def test_a_pid_above_the_highest(spawn: Spawn, images: Path) -> None:
    """With the limit of the cure the restore works."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 14):
        pytest.skip("the limit is that of the whole machine before Linux 6.14")
    Path("/proc/sys/kernel/ns_last_pid").write_text("2999")
    target = spawn("serve()")
    assert target.pid >= 3000
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = [*own, sys.executable, "-c", LOWERED, str(images)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Processes with limits, memory and threads of unusual kinds: the verdict is that of CRIU."""

from __future__ import annotations

import os
import resource
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, Verdict, dump, preflight, restore
from pycriu_native._failures.log_excerpt import known
from pycriu_native.images import check_images

from .conftest import Spawn
from .support.predictions import check_continues
from .support.processes import Target, reap_all

pytestmark = pytest.mark.usefixtures("orphans")


def _fails(target: Target, opts: CriuOpts, failure: str) -> None:
    """The dump fails for a known reason, and the process continues."""
    with pytest.raises(CriuError) as caught:
        dump(target.pid, opts)
    entry = known(failure)
    assert (caught.value.cause, caught.value.cure) == (entry.cause, entry.cure), caught.value.lines


@pytest.mark.cures("descriptors-used-up")
@pytest.mark.parametrize("free", range(4))
def test_no_free_descriptors(free: int, spawn: Spawn, images: Path) -> None:
    """CRIU needs four free numbers in the root process; the limit is raised from outside."""
    target = spawn("serve()")
    opts = CriuOpts(images_directory=images)
    hard = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)[1]
    used = sorted(map(int, os.listdir(f"/proc/{target.pid}/fd")))
    limit = next(n for n in range(1025) if n - sum(each < n for each in used) == free)
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (limit, hard))
    (finding,) = preflight(target.pid, opts).stops
    assert finding.failure == "descriptors-used-up"
    _fails(target, opts, finding.failure)
    subprocess.run(finding.cure.partition(": ")[2].partition(";")[0].split(), check=True)
    check_continues(target, opts)


def test_four_free_descriptors(spawn: Spawn, images: Path) -> None:
    """They are enough in the root process, and three in one below it."""
    target = spawn("""
        import os, signal
        child = os.fork()
        while child == 0: signal.pause()
        serve(child=lambda: child)
    """)
    for pid, free in ((target.pid, 4), (target.ask("child"), 3)):
        used = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
        limit = next(n for n in range(1025) if n - sum(each < n for each in used) == free)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    opts = CriuOpts(images_directory=images)
    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.WORKS, str(result)
    target.dump(opts)
    reap_all()
    restore(result.restore_opts)


SEALED = """
    import fcntl, mmap, os
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"text".ljust(mmap.PAGESIZE))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    held = []
    def mapped(number):
        held.clear()
        held.append(mmap.mmap(number, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ))
        return True
    def mapped_again():
        number = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        result = mapped(number)
        os.close(number)
        return result
    try:
        there = mapped(fd)
    except PermissionError:
        there = False
    serve(there=lambda: there, again=mapped_again, read=lambda: held[0][:4].decode())
"""


@pytest.mark.cures("memfd-sealed")
def test_sealed_memory(spawn: Spawn, images: Path) -> None:
    """The dump works and the restore fails; memory that is mapped again for reading is restored."""
    target = spawn(SEALED)
    if not target.ask("there"):
        pytest.skip("the kernel maps no memfd that is sealed against writing (Linux before 6.7)")
    opts = CriuOpts(images_directory=images)
    (finding,) = preflight(target.pid, opts).no_restore
    target.dump(opts)
    (refused,) = (each for each in check_images(images) if each.severity is Severity.STOPS)
    with pytest.raises(CriuError) as caught:
        restore(opts)
    entry = known("memfd-sealed")
    assert finding.failure == entry.id
    assert refused.message == caught.value.cause == entry.cause
    reap_all()
    target = spawn(SEALED)
    assert target.ask("again")
    check_continues(target, opts)
    assert not check_images(images) or target.ask("read") == "text"


@pytest.mark.cures("process-directory")
@pytest.mark.parametrize("path", ["/proc/self", "/proc/1"])
def test_the_directory_of_a_process(path: str, spawn: Spawn, images: Path) -> None:
    """CRIU writes what is behind its path in memory: the images mostly have a wrong path."""
    scenario = f"""
        import os
        os.chdir("{path}")
        serve(leave=lambda: os.chdir("/"))
    """
    target = spawn(scenario)
    opts = CriuOpts(images_directory=images)
    (finding,) = preflight(target.pid, opts).no_restore
    assert finding.failure == "process-directory"
    dump(target.pid, replace(opts, leave_running=True))
    refused = [each for each in check_images(images) if each.id == "regular_files"]
    if refused:  # else the memory had no more text
        assert refused[0].message == known("process-directory").cause
        target.end()
        with pytest.raises(CriuError):
            restore(opts)
        reap_all()
        target = spawn(scenario)
    target.ask("leave")
    check_continues(target, opts)


@pytest.mark.cures("unsupported-mapping")
def test_a_mapped_file_of_sysfs(spawn: Spawn, images: Path) -> None:
    """It is memory of the kernel; the dump works after it was unmapped."""
    target = spawn("""
        import mmap, os
        held = []
        try:
            file = os.open("/sys/kernel/btf/vmlinux", os.O_RDONLY)
            held.append(mmap.mmap(file, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ))
        except OSError:
            pass
        serve(there=lambda: len(held), unmap=held.clear)
    """)
    if not target.ask("there"):
        pytest.skip("no file of sysfs can be mapped (Linux before 6.16)")
    opts = CriuOpts(images_directory=images)
    (finding,) = preflight(target.pid, opts).stops
    assert finding.failure == "unsupported-mapping"
    _fails(target, opts, finding.failure)
    target.ask("unmap")
    check_continues(target, opts)


def test_a_mapped_file_in_a_container_without_sysfs(spawn: Spawn) -> None:
    """A file below ``/sys`` can be an ordinary one, which CRIU saves."""
    target = spawn(
        """
        import mmap, os, subprocess
        subprocess.run(["mount", "-t", "tmpfs", "none", "/sys"], check=True)
        file = os.open("/sys/data", os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, mmap.PAGESIZE)
        kinds = mmap.MAP_SHARED, mmap.MAP_PRIVATE
        held = [mmap.mmap(file, mmap.PAGESIZE, kind) for kind in kinds]
        serve()
        """,
        prefix=["unshare", "--mount", "--propagation", "private"],
    )
    assert "mapped-sysfs" not in {each.id for each in preflight(target.pid).findings}


@pytest.mark.cures("preflight:thread-resources")
def test_a_thread_with_resources_of_its_own(spawn: Spawn, images: Path) -> None:
    """A restored thread has the namespace, descriptors and directory of its process again."""
    target = spawn("""
        import ctypes, os, queue, threading
        requests, responses = queue.Queue(), queue.Queue()
        def work():
            while True:
                requests.get()
                responses.put(ctypes.CDLL(None).unshare(0x40000600))  # NEWNET, FILES, FS
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        def network(of):
            return os.readlink(f"/proc/self/task/{of}/ns/net")
        serve(
            unshare=lambda: (requests.put(None), responses.get())[1],
            separate=lambda: network(thread.native_id) != network(os.getpid()),
        )
    """)
    opts = CriuOpts(images_directory=images)
    assert not preflight(target.pid, opts).lost
    assert not target.ask("unshare")
    assert target.ask("separate")
    (finding,) = preflight(target.pid, opts).lost
    assert finding.id == "thread-resources"
    for words in ("table of descriptors", "directory", "net namespace"):
        assert words in finding.message
    check_continues(target, opts)
    assert not target.ask("separate")
    assert not target.ask("unshare")
    assert target.ask("separate")


@pytest.mark.cures("socket-bpf")
def test_a_filter_of_ebpf(spawn: Spawn, images: Path) -> None:
    """CRIU cannot read the filter; the dump works after it was detached."""
    number = 321 if os.uname().machine == "x86_64" else 280
    target = spawn(f"""
        import ctypes, os, socket, struct
        libc = ctypes.CDLL(None)
        code = ctypes.create_string_buffer(struct.pack("BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0))
        text = ctypes.create_string_buffer(b"GPL")
        what = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(text))
        program = libc.syscall({number}, 5, what.ljust(128, bytes(1)), 128)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if program >= 0:
            sock.setsockopt(socket.SOL_SOCKET, 50, struct.pack("i", program))
            os.close(program)
        serve(
            there=lambda: program >= 0,
            detach=lambda: sock.setsockopt(socket.SOL_SOCKET, 27, 0),
        )
    """)
    if not target.ask("there"):
        pytest.skip("the kernel refuses programs of eBPF here")
    opts = CriuOpts(images_directory=images)
    _fails(target, opts, "socket-bpf")
    target.ask("detach")
    check_continues(target, opts)


def test_no_deleted_file_at_all(spawn: Spawn, images: Path) -> None:
    """``ghost_limit=0`` is a limit of no bytes, and not CRIU's default."""
    target = spawn("""
        import os
        file = open(HERE / "deleted", "w")
        file.write("text" * 2**14)
        file.flush()
        os.fsync(file.fileno())  # the size counts in blocks
        os.unlink(HERE / "deleted")
        serve()
    """)
    opts = CriuOpts(images_directory=images, ghost_limit=0)
    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.NEEDS_OPTIONS
    with pytest.raises(CriuError):
        dump(target.pid, opts)
    check_continues(target, result.opts)


def test_a_program_in_memory(spawn: Spawn, images: Path) -> None:
    """CRIU saves a program that is a memfd, and cannot restore it: the error has that cause."""
    target = spawn("""
        import os, shutil, sys
        child = os.fork()
        if not child:
            program = os.memfd_create("program", 0)
            with open("/bin/sleep", "rb") as source, open(program, "wb", closefd=False) as copy:
                shutil.copyfileobj(source, copy)
            os.execve(program, ["sleep", "1000"], {})
        while "memfd" not in os.readlink(f"/proc/{child}/exe"):
            os.sched_yield()
        serve()
    """)
    opts = CriuOpts(images_directory=images)
    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.NO_RESTORE, str(result)
    (finding,) = result.no_restore
    assert "its program is a memfd" in finding.message
    target.dump(opts)
    assert any("is a memfd" in each.message for each in check_images(images))
    with pytest.raises(CriuError, match=r"the program of process .* is a memfd"):
        restore(opts)

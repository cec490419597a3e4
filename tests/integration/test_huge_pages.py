"""Huge pages: what preflight and check_images say when none is free, and the cures."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, dump, feature_check, preflight, restore
from pycriu_native._failures.log_excerpt import known
from pycriu_native._system.huge_pages import can_map, setting_of, sizes
from pycriu_native._transport import feature_cache
from pycriu_native._transport.feature_cache import knows_huge_pages
from pycriu_native.images import check_images, inspect

from .conftest import Spawn
from .support import huge_pages
from .support.ordinary_user import BEGIN, as_user, python
from .support.processes import eventually, reap_all

pytestmark = pytest.mark.usefixtures("orphans")

SIZE = 2 << 20
SETTING = Path(setting_of(SIZE))
CACHE = Path("/run") / feature_cache.NAME
PRELUDE = """
    import ctypes, mmap, os
    libc = ctypes.CDLL(None)
    size = 2 << 20
    def mapped(flags):
        memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS | 0x40000)  # MAP_HUGETLB
        memory[0] = 1
        return memory
    def memfd():
        file = os.memfd_create("huge", os.MFD_HUGETLB)
        os.ftruncate(file, size)
        return mmap.mmap(file, size)
    def system_v():
        libc.shmat.restype = ctypes.c_void_p
        number = libc.shmget(5, size, 0o1600 | 0o4000)  # IPC_CREAT, SHM_HUGETLB
        return libc.shmat(number, None, 0)
    memory = {}
    serve()
"""
KINDS = {
    "private": "mapped(mmap.MAP_PRIVATE)",
    "shared": "mapped(mmap.MAP_SHARED)",
    "memfd": "memfd()",
    "System V": "system_v()",
}


@pytest.fixture
def setting() -> Iterator[None]:
    """One huge page is free; the number is restored after the test."""
    if SIZE not in sizes():
        pytest.skip("the kernel has no huge pages of 2 MiB")
    with huge_pages.changed(SETTING, 1):
        if not can_map(SIZE, SIZE):
            pytest.skip("there is no memory for a huge page, or this machine uses its own")
        if knows_huge_pages(SIZE):  # the machine had one when CRIU made its cache
            CACHE.unlink()
        yield
        reap_all()


def follow(cure: str) -> None:
    """Add huge pages, as a cure says."""
    words = re.search(r"add (\w+) to the number in (\S+)", cure)
    assert words is not None, cure
    path = Path(words[2].replace("SIZE", str(SIZE >> 10)))
    more = 1 if words[1] == "one" else int(words[1])
    path.write_text(str(int(path.read_text()) + more))


def repeated(call: Callable[[], object], failure: str) -> None:
    """Call until the page is free: any CRIU that probes the kernel has it for a moment."""

    def succeeds() -> bool:
        try:
            call()
        except CriuError as error:
            if error.cause != known(failure).cause:
                raise
            reap_all()
            return False
        return True

    eventually(succeeds, "a call with a free page")


@pytest.mark.cures("huge-pages", "memory-enomem")
@pytest.mark.parametrize("kind", KINDS)
def test_no_page_is_free(kind: str, setting: None, spawn: Spawn, images: Path) -> None:
    """Dump and restore fail without a free huge page; with the numbers of the cures both work."""
    prefix = ["unshare", "--ipc"] if kind == "System V" else []
    target = spawn(PRELUDE.format(KINDS[kind]), prefix=prefix)
    opts = CriuOpts(images_directory=images)
    SETTING.write_text("0")
    (finding,) = preflight(target.pid, opts).stops
    assert finding.failure == "huge-pages"
    with pytest.raises(CriuError) as caught:
        dump(target.pid, opts)
    assert caught.value.cause == known("huge-pages").cause
    assert caught.value.cure == known("huge-pages").cure
    assert target.runs_on()
    follow(finding.cure)
    eventually(lambda: not preflight(target.pid, opts).findings, "a free page")
    repeated(lambda: target.dump(opts), "huge-pages")
    reap_all()
    pages = {each.huge_page for process in inspect(images).processes for each in process.mappings}
    assert pages == ({0} if kind == "System V" else {0, SIZE})

    SETTING.write_text("0")
    (stops,) = (each for each in check_images(images) if each.severity is Severity.STOPS)
    assert "it needs 1 free huge pages of 2048 KiB" in stops.message
    with pytest.raises(CriuError) as caught:
        restore(opts)
    assert caught.value.cause == known("memory-enomem").cause
    assert "sysctl vm.nr_hugepages=NUMBER" in str(caught.value.cure)
    reap_all()
    follow(stops.cure)
    eventually(
        lambda: all(each.severity is not Severity.STOPS for each in check_images(images)),
        "a free page",
    )
    repeated(lambda: restore(opts), "memory-enomem")
    assert target.runs_on()


def test_shared_pages_of_an_ordinary_user(setting: None) -> None:
    """preflight works without the right to follow the links of mapped memory."""
    code = """if True:
        import mmap, os
        from pycriu_native import preflight
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        memory = mmap.mmap(-1, 2 << 20, flags=flags)
        memory[0] = 1
        assert preflight(os.getpid()).size.memory
    """
    words = [*as_user(), python("pycriu_native"), "-c", BEGIN + code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


RESERVES_NOTHING = """
    import ctypes, os
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    # MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE
    assert libc.mmap(None, ctypes.c_size_t(2 << 20), 3, 0x44022, -1, ctypes.c_size_t(0)) != -1
    file = os.memfd_create("huge", os.MFD_HUGETLB)
    serve()
"""


def test_pages_that_are_not_reserved(setting: None, spawn: Spawn, images: Path) -> None:
    """Memory that was not used needs no free page at the restore."""
    target = spawn(RESERVES_NOTHING)
    opts = CriuOpts(images_directory=images)
    eventually(lambda: not preflight(target.pid, opts).findings, "a free page")
    repeated(lambda: target.dump(opts), "huge-pages")
    SETTING.write_text("0")
    assert not [each for each in check_images(images) if each.severity is Severity.STOPS]
    restore(opts)
    assert target.runs_on()


CACHED = """
    import sys
    from pathlib import Path
    from pycriu_native import CriuOpts, check, dump, preflight
    from pycriu_native.diagnostics.preflight.huge_pages import knows_huge_pages
    size, setting, pid, images = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    # Other programs of this machine write to /dev/shm.
    opts = CriuOpts(images_directory=images, leave_running=True, skip_mnts=["/dev/shm"])
    setting.write_text("0")
    check()
    assert not knows_huge_pages(size)
    assert [each.failure for each in preflight(pid, opts).stops] == ["huge-pages"]
    setting.write_text("2")
    Path("/run/criu.kdat").unlink()
    check()
    setting.write_text("0")
    assert knows_huge_pages(size) and not knows_huge_pages(1 << 30)
    assert not preflight(pid, opts).stops
    dump(pid, opts)
"""


def test_a_device_in_the_cache(setting: None, spawn: Spawn, images: Path) -> None:
    """A CRIU whose cache of features has the device needs no free page."""
    feature_check()
    target = spawn(RESERVES_NOTHING)
    words = [sys.executable, "-c", textwrap.dedent(CACHED)]
    words += [str(SIZE), str(SETTING), str(target.pid), str(images)]
    shell = 'mount -t tmpfs none /run && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert target.runs_on()

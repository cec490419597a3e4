"""The check that no memory was moved since the parent images, with simulated page frames."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, DeadlineError, ImagesError, MovedMemoryError, Worker
from pycriu_native._calls.prepare import Directories
from pycriu_native._calls.request import Request
from pycriu_native._calls.safeguards import Safeguards
from pycriu_native._integrity import moved_memory
from pycriu_native._integrity.dump_marker import FRAMES, DumpMarker
from pycriu_native._integrity.moved_memory import MemoryCheck
from pycriu_native._system import page_frames
from pycriu_native._system.page_frames import CHANGED, EMPTY, PAGE, TABLE
from pycriu_native._system.process import status_of
from pycriu_native._wire.protobuf import image_of, message
from pycriu_native.enums import Verb
from tests.unit.support import bystander

PRESENT, ZERO = 1 << 63, 7 | 1 << 63
PAGES = TABLE // PAGE
START = 16 * TABLE

NUMBER = int(status_of(bystander.PID)["NSpid"].split()[-1])


class Memory:
    """The page tables of a process, by number; an entry for each page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables = {number: self.entries(number) for number in range(4)}
        self.visible = True
        self.merged = False
        monkeypatch.setattr(moved_memory, "page_tables", self.read)
        monkeypatch.setattr(page_frames, "are_visible", lambda: self.visible)
        monkeypatch.setattr(page_frames, "are_merged", lambda: self.merged)
        monkeypatch.setattr(page_frames, "zero_frame", lambda: ZERO)

    @staticmethod
    def entries(number: int) -> list[int]:
        return [PRESENT | 1000 * (number + 1) + page for page in range(PAGES)]

    def read(self, pid: int, check: Callable[[], object]) -> Iterator[tuple[int, bytes]]:
        for number, entries in sorted(self.tables.items()):
            check()
            yield START + number * TABLE, array("Q", entries).tobytes()

    def move(self, source: int, target: int) -> None:
        self.tables[target] = self.tables.pop(source)

    def change(self, number: int, pages: int, mark: int = CHANGED) -> None:
        """Give pages new frames, which are marked."""
        for page in range(pages):
            self.tables[number][page] = PRESENT | mark | 10**6 + page


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def _ok() -> None:
    """The check of a call that is not cancelled."""


class Images:
    """Directories of dumps, numbered from 1."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.number = 0
        self.check: Callable[[], object] = _ok

    def _next(self, *, parent: bool, verb: Verb = Verb.DUMP) -> tuple[int, MemoryCheck]:
        self.number += 1
        directory = self.place / str(self.number)
        directory.mkdir()
        (directory / "inventory.img").write_bytes(b"%d" % self.number)
        at = os.open(directory, os.O_RDONLY)
        above = f"../{self.number - 1}" if parent else None
        return at, MemoryCheck(
            at, above, verb=verb, pid=bystander.PID, runs_on=True, check=self.check
        )

    def dump(self, *, parent: bool = True, late: bool = False) -> None:
        """A dump; ``late``: by a CRIU that sends no notification before it reads the memory."""
        at, check = self._next(parent=parent)
        try:
            check.begin()
            if not late:
                check.frozen([bystander.PID])
            check.written([bystander.PID])
        finally:
            os.close(at)

    def pre_dump(
        self,
        memory: Memory | None = None,
        *moves: tuple[int, int],
        parent: bool | None = None,
        stopped: Callable[[MemoryCheck], object] = lambda check: None,
    ) -> None:
        """A pre-dump, during which tables are moved; ``stopped`` is called between the readings."""
        parent = self.number > 0 if parent is None else parent
        at, check = self._next(parent=parent, verb=Verb.PRE_DUMP)
        try:
            check.begin()
            for source, target in moves:
                assert memory is not None
                memory.move(source, target)
            stopped(check)
            check.after_pre_dump()
        finally:
            os.close(at)

    def is_refused(self) -> bool:
        """Whether the next dump is; its directory is removed then, and the parent can be used."""
        record = self.place / str(self.number) / FRAMES
        data = record.read_bytes() if record.exists() else b""
        try:
            self.dump()
        except MovedMemoryError:
            if data:
                record.write_bytes(data)
            self.number -= 1
            for path in (self.place / str(self.number + 1)).iterdir():
                path.unlink()
            (self.place / str(self.number + 1)).rmdir()
            return True
        return False


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def test_memory_in_its_place(memory: Memory, images: Images) -> None:
    """Changed pages can have other frames; so can some that the kernel itself has moved."""
    images.dump(parent=False)
    images.dump()
    memory.change(1, PAGES)  # written, or new
    memory.change(2, PAGES // 2, mark=0)  # migrated
    del memory.tables[3]
    images.dump()
    memory.tables = {number: entries for number, entries in memory.tables.items() if number}
    images.dump()


def test_tables_that_were_moved(memory: Memory, images: Images) -> None:
    """To a place that was empty or not, in exchange, and after pages were written."""
    images.dump(parent=False)
    memory.move(0, 1)
    assert images.is_refused()
    memory.move(1, 8)
    assert images.is_refused()
    memory.move(8, 0)
    memory.tables[1] = memory.entries(1)
    assert not images.is_refused()
    memory.tables[2], memory.tables[3] = memory.tables[3], memory.tables[2]
    memory.change(2, PAGES - 1)
    memory.change(3, PAGES)
    assert images.is_refused()
    memory.change(2, PAGES)
    assert not images.is_refused()


def test_frames_that_were_used_again(memory: Memory, images: Images) -> None:
    """A few pages of a moved table can be in former frames of their new places by chance."""
    images.dump(parent=False)
    before = memory.tables[1][:8]
    memory.move(0, 1)
    memory.tables[1][:8] = before
    assert images.is_refused()


def test_pages_of_zeros(memory: Memory, images: Images) -> None:
    """They have one frame at all addresses, and CRIU does not save them."""
    memory.tables[0][8:] = memory.tables[1][8:] = [ZERO] * (PAGES - 8)
    images.dump(parent=False)
    memory.move(0, 1)
    assert images.is_refused()
    memory.change(1, 8)
    assert not images.is_refused()


def test_merged_pages(memory: Memory, images: Images) -> None:
    """KSM loses the mark of a page: all unmarked ones have to be in their frames."""
    memory.merged = True
    images.dump(parent=False)
    memory.change(2, 1)
    images.dump()
    memory.change(2, 2, mark=0)
    assert images.is_refused()


def test_rounds(memory: Memory, images: Images) -> None:
    """A table that is moved between two pre-dumps is found before the second."""
    images.pre_dump()
    images.pre_dump()
    memory.move(0, 1)
    with pytest.raises(MovedMemoryError, match=r"parent_image='../2' .* was moved"):
        images.pre_dump()


@pytest.mark.parametrize("moves", [[(0, 1)], [(0, 8)], [(0, 8), (1, 0), (8, 1)]])
def test_moves_during_a_pre_dump(
    memory: Memory, images: Images, moves: list[tuple[int, int]]
) -> None:
    """What CRIU has saved at these addresses is not known; elsewhere it is."""
    images.pre_dump(memory, *moves)
    assert images.is_refused()
    for number in (0, 1, 8):
        memory.tables.pop(number, None)
    assert not images.is_refused()


@pytest.mark.parametrize(
    ("parent", "mark", "traced", "refused"),
    [
        (False, 0, [True, True], False),
        (False, 0, [True, False], True),
        (False, 0, [False, True], True),
        (True, CHANGED, [True, True], False),
        (True, 0, [True, True], True),
    ],
)
def test_memory_that_is_new_at_the_freeze(
    memory: Memory,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    parent: bool,
    mark: int,
    traced: list[bool],
    refused: bool,
) -> None:
    """A reading while CRIU traces the process has it; with a parent it needs a mark."""
    if parent:
        images.pre_dump()

    def stopped(check: MemoryCheck) -> None:
        memory.tables[8] = memory.entries(8)
        memory.change(8, PAGES, mark)
        answers = iter(traced)
        monkeypatch.setattr(moved_memory, "_is_traced", lambda pid: next(answers))
        assert check.read_stopped() is traced[0]
        memory.change(8, PAGES, mark=0)  # CRIU has reset the marks

    images.pre_dump(parent=parent, stopped=stopped)
    assert images.is_refused() is refused


@pytest.mark.parametrize("saved", [False, True])
def test_a_process_that_appears(
    memory: Memory, images: Images, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    """Between the two readings of a pre-dump: it is known only whether CRIU has saved it."""
    trees = iter([[], [bystander.PID]])
    monkeypatch.setattr(moved_memory, "process_tree", lambda pid: next(trees))
    names = [f"pagemap-{NUMBER}.img" if saved else "pagemap-1.img"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", lambda at: names)
        images.pre_dump()
    assert images.is_refused() is saved


def test_frames_that_are_not_visible(memory: Memory, images: Images) -> None:
    """In a user namespace, nothing is known of the pages, at the first dump or the next one."""
    images.dump(parent=False)
    memory.visible = False
    assert images.is_refused()
    with pytest.raises(MovedMemoryError, match="without CAP_SYS_ADMIN"):
        images.pre_dump()
    assert (images.place / "1" / FRAMES).exists()
    images.pre_dump(parent=False)
    memory.visible = True
    assert images.is_refused()


def test_a_caller_that_is_not_dumpable(
    memory: Memory, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot read its own pagemap: a dump without a parent does not need it."""
    memory.visible = False
    monkeypatch.setattr(page_frames, "zero_frame", _refused)
    images.dump(parent=False)
    images.pre_dump(parent=False)


def _refused() -> int:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("known", [False, True])
def test_a_dump_that_ends_the_process(
    memory: Memory, images: Images, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Its memory is read only if there is something to compare it with."""
    if known:
        images.dump(parent=False)
    at, check = images._next(parent=known)
    check._runs_on = False
    check.begin()
    reads: list[int] = []

    def read(pid: int, *_: object) -> Iterator[tuple[int, bytes]]:
        reads.append(pid)
        return iter(())

    monkeypatch.setattr(moved_memory, "page_tables", read)
    check.frozen([bystander.PID])
    check.written([bystander.PID])
    os.close(at)
    assert reads == [bystander.PID] * known


@pytest.mark.parametrize("stream", [None, True])
def test_streams(tmp_path: Path, stream: bool | None) -> None:
    """Images in a stream cannot be a parent: no record is made, and none is looked for."""
    with ExitStack() as owned:
        safeguards = _pre_dump(owned, CriuOpts(images_directory=tmp_path, stream=stream))
        assert (safeguards._memory is None) is bool(stream)


def test_a_pre_dump_that_cannot_be_recorded(tmp_path: Path) -> None:
    """It is undone, as the error says."""
    images = tmp_path / "images"
    with ExitStack() as owned:
        safeguards = _pre_dump(owned, CriuOpts(images_directory=images))
        (images / "pagemap-1.img").touch()  # and no inventory.img
        with pytest.raises(ImagesError, match=f"was undone: {FRAMES}.* cannot be written"):
            safeguards.pre_dumped()
    assert list(images.iterdir()) == []


def _pre_dump(owned: ExitStack, opts: CriuOpts) -> Safeguards:
    """The safeguards of a pre-dump that begins."""
    via = Worker(allow_untrusted=True)
    request = Request(verb=Verb.PRE_DUMP, opts=opts, pid=bystander.PID, via=via)
    safeguards = Safeguards(request, Directories(request, owned), owned, lambda: None)
    safeguards.mark()
    safeguards.start()
    safeguards.begin()
    return safeguards


@pytest.mark.parametrize("run", [(0, PAGES), (3, 2)])
def test_a_criu_without_the_notification(
    memory: Memory, images: Images, monkeypatch: pytest.MonkeyPatch, run: tuple[int, int]
) -> None:
    """Before CRIU 3.19, the page maps show which pages it has taken from the parent."""
    images.dump(parent=False, late=True)
    memory.change(1, PAGES, mark=0)  # CRIU has reset the marks

    def dump(table: int) -> None:
        images.number += 1
        directory = images.place / str(images.number)
        directory.mkdir()
        first, count = run
        entry = message((1, START + table * TABLE + first * PAGE), (2, count), (3, 1), (4, 1))
        data = image_of("PAGEMAP", message((1, 1)), entry)
        (directory / f"pagemap-{NUMBER}.img").write_bytes(data)
        (directory / "inventory.img").write_bytes(b"%d" % images.number)
        at = os.open(directory, os.O_RDONLY)
        try:
            check = MemoryCheck(
                at, "../1", verb=Verb.DUMP, pid=bystander.PID, runs_on=True, check=_ok
            )
            check.begin()
            check.written([bystander.PID])
        finally:
            os.close(at)

    record = images.place / "1" / FRAMES
    data = record.read_bytes()
    dump(2)
    assert not record.exists()
    record.write_bytes(data)
    with pytest.raises(MovedMemoryError, match="was moved"):
        dump(1)


@pytest.mark.parametrize(
    "what",
    ["other images", "damaged", "cut", "no processes", "a long table", "longer", "missing"],
)
def test_a_record_that_does_not_fit(memory: Memory, images: Images, what: str) -> None:
    """Another program has made a dump in the directory of the parent, or the record is damaged."""
    images.dump(parent=False)
    record = images.place / "1" / FRAMES
    data = record.read_bytes()
    match what:
        case "other images":
            (images.place / "1" / "inventory.img").write_bytes(b"2")
        case "damaged":
            record.write_bytes(data[:56] + b"\xff" * 8 + data[64:])
        case "cut":
            record.write_bytes(data[:-3])
        case "no processes":
            record.write_bytes(data[: data.index(b"1", 30) + 1])
        case "a long table":
            last, size = START + 3 * TABLE, len(data) - 31
            for before, after in (([last, PAGES], [last, PAGES + 1]), ([size], [size + 8])):
                data = data.replace(array("Q", before).tobytes(), array("Q", after).tobytes())
            record.write_bytes(data + bytes(8))
        case "longer":
            record.write_bytes(data + bytes(24))
        case "missing":
            record.unlink()
    assert images.is_refused()


def test_a_file_system_with_short_reads(
    memory: Memory, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as FUSE or NFS, or a record above 2 GiB: the record is read to its end."""
    images.dump(parent=False)
    monkeypatch.setattr(os, "read", _short(os.read))
    assert not images.is_refused()


def _short(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    return lambda fd, size: read(fd, min(size, 1000))


def test_the_record(memory: Memory, images: Images) -> None:
    """It has about 8 bytes for each page, and none for a process that the dump ends."""
    memory.tables[0] = [0] * PAGES
    memory.tables[1][:100] = memory.tables[1][-100:] = [0] * 100
    images.dump(parent=False)
    size = (images.place / "1" / FRAMES).stat().st_size
    assert 0 < size - 8 * (3 * PAGES - 200) < 200
    at, check = images._next(parent=False)
    check._runs_on = False
    check.frozen([bystander.PID])
    check.written([bystander.PID])
    os.close(at)
    assert (images.place / "2" / FRAMES).stat().st_size < 100


def test_a_record_that_cannot_be_written(memory: Memory, images: Images) -> None:
    """The dump is undone: with its images as the parent, a move could not be detected."""
    at, check = images._next(parent=False)
    check.frozen([bystander.PID])
    (images.place / "1" / "inventory.img").unlink()
    with pytest.raises(ImagesError, match=f"{FRAMES}.* cannot be written"):
        check.written([bystander.PID])
    os.close(at)


def test_a_failed_dump_over_earlier_images(memory: Memory, images: Images) -> None:
    """It puts the earlier images back; the marks are no longer relative to them."""
    images.dump(parent=False)
    at = os.open(images.place / "1", os.O_RDONLY)
    marker = DumpMarker(at)
    check = MemoryCheck(at, None, verb=Verb.DUMP, pid=bystander.PID, runs_on=True, check=_ok)
    check.begin()
    check.frozen([bystander.PID])
    marker.close()
    os.close(at)
    assert (images.place / "1" / "inventory.img").exists()
    assert not (images.place / "1" / FRAMES).exists()
    assert images.is_refused()


def test_page_tables(tmp_path: Path) -> None:
    """Written pages have entries; pages that were not touched, or have a file's content, do not."""
    (tmp_path / "file").write_bytes(bytes(16 * PAGE))
    program = (
        "import ctypes, mmap, sys\n"
        "PAGE, flags = mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS\n"
        "memory = mmap.mmap(-1, 1000 * PAGE, flags=flags)\n"
        "if hasattr(mmap, 'MADV_NOHUGEPAGE'):\n"
        "    memory.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for page in range(0, 1000, 2):\n"
        "    memory[page * PAGE] = 1\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)\n"
        "assert not any(mapped[:])\n"
        "mapped[5 * PAGE] = 1\n"
        "for each in (memory, mapped):\n"
        "    print(ctypes.addressof(ctypes.c_char.from_buffer(each)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        memory, mapped = (int(process.stdout.readline()) for _ in range(2))
        tables = dict(page_frames.page_tables(process.pid, _ok))
        process.stdin.close()

    def has_entry(address: int) -> bool:
        table = tables.get(address - address % TABLE, EMPTY)
        return bool(array("Q", page_frames.frames_of(table))[address % TABLE // PAGE])

    written = [page for page in range(1000) if has_entry(memory + page * PAGE)]
    assert written == list(range(0, 1000, 2))
    assert [page for page in range(16) if has_entry(mapped + page * PAGE)] == [5]


def test_sparse_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only page tables with pages are read (Linux 6.7), with the same result as of all of them."""
    (tmp_path / "file").write_bytes(bytes(4 * TABLE))
    program = (
        "import mmap, os, signal, sys\n"
        "PAGE, TABLE, flags = mmap.PAGESIZE, 2**21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS\n"
        "reserved = mmap.mmap(-1, 2**36, flags=flags | 0x4000, prot=0)\n"
        "memory = mmap.mmap(-1, 100 * TABLE, flags=flags)\n"
        "memory.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "huge = mmap.mmap(-1, 4 * TABLE, flags=flags)\n"
        "huge.madvise(mmap.MADV_HUGEPAGE)\n"
        "huge.write(b'1' * TABLE * 3)\n"
        "huge.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for page in (*range(600), 1023, 1024, 20000, 20007, 20009, 40000, 51199):\n"
        "    memory[page * PAGE] = 1\n"
        "assert not any(memory[30000 * PAGE : 30100 * PAGE])\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)\n"
        "shared = mmap.mmap(file.fileno(), 0)\n"
        "assert not any(private[:TABLE])\n"
        "private[3 * TABLE] = shared[TABLE] = 1\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    read: list[int] = []
    with subprocess.Popen(command) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            with open(f"/proc/{process.pid}/pagemap", "rb") as pagemap:
                scans = page_frames._first_page(pagemap.fileno(), PAGE, 2 * PAGE) == 2 * PAGE
            found = _pages(process.pid, lambda: read.append(1))
            monkeypatch.setattr(page_frames, "_first_page", lambda _, start, end: start)
            every = _pages(process.pid, _ok)
        finally:
            process.kill()
    assert found == every
    assert len(found) > 10
    if scans:
        assert len(read) < 2**36 // TABLE


def _pages(pid: int, check: Callable[[], object]) -> list[tuple[int, list[bool]]]:
    """The page tables of a process, with the pages that exist. New memory without pages is marked
    as changed.
    """
    return [
        (table, [frame != 0 for frame in array("Q", frames)])
        for table, entries in page_frames.page_tables(pid, check)
        if (frames := page_frames.frames_of(entries)) != EMPTY
    ]


@pytest.mark.parametrize("verb", [Verb.DUMP, Verb.PRE_DUMP])
def test_a_call_that_is_cancelled(memory: Memory, images: Images, verb: Verb) -> None:
    """The frames are read no further, except after a pre-dump, which cannot be undone."""
    images.check = _cancelled
    if verb is Verb.DUMP:
        at, check = images._next(parent=False)
        with pytest.raises(DeadlineError):
            check.frozen([bystander.PID])
        with pytest.raises(DeadlineError):
            check.written([bystander.PID])
    else:
        at, check = images._next(parent=False, verb=verb)
        with pytest.raises(DeadlineError):
            check.begin()
        check.after_pre_dump()
    os.close(at)


def _cancelled() -> None:
    raise DeadlineError("the deadline passed")  # an OSError, unlike other errors of a check


def test_the_frame_of_zeros() -> None:
    """It is the same at each call; whether it is visible depends on the rights."""
    assert page_frames.zero_frame() == page_frames.zero_frame()
    assert page_frames.zero_frame() & PRESENT
    assert page_frames.are_visible() == bool(page_frames.zero_frame() & ~PRESENT)

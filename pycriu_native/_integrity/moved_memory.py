"""The check that an incremental dump has all changes of memory, and the record for the next one.

CRIU takes a page from the parent images if the kernel does not mark it as changed (soft-dirty).
mremap(2) can move pages without a mark, by moving a page table (``move_normal_pmd`` in the kernel's
``mm/mremap.c``, seen with Linux 6.12): CRIU then takes what the parent images have for the new
address. So each dump and pre-dump that begins the tracking of changes writes the page frames of the
processes into a file beside its images, and the next one compares them.

A page that was not changed is still in its frame, unless the kernel itself has moved it, for
example into the swap. The pages of a table that was moved had other frames, all of them. So a table
is refused if fewer than an eighth of its pages without a mark are in their frames. (With one page
as the limit, frames that were freed and used again could hide a move.) Where the kernel merges
equal pages (KSM), which loses marks of single pages, all of them have to be in their frames. Pages
without marks that are in no frame of the record count as moved; those that CRIU leaves out, such as
pages of zeros, do not count.

The marks are relative to the last dump that has reset them, also if it failed after that: CRIU
would take what was changed before it from an older parent. So a dump removes the record of its
parent before it begins, and the images of that cannot be the parent of another dump. The same holds
for earlier images in its own directory.

A dump is checked while its processes are frozen, before CRIU resets the marks. CRIU sends no
notification of a pre-dump at that time, so the frames are read before it and after it, and those
that agree are recorded. Memory that is new at the freeze is not in the first reading, so there is
another one as soon as CRIU traces the processes. It counts if CRIU still does so after it, without
a parent for all pages, else for those with a mark: CRIU saves these pages. A table that is moved
away between the reading that counts and the freeze, and moved back before the last reading, is not
detected.

The file is a line of text, then numbers of 64 bits: the size of the rest; the size of
``inventory.img`` and its bytes, with which a later dump by another program is recognized; for each
process its pid in its own namespace, start time and number of page tables; for each of these the
address of the first page that is not empty, the number of pages, and their entries.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator

from .._support.unpatched import closing
from .._system import page_frames
from .._system.page_frames import CHANGED, EMPTY, ENTRY, PAGE, TABLE, frames_of, page_tables
from .._system.process import is_running, own_number_of, stat_of, status_of
from .._system.process_tree import process_tree
from .._system.regular_file import open_regular, replace_file
from ..enums import Verb
from ..errors import CriuError, ImagesError, MovedMemoryError
from .dump_marker import EARLIER, FRAMES
from .dump_record import inventory_of
from .image_files import DamagedError, ImageFiles
from .pagemap import IN_PARENT, Runs

_FIRST = b"pycriu-native frames 2\n"

Process = tuple[int, int]
"""Pid in its own namespace, and start time."""
Tables = dict[int, bytes]
"""The frames of the pages of each page table, by its address."""
Record = dict[Process, Tables]


class MemoryCheck:
    """The check of one dump or pre-dump that tracks changes, and its record."""

    def __init__(
        self,
        images: int,
        parent: str | None,
        *,
        verb: Verb,
        pid: int,
        runs_on: bool,
        check: Callable[[], object],
    ) -> None:
        """``parent`` is relative to ``images``, a descriptor. ``runs_on``: the processes continue,
        so that the images can be a parent. ``check`` raises if the call is cancelled or late.
        """
        self._images = images
        self._parent = parent
        self._verb = verb
        self._pid = pid
        self._runs_on = runs_on
        self._check = check
        self._visible = page_frames.are_visible()
        self._before: Record | None = None
        self._record: Record | None = None

    def begin(self) -> None:
        """Take over the record of the parent, and check a pre-dump, which begins now.

        The record of earlier images in the same directory is removed. ``MovedMemoryError``.
        """
        if self._parent is not None:
            if not self._visible:
                raise self._refusal(
                    "without CAP_SYS_ADMIN outside of user namespaces, memory that was moved "
                    "cannot be detected"
                )
            self._before = self._of_parent(self._parent)
        if self._verb == Verb.PRE_DUMP:
            self._record = self._read(process_tree(self._pid))
            self._before = None
        # A failed dump moves earlier images back: the marks are no longer relative to them.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{EARLIER}/{FRAMES}", dir_fd=self._images)

    def read_stopped(self) -> bool:
        """Read the frames again if CRIU has stopped the processes of a pre-dump; False if not."""
        if not _is_traced(self._pid):
            return False
        tree = process_tree(self._pid)
        again = self._read(tree, earlier=self._record)
        if all(_is_traced(pid) or not is_running(pid) for pid in tree):
            self._record = again
        return True

    def frozen(self, tree: Iterable[int]) -> None:
        """Check a dump of frozen processes, before CRIU reads the memory. ``MovedMemoryError``."""
        self._record = self._read(tree)
        self._before = None

    def written(self, tree: Iterable[int]) -> None:
        """Record a dump whose images are written. Its processes are still frozen.

        CRIU before 3.19 sends no notification before it reads the memory: the dump is checked now,
        with its page maps instead of the marks, which CRIU has reset.
        """
        if self._record is None:
            self._record = self._read(tree, ImageFiles(self._images))
            self._before = None
        self._write(self._record)

    def after_pre_dump(self) -> None:
        """Record a pre-dump that is complete."""
        self._check = lambda: None  # it is too late to cancel the call
        before = self._record or {}
        names = os.listdir(self._images)
        served = not any(name.startswith("pagemap-") for name in names)
        record = {}
        for process, tables in self._read(process_tree(self._pid)).items():
            if process in before:
                first = before[process]
                record[process] = {
                    address: _kept(first.get(address, EMPTY), frames)
                    for address, frames in tables.items()
                }
            elif served or f"pagemap-{process[0]}.img" in names:
                record[process] = {}
        self._write(record)

    def _read(
        self, tree: Iterable[int], saved: ImageFiles | None = None, earlier: Record | None = None
    ) -> Record:
        """Read the frames. They are compared if there is a record of a parent.

        ``earlier``: the record of the first reading of a pre-dump.
        """
        result: Record = {}
        if not self._runs_on and not self._before:
            return result  # nothing to compare, and no later dump has these images as its parent
        limit = _Limit() if self._before else None
        for pid in tree:
            stat = stat_of(pid)
            if stat is None:
                continue
            number = own_number_of(pid)
            process = number, stat.start
            before = None if self._before is None else self._before.get(process)
            compare = first = None
            if limit is not None and before is not None:
                runs = None if saved is None else _runs(saved, number)
                compare = self._comparison(limit, number, before, runs)
            if earlier is not None and self._parent is not None:
                first = earlier.get(process, {})
            try:
                result[process] = self._tables(pid, compare, first)
            except CriuError:
                raise  # DeadlineError is an OSError
            except OSError as error:
                if not is_running(pid):
                    continue
                if before is not None:
                    why = f"the page frames of pid {number} cannot be read ({error.strerror})"
                    raise self._refusal(why) from None
                result[process] = {}
        return result

    def _tables(
        self, pid: int, compare: Callable[[int, bytes, bytes], object] | None, first: Tables | None
    ) -> Tables:
        """The frames of a process, of those that are as in ``first`` or have a mark.

        ``compare`` is called with the address, entries and frames of each page table.
        """
        result: Tables = {}
        for address, entries in page_tables(pid, self._check) if self._visible else ():
            frames = frames_of(entries)
            if compare is not None:
                compare(address, entries, frames)
            if first is not None:
                frames = _kept(first.get(address, EMPTY), frames, entries)
            if self._runs_on and frames != EMPTY:
                result[address] = frames
        return result

    def _comparison(
        self, limit: _Limit, number: int, before: Tables, runs: Runs | None
    ) -> Callable[[int, bytes, bytes], object]:
        """A function that raises if a page table is not the one that was recorded."""

        def compare(address: int, entries: bytes, frames: bytes) -> None:
            taken = _taken(runs, address)
            if limit.is_moved(before.get(address, EMPTY), entries, frames, taken):
                raise self._refusal(
                    f"memory of pid {number} at {address:#x} was moved, or merged (KSM), and the "
                    "kernel has not marked it as changed"
                )

        return compare

    def _of_parent(self, parent: str) -> Record:
        """Read the record of the parent, and remove it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            with closing(os.open(parent, flags, dir_fd=self._images)) as at:
                with open(open_regular(FRAMES, dir_fd=at), "rb") as file:
                    data, inventory = file.read(), inventory_of(at)
                os.unlink(FRAMES, dir_fd=at)
            return _decoded(data, inventory)
        except OSError as error:
            why = f"{FRAMES} in it cannot be read and removed ({error.strerror})"
            raise self._refusal(why) from None
        except ValueError:
            raise self._refusal(f"{FRAMES} in it is not the record of these images") from None

    def _refusal(self, why: str) -> MovedMemoryError:
        cure = "leave parent_image out, so that all memory is saved"
        return MovedMemoryError(
            f"{self._verb} of pid {self._pid} refused: parent_image={self._parent!r} cannot be "
            f"used: {why}; {cure}",
            verb=str(self._verb),
            pid=self._pid,
            cause=why,
            cure=cure,
            options=["parent_image"],
        )

    def _write(self, record: Record) -> None:
        if not self._runs_on:
            record = {}
        try:
            replace_file(self._images, FRAMES, *_encoded(record, inventory_of(self._images)))
        except OSError as error:
            raise ImagesError(
                f"{self._verb} of pid {self._pid} was undone: {FRAMES}, which an incremental dump "
                f"needs, cannot be written beside the images: {error.strerror}",
                verb=str(self._verb),
                pid=self._pid,
                errno=error.errno,
                options=["images_directory"],
            ) from None


class _Limit:
    """How many pages of a table have to be in their frames."""

    def __init__(self) -> None:
        self._all = page_frames.are_merged()
        self._zero = page_frames.zero_frame()

    def is_moved(self, before: bytes, entries: bytes, now: bytes, taken: set[int] | None) -> bool:
        """Whether pages of a table are not those that it had before.

        ``taken`` are the pages that CRIU has taken from the parent; None: those without a mark.
        """
        if before == now:
            return False
        kept = [
            old == new
            for page, (old, new, entry) in enumerate(
                zip(array("Q", before), array("Q", now), array("Q", entries), strict=True)
            )
            if new not in (0, self._zero)
            and (not entry & CHANGED if taken is None else page in taken)
        ]
        return sum(kept) < (len(kept) if self._all else len(kept) / 8)


def _runs(images: ImageFiles, number: int) -> Runs | None:
    """The page map of a process; None if a page server has it."""
    name = f"pagemap-{number}.img"
    with contextlib.suppress(DamagedError):
        return images.runs(name) if name in images.names else None
    return None


def _taken(runs: Runs | None, table: int) -> set[int] | None:
    """The pages of a page table that the parent has."""
    if runs is None:
        return None
    return {
        (page - table) // PAGE
        for _, (start, end, flags, _) in runs.between(table, table + TABLE)
        if flags & IN_PARENT
        for page in range(max(start, table), min(end, table + TABLE), PAGE)
    }


def _kept(before: bytes, frames: bytes, entries: bytes = EMPTY) -> bytes:
    """The frames of pages that are in the same frame before, or have a mark in ``entries``."""
    if before == frames:
        return frames
    pages = zip(array("Q", before), array("Q", frames), array("Q", entries), strict=True)
    kept = [new if old == new or entry & CHANGED else 0 for old, new, entry in pages]
    return array("Q", kept).tobytes()


def _is_traced(pid: int) -> bool:
    return status_of(pid).get("TracerPid", "0") != "0"


def _encoded(record: Record, inventory: bytes) -> Iterator[bytes | memoryview]:
    """The parts of the file. Frames are not copied: the processes are frozen."""
    parts: list[bytes | memoryview] = [_numbers(len(inventory)), inventory]
    for process, tables in record.items():
        tables = {at: frames for at, frames in tables.items() if frames != EMPTY}
        parts.append(_numbers(*process, len(tables)))
        for address, frames in tables.items():
            first = (len(frames) - len(frames.lstrip(b"\0"))) // ENTRY * ENTRY
            last = -(-len(frames.rstrip(b"\0")) // ENTRY) * ENTRY
            parts.append(_numbers(address + first // ENTRY * PAGE, (last - first) // ENTRY))
            parts.append(memoryview(frames)[first:last])
    yield _FIRST + _numbers(sum(map(len, parts)))
    yield from parts


def _numbers(*numbers: int) -> bytes:
    return array("Q", numbers).tobytes()


def _decoded(data: bytes, inventory: bytes) -> Record:
    """``ValueError`` if the record is damaged, or that of other images."""
    body = memoryview(data)[len(_FIRST) + ENTRY :]
    start = _numbers(len(inventory)) + inventory
    rest = body[len(start) :]
    if data[: -len(body)] != _FIRST + _numbers(len(body)) or body[: len(start)] != start:
        raise ValueError(FRAMES)
    if len(rest) % ENTRY:
        raise ValueError(FRAMES)
    words, at, record = rest.cast("Q"), 0, Record()
    while at < len(words):
        number, begin, count = words[at : at + 3]
        at += 3
        tables = record[number, begin] = Tables()
        for _ in range(count):
            address, pages = words[at : at + 2]
            at += 2
            first = address % TABLE // PAGE
            if first + pages > TABLE // PAGE:
                raise ValueError(FRAMES)
            frames = bytes(first * ENTRY) + words[at : at + pages].tobytes()
            tables[address - address % TABLE] = frames.ljust(len(EMPTY), b"\0")
            at += pages
    if at != len(words):
        raise ValueError(FRAMES)
    return record

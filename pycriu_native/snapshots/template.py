"""Image sets with a template: memory that all restored copies share, copy-on-write.

:func:`prepare` makes such a set from the images of a dump. In it, large private anonymous mappings
have no pages, and their offsets are offsets in the template. A ``SharedTemplate`` loads the
template into the memory of a fork server, whose workers inherit it and move each part to the
address of the mapping (``native/forkserver.c``). CRIU is not modified.

- CRIU maps a mapping in its own process, before the restorer runs, only if it is in a set with a
  parent, or is MAP_GROWSDOWN with a mapping right below it (``premap_priv_vmas`` in
  ``criu/mem.c``). So each mapping gets that flag in the images, which the moved memory does not
  have; and if no mapping is right below it, an entry of length 0 and without a type, which CRIU
  does not map.
- The marked offset is no multiple of the page size. A CRIU that maps such a mapping anywhere else,
  or without the library, gets EINVAL from the kernel, and the restore fails before anything runs.
- CRIU searches for memory that a process shares with its parent if both have the same executable
  (``prepare_cow_vmas``), and would include mappings of a template. So each process has a separate
  entry for its executable.

The pages of the template are in the pages files of the dump and its parents, to which the new set
has hard links.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
import secrets
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from .._integrity.dump_marker import UNFINISHED
from .._integrity.page_size import HOST_PAGE, page_size
from .._native.ffi import native
from .._support.unpatched import closing
from .._system.regular_file import create_regular, open_regular
from ..errors import ImagesError, images_error
from ..images.image_directory import parents_of
from ..images.pages import Layers, PageMap, Stored
from ..images.reader import expect
from ..images.schema import message
from .page_files import link_or_copy, write_image, write_page_map
from .uninterrupted import check_interrupted, uninterrupted

NAME = "template.json"
"""The file of a prepared set that describes its template."""

SMALLEST = 64 * 1024
"""Smallest stored memory of a shared mapping, in bytes. Moving a mapping takes some microseconds,
reading a page from the images one."""

MOST_FILES = 250
"""Limit of the pages files: the descriptors that can be sent to a fork server at once."""

VERSION = 1

MARK = 1 << 62
PLACE = 0xFFFFFFFFF000
"""The bits of a marked offset with the offset in the template."""

_MM = re.compile(r"mm-(\d+)\.img")
_SHARED_MAP = re.compile(r"pagemap-shmem-\d+\.img")

# Linux's and CRIU's (criu/include/image.h) numbers.
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x02, 0x20, 0x100
_MAP_LOCKED, _MAP_NORESERVE = native.pn_map_locked, native.pn_map_noreserve
_MAP_HUGETLB = native.pn_map_hugetlb
_REGULAR, _HEAP, _ANON_PRIVATE = 1 << 0, 1 << 5, 1 << 9
_ALLOWED = _REGULAR | _HEAP | _ANON_PRIVATE

_TABLE = struct.Struct("4Q")
CHUNK = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class PagesFile:
    """A file with pages of the template."""

    name: str
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """The description of a template: its regions, one after the other, and their pages."""

    tag: int
    """The other bits of a marked offset, which identify the template."""
    size: int
    """Its size in memory in bytes, including holes."""
    stored: int
    """Bytes of its pages."""
    files: tuple[PagesFile, ...]
    regions: tuple[tuple[int, bool], ...]
    """Length in bytes of each mapping, and whether it is mapped with MAP_NORESERVE."""
    extents: tuple[tuple[int, int, int, int], ...]
    """Offset in the template, length, number of the file, offset in the file; ascending."""

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Self:
        """The template of a prepared set. Raises ``ImagesError``."""
        path = Path(directory) / NAME
        cure = prepare_again(directory)
        try:
            with open(open_regular(path), "rb") as file:
                data = json.load(file)
        except OSError as error:
            why = f"{directory} is not an image set with a template: {NAME}: {error.strerror}"
            raise damaged(why, cure, error.errno or 0) from None
        except (RecursionError, ValueError) as error:
            raise damaged(f"{path} is damaged: {error}", cure) from None
        try:
            if data["version"] != VERSION:
                why = f"{path} has version {data['version']!r}; {VERSION} is accepted"
                raise damaged(why, cure)
            result = cls(
                tag=data["tag"],
                size=data["size"],
                stored=data["stored"],
                files=tuple(PagesFile(**each) for each in data["files"]),
                regions=tuple((length, bool(flag)) for length, flag in data["regions"]),
                extents=tuple((at, size, file, begin) for at, size, file, begin in data["extents"]),
            )
            result._check()
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(f"{path} is damaged: {error!r}", cure) from None
        return result

    def _check(self) -> None:
        """``ValueError`` if the numbers are inconsistent."""
        lengths = [length for length, _ in self.regions]
        numbers = [self.tag, self.size, self.stored, *lengths]
        numbers += [number for extent in self.extents for number in extent]
        for each in self.files:
            numbers += [each.size, each.crc32]
            if not isinstance(each.name, str) or "/" in each.name:
                raise ValueError("names")
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("numbers")
        if not all(length > 0 and length % HOST_PAGE == 0 for length in lengths):
            raise ValueError("regions")
        if sum(lengths) != self.size or self.tag & PLACE or self.size > PLACE:
            raise ValueError("size")
        last = 0
        for place, length, file, begin in self.extents:
            if place < last or length <= 0 or place + length > self.size or begin < 0:
                raise ValueError("extents")
            if begin + length > self.files[range(len(self.files))[file]].size:
                raise ValueError("files")
            last = place + length

    def write(self, directory: Path) -> None:
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data |= {"version": VERSION, "files": [asdict(each) for each in self.files]}
        with open(create_regular(directory / NAME), "w") as file:
            json.dump(data, file)

    def table(self) -> bytes:
        """The description as ``struct pn_template`` of ``native/forkserver.h``."""
        flags = ((length, _MAP_NORESERVE * noreserve) for length, noreserve in self.regions)
        head = _TABLE.pack(self.tag, self.size, len(self.regions), len(self.extents))
        numbers = [number for rows in (flags, self.extents) for row in rows for number in row]
        return head + array("Q", numbers).tobytes()


def damaged(why: str, cure: str, number: int | None = 0) -> ImagesError:
    """The error for a template that cannot be used."""
    return ImagesError(f"{why}; {cure}", errno=number, cure=cure)


def prepare_again(directory: str | os.PathLike[str]) -> str:
    """The cure for a prepared set with missing or damaged files."""
    return f"remove the directory {os.fspath(directory)}; the next start of the snapshot makes it"


def prepare(
    images_directory: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    smallest: int = SMALLEST,
) -> Template:
    """Make an image set with a template from the images of a dump, in a new directory.

    Unchanged images are hard-linked, or copied if that is impossible; the images of the dump are
    not changed, and can be removed. Restore the new set with
    :class:`~pycriu_native.snapshots.SharedTemplate`.

    Args:
        images_directory: the images of a dump.
        directory: a new or empty directory, which gets mode 0700. It is removed after a failure.
        smallest: the smallest stored memory of a shared mapping, in bytes.

    Raises:
        ImagesError: the images are incomplete; their memory is that of a lazy dump, compressed, or
            of another page size; none of their mappings is large enough; or the directory is not
            empty.
    """
    source, target = Path(images_directory), Path(directory)
    created = not target.exists()
    return uninterrupted(
        "prepare",
        lambda: _prepared(source, target, smallest, created),
        lambda _: _remove(target, created),
    )


def _prepared(source: Path, target: Path, smallest: int, created: bool) -> Template:
    if (source / UNFINISHED).exists():
        raise ImagesError(f"{source} has images of a dump that has not ended")
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        if any(target.iterdir()):
            raise FileExistsError(17, "it is not empty", str(target))
        target.chmod(0o700)
    except OSError as error:
        raise images_error(f"{target} cannot be made", error) from None
    try:
        return _Preparation(source, target, smallest).run()
    except BaseException as error:
        _remove(target, created)
        if isinstance(error, OSError) and not isinstance(error, ImagesError):
            raise images_error(f"{target} cannot be written", error) from None
        raise


def _remove(target: Path, created: bool) -> None:
    for each in target.iterdir():
        each.unlink()
    if created:
        target.rmdir()


class _Preparation:
    """One call of ``prepare``."""

    def __init__(self, source: Path, target: Path, smallest: int) -> None:
        self.source = source
        self.layers = parents_of(str(source))[1]
        self.target = target
        self.smallest = max(smallest, HOST_PAGE)
        self.tag = MARK | secrets.randbits(14) << 48 | secrets.randbits(11) << 1 | 1
        self.size = 0
        self.files: list[PagesFile] = []
        self.regions: list[tuple[int, bool]] = []
        self.extents: list[tuple[int, int, int, int]] = []
        self.changed: set[str] = set()
        self.executables: dict[int, list[tuple[str, Any]]] = {}
        """The processes of each executable: file name and message of their ``mm`` image."""

    def run(self) -> Template:
        names = sorted(
            entry.name
            for entry in os.scandir(self.source)
            if entry.name.endswith(".img") and entry.is_file(follow_symlinks=False)
        )
        for name in names:
            if found := _MM.fullmatch(name):
                self._process(name, f"pagemap-{found[1]}.img")
            elif _SHARED_MAP.fullmatch(name):
                page_map, runs = self._runs(name)
                if page_map.runs.total[1]:
                    self._write_pages(page_map, runs)
        if not self.regions:
            raise ImagesError(
                f"{self.source}: no private anonymous mapping has {self.smallest} bytes of memory "
                "or more in the images, so no memory can be shared"
            )
        self._separate_executables()
        for name in names:
            if name not in self.changed:
                link_or_copy(self.source / name, self.target / name)
        template = Template(
            tag=self.tag,
            size=self.size,
            stored=sum(length for _, length, _, _ in self.extents),
            files=tuple(self.files),
            regions=tuple(self.regions),
            extents=tuple(self.extents),
        )
        template.write(self.target)
        return template

    def _process(self, name: str, pagemap: str) -> None:
        with expect(str(self.source / name), "MM") as file:
            mm = file.only()
        self.executables.setdefault(mm.exe_file_id, []).append((name, mm))
        if (page := page_size(mm.mm_saved_auxv)) != HOST_PAGE:
            raise ImagesError(
                f"{self.source / name}: memory in pages of {page} bytes cannot be shared on a "
                f"machine with pages of {HOST_PAGE}"
            )
        page_map, runs = self._runs(pagemap)
        has_room = len(self.files) + len({run[2].pages for run in runs}) <= MOST_FILES
        chosen = self._choose(mm.vmas, page_map) if has_room else []
        if chosen:
            files: dict[str, int] = {}
            for vma in chosen:
                self._add(vma, runs, files)
            mark(mm.vmas, chosen)
            self._write(name, "MM", [mm])
        if chosen or page_map.runs.total[1]:
            self._write_pages(page_map, outside(runs, [(vma.start, vma.end) for vma in chosen]))

    def _runs(self, pagemap: str) -> tuple[PageMap, list[Stored]]:
        """A page map, and the files and offsets of its pages, also in the parents of the set."""
        layers = Layers(self.layers, pagemap, HOST_PAGE)
        page_map = layers.level(0)
        if page_map is None:
            raise ImagesError(f"{self.source} has no {pagemap}")
        runs = list(layers.stored())
        needed: dict[str, int] = {}
        for start, end, at, offset in runs:
            needed[at.pages] = max(needed.get(at.pages, 0), offset + end - start)
        for path, size in needed.items():
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise ImagesError(f"{path} cannot be read: {error.strerror}") from None
            if found < size:
                raise ImagesError(f"{path} is {size - found} bytes too short")
        return page_map, runs

    def _add_file(self, path: str) -> int:
        """Link a file with pages; returns its number in the template."""
        name = f"template-{len(self.files) + 1}.pages"
        link_or_copy(Path(path), self.target / name)
        with closing(open_regular(self.target / name)) as fd:
            size = os.fstat(fd).st_size
            self.files.append(PagesFile(name=name, size=size, crc32=checksum(fd, size)))
        return len(self.files) - 1

    def _choose(self, vmas: Iterable[Any], page_map: PageMap) -> list[Any]:
        eligible = [vma for vma in vmas if is_eligible(vma)]
        starts, ends = ([getattr(vma, end) for vma in eligible] for end in ("start", "end"))
        counts = page_map.runs.count(starts, ends)
        sizes = [stored + in_parent for stored, in_parent, _ in counts]
        chosen = [
            (vma, size) for vma, size in zip(eligible, sizes, strict=True) if size >= self.smallest
        ]
        # CRIU reads the first entry of a page map before it checks whether there is one.
        if sum(size for _, size in chosen) == sum(page_map.runs.total):
            del chosen[-1:]
        return [vma for vma, _ in chosen]

    def _add(self, vma: Any, runs: Sequence[Stored], files: dict[str, int]) -> None:
        """Add a mapping as a region of the template."""
        begin = bisect.bisect_right(runs, vma.start, key=itemgetter(1))
        for start, end, page_map, offset in itertools.islice(runs, begin, None):
            if start >= vma.end:
                break
            first, last = max(start, vma.start), min(end, vma.end)
            if page_map.pages not in files:
                files[page_map.pages] = self._add_file(page_map.pages)
            extent = (
                self.size + first - vma.start,
                last - first,
                files[page_map.pages],
                offset + first - start,
            )
            self.extents.append(extent)
        vma.pgoff = self.tag | self.size
        self.regions.append((vma.end - vma.start, bool(vma.flags & _MAP_NORESERVE)))
        self.size += vma.end - vma.start

    def _write_pages(self, page_map: PageMap, remaining: Iterable[Stored]) -> None:
        names = page_map.name, page_map.pages_name
        self.changed.update(names)
        image, pages = (self.target / name for name in names)
        parts = ((each[0], each[1], each) for each in remaining)
        write_page_map(image, pages, page_map.pages_id, parts)

    def _separate_executables(self) -> None:
        """Give each process a separate entry for its executable in ``files.img``."""
        if all(len(processes) == 1 for processes in self.executables.values()):
            return
        name = "files.img"
        with expect(str(self.source / name), "FILES") as file:
            kind = file.format.message
            entries = [file.read(at, data, kind) for at, data in file.frames(file.start)]
        last = max(entry.id for entry in entries)
        by_id = {entry.id: entry for entry in entries if entry.HasField("reg")}
        for number, processes in self.executables.items():
            for mm_name, mm in processes[1:]:
                last += 1
                added = message(kind)()
                added.CopyFrom(by_id[number])
                added.id = added.reg.id = mm.exe_file_id = last
                entries.append(added)
                (self.target / mm_name).unlink(missing_ok=True)
                self._write(mm_name, "MM", [mm])
        self._write(name, "FILES", entries)

    def _write(self, name: str, kind: str, entries: Iterable[Any]) -> None:
        self.changed.add(name)
        write_image(self.target / name, kind, entries)


def is_eligible(vma: Any) -> bool:
    """Whether a mapping is private anonymous memory that can be moved to its address."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS
    others = _MAP_GROWSDOWN | _MAP_LOCKED | _MAP_HUGETLB
    return (
        vma.status & _REGULAR
        and vma.status & _ANON_PRIVATE
        and not vma.status & ~_ALLOWED
        and vma.flags & (flags | others) == flags
    )


def mark(vmas: Any, chosen: Sequence[Any]) -> None:
    """Change the images so that CRIU maps the chosen mappings early."""
    starts = {vma.start for vma in chosen}
    result: list[Any] = []
    end = None
    for vma in vmas:
        if vma.start in starts and vma.pgoff & MARK:
            vma.flags |= _MAP_GROWSDOWN
            if end != vma.start:
                below = {"start": vma.start, "end": vma.start, "fd": -1}
                numbers = dict.fromkeys(("pgoff", "shmid", "prot", "flags", "status"), 0)
                result.append(type(vma)(**below, **numbers))
        end = vma.end
        result.append(vma)
    copies = [type(vma).FromString(vma.SerializeToString()) for vma in result]
    del vmas[:]
    vmas.extend(copies)


def outside(runs: Iterable[Stored], ranges: Iterable[tuple[int, int]]) -> Iterator[Stored]:
    """The parts of the runs that are outside of the ranges; both are sorted."""
    waiting = iter(ranges)
    first, last = next(waiting, (2**64, 2**64))
    for start, end, page_map, offset in runs:
        at = start
        while at < end:
            while last <= at:
                first, last = next(waiting, (2**64, 2**64))
            if first > at:
                until = min(first, end)
                yield at, until, page_map, offset + at - start
                at = until
            else:
                at = min(last, end)


def checksum(fd: int, size: int) -> int:
    """The CRC-32 of a file's first bytes; -1 if it is shorter."""
    result, at = 0, 0
    buffer = memoryview(bytearray(CHUNK))
    while at < size:
        check_interrupted()
        done = os.preadv(fd, [buffer[: size - at]], at)
        if not done:
            return -1
        result = zlib.crc32(buffer[:done], result)
        at += done
    return result

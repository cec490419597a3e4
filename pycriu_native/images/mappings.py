"""The memory of the processes of an image set: mappings, command line and environment."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

from .._integrity.page_size import HOST_PAGE, page_size
from .._integrity.pagemap import Counts
from .._system.huge_pages import MAP_HUGETLB, size_in
from ..errors import ImagesError
from .files import Files
from .image_directory import ImageDirectory
from .memory_mapping import MemoryMapping, VmaKind
from .pages import Layers

LONGEST_COMMAND = 4 * 2**20
"""Maximum bytes of a command line or an environment: the default limit of the kernel."""

# Bits of the status of a mapping (CRIU's criu/include/image.h).
_STACK, _VSYSCALL, _VDSO, _HEAP, _FILE_PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6
_FILE_SHARED, _ANON_SHARED, _ANON_PRIVATE, _SYSVIPC = 1 << 7, 1 << 8, 1 << 9, 1 << 10
_VVAR, _MEMFD = 1 << 12, 1 << 14
_GROWS_DOWN = 0x100
_GUARD = 1 << 16
"""CRIU's flag of an entry for a range of guard pages inside a mapping."""
_PROTECTION = ("---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx")


class Mappings:
    """Reads the memory of processes."""

    def __init__(self, images: ImageDirectory, files: Files) -> None:
        self.images = images
        self.files = files
        self.page = HOST_PAGE
        self.shared: dict[int, Layers] = {}
        self.mappings: dict[tuple[int, int, int, int, int, int, int, Counts], MemoryMapping] = {}
        self.texts: dict[bytes, tuple[str, ...]] = {}

    def of_process(self, pid: int, mm: Any) -> dict[str, Any]:
        """The fields of ``Process`` that are about memory."""
        self.page = page_size(mm.mm_saved_auxv)
        layers = Layers(self.images.layers, f"pagemap-{pid}.img", self.page)
        vmas = [each for each in mm.vmas if not each.status & _GUARD]
        starts, ends = [each.start for each in vmas], [each.end for each in vmas]
        counts = layers.counts(starts, ends)
        command, environment = self._strings(layers, mm)
        return {
            "mappings": tuple(map(self._mapping, vmas, starts, ends, counts)),
            "guard_regions": tuple(
                (each.start, each.end) for each in mm.vmas if each.status & _GUARD
            ),
            "pagemap": pid,
            "page_size": self.page,
            "executable": self.files.path_of(mm.exe_file_id),
            "command": command,
            "environment": environment,
        }

    def _strings(self, layers: Layers, mm: Any) -> Iterator[tuple[str, ...] | None]:
        """The command line and the environment."""
        start, middle, end = mm.mm_arg_start, mm.mm_arg_end, mm.mm_env_end
        # One read is enough if they are adjacent; a process can move them (prctl(2)).
        if start < middle == mm.mm_env_start < end and (both := self._text(layers, start, end)):
            yield self._split(both[: middle - start])
            yield self._split(both[middle - start :])
        else:
            yield self._split(self._text(layers, start, middle))
            yield self._split(self._text(layers, mm.mm_env_start, end))

    def _text(self, layers: Layers, start: int, end: int) -> bytes | None:
        """The bytes of a range; None if they are not all in the images."""
        if not 0 < end - start <= LONGEST_COMMAND:
            return b"" if start == end else None
        data = b""
        try:
            for begin, piece, _ in layers.pieces(start, end):
                if begin != start + len(data) or piece is None:
                    return None
                data += piece
        except ImagesError:
            if not self.images.problems:
                raise
            return None  # already reported as missing
        return data if len(data) == end - start else None

    def _split(self, text: bytes | None) -> tuple[str, ...] | None:
        """Strings that end with NUL, as execve(2) stores them; equal texts share one value."""
        if not text:
            return None if text is None else ()
        if text not in self.texts:
            parts = text.removesuffix(b"\0").split(b"\0")
            self.texts[text] = tuple(map(os.fsdecode, parts))
        return self.texts[text]

    def _mapping(self, vma: Any, start: int, end: int, counts: Counts) -> MemoryMapping:
        # Forked processes have most mappings in common.
        key = start, end, vma.pgoff, vma.shmid, vma.status, vma.flags, vma.prot, counts
        made = self.mappings.get(key)
        if made is None:
            made = self.mappings[key] = self._new_mapping(*key)
        return made

    def _new_mapping(
        self,
        start: int,
        end: int,
        offset: int,
        number: int,
        status: int,
        flags: int,
        prot: int,
        counts: Counts,
    ) -> MemoryMapping:
        kind, protection, has_file, in_memfd = _traits(status, flags, prot)
        shared = None
        if kind is VmaKind.SHARED:
            shared = self.files.shared_of(number) if in_memfd else number
            counts = (
                (0, 0, 0) if shared is None else self._shared_counts(shared, start, end, offset)
            )
        # A process can have tens of thousands, and omitted fields take no memory.
        more: dict[str, Any] = {}
        if has_file:
            more = {"path": self.files.path_of(number), "file": number}
        if shared is not None:
            more["shared"] = shared
        if has_file or shared is not None:
            more["offset"] = offset
        if flags & _GROWS_DOWN:
            more["grows_down"] = True
        if flags & MAP_HUGETLB and (size := size_in(flags)):
            more["huge_page"] = size
        for name, size in zip(("stored", "in_parent", "lazy"), counts, strict=True):
            if size:
                more[name] = size
        return MemoryMapping(start=start, end=end, kind=kind, protection=protection, **more)

    def _shared_counts(self, shared: int, start: int, end: int, offset: int) -> Counts:
        if shared not in self.shared:
            name = f"pagemap-shmem-{shared}.img"
            self.shared[shared] = Layers(self.images.layers, name, self.page)
        last = min(offset + max(end - start, 0), 2**64 - 1)
        return self.shared[shared].counts([offset], [last])[0]


@functools.lru_cache(4096)
def _traits(status: int, flags: int, prot: int) -> tuple[VmaKind, str, bool, bool]:
    """Kind, protection, whether the mapping has a file, and whether that is a memfd."""
    return (
        _kind(status, flags),
        _PROTECTION[prot & 7] + ("s" if flags & 1 else "p"),
        bool(status & (_FILE_PRIVATE | _FILE_SHARED | _MEMFD)),
        bool(status & _MEMFD),
    )


def _kind(status: int, flags: int) -> VmaKind:
    if status & (_VDSO | _VSYSCALL | _VVAR):
        return VmaKind.VDSO
    if status & (_ANON_SHARED | _SYSVIPC) or (status & _MEMFD and status & _FILE_SHARED):
        return VmaKind.SHARED
    if status & _FILE_SHARED:
        return VmaKind.SHARED_FILE
    if status & _FILE_PRIVATE:
        return VmaKind.FILE
    if status & _HEAP:
        return VmaKind.HEAP
    if status & _STACK or flags & _GROWS_DOWN:
        return VmaKind.STACK
    return VmaKind.ANONYMOUS if status & _ANON_PRIVATE else VmaKind.OTHER

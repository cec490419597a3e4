"""Differences between two image sets of the same processes."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .build import inspect
from .memory import Memory
from .memory_mapping import MemoryMapping, Value, VmaKind
from .model import File, ImageSet, Process

_COMPARED = (
    "parent", "group", "session", "name", "state", "exit_code", "command", "executable", "cwd",
    "root", "umask", "credentials", "timers", "cgroups", "limits", "pending_signals",
    "oom_score_adj",
)  # fmt: skip
_NO_CHANGE = ("id", "remap", "ghost_size")
"""Fields of a file that are numbers of the images, not properties of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change(Value):
    """One changed property."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class DescriptorChange(Value):
    """An added, removed or changed descriptor."""

    fd: int
    before: str | None
    """The file before, in one line; None for an added descriptor."""
    after: str | None
    """The file after; None for a removed descriptor."""
    socket: bool
    changes: tuple[Change, ...] = ()
    """Changed properties of the same file: position, queues, state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingChange(Value):
    """An added or removed mapping, or one with another size or protection."""

    start: int
    end: int
    kind: VmaKind
    path: str | None
    before: str | None
    """Address range and protection; None for an added mapping."""
    after: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PageChange(Value):
    """Numbers of pages of a mapping that differ; their size is ``Process.page_size``."""

    start: int
    end: int
    kind: VmaKind
    path: str | None
    changed: int
    """Pages with changed contents."""
    added: int
    """Pages with contents only after; before, they were zeros, of a file, or not mapped."""
    removed: int
    """Pages with contents only before."""
    same: int
    unknown: int
    """Pages that one set lacks: lazy ones, or those of a missing parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessChange(Value):
    """Changes of a process that is in both sets."""

    pid: int
    name: str
    changes: tuple[Change, ...] = ()
    threads_added: tuple[int, ...] = ()
    threads_removed: tuple[int, ...] = ()
    descriptors: tuple[DescriptorChange, ...] = ()
    mappings: tuple[MappingChange, ...] = ()
    page_size: int
    """Bytes of a page; 0 without memory."""
    pages: tuple[PageChange, ...]
    """Changes of each mapping with pages in a set; empty if memory is not compared."""

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(
            self.changes
            or self.threads_added
            or self.threads_removed
            or self.descriptors
            or self.mappings
            or any(each.changed or each.added or each.removed for each in self.pages)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Value):
    """Changes from one image set to another. False if there are none."""

    computed = ("pages_changed", "pages_added", "pages_removed", "pages_same")

    before: str
    """The directories."""
    after: str
    added: tuple[int, ...]
    """Pids of processes that are in the second set only."""
    removed: tuple[int, ...]
    """Pids of processes that are in the first set only."""
    processes: tuple[ProcessChange, ...]
    """Changed processes that are in both sets."""
    changes: tuple[Change, ...] = field(default=())
    """Changes of the set as a whole: sizes, mounts, devices, locks."""
    unchanged: int = 0
    """Equal pages of unchanged processes."""

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.added or self.removed or self.processes or self.changes)

    def _total(self, name: str) -> int:
        return sum(getattr(page, name) for each in self.processes for page in each.pages)

    @property
    def pages_changed(self) -> int:
        """Pages with other contents, of all processes."""
        return self._total("changed")

    @property
    def pages_added(self) -> int:
        """Pages with contents only after, of all processes."""
        return self._total("added")

    @property
    def pages_removed(self) -> int:
        """Pages with contents only before, of all processes."""
        return self._total("removed")

    @property
    def pages_same(self) -> int:
        """Pages with the same contents, of all processes."""
        return self._total("same") + self.unchanged


def diff(
    before: ImageSet | str | os.PathLike[str],
    after: ImageSet | str | os.PathLike[str],
    *,
    memory: bool = True,
) -> Difference:
    """Compare two image sets.

    Processes are identified by their pids. With ``memory=False`` the contents of pages are not
    read, which takes as long as reading both sets. Pages in parents are read there.

    Raises ``ImagesError`` as ``inspect`` does.
    """
    old = before if isinstance(before, ImageSet) else inspect(before)
    new = after if isinstance(after, ImageSet) else inspect(after)
    ours = {each.pid: each for each in old.processes}
    theirs = {each.pid: each for each in new.processes}
    changed: list[ProcessChange] = []
    unchanged = 0
    for pid in ours.keys() & theirs.keys():
        result = _process(old, ours[pid], new, theirs[pid], memory)
        if result:
            changed.append(result)
        else:
            unchanged += sum(each.same for each in result.pages)
    return Difference(
        before=old.directory,
        after=new.directory,
        added=tuple(sorted(theirs.keys() - ours.keys())),
        removed=tuple(sorted(ours.keys() - theirs.keys())),
        processes=tuple(sorted(changed, key=lambda each: each.pid)),
        changes=_changes(old, new, ("kind", "architecture", "mounts", "devices", "locks")),
        unchanged=unchanged,
    )


def _process(
    old: ImageSet, before: Process, new: ImageSet, after: Process, memory: bool
) -> ProcessChange:
    pages = tuple(_pages(before, after)) if memory else ()
    if old.kind != new.kind:  # of a pre-dump there is memory only
        name = after.name or before.name
        return ProcessChange(pid=after.pid, name=name, page_size=after.page_size, pages=pages)
    tids = [{each.tid for each in process.threads} for process in (before, after)]
    return ProcessChange(
        pid=after.pid,
        name=after.name,
        changes=_changes(before, after, _COMPARED),
        threads_added=tuple(sorted(tids[1] - tids[0])),
        threads_removed=tuple(sorted(tids[0] - tids[1])),
        descriptors=tuple(_descriptors(old, before, new, after)),
        mappings=tuple(_mappings(before.mappings, after.mappings)),
        page_size=after.page_size,
        pages=pages,
    )


def _changes(before: Any, after: Any, names: Iterable[str]) -> tuple[Change, ...]:
    """The attributes of these names that differ."""
    values = ((name, getattr(before, name), getattr(after, name)) for name in names)
    return tuple(
        Change(name=name, before=was, after=now) for name, was, now in values if was != now
    )


def _descriptors(
    old: ImageSet, before: Process, new: ImageSet, after: Process
) -> Iterator[DescriptorChange]:
    ours, theirs = files_by_fd(old, before), files_by_fd(new, after)
    for fd in sorted(ours.keys() | theirs.keys()):
        was, now = ours.get(fd), theirs.get(fd)
        changes = tuple(_file_changes(was, now)) if was and now else ()
        if was and now and not changes:
            continue
        one = now or was
        yield DescriptorChange(
            fd=fd,
            before=was.label if was else None,
            after=now.label if now else None,
            socket=one is not None and one.type.endswith("SK"),
            changes=changes,
        )


def files_by_fd(images: ImageSet, process: Process) -> dict[int, File]:
    """The open files of a process that are in the images."""
    by_id = {each.id: each for each in images.files}
    return {each.fd: by_id[each.file] for each in process.descriptors if each.file in by_id}


def _file_changes(was: File, now: File) -> Iterator[Change]:
    ours, theirs = was.to_dict(), now.to_dict()
    for values in (ours, theirs):
        values |= values.pop("details", {})
        for name in _NO_CHANGE:
            values.pop(name, None)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            yield Change(name=name, before=ours.get(name), after=theirs.get(name))


def _mappings(
    before: Sequence[MemoryMapping], after: Sequence[MemoryMapping]
) -> Iterator[MappingChange]:
    ours, theirs = ({each.start: each for each in mappings} for mappings in (before, after))
    for start in sorted(ours.keys() | theirs.keys()):
        was, now = ours.get(start), theirs.get(start)
        texts = [
            f"{each.start:x}-{each.end:x} {each.protection}" if each else None
            for each in (was, now)
        ]
        one = now or was
        same_file = was is None or now is None or (was.kind, was.path) == (now.kind, now.path)
        if texts[0] != texts[1] or not same_file:
            assert one is not None
            yield MappingChange(
                start=one.start,
                end=one.end,
                kind=one.kind,
                path=one.path,
                before=texts[0],
                after=texts[1],
            )


_COUNTED = ("changed", "added", "removed", "same", "unknown")
_Counts = dict[str, int]
"""Numbers of pages, by these fields of ``PageChange``."""

_Piece = tuple[int, bytes | None, int, MemoryMapping]


def _pages(before: Process, after: Process) -> Iterator[PageChange]:
    result: dict[int, tuple[MemoryMapping, _Counts]] = {}
    page = after.page_size
    if before.pagemap is None or after.pagemap is None:
        return
    old, new = _Place(before.mappings), _Place(after.mappings)
    for was, now in _side_by_side(before.memory, after.memory):
        piece = now or was
        assert piece is not None
        start, data, size, mapping = piece
        owner = new.at(start) or mapping
        if owner.start not in result:
            result[owner.start] = owner, dict.fromkeys(_COUNTED, 0)
        counts = result[owner.start][1]
        if (was and was[1] is None) or data is None:
            counts["unknown"] += -(-size // page)
        elif was and now:
            _count(counts, page, data, was[1], "changed")
        elif now:
            _count(counts, page, data, old.zeros(start, size), "added")
        else:
            _count(counts, page, data, new.zeros(start, size), "removed")
    for owner, counts in result.values():
        yield PageChange(
            start=owner.start, end=owner.end, kind=owner.kind, path=owner.path, **counts
        )


class _Place:
    """The mapping of an address."""

    def __init__(self, mappings: Sequence[MemoryMapping]) -> None:
        self._mappings = sorted(mappings, key=lambda each: each.start)
        self._starts = [each.start for each in self._mappings]

    def at(self, address: int) -> MemoryMapping | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._mappings[index].end:
            return None
        return self._mappings[index]

    def zeros(self, address: int, size: int) -> bytes | None:
        """The contents of memory that no image has; None if it is not known to be zeros."""
        mapping = self.at(address)
        return bytes(size) if mapping is not None and mapping.reads_as_zeros else None


def _count(counts: _Counts, page: int, data: bytes, other: bytes | None, name: str) -> None:
    """Count the pages of a range that are in the other set as well, and by ``name`` the others."""
    pages = -(-len(data) // page)
    same = pages if data == other else 0
    if other is not None and not same:
        starts = range(0, len(data), page)
        same = sum(data[at : at + page] == other[at : at + page] for at in starts)
    counts["same"] += same
    counts[name] += pages - same


def _side_by_side(before: Memory, after: Memory) -> Iterator[tuple[_Piece | None, _Piece | None]]:
    """Split both memories into ranges with common bounds; None: only the other one has it."""
    streams = before.pieces(), after.pieces()
    rest = [next(stream, None) for stream in streams]
    while there := [piece for piece in rest if piece is not None]:
        start = min(piece[0] for piece in there)
        bounds = [bound for piece in there for bound in (piece[0], piece[0] + piece[2])]
        end = min(bound for bound in bounds if bound > start)
        range: list[_Piece | None] = [None, None]
        for side, piece in enumerate(rest):
            if piece is not None and piece[0] == start:
                range[side], rest[side] = _cut(piece, end)
                rest[side] = rest[side] or next(streams[side], None)
        yield range[0], range[1]


def _cut(piece: _Piece, at: int) -> tuple[_Piece, _Piece | None]:
    """The parts of a piece before and after an address; None for an empty second part."""
    address, data, size, mapping = piece
    first = at - address
    if first == size:
        return piece, None
    return (
        (address, None if data is None else data[:first], first, mapping),
        (at, None if data is None else data[first:], size - first, mapping),
    )

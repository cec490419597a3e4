"""One mapping of a dumped process, and the base class of the values of an image set."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from .._support.frozen_dataclass import dataclass
from .._support.light_typing import Any, ClassVar
from ..results import DumpStatistics, RestoreStatistics


class Value:
    """Base class of all values of an image set."""

    __slots__ = ()
    computed: ClassVar[tuple[str, ...]] = ()
    """Properties that ``to_dict`` adds to the fields."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; see ``images.model``."""
        from dataclasses import fields

        own = [each.name for each in fields(self) if each.repr]  # type: ignore[arg-type]
        return {name: _plain(getattr(self, name)) for name in (*own, *self.computed)}


def _plain(value: Any) -> Any:
    import base64
    from dataclasses import fields

    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, DumpStatistics | RestoreStatistics):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.IntEnum):
        return value.name.lower()
    return str(value) if isinstance(value, enum.Enum) else value


class VmaKind(enum.StrEnum):
    """Kind of a mapping."""

    FILE = "file"
    """Private mapping of a file: changed pages are in the images, the others in the file."""
    SHARED_FILE = "shared file"
    """Shared mapping of a file: all pages are in the file."""
    ANONYMOUS = "anonymous"
    SHARED = "shared"
    """Shared mapping without a file: anonymous, of a memfd, or a System V segment."""
    HEAP = "heap"
    STACK = "stack"
    VDSO = "vdso"
    """The kernel's code and data in the process (vdso, vvar, vsyscall)."""
    OTHER = "other"
    """An AIO ring, the ring of a socket, a shadow stack, or a mapping of a plugin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryMapping(Value):
    """One mapping of a process."""

    computed = ("size", "zero")

    start: int
    end: int
    kind: VmaKind
    protection: str
    """As in ``/proc/PID/maps``: ``rw-p``, ``r-xs``."""
    path: str | None = None
    """Path of the file, or name of the memfd."""
    offset: int = 0
    """Offset in the file or the shared memory, in bytes."""
    file: int | None = None
    """The id of the file in ``ImageSet.files``."""
    shared: int | None = None
    """The id of shared memory: mappings with the same one have the same pages."""
    grows_down: bool = False
    huge_page: int = 0
    """Size of its huge pages, in bytes; 0 for ordinary pages, and for System V segments."""
    stored: int = 0
    """Bytes of pages in this image set."""
    in_parent: int = 0
    """Bytes of pages in the parents."""
    lazy: int = 0
    """Bytes of pages that are not in the images, since a lazy-pages dump serves them."""

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return self.end - self.start

    @property
    def zero(self) -> int:
        """Bytes that were never written to: they read as zeros. 0 for mappings of files."""
        if not self.reads_as_zeros:
            return 0
        return max(self.size - self.stored - self.in_parent - self.lazy, 0)

    @property
    def reads_as_zeros(self) -> bool:
        """Whether pages that no image has are zeros, rather than those of a file."""
        return self.kind in (VmaKind.ANONYMOUS, VmaKind.SHARED, VmaKind.HEAP, VmaKind.STACK)

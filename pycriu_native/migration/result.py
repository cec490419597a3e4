"""The mode and the result of a migration."""

from __future__ import annotations

from enum import StrEnum

from .._support.frozen_dataclass import dataclass, field
from ..results import DumpStatistics, RestoreStatistics


class MigrationMode(StrEnum):
    """When the memory is sent: before, while or after the process changes hosts."""

    STOP_AND_COPY = "stop-and-copy"
    """Freeze, send everything, run at the destination. The process is frozen the whole time."""
    PRE_COPY = "pre-copy"
    """Send the memory in rounds while the process runs, then freeze and send what has changed
    since. Needs soft-dirty tracking at the source."""
    POST_COPY = "post-copy"
    """Freeze, send all but the memory, run at the destination; pages are sent when they are
    accessed, and in the background. Shortest downtime; the destination needs userfaultfd."""
    PRE_COPY_THEN_POST_COPY = "pre-copy-then-post-copy"
    """Rounds first, then post-copy of the remaining pages. Needs both."""

    @property
    def rounds(self) -> bool:
        """Whether memory is sent in rounds first."""
        return self in (MigrationMode.PRE_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY)

    @property
    def lazy(self) -> bool:
        """Whether memory is sent after the switch-over."""
        return self in (MigrationMode.POST_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY)


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationResult:
    """Result of a complete migration, from the view of the side that returns it."""

    pid: int
    """Pid of the root process at the destination."""
    mode: MigrationMode
    images: str
    """The images directory; empty for a temporary one, which is removed."""
    image_bytes: int
    """Bytes of images that were sent, of all rounds."""
    page_bytes: int
    """Bytes of pages that were sent after the switch-over, with headers."""
    downtime: float
    """Seconds from the start of the final dump (before CRIU freezes the process) until the source
    received the message that the process runs at the destination; by the source's clock."""
    duration: float
    """Seconds of the whole call, including waits for the other side."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, in order."""
    dump: DumpStatistics | None = None
    """CRIU's statistics of the final dump; None at the destination."""
    restore: RestoreStatistics | None = None
    """CRIU's statistics of the restore; None if the report did not arrive."""
    not_incremental: str = ""
    """Why the final dump sent all memory though rounds had sent it: memory was moved (see
    :class:`~pycriu_native.MovedMemoryError`). Empty if it sent the changes only."""

    @property
    def bytes(self) -> int:
        """All bytes of the process that were sent."""
        return self.image_bytes + self.page_bytes

"""The destination's copy of the process: its states, and how it is ended or stopped."""

from __future__ import annotations

from enum import Enum

from . import watchdog_process
from .watchdog import Watchdog, identity_of


class State(Enum):
    """The state of the copy, which determines the effect of a failure."""

    ABSENT = "absent"
    """It does not exist: a failure has no effect."""
    PREPARED = "prepared"
    """It is restored, and runs only after ``go``: a failure ends it."""
    UNCONFIRMED = "unconfirmed"
    """The final message was sent, and the source has not responded: a failure stops the copy, since
    the source may have ended its process."""
    OWNED = "owned"
    """The source has ended its process: a failure has no effect."""


class RestoredCopy:
    """One copy. Synchronization: ``end_unless_final`` may be called from any thread."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self.state = State.ABSENT
        self.pid = 0
        self._start = ""

    def prepare(self, pid: int, userfaults: list[int]) -> None:
        """ABSENT to PREPARED. The watchdog keeps copies of ``userfaults``."""
        self._require(State.ABSENT)
        self._start = watchdog_process.start_of(pid)
        self.pid = pid
        self.state = State.PREPARED
        self._watchdog.set_cleanup(userfaults, end=identity_of(pid))

    def finalize(self) -> None:
        """PREPARED to UNCONFIRMED, before the final message is sent."""
        self._require(State.PREPARED)
        self.state = State.UNCONFIRMED
        self._watchdog.set_cleanup(stop=identity_of(self.pid), end=[])

    def own(self) -> None:
        """UNCONFIRMED to OWNED: the source has responded."""
        self._require(State.UNCONFIRMED)
        self.state = State.OWNED
        self._watchdog.set_cleanup(end=[], stop=[])

    def end_unless_final(self) -> None:
        """End the copy if the final message was not sent; the restore then fails."""
        if self.state is State.PREPARED:
            watchdog_process.end_tree(self.pid, self._start)

    def undo(self, *, refused: bool) -> bool:
        """End the copy, or stop it if the source may have ended its process.

        ``refused``: the source has cancelled, so that its process runs. Returns whether the copy
        was stopped.
        """
        if self.state is State.UNCONFIRMED and not refused:
            watchdog_process.stop_tree(self.pid, self._start)
            return True
        if self.state is not State.ABSENT:
            watchdog_process.end_tree(self.pid, self._start)
            self.state = State.ABSENT
        return False

    def _require(self, state: State) -> None:
        if self.state is not state:
            raise AssertionError(f"the copy is {self.state.value}, not {state.value}")

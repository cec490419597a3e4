"""Work on its own thread, and the caller's thread that waits for it.

The work runs with every signal blocked, so that nothing in the caller's thread can leave it half
done. Python runs handlers of signals in the main thread, between any two instructions, and one that
raises (Ctrl-C) would leave a process or descriptor without an owner, if it has just been created.
The caller's thread may be interrupted: the exception becomes a request to undo the work, and is
raised once that is done.
"""

from __future__ import annotations

from collections.abc import Callable

from .._native.ffi import native
from .._support.unpatched import Event, RawThread
from ..errors import CriuError


class OwnThread:
    """Base of work on a thread, and its synchronization with the thread that waits for it."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._error: BaseException | None = None
        self._turn = Event()
        self.wake: Callable[[], None] = self._turn.set
        """Called, on the work's thread, when the caller's thread has something to do, and at the
        end."""
        self._begins: dict[None, bool] = {}
        """Whether the work begins; False if the caller was interrupted before. Set once,
        atomically."""
        self.is_prevented = False
        """Whether the work has not begun, and will not."""
        self.signals = 0
        """The signals that the caller's thread blocks."""
        self._thread: RawThread | None = None

    # ---- the caller's thread ----

    def wait_to_end(
        self, *, surely: bool = False, interruption: BaseException | None = None
    ) -> None:
        """Start the work, and wait until it is over; an interruption cancels it.

        The interruption is raised if the work has not begun: then it will not. With ``surely`` the
        work is done in any case.
        """
        # A signal's handler can run wherever the interpreter looks for signals: after calls of C
        # functions, at the beginning of Python functions, and at the end of loops. So there is
        # none of them between an exception and the next ``try``.
        try:
            if interruption is not None:
                if not surely and self.prevent():
                    raise interruption
                self.cancel(interruption)
            while not self.is_over():
                self.start(surely=surely)
                self._turn.wait()
                self._turn.clear()
                self.take_turn()
            self.join()
        except BaseException as first:
            if self.is_prevented:
                raise
            try:
                self.wait_to_end(surely=surely, interruption=first)
            except BaseException as second:
                if self.is_prevented:
                    raise
                self.wait_to_end(surely=surely, interruption=second)

    def prevent(self) -> bool:
        """Prevent work that has not begun. Returns whether it will not begin."""
        self.is_prevented = not self._begins.setdefault(None, False)
        return self.is_prevented

    def start(self, *, surely: bool = False) -> None:
        """Begin; a second time does nothing.

        With ``surely`` the work is done on this thread if no other can be started.
        """
        if self._thread is None:
            # threading.Thread holds locks in start() that an exception of a handler does not
            # release.
            self._thread = RawThread(self._body, f"criu {self._verb}")
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                if surely:
                    self.work_here()
                    return
                if "can't start" not in str(error):
                    raise  # this interpreter does not allow threads
                why = f"{self._verb}: no thread could be started for it"
                raise CriuError(why, verb=self._verb) from error

    def join(self) -> None:
        """Wait until the work's thread has ended, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def take_turn(self) -> None:
        """Do what the work has woken the caller's thread for."""

    def cancel(self, reason: BaseException) -> None:
        """Make the work end; ``reason`` is raised after that."""
        raise NotImplementedError

    def is_over(self) -> bool:
        """Whether there is a result, or an error."""
        raise NotImplementedError

    # ---- the work's thread ----

    def work_here(self) -> None:
        """Do the work on this thread, which no signal interrupts."""
        try:
            self._body()
        finally:
            native.pn_set_signals(self.signals)

    def _body(self) -> None:
        # Python's own function takes half a millisecond.
        self.signals = native.pn_block_signals()
        if not self._begins.setdefault(None, True):
            return
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self.wake()

    def _work(self) -> None:
        """Do the work, and store its result."""
        raise NotImplementedError

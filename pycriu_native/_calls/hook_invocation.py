"""A notification that waits for the hook, between the call's thread and the caller's."""

from __future__ import annotations

from types import CoroutineType

from .._support.unpatched import Event, close
from .notification import Hook, Notification


class HookInvocation:
    def __init__(self, hook: Hook, notification: Notification) -> None:
        self._hook = hook
        self._notification = notification
        self._started = False
        self.answered = Event()
        self.refusal: BaseException | None = None
        self.returned: object = None

    def run(self) -> None:
        """Run the hook, once."""
        if self._started:
            return
        self._started = True
        try:
            self.returned = returned = self._hook(self._notification)
            if isinstance(returned, CoroutineType):
                returned.close()
                self._close_descriptor()
                raise TypeError("a hook that is a coroutine function needs pycriu_native.aio")
        except BaseException as refusal:
            self.refusal = refusal
        self.answered.set()

    def _close_descriptor(self) -> None:
        """Close the descriptor of the notification, which the hook did not get."""
        if self._notification.fd is not None:
            close(self._notification.fd)

    async def run_async(self) -> None:
        """Run the hook, once, and await what it returns if that can be awaited."""
        if self._started:
            return
        self._started = True
        from inspect import isawaitable  # asyncio, on which this runs, has imported it

        try:
            returned = self._hook(self._notification)
            self.returned = await returned if isawaitable(returned) else returned
        except BaseException as refusal:
            self.refusal = refusal
            if isinstance(refusal, GeneratorExit):
                raise  # of the awaiting coroutine, which is closed
        finally:
            self.answered.set()

    def wait(self) -> object:
        """Wait for the end of the hook; return its result or raise its exception."""
        self.answered.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.returned

    def refuse(self, reason: BaseException) -> bool:
        """Refuse in place of the hook; False if the hook has ended already."""
        if self.answered.is_set():
            return False
        if not self._started:
            self._close_descriptor()
        self._started = True
        self.refusal = reason
        self.answered.set()
        return True

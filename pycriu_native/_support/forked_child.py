"""State that a forked child must not take over from its parent."""

from __future__ import annotations

import contextlib
import os
import weakref

from .light_typing import Any, Protocol
from .unpatched import get_ident


class Forgetting(Protocol):
    """An object with processes of this process, or with locks."""

    def forget(self) -> None:
        """In a forked child: give up what belongs to the parent, and make new locks.

        Another thread of the parent may have held the locks, and no thread releases them here.
        """


_objects: weakref.WeakSet[Forgetting] = weakref.WeakSet()
_locks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

_locked: dict[int, list[Any]] = {}
"""What each thread that forks has locked: other threads may add locks meanwhile."""


def forgets(owner: Forgetting) -> None:
    """Call the object's ``forget`` in each child that is forked from now on."""
    _objects.add(owner)


def hold_at_fork(lock: Any) -> None:
    """Let forks wait for a lock, whose thread changes what an object forgets; free in the child.

    An RLock is free unless it was added while another thread forked: ``forget`` replaces it.
    """
    _locks[id(lock)] = lock


def _before_fork() -> None:
    locked = _locked[get_ident()] = list[Any]()
    locks = [lock for each in _locks.valuerefs() if (lock := each()) is not None]
    for lock in sorted(locks, key=id):  # in one order: threads that fork wait for each other
        lock.acquire()
        locked.append(lock)


def _after_fork() -> None:
    for lock in _locked.pop(get_ident(), ()):  # none if this module was loaded meanwhile
        lock.release()


def _after_fork_in_child() -> None:
    held = set(map(id, _locked.get(get_ident(), ())))
    _after_fork()
    _locked.clear()
    for number, lock in list(_locks.items()):
        if number not in held:  # added meanwhile, and perhaps locked by a thread of the parent
            with contextlib.suppress(RuntimeError):  # it is free, or only its thread can release it
                lock.release()
    for each in list(_objects):
        each.forget()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)

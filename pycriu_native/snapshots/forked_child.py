"""State that a forked child must not take over from its parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetting(Protocol):
    """An object with processes of this process, or with locks."""

    def forget(self) -> None:
        """In a forked child: give up what belongs to the parent, and make new locks.

        Another thread of the parent may have held the locks, and no thread releases them here.
        """


_objects: weakref.WeakSet[Forgetting] = weakref.WeakSet()


def forgets(owner: Forgetting) -> None:
    """Call the object's ``forget`` in each child that is forked from now on."""
    _objects.add(owner)


def _after_fork_in_child() -> None:
    for each in list(_objects):
        each.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)

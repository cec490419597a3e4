"""One name of a restore that is no file of its own: a link, a named pipe, or another name."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from .index import SavedName
from .restored_file import before_of, remove


class RestoredName:
    """A link or a named pipe that is created again if it is missing or leads elsewhere.

    Other names (sockets, devices) are left as they are. Its steps are those of ``RestoredFile``.
    """

    def __init__(self, saved: SavedName) -> None:
        self.path = saved.path
        self._saved = saved
        self._before = before_of(saved.path)
        self._moved = self._created = False

    def keep(self, check: Callable[[], object]) -> None:
        """Check that it can be created. Raises ``OSError``."""
        remove(self._before)  # of a restore that was killed
        if self._is_created() and os.path.isdir(self.path) and not os.path.islink(self.path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _is_created(self) -> bool:
        saved = self._saved
        return saved.target is not None or saved.same_as is not None or stat.S_ISFIFO(saved.mode)

    def change(self, check: Callable[[], object]) -> None:
        """Create it, unless it is as it was; the saved files were put back before."""
        if not self._is_created() or self._is_equal():
            return
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, self._before)
            self._moved = True
        saved = self._saved
        self._created = True
        if saved.target is not None:
            os.symlink(saved.target, self.path)
        elif saved.same_as is not None:
            os.link(saved.same_as, self.path)
            return
        else:
            os.mkfifo(self.path, 0o600)
            os.chmod(self.path, stat.S_IMODE(saved.mode))
        now = os.lstat(self.path)
        if (now.st_uid, now.st_gid) != (saved.uid, saved.gid):
            os.lchown(self.path, saved.uid, saved.gid)

    def _is_equal(self) -> bool:
        try:
            seen = os.lstat(self.path)
        except FileNotFoundError:
            return False
        saved = self._saved
        if saved.target is not None:
            return stat.S_ISLNK(seen.st_mode) and os.readlink(self.path) == saved.target
        if saved.same_as is not None:
            return os.path.samestat(seen, os.lstat(saved.same_as))
        return stat.S_ISFIFO(seen.st_mode)

    def give_back(self) -> None:
        """Return to the previous state. Raises ``OSError``."""
        if self._created:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._moved:
            os.rename(self._before, self.path)
        self._moved = self._created = False

    def forget(self) -> None:
        """Remove what was there before."""
        if self._moved:
            remove(self._before)

"""The names that match the patterns of ``Rollback.also``."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator


class RealPaths:
    """Paths without symbolic links in their directories: the names by which files are compared."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def path(self, path: str) -> str:
        """The path; its last part can be a link."""
        directory, name = os.path.split(path)
        real = self._directories.get(directory)
        if real is None:
            real = self._directories[directory] = os.path.realpath(directory)
        return os.path.join(real, name)


def matches(patterns: Iterable[str], ignore: Iterable[str] = ()) -> Iterator[str]:
    """The names that match, without symbolic links in their directories.

    A file that is reached through such a link has one name, that of ``/proc``. A pattern that is
    the name of a link also yields the target of the link. In the directories ``ignore``, only such
    patterns match.
    """
    real_paths = RealPaths()
    ignored = tuple(os.path.join(os.path.realpath(each), "") for each in ignore)
    for pattern in patterns:
        for path in glob.iglob(pattern, include_hidden=True):
            if path.endswith("/"):
                continue  # as the pattern: directories only
            real = real_paths.path(path)
            is_name = pattern == glob.escape(path)
            if not is_name and real.startswith(ignored):
                continue
            yield real
            if is_name and os.path.islink(path):
                yield os.path.realpath(path)

"""The names that match the patterns of ``Rollback.also``."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator


def real_paths() -> Callable[[str], str]:
    """A function that resolves the symbolic links in the directory of a path.

    Its results are the names by which files are compared. It reads each directory once.
    """
    real = functools.cache(os.path.realpath)
    return lambda path: os.path.join(real(os.path.dirname(path)), os.path.basename(path))


def matches(patterns: Iterable[str], ignore: Iterable[str] = ()) -> Iterator[str]:
    """The names that match, without symbolic links in their directories.

    A file that is reached through such a link has one name, that of ``/proc``. A pattern that is
    the name of a link also yields the target of the link. In the directories ``ignore``, only such
    patterns match.
    """
    real_path = real_paths()
    ignored = tuple(os.path.join(os.path.realpath(each), "") for each in ignore)
    for pattern in patterns:
        for path in glob.iglob(pattern, include_hidden=True):
            if path.endswith("/"):
                continue  # as the pattern: directories only
            real = real_path(path)
            is_name = pattern == glob.escape(path)
            if not is_name and real.startswith(ignored):
                continue
            yield real
            if is_name and os.path.islink(path):
                yield os.path.realpath(path)

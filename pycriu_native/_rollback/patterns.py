"""The names that match the patterns of ``Rollback.also``."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator


def matches(patterns: Iterable[str], ignore: Iterable[str] = ()) -> Iterator[str]:
    """The names that match, without symbolic links in their directories.

    A file that is reached through such a link has one name, that of ``/proc``. A pattern that is
    the name of a link also yields the target of the link. In the directories ``ignore``, only such
    patterns match.
    """
    directories: dict[str, str] = {}
    ignored = tuple(os.path.join(os.path.realpath(each), "") for each in ignore)
    for pattern in patterns:
        for path in glob.iglob(pattern, include_hidden=True):
            directory, name = os.path.split(path)
            if not name:
                continue  # the pattern ends with a slash: directories only
            real = directories.get(directory)
            if real is None:
                real = directories[directory] = os.path.realpath(directory)
            is_name = pattern == glob.escape(path)
            if not is_name and os.path.join(real, "").startswith(ignored):
                continue
            yield os.path.join(real, name)
            if is_name and os.path.islink(path):
                yield os.path.realpath(path)

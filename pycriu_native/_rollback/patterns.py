"""The names that match the patterns of ``Rollback.also``."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator

from .._integrity.dump_marker import is_of_set


def real_paths() -> Callable[[str], str]:
    """A function that resolves the symbolic links in the directory of a path.

    Its results are the names by which files are compared. It reads each directory once.
    """
    real = functools.cache(os.path.realpath)
    return lambda path: os.path.join(real(os.path.dirname(path)), os.path.basename(path))


def _image_sets() -> Callable[[str], bool]:
    """A function: whether a path is part of an image set. It looks once at each directory."""
    holds_dump = functools.cache(lambda directory: os.path.lexists(f"{directory}/inventory.img"))

    @functools.cache
    def is_part(path: str) -> bool:
        directory, name = os.path.split(path)
        beside = name == "parent" or name.startswith("stats-") or name.endswith(".tar.gz")
        return (beside or is_of_set(name)) and (holds_dump(directory) or is_part(directory))

    def is_in_set(path: str) -> bool:
        return is_part(path) or is_part(os.path.dirname(path))

    return is_in_set


def matches(patterns: Iterable[str], ignore: Iterable[str]) -> Iterator[str]:
    """The names that match, without symbolic links in their directories.

    A file that is reached through such a link has one name, that of ``/proc``. A pattern that is
    the name of a link also yields the target of the link. Only patterns that are names match in the
    directories ``ignore``, and the files of image sets: else the restore of a set would remove some
    of its own files, and later sets.
    """
    real_path, is_in_set = real_paths(), _image_sets()
    ignored = tuple(os.path.join(os.path.realpath(each), "") for each in ignore)
    for pattern in patterns:
        for path in glob.iglob(pattern, include_hidden=True):
            if path.endswith("/"):
                continue  # as the pattern: directories only
            real = real_path(path)
            is_name = pattern == glob.escape(path)
            if not is_name and (real.startswith(ignored) or is_in_set(real)):
                continue
            yield real
            if is_name and os.path.islink(path):
                yield os.path.realpath(path)

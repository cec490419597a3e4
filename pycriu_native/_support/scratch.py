"""A directory for the files of one call."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def scratch_directory(prefix: str) -> Iterator[str]:
    """The path of a new directory, which is removed at the end of the block.

    ``tempfile.TemporaryDirectory`` would remove it as well at the end of a child that another
    thread forks meanwhile.
    """
    path = tempfile.mkdtemp(prefix=prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

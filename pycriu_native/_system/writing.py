"""Errors of a disk that has no room, as an error of the images with the path."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ..errors import CriuError, images_error

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only writing has; others can be those of a file or stream that is read."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ``ImagesError`` with ``path`` for a full or read-only disk in the block.

    The error of write(2) has no path.
    """
    try:
        yield
    except CriuError:  # some are an OSError too
        raise
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise images_error(f"{os.fspath(path)} cannot be written", error) from error

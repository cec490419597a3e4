"""Reader of the file with the timings of starts: a line of JSON for each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ..errors import ImagesError
from ..snapshots import StartTimings


def read_starts(path: str | os.PathLike[str]) -> Sequence[StartTimings]:
    """Read a file of ``pycriu-native start --timings``. Raises ``ImagesError`` for another one."""
    try:
        with open(path) as file:
            starts = [StartTimings.from_dict(json.loads(line)) for line in file if line.strip()]
    except (ValueError, RecursionError, ImagesError) as error:
        raise ImagesError(f"{os.fspath(path)} has no timings of starts: {error}") from None
    except OSError as error:
        raise ImagesError(f"{os.fspath(path)} cannot be read: {error.strerror}") from None
    if not starts:
        raise ImagesError(f"{os.fspath(path)} has no timings of starts: it is empty")
    return starts

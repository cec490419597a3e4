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
            bodies = [json.loads(line) for line in file if line.strip()]
    except OSError as error:
        raise ImagesError(f"{os.fspath(path)} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ImagesError(f"{os.fspath(path)} has no timings of starts: {error}") from None
    if not bodies:
        raise ImagesError(f"{os.fspath(path)} has no timings of starts: it is empty")
    return [StartTimings.from_dict(each) for each in bodies]

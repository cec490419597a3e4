"""Reports the code of a killed CRIU in the memory of the process that it was dumping.

CRIU makes the process map a memory file of the name CRIUMFD. Its code runs in the process and reads
what is only visible there. At the end of a dump the process unmaps it. If CRIU is killed, the code
returns to where the process was interrupted and stays mapped.

It is reported, not removed. Only the process can unmap it (Linux has no such call for the memory of
another process), so it would have to be stopped and made to run system calls, which can end it if
interrupted. Truncating the memory file (``/proc/PID/map_files``) frees its pages, but kills a
thread that is still in the code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from .._system.mappings import mappings_of

NAME = "/memfd:CRIUMFD (deleted)"


def left_in(pids: Iterable[int]) -> Iterator[str]:
    """A message for each process that has CRIU's code mapped, also of an earlier CRIU."""
    for pid in pids:
        size = 0
        with contextlib.suppress(OSError):
            size = sum(each.size for each in mappings_of(pid) if each.name == NAME)
        if size:
            yield (
                f"CRIU's code in the memory of pid {pid} (memfd:CRIUMFD, {size // 1024} KiB) "
                "stays, without effect, until the process ends or executes another program"
            )

"""What a CRIU that was killed leaves in the memory of the process that it was dumping.

CRIU works from within: it has the process map a memory file of the name CRIUMFD, with code that
tells what only the process itself can. A dump ends with CRIU having it unmapped, by the process.
The code itself, when CRIU is gone, returns to where the process was interrupted, and stays mapped.

It is named, not removed. Only the process can unmap it (Linux has no such call for another's
memory), so somebody would have to stop it and run system calls in its place once more: that is
what costs a process its life when it is cut short. Cutting off the memory file from outside
(``/proc/PID/map_files``) gives back its pages, but kills a thread that is still in the code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from .._support.kernel_text import read_lines

NAME = "/memfd:CRIUMFD (deleted)"


def left_in(pids: Iterable[int]) -> Iterator[str]:
    """What of CRIU's is mapped in these processes, in words; what an earlier CRIU left too."""
    for pid in pids:
        size = 0
        with contextlib.suppress(OSError):
            for line in read_lines(f"/proc/{pid}/maps"):
                if line.endswith(NAME):
                    begin, end = line.split(maxsplit=1)[0].split("-")
                    size += int(end, 16) - int(begin, 16)
        if size:
            yield (
                f"CRIU's code in the memory of pid {pid} (memfd:CRIUMFD, {size // 1024} KiB), in "
                "nobody's way until the process ends or executes another program"
            )

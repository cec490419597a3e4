"""A job that maps, writes, grows, moves, empties and unmaps memory at random, and checks all of it.

Called with a directory. It writes the number of its checks to ``checks``, and ends when the
directory has a file ``finish``, or with 1 if a page has wrong contents.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from pathlib import Path

PAGE = mmap.PAGESIZE
TABLE = 2 * 2**20
"""Bytes of memory of one page table, which the kernel moves as a whole."""
MOST, LARGEST = 8, 3 * TABLE
"""Number of parts of memory, and their size in bytes."""

Part = tuple[mmap.mmap, list[int]]
"""Memory, and the number in each of its pages."""


def mapped(rng: random.Random) -> Part:
    size = rng.choice((PAGE * rng.randint(1, 40), TABLE, 2 * TABLE))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if rng.random() < 0.7:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory, [0] * (size // PAGE)


def write(part: Part, page: int, number: int) -> None:
    memory, numbers = part
    numbers[page] = number
    at = page * PAGE + number % (PAGE // 8) * 8
    memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    memory[at : at + 8] = number.to_bytes(8, "little")


def check(parts: list[Part]) -> None:
    for memory, numbers in parts:
        for page, number in enumerate(numbers):
            content = memory[page * PAGE : (page + 1) * PAGE]
            at = number % (PAGE // 8) * 8
            expected = bytes(at) + number.to_bytes(8, "little") + bytes(PAGE - at - 8)
            if content != expected:
                sys.exit(f"page {page} of {len(numbers)} has wrong contents, not {number}")


def change(parts: list[Part], rng: random.Random, step: int) -> None:
    """Make one change at random."""
    kind = rng.random()
    if len(parts) < MOST and kind < 0.3:
        parts.append(mapped(rng))
    part = rng.choice(parts)
    memory, numbers = part
    if kind < 0.4 and len(memory) < LARGEST:
        memory.resize(len(memory) + rng.choice((PAGE, TABLE)))
        numbers += [0] * (len(memory) // PAGE - len(numbers))
    elif kind < 0.5:
        memory.close()
        parts.remove(part)
    elif kind < 0.6:
        memory.madvise(mmap.MADV_DONTNEED)
        numbers[:] = [0] * len(numbers)
    elif kind < 0.65 and (pid := os.fork()):
        _, status = os.waitpid(pid, 0)
        assert status == 0
    elif kind < 0.65:
        check(parts)
        os._exit(0)
    else:
        for page in rng.sample(range(len(numbers)), min(len(numbers), rng.randint(1, 300))):
            write(part, page, step)


def main(place: Path) -> None:
    rng, step = random.Random(1), 0
    parts: list[Part] = []
    while not (place / "finish").exists():
        step += 1
        if not parts:
            parts.append(mapped(rng))
        change(parts, rng, step)
        if step % 20 == 0:
            check(parts)
            (place / "checks").write_text(str(step // 20))
        time.sleep(0.01)
    check(parts)


main(Path(sys.argv[1]))

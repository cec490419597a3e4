"""The time to read large image sets, compared with ``crit``.

``python -m benchmarks.images --json FILE [--quick]``, as root, with a CRIU that works. Two sets are
dumped: a process with 1 GiB of memory, half of whose pages are written to, and 20,000 mappings; and
300 processes. Both are read by the commands of ``crit``, one for each question; by crit's library,
which decodes every image; and by this library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pycriu_native import CriuOpts, dump
from pycriu_native._wire.image_kinds import is_raw
from pycriu_native.images import decode, inspect

from .common import HERE, Row, main, note, row, scratch

sys.path.insert(0, str(HERE.parent))

from tests.integration.support import crit
from tests.integration.support.processes import start

LARGE = """
    import ctypes, mmap
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, {size}, 8192): memory[at] = 1 + at // 8192 % 255
    many = mmap.mmap(-1, {mappings} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(many))
    for number in range(0, {mappings}, 2):
        many[number * 4096] = 1
        assert not libc.mprotect(ctypes.c_void_p(base + number * 4096), 4096, 1)
    serve()
"""
MANY = """
    import os, time
    for _ in range({processes} - 1):
        if os.fork() == 0:
            while True: time.sleep(1)
    serve()
"""
INSPECT = """
import sys; sys.path.insert(0, sys.argv[1])
from pycriu_native.images import inspect
print(len(inspect(sys.argv[2]).processes))
"""


def timed(body: Callable[[], object]) -> float:
    """The duration of a function in seconds."""
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin


def made(directory: Path, scenario: str) -> Path:
    """The images of a process."""
    target = start(directory / "target", scenario)
    try:
        dump(target.pid, CriuOpts(images_directory=directory / "images", leave_running=True))
    finally:
        target.end()
    return directory / "images"


def measure(quick: bool) -> list[Row]:
    """Read both sets in each way, and search the memory of the large process."""
    size, mappings, processes = (2**26, 2000, 30) if quick else (2**30, 20_000, 300)
    times = 2 if quick else 5
    rows = []
    with scratch() as work:
        sets = {
            "one large": made(work / "large", LARGE.format(size=size, mappings=mappings)),
            "many": made(work / "many", MANY.format(processes=processes)),
        }
        for name, images in sets.items():
            rows += side_by_side(name, images, times)
        rows += searched(sets["one large"], times)
    return rows


def side_by_side(name: str, images: Path, times: int) -> list[Row]:
    """Read a set in each way."""
    paths = [path for path in sorted(images.glob("*.img")) if not is_raw(path.name)]
    ours = {
        "decode every image, ours": lambda: [decode(path) for path in paths],
        "inspect, ours": lambda: inspect(images),
        "inspect in a new Python, ours": lambda: subprocess.run(
            [sys.executable, "-c", INSPECT, HERE.parent, images],
            check=True,
            stdout=subprocess.DEVNULL,
        ),
    }
    rows = []
    for what, body in ours.items():
        body()  # type: ignore[no-untyped-call]
        rows.append(row(what, "s", [timed(body) for _ in range(times)], set=name))
    result = crit.packages()
    if not result:
        return [*rows, note("crit", "crit is not installed", set=name)]
    rows.append(row("decode every image, crit", "s", [crit.load(result[0], paths)[""]], set=name))
    env = {**os.environ, "PYTHONPATH": str(result[0])}

    def explored() -> None:
        # The commands that show the same facts as inspect.
        for question in ("ps", "fds", "mems", "rss"):
            subprocess.run(
                [sys.executable, "-m", "crit", "x", str(images), question],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    rows.append(row("crit x ps, fds, mems, rss", "s", [timed(explored)], set=name))
    sample = paths[:: max(len(paths) // 20, 1)]

    def commands() -> None:
        for path in sample:
            subprocess.run(
                [sys.executable, "-m", "crit", "decode", "-i", str(path)],
                env=env,
                stdout=subprocess.DEVNULL,
                check=True,
            )

    # crit decodes one image with each command; the time of a sample is scaled up.
    each_image = timed(commands) * len(paths) / len(sample)
    rows.append(row("crit decode, a command for each image", "s", [each_image], set=name))
    medians = {each["what"]: each["median"] for each in rows}
    for faster, slower in (
        ("decode every image, ours", "decode every image, crit"),
        ("inspect, ours", "decode every image, crit"),
        ("inspect in a new Python, ours", "crit x ps, fds, mems, rss"),
        ("inspect in a new Python, ours", "crit decode, a command for each image"),
    ):
        rows.append(
            row(
                f"{faster} / {slower}",
                "times faster",
                [medians[slower] / medians[faster]],
                set=name,
            )
        )
    return rows


def searched(images: Path, times: int) -> list[Row]:
    """The speed of a search in memory without a match."""
    process = inspect(images).processes[0]
    stored = sum(each.stored for each in process.mappings) / 2**20
    samples = [
        stored / timed(lambda: list(process.memory.find(b"missing from the memory")))
        for _ in range(times)
    ]
    return [row("search memory", "MiB/s", samples, set="one large")]


if __name__ == "__main__":
    main("images", "the time to read large image sets, compared with crit", measure)

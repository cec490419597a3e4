"""The time to read large image sets, compared with ``crit``.

``python -m benchmarks.images --json FILE [--quick]``, as root, with a CRIU that works. Two sets
are dumped: one process with 1 GiB of memory, half of its pages written to, and 20,000 mappings;
and 300 processes. Both are read by ``crit`` as it is used, a command for each question; by its
library, which decodes every image; and by ours. The results are one JSON object: ``benchmark``,
``about`` and ``rows``, each with ``what``, ``case``, ``unit``, ``median``, ``low``, ``high`` and
``samples``.
"""

from __future__ import annotations

import sys

# Run by its path, this file would be what others get who import the standard inspect.
sys.path[:] = [each for each in sys.path if not each.endswith("/benchmarks")]

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pycriu_native import CriuOpts, dump  # noqa: E402
from pycriu_native.images import decode, inspect  # noqa: E402
from pycriu_native.images.formats import RAW  # noqa: E402
from tests.integration.support import crit  # noqa: E402
from tests.integration.support.processes import start  # noqa: E402

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


def row(what: str, unit: str, samples: list[float], **case: object) -> dict[str, Any]:
    """One row of results: the median and the middle half."""
    taken = samples if len(samples) > 1 else samples * 2
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return {
        "what": what,
        "case": case,
        "unit": unit,
        "median": round(middle, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "samples": len(samples),
    }


def made(directory: Path, scenario: str) -> Path:
    """The images of a process."""
    target = start(directory / "target", scenario)
    try:
        dump(target.pid, CriuOpts(images_directory=directory / "images", leave_running=True))
    finally:
        target.end()
    return directory / "images"


def measure(quick: bool) -> list[dict[str, Any]]:
    """Return all rows."""
    size, mappings, processes = (2**26, 2000, 30) if quick else (2**30, 20_000, 300)
    times = 2 if quick else 5
    rows = []
    with tempfile.TemporaryDirectory(prefix="pycriu-native-") as work:
        sets = {
            "one large": made(Path(work, "large"), LARGE.format(size=size, mappings=mappings)),
            "many": made(Path(work, "many"), MANY.format(processes=processes)),
        }
        for name, images in sets.items():
            rows += side_by_side(name, images, times)
        rows += searched(sets["one large"], times)
    return rows


def side_by_side(name: str, images: Path, times: int) -> list[dict[str, Any]]:
    """Read the same set in each way."""
    paths = [path for path in sorted(images.glob("*.img")) if not RAW.fullmatch(path.name)]
    ours = {
        "decode every image, ours": lambda: [decode(path) for path in paths],
        "inspect, ours": lambda: inspect(images),
        "inspect in a new Python, ours": lambda: subprocess.run(
            [sys.executable, "-c", INSPECT, ROOT, images], check=True, stdout=subprocess.DEVNULL
        ),
    }
    rows = []
    for what, body in ours.items():
        body()  # type: ignore[no-untyped-call]
        rows.append(row(what, "s", [timed(body) for _ in range(times)], set=name))
    result = crit.packages()
    if not result:
        return [*rows, {"what": "crit", "case": {"set": name}, "notes": "there is no crit"}]
    rows.append(row("decode every image, crit", "s", [crit.load(result[0], paths)[""]], set=name))
    env = {**os.environ, "PYTHONPATH": str(result[0])}

    def explored() -> None:
        # What a person has to ask for to see what inspect shows.
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

    # A command for each image is how crit is used; a sample of them, scaled up.
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


def searched(images: Path, times: int) -> list[dict[str, Any]]:
    """The speed of a search in memory without a match."""
    process = inspect(images).processes[0]
    stored = sum(each.stored for each in process.mappings) / 2**20
    samples = [
        stored / timed(lambda: list(process.memory.find(b"what is not there")))
        for _ in range(times)
    ]
    return [row("search memory", "MiB/s", samples, set="one large")]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.images")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="smaller sets, fewer samples")
    asked = parser.parse_args()
    about = "Reading large image sets, side by side with crit"
    result = {"benchmark": "inspect", "about": about, "quick": asked.quick}
    result["rows"] = measure(asked.quick)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    for each in result["rows"]:
        number = f"{each['median']:10.3f} {each['unit']}" if "median" in each else each["notes"]
        print(f"{each['what']:64} {each['case']['set']:10} {number}")


if __name__ == "__main__":
    main()

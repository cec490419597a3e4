"""The time of ``import pycriu_native`` in addition to an empty interpreter, by module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from .common import PYCRIU_MISSING, Row, in_turns, main, note, pycriu, row

ROOT = Path(__file__).resolve().parent.parent
OURS = "from pycriu_native import CriuOpts, dump, restore"
STDLIB = "import contextlib, enum, signal, socket, threading"
LARGEST = 14
"""The number of modules that are listed."""


def start(words: list[str], code: str, cache: str) -> float:
    """Milliseconds from the start of an interpreter to its end."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": cache,
    }
    started = time.perf_counter()
    pid = os.posix_spawnp(words[0], [*words, "-c", code], environment)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{code}: {status}")
    return (time.perf_counter() - started) * 1e3


def measure(quick: bool) -> list[Row]:
    """Run whole interpreters in turns."""
    cache = str(ROOT / "build" / "bench" / "pycache")
    codes = {
        "an empty interpreter": ([sys.executable], ""),
        "the standard library's part": ([sys.executable], STDLIB),
        "pycriu_native": ([sys.executable], OURS),
    }
    theirs = pycriu()
    if theirs is not None:
        codes["an empty interpreter (pycriu's)"] = (theirs, "")
        codes["pycriu"] = (theirs, "import pycriu")
    for words, code in codes.values():
        start(words, code, cache)  # compiles the modules
    bodies = {
        name: (lambda words=words, code=code: start(words, code, cache))
        for name, (words, code) in codes.items()
    }
    taken = in_turns(bodies, 15 if quick else 60)
    empty = dict.fromkeys(taken, taken["an empty interpreter"])
    if theirs is not None:
        empty["pycriu"] = taken["an empty interpreter (pycriu's)"]
    rows = [row("whole", "ms", samples, module=name) for name, samples in taken.items()]
    for name in ("the standard library's part", "pycriu_native", "pycriu"):
        if name in taken:
            more = [one - base for one, base in zip(taken[name], empty[name], strict=True)]
            goal = "goal: at most 20" if name == "pycriu_native" else ""
            rows.append(row("over an empty interpreter", "ms", more, goal, module=name))
    if theirs is None:
        rows.append(note("pycriu", PYCRIU_MISSING))
    return rows + profile(cache)


def profile(cache: str) -> list[Row]:
    """Each module's own time (``-X importtime``, which adds time), the minimum of seven runs."""
    result: dict[str, list[float]] = {}
    for _ in range(7):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", OURS],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": cache},
            capture_output=True,
            text=True,
            check=True,
        )
        seen_site = False
        for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
            if seen_site:
                result.setdefault(name, []).append(int(own) / 1e3)
            seen_site = seen_site or name == "site"
    largest = sorted(result, key=lambda name: -min(result[name]))
    rows = [row("own time", "ms", [min(result[name])], module=name) for name in largest[:LARGEST]]
    rest = sum(min(result[name]) for name in largest[LARGEST:])
    rows.append(row("own time", "ms", [rest], module=f"{len(largest) - LARGEST} others"))
    return rows


if __name__ == "__main__":
    main("imports", __doc__ or "", measure)

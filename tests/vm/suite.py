"""Run the tests in guests: ``python -m tests.vm.suite smoke`` or ``... all``.

``smoke`` runs in one guest what this machine's kernel may not be able to do, and a few tests of
the rest. ``all`` runs ``tests/real`` in every guest, two guests at a time, and writes
``docs/kernels.md`` from what came out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import kernels, root
from .guests import GUESTS
from .machine import NO_STATUS

SMOKE_GUEST = "trixie"
SMOKE = (
    "tests/real/test_pre_copy.py",
    "tests/real/test_dump_iters.py",
    "tests/real/test_libcriu_promises.py::test_iterations",
    "tests/real/test_dump_restore.py::test_everything_in_a_process_comes_back",
    "tests/real/test_dump_restore.py::test_a_pid_that_is_taken",
    "tests/real/test_lazy.py::test_memory_comes_after_the_process",
    "tests/real/test_migration.py::test_memory_goes_in_rounds_first",
    "tests/real/test_page_server.py::test_pages_land_on_another_host",
    "tests/real/test_readme.py",
    "tests/real/test_tutorial.py",
    "tests/real/test_tcp.py::test_not_a_byte_is_lost_or_doubled",
)
SMOKE_LIMIT = 1200
LIMIT = 4 * 3600
GRACE = 600
"""Seconds after which the tests in a guest are ended, and so many later the guest itself."""

PYTEST = (
    *("env", "PYCRIU_NATIVE_TEST_PATIENCE=200", "PYTHONDONTWRITEBYTECODE=1"),
    *("python3", "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.vm.outcomes"),
    *("-o", "timeout=1800", "-o", "console_output_style=classic", "--tb=short", "--color=no"),
)
"""pytest where everything takes ten times as long as elsewhere."""


def command(guest: str, limit: float, tests: tuple[str, ...], results: Path) -> list[str]:
    """The command that runs tests in a guest; after ``limit`` seconds pytest sums up and ends."""
    ours = [sys.executable, "-m", "tests.vm", guest, "--limit", f"{limit + GRACE:g}"]
    inside = ["timeout", "--signal=INT", f"{limit:g}", *PYTEST, *tests]
    return [*ours, "--results", str(results), "--", *inside]


def results(guest: str) -> Path:
    """Where what a guest left is kept."""
    return root.CACHE / "results" / guest


def smoke() -> int:
    """One guest; another one if it ends without a word, as an emulated kernel may."""
    words = command(SMOKE_GUEST, SMOKE_LIMIT, ("-v", *SMOKE), root.CACHE / "results" / "smoke")
    status = subprocess.run(words, cwd=root.ROOT, check=False).returncode
    if status == NO_STATUS:
        print("once more, in another guest", flush=True)
        status = subprocess.run(words, cwd=root.ROOT, check=False).returncode
    return status


def everything(arguments: tuple[str, ...], limit: float) -> int:
    """All guests, each with its log in a file; then the page."""

    def one(guest: str) -> int:
        log = root.CACHE / f"{guest}.log"
        print(f"{guest}: running, see {log.relative_to(root.ROOT)}", flush=True)
        with open(log, "wb") as file:
            words = command(guest, limit, arguments or ("-v", "tests/real"), results(guest))
            ended = subprocess.run(words, cwd=root.ROOT, stdout=file, stderr=file, check=False)
        last = log.read_text(errors="replace").splitlines()[-1:]
        print(f"{guest}: ended with {ended.returncode}: {' '.join(last)}", flush=True)
        return ended.returncode

    for guest in GUESTS.values():
        root.build(guest)
    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(one, GUESTS))
    kernels.write([results(guest) for guest in GUESTS])
    return max(statuses)


def main() -> int:
    """0 where all tests passed or were skipped with a reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.suite", description=__doc__)
    parser.add_argument("what", choices=("smoke", "all"))
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for all ({LIMIT})")
    parser.add_argument("arguments", nargs="*", help="for pytest, instead of tests/real")
    chosen = parser.parse_args()
    return smoke() if chosen.what == "smoke" else everything(tuple(chosen.arguments), chosen.limit)


if __name__ == "__main__":
    sys.exit(main())

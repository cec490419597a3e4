"""Run the tests in guests: ``python -m tools.vm.suite smoke`` or ``... all``.

``smoke`` runs the tests of features that this machine's kernel may lack, and a few others, in one
guest; ``smoke-arm64`` runs a few tests on another architecture. ``all`` runs ``tests/integration``
with every kernel of this architecture, and ``arm64`` with those of arm64, a few files in each guest
and two guests at a time, and writes the tables of kernels from the results; ``arm64`` runs
``tests/unit`` too, in one guest. With ``--resume`` they run the tests that an earlier run did not
start or that failed. ``unit-arm64`` runs ``tests/unit`` only. ``here`` runs the tests on this
machine, for a column of its own, and ``page`` writes the tables again.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import kernels, root
from .guests import FOREIGN, GUESTS, NATIVE
from .machine import NO_STATUS

WHAT = ("smoke", "smoke-arm64", "unit-arm64", "all", "arm64", "here", "page")
SMOKE_GUEST = "trixie"
SMOKE = (
    "tests/integration/test_pre_copy.py",
    "tests/integration/test_dump_iters.py",
    "tests/integration/test_job_increments.py",
    "tests/integration/test_libcriu_promises.py::test_iterations",
    "tests/integration/test_dump_restore.py::test_all_parts_of_a_process_are_restored",
    "tests/integration/test_dump_restore.py::test_a_pid_that_is_taken",
    "tests/integration/test_lazy.py::test_memory_comes_after_the_process",
    "tests/integration/test_migration.py::test_memory_goes_in_rounds_first",
    "tests/integration/test_moved_memory.py::test_a_dump_with_a_parent",
    "tests/integration/test_moved_memory.py::test_a_parent_of_two_dumps",
    "tests/integration/test_moved_memory.py::test_memory_that_grows",
    "tests/integration/test_moved_memory.py::test_rounds",
    "tests/integration/test_page_server.py::test_pages_land_on_another_host",
    "tests/integration/test_readme.py",
    "tests/integration/test_tutorial.py",
    "tests/integration/test_tcp.py::test_not_a_byte_is_lost_or_doubled",
)
SMOKE_LIMIT = 1800
GUEST_ARM64 = "trixie-arm64"
SMOKE_ARM64 = (
    "tests/integration/test_dump_restore.py::test_all_parts_of_a_process_are_restored",
    "tests/integration/test_dump_restore.py::test_a_pid_that_is_taken",
    "tests/integration/test_forkserver.py",
    "tests/integration/test_self_dump.py",
    "tests/integration/test_stats.py",
    "tests/integration/test_tcp.py::test_not_a_byte_is_lost_or_doubled",
    "tests/integration/test_shell_job.py::test_a_shell_continues_at_another_terminal",
    "tests/unit/test_images_memory.py",
)
LIMIT = 3600
GRACE = 600
"""Time limit of the tests in a guest, in seconds, and the additional time of the guest."""

FILES = 6
"""Test files in one guest; few, because all of them run again if the guest's kernel fails."""

PYTEST = (
    *("env", "PYCRIU_NATIVE_TEST_PATIENCE=200"),
    *("python3", "-m", "pytest", "-p", "no:cacheprovider", "-p", "tools.vm.outcomes"),
    *("-o", "timeout=1800", "-o", "console_output_style=classic", "--tb=short", "--color=no"),
    *("-o", "tmp_path_retention_policy=failed"),  # all images together do not fit on the disk
)
"""pytest with the time limits of an emulated machine, which is ten times slower."""


def command(guest: str, limit: float, tests: tuple[str, ...], results: Path) -> list[str]:
    """The command that runs tests in a guest; pytest ends after ``limit`` seconds."""
    ours = [sys.executable, "-m", "tools.vm", guest, "--limit", f"{limit + GRACE:g}"]
    inside = ["timeout", "--signal=INT", f"{limit:g}", *PYTEST, *tests]
    return [*ours, "--results", str(results), "--", *inside]


def results(guest: str) -> Path:
    """The directory of a guest's results."""
    return root.CACHE / "results" / guest


def outside_tables(what: str, guest: str, limit: float, tests: tuple[str, ...]) -> int:
    """Run tests in one guest, without an entry in the tables of kernels."""
    return _run(command(guest, limit, tests, root.CACHE / "results" / what / guest))


def unit() -> int:
    """Run ``tests/unit`` on arm64."""
    return outside_tables("unit", GUEST_ARM64, LIMIT, ("tests/unit",))


def _run(words: list[str], log: IO[bytes] | None = None) -> int:
    """Run a guest; run it again if it returns no status, because an emulated kernel can fail."""
    ran = functools.partial(
        subprocess.run, words, cwd=root.ROOT, stdout=log, stderr=log, check=False
    )
    status = ran().returncode
    if status == NO_STATUS:
        print("running the tests again in another guest", flush=True)
        status = ran().returncode
    return status


@dataclass(frozen=True, slots=True)
class Part:
    """The tests that one guest runs."""

    guest: str
    number: int
    """The results of a higher number have priority."""
    tests: tuple[str, ...]

    def run(self) -> int:
        """Run it, with its output in a file."""
        place = results(self.guest) / f"{self.number:02}"
        log = place.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            status = _run(command(self.guest, LIMIT, ("-v", *self.tests), place), file)
        last = log.read_text(errors="replace").splitlines()[-1:]
        print(f"{log.relative_to(root.ROOT)}: {status}: {' '.join(last)}", flush=True)
        return status


def parts(guest: str, files: tuple[str, ...]) -> list[Part]:
    """The tests of these files that have not passed yet, a few files for each guest."""
    result = kernels.tests(results(guest))
    known = {test.partition("::")[0] for test in result}
    failed = tuple(test for test, (outcome, _) in result.items() if outcome == "failed")
    new = tuple(file for file in files if file not in known)
    cuts = [failed] if failed else []
    cuts += [new[at : at + FILES] for at in range(0, len(new), FILES)]
    first = max((int(place.stem) for place in results(guest).glob("*")), default=-1) + 1
    return [Part(guest, first + number, cut) for number, cut in enumerate(cuts)]


def everything(guests: tuple[str, ...], files: tuple[str, ...], *, resume: bool) -> int:
    """Run all tests in these guests, then write the page."""
    if not files:
        result = sorted(root.ROOT.glob("tests/integration/**/test_*.py"))
        files = tuple(str(path.relative_to(root.ROOT)) for path in result)
    for guest in guests:
        root.build(GUESTS[guest])
        for place in results(guest).glob("*/"):
            if not (resume and (place / "status").exists()):
                shutil.rmtree(place)
    work = sorted(
        (part for guest in guests for part in parts(guest, files)), key=lambda part: part.number
    )
    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(Part.run, work))
    write()
    return max(statuses, default=0)


def write() -> int:
    """Write the tables of kernels."""
    kernels.write([*map(results, NATIVE), results("here")], list(map(results, FOREIGN)))
    return 0


def here(tests: tuple[str, ...]) -> int:
    """Run the tests on this machine."""
    place = results("here") / "outcomes.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.vm.outcomes",
        *(tests or ("tests/integration",)),
    ]
    environment = {**os.environ, "PYCRIU_NATIVE_OUTCOMES": str(place)}
    status = subprocess.run(words, cwd=root.ROOT, check=False, env=environment).returncode
    write()
    return status


def main() -> int:
    """Return 0 if each test passed or was skipped with a reason."""
    parser = argparse.ArgumentParser(prog="python -m tools.vm.suite", description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--resume", action="store_true", help="leave out what has passed")
    parser.add_argument("--guest", choices=sorted(GUESTS), help="the only guest of all or arm64")
    parser.add_argument("tests", nargs="*", help="files, instead of those in tests/integration")
    chosen = parser.parse_args()
    tests = tuple(chosen.tests)
    if chosen.what == "smoke":
        return outside_tables("smoke", SMOKE_GUEST, SMOKE_LIMIT, ("-v", *SMOKE))
    if chosen.what == "smoke-arm64":
        return outside_tables("smoke", GUEST_ARM64, SMOKE_LIMIT, ("-v", *SMOKE_ARM64))
    if chosen.what == "unit-arm64":
        return unit()
    if chosen.what == "here":
        return here(tests)
    if chosen.what == "page":
        return write()
    guests = NATIVE if chosen.what == "all" else FOREIGN
    if chosen.guest is not None:
        guests = (chosen.guest,)
    status = everything(guests, tests, resume=chosen.resume)
    if chosen.what == "arm64" and not tests:
        status = max(status, unit())
    return status


if __name__ == "__main__":
    sys.exit(main())

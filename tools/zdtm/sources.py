"""CRIU's test suite: its sources, which are fetched and compiled, and a run of its zdtm.py."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pycriu_native._system.capabilities import CAP_SYS_RESOURCE, has_capability

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "zdtm"
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
_LINE = re.compile(r"(not ok|ok) \d+ - (\S+)(?: # SKIP (.*))?")


def compiled(release: str) -> Path:
    """The sources of Debian's package of this release, with compiled tests.

    A test that cannot be compiled fails with both programs.
    """
    result = BUILD / f"criu-{release}"
    if not result.exists():
        _fetch(release, result)
    for options in (
        ["-k", "-j2", "-C", f"{result}/test/zdtm"],
        ["-C", f"{result}/test", "umount2"],
    ):
        with open(BUILD / "compile.log", "a") as log:
            subprocess.run(["make", *options], stdout=log, stderr=log)
    return result


def _fetch(release: str, result: Path) -> None:
    mirrors = subprocess.check_output([ROOT / "tools" / "install-criu", "--mirrors"], text=True)
    urls = [
        f"{mirror.rstrip('/')}/pool/main/c/criu/criu_{release}.orig.tar.{suffix}"
        for mirror in mirrors.split()
        for suffix in ("xz", "gz")
    ]
    archive, partial = BUILD / "criu.tar", BUILD / "partial"
    if not any(subprocess.run(["curl", "-fsSLo", archive, url]).returncode == 0 for url in urls):
        raise SystemExit("no mirror has the sources of CRIU:\n" + "\n".join(urls))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    subprocess.run(["tar", "-xf", archive, "--strip-components=1", "-C", partial], check=True)
    archive.unlink()
    if not has_capability(CAP_SYS_RESOURCE):
        # The tests then run as root, not as the users of zdtm.py.
        driver = partial / "test" / "zdtm.py"
        driver.write_text(re.sub('"(18943|58467)"', '"0"', driver.read_text()))
    partial.rename(result)


@contextlib.contextmanager
def machine_restored() -> Iterator[None]:
    """Undo what the tests leave: a number of huge pages, and cgroup hierarchies.

    A hierarchy exists as long as it has a cgroup, and concerns all processes of the machine.
    """
    before = HUGE_PAGES.read_text()
    try:
        yield
    finally:
        HUGE_PAGES.write_text(before)
        names = re.findall(r"name=(zdtm\S*):", Path("/proc/self/cgroup").read_text())
        with tempfile.TemporaryDirectory() as place:
            for name in names:
                options = ["-t", "cgroup", "-o", f"none,name={name}", "none", place]
                subprocess.run(["mount", *options], check=True)
                for directory, _, _ in os.walk(place, topdown=False):
                    if directory != place:
                        os.rmdir(directory)
                subprocess.run(["umount", place], check=True)


def run(tree: Path, program: Path, flavor: str, chosen: Sequence[str], log: Path) -> dict[str, str]:
    """Run the tests that these arguments of zdtm.py choose.

    Returns for each "ok", "not ok", or the reason why it was skipped.
    """
    report = BUILD / "report"
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir()
    command = [sys.executable, "zdtm.py", "run", "--keep-going", "--ignore-taint"]
    command += ["--keep-img", "never", "--flavor", flavor, "--criu-bin", str(program)]
    here = str(Path(__file__).parent)
    command += ["--pycriu-search-path", here, "--report", str(report), *chosen]
    # zdtm.py starts itself again as python3.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    with open(log, "w") as output:
        subprocess.run(command, cwd=tree / "test", env=environment, stdout=output, stderr=output)
    return {
        name: f"skipped: {reason}" if reason else result
        for each in report.glob("*.tap")
        for result, name, reason in _LINE.findall(each.read_text(errors="replace"))
    }

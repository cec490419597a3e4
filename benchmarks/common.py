"""Shared by the benchmarks: processes to checkpoint, samples, and the format of results.

Each benchmark is a program of its own, ``python -m benchmarks.NAME --json FILE [--quick]``, and
writes one JSON object: ``benchmark`` (its name), ``about``, and ``rows``, each with ``what``,
``case`` (a mapping), ``unit``, ``median``, ``low``, ``high`` (the middle half of the samples),
``samples`` and optionally ``notes``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pycriu_native._native.ffi import LIBCRIU_VERSION
from pycriu_native._transport.program import find_program

HERE = Path(__file__).resolve().parent
QUIET: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)

Row = dict[str, Any]


def row(what: str, unit: str, samples: Iterable[float], notes: str = "", **case: object) -> Row:
    """One row of results: the median and the middle half."""
    taken = sorted(samples)
    low, middle, high = (
        statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    )
    result = {
        "what": what,
        "case": case,
        "unit": unit,
        "median": round(middle, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "samples": len(taken),
    }
    if notes:
        result["notes"] = notes
    return result


def note(what: str, notes: str, **case: object) -> Row:
    """A row with the reason for a missing number."""
    return {"what": what, "case": case, "notes": notes}


def main(name: str, about: str, measure: Callable[[bool], list[Row]]) -> None:
    """The command line of each benchmark."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=about)
    parser.add_argument("--json", type=Path, help="the file for the results")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    arguments = parser.parse_args()
    rows = measure(arguments.quick)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": name, "about": about, "quick": arguments.quick, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for each in rows:
        case = " ".join(f"{key}={value}" for key, value in each["case"].items())
        number = (
            f"{each['median']:10.3f} {each['unit']} ({each['low']:.3f} to {each['high']:.3f})"
            if "median" in each
            else "          -"
        )
        print(f"{each['what']:34} {case:44} {number} {each.get('notes', '')}".rstrip())


def in_turns(bodies: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Take samples of several functions in turns, so that all run under the same load."""
    taken: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(times):
        for name, body in bodies.items():
            taken[name].append(body())
    return taken


def timed(body: Callable[[], object]) -> float:
    """The duration of a function in milliseconds."""
    started = time.perf_counter()
    body()
    return (time.perf_counter() - started) * 1e3


def in_log(log: Path) -> float:
    """The time of the last line of CRIU's log, in milliseconds."""
    return float(re.findall(r"^\((\d+\.\d+)\)", log.read_text(), re.M)[-1]) * 1e3


def build(name: str, *flags: str) -> Path:
    """Compile a program of ``native/`` into ``build/``, and return its path."""
    made = HERE.parent / "build" / "bench" / name
    made.parent.mkdir(parents=True, exist_ok=True)
    source = HERE / "native" / f"{name}.c"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        words = ["cc", "-O2", "-Wall", "-o", str(made), str(source), "-pthread", *flags]
        subprocess.run(words, check=True)
    return made


def plain() -> Path:
    """Compile the C program for libcriu with the library that the extension uses."""
    include, library = os.environ.get("CRIU_INCLUDEDIR"), os.environ.get("CRIU_LIBDIR")
    flags = [f"-I{include}"] if include else []
    flags += [f"-L{library}", f"-Wl,-rpath,{library}"] if library else []
    # libcriu finds its own copy of protobuf-c.
    return build("plain", *flags, "-l:libcriu.so.2", "-Wl,--allow-shlib-undefined")


@contextlib.contextmanager
def scratch(where: str | None = None) -> Iterator[Path]:
    """A temporary directory; ``/dev/shm`` is on a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="pycriu-native-bench-", dir=where) as made:
        yield Path(made)


class Target:
    """A process of ``native/target.c``.

    ``writes``: 0 for no writes, 1 if it writes to all of its memory, 16 for a sixteenth of it.
    """

    def __init__(self, directory: Path, mib: int = 0, *, writes: int = 0, name: str = "t") -> None:
        self.report = directory / f"{name}.report"
        self.report.unlink(missing_ok=True)
        words = [str(build("target")), str(self.report), str(mib), f"password-{name}"]
        self.process = subprocess.Popen(
            [*words, *([str(writes)] if writes else [])], start_new_session=True, cwd="/", **QUIET
        )
        self.pid = self.process.pid
        self.first = self._read_report()

    def _read_report(self) -> list[str]:
        until = time.monotonic() + 120
        while not self.report.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"pid {self.pid} does not respond")
            time.sleep(0.0005)
        return self.report.read_text().split()

    def request_report(self, pid: int | None = None) -> list[str]:
        """Return password, checksum of the memory, and the longest stop since the last report.

        ``pid``: that of the process after a migration.
        """
        self.report.unlink(missing_ok=True)
        os.kill(pid or self.pid, signal.SIGUSR1)
        return self._read_report()

    def is_intact(self) -> bool:
        """Whether the process responds and its memory is unchanged."""
        return self.request_report()[:2] == self.first[:2]

    def reap(self) -> None:
        """Reap the process after a dump."""
        self.process.wait(60)

    def end(self) -> None:
        """Kill the process, also if it is not a child of this process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        until = time.monotonic() + 20
        while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.0005)


def memory_of(pid: int) -> tuple[float, float]:
    """The private memory and the proportional set size, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {words[0]: int(words[1]) for words in map(str.split, lines)}
    return (values["Private_Clean:"] + values["Private_Dirty:"]) / 1024, values["Pss:"] / 1024


def adopt() -> None:
    """Become the parent of restored processes, so that their pids are free when they end."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def criu(*words: object) -> None:
    """Run the ``criu`` program; its output is printed if it fails."""
    done = subprocess.run(
        [find_program(), *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"criu {words}: {done.stdout}{done.stderr}")


WITH_RUN_ON = """
import ctypes, importlib, sys
libc = ctypes.CDLL(None)
assert not libc.unshare(0x20000)
assert not libc.mount(b"none", b"/", None, 0x44000, None)
assert not libc.mount(b"none", b"/run", sys.argv[1].encode(), 0, None)
importlib.import_module("benchmarks." + sys.argv[2]).inside(*map(int, sys.argv[3:]))
"""


def with_run_on(kind: str, name: str, *numbers: int) -> Any:
    """Return the JSON output of a benchmark's function ``inside``, with another file system on
    /run: on a tmpfs CRIU keeps its feature cache, on a ramfs it cannot.
    """
    done = subprocess.run(
        [sys.executable, "-c", WITH_RUN_ON, kind, name, *map(str, numbers)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    return json.loads(done.stdout)


PYCRIU_MISSING = "pycriu is not installed: set PYCRIU_PATH to its directory"
PYCRIU_DUMPS = """
import pycriu
images = os.open(directory, os.O_RDONLY)
for _ in range(times):
    started = time.perf_counter()
    criu = pycriu.criu()
    criu.use_binary(program)
    criu.opts.images_dir_fd = images
    criu.opts.log_file = "dump.log"
    criu.opts.leave_running = True
    criu.opts.pid = pid
    criu.dump()
    print((time.perf_counter() - started) * 1e3)
"""
"""Dumps with pycriu, for a program that sets ``program``, ``pid``, ``directory`` and ``times``."""


def pycriu() -> list[str] | None:
    """An interpreter with pycriu, from ``PYCRIU_PATH`` or the Makefile's download; else None."""
    fetched = HERE.parent / "build" / "bench" / "pycriu" / "usr/lib/python3/dist-packages"
    path = os.environ.get("PYCRIU_PATH", str(fetched))
    words = ["env", f"PYTHONPATH={path}", sys.executable, "-W", "ignore"]
    result = subprocess.run([*words, "-c", "import pycriu"], capture_output=True, check=False)
    return words if result.returncode == 0 else None


def machine() -> dict[str, object]:
    """The machine of the measurements."""
    from pycriu_native import feature_cache, version

    with open("/proc/cpuinfo") as file:
        model = next(
            (line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""
        )
    return {
        "kernel": os.uname().release,
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "python": sys.version.split()[0],
        "criu": str(version()),
        "libcriu": LIBCRIU_VERSION,
        "feature cache": str(feature_cache()),
        "load before": round(os.getloadavg()[0], 2),
    }

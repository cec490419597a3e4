"""The time of a program with one dump, from the start of the interpreter to its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pycriu_native._transport.program import find_program
from pycriu_native._wire.messages import REQUEST_TYPES, encode
from pycriu_native.options.values import WireValue

from .common import Row, Target, adopt, in_turns, main, row, scratch

ROOT = Path(__file__).resolve().parent.parent
DUMP = "dump({pid}, CriuOpts(images_directory={images!r}, leave_running=True))"
EMPTY, CRIU = "an empty interpreter", "the criu program"
LIBRARY, STAR = "from pycriu_native import dump", "from pycriu_native import *"
STAR_ALONE = "from pycriu_native import *, no call"
COMMAND_ALONE = "pycriu-native --version"

# Lower bounds: parts that every program of this kind needs.
NEEDED = "an interpreter with the modules that calls need"
NEEDED_MODULES = "import _cffi_backend, contextlib, enum, functools, threading"
CLICK = "an interpreter with click"
BARE = "a script without this package"
BARE_NEEDED = f"{BARE}, with the modules that calls need"
IMAGES_FD = 9
BARE_CALL = """
import os, socket
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.dup2(os.open({images!r}, os.O_RDONLY), {fd})
os.set_inheritable(theirs.fileno(), True)
pid = os.posix_spawn({criu!r}, [{criu!r}, "swrk", str(theirs.fileno())], {{}})
theirs.close()
ours.send({request!r})
assert ours.recv(65536).startswith({success!r})
ours.close()
os.waitpid(pid, 0)
"""
"""One dump by a request that is encoded beforehand, without a check, a hook or an error message."""


def measure(quick: bool) -> list[Row]:
    """Whole programs, in turns: wall time, and the processor time of all their processes."""
    adopt()  # orphans of CRIU's worker are reaped here, so their processor time counts
    with scratch("/dev/shm") as directory:
        target = Target(directory)
        try:
            return _rows(_programs(target.pid, directory), 7 if quick else 31)
        finally:
            target.end()


def _programs(pid: int, directory: Path) -> dict[str, list[str]]:
    images = {name: str(directory / name) for name in ("criu", "ours")}
    for path in images.values():
        os.mkdir(path, 0o700)
    call = DUMP.format(pid=pid, images=images["ours"])
    python = [sys.executable, "-c"]
    command = [*python, "from pycriu_native_main import main; main()"]
    bare = _bare(pid, images["ours"])
    criu = [find_program(), "dump", "-t", str(pid), "-D", images["criu"], "-o", "dump.log", "-R"]
    return {
        EMPTY: [*python, ""],
        NEEDED: [*python, NEEDED_MODULES],
        CLICK: [*python, "import click"],
        CRIU: criu,
        BARE: [*python, bare],
        BARE_NEEDED: [*python, NEEDED_MODULES + bare],
        LIBRARY: [*python, f"from pycriu_native import CriuOpts, dump; {call}"],
        STAR: [*python, f"from pycriu_native import *; {call}"],
        "pycriu-native dump": [*command, "dump", str(pid), "-D", images["ours"], "-R"],
        STAR_ALONE: [*python, "from pycriu_native import *"],
        COMMAND_ALONE: [*command, "--version"],
    }


def _bare(pid: int, images: str) -> str:
    opts: WireValue = {
        "images_dir_fd": IMAGES_FD,
        "pid": pid,
        "leave_running": True,
        "log_file": "dump.log",
    }
    kind = REQUEST_TYPES["dump"]
    return BARE_CALL.format(
        images=images,
        fd=IMAGES_FD,
        criu=find_program(),
        request=encode("request", {"type": kind, "opts": opts}),
        success=encode("response", {"type": kind, "success": True}),
    )


def _rows(programs: Mapping[str, list[str]], times: int) -> list[Row]:
    cache = str(ROOT / "build" / "bench" / "pycache")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": cache,
    }
    used: dict[str, list[float]] = {}

    def run(name: str) -> float:
        words = programs[name]
        silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        started = time.perf_counter()
        pid = os.posix_spawnp(words[0], words, environment, file_actions=silent)
        _, status, usage = os.wait4(pid, 0)
        taken = (time.perf_counter() - started) * 1e3
        if status:
            raise RuntimeError(f"{name}: {status}")
        used.setdefault(name, []).append((usage.ru_utime + usage.ru_stime) * 1e3)
        return taken

    for name in programs:
        run(name)  # compiles the modules
    used.clear()
    taken = in_turns({name: (lambda name=name: run(name)) for name in programs}, times)  # type: ignore[misc]
    rows = [row("start to end", "ms", samples, by=name) for name, samples in taken.items()]
    rows += [row("processor time", "ms", samples, by=name) for name, samples in used.items()]
    for base in (EMPTY, NEEDED):
        sums = [sum(pair) for pair in zip(taken[base], taken[CRIU], strict=True)]
        for name in (BARE, BARE_NEEDED, LIBRARY, STAR):
            ratio = [one / both for one, both in zip(taken[name], sums, strict=True)]
            rows.append(row(f"of criu and {base}", "x", ratio, by=name))
    command = taken["pycriu-native dump"]
    sums = [sum(pair) for pair in zip(taken[CLICK], taken[CRIU], strict=True)]
    for what, base_times in ((f"over {CRIU}", taken[CRIU]), (f"over criu and {CLICK}", sums)):
        over = [one - base for one, base in zip(command, base_times, strict=True)]
        rows.append(row(what, "ms", over, by="pycriu-native dump"))
    return rows


if __name__ == "__main__":
    main("first_call", __doc__ or "", measure)

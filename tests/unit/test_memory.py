"""Failed allocations: each one of our C code and of libcriu in turn.

A preloaded malloc makes the n-th allocation of our extension, libcriu or protobuf-c fail; n goes
from the first to the last of a call. The call fails with an exception or succeeds: it does not
crash, has no wrong result, and leaks nothing. CRIU's work counts as done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native.testing import answer_of, write_images

from .support.libraries import ROOT
from .test_exchange import FAKE, GONE, FakeCriu, Step, notify, send

SOURCE = Path(__file__).parents[0] / "support" / "failing_malloc.c"

PROGRAM = """
import ctypes, gc, json, os, sys, time
from pycriu_native import CriuOpts, Worker, dump, feature_check, restore, version

verb, program, images = sys.argv[1:]
shim = ctypes.CDLL(None)
via = Worker(program=program)
opts = CriuOpts(
    images_directory=images, tcp_established=True, log_level=4, root="/", link_remap=True,
    external=["file[1:2]:a", "file[1:3]:b"], skip_mnts=["/a", "/b"], log_file="a.log",
)
calls = {
    "dump": lambda: dump(2**22 + 1, opts.only_for("dump"), via=via).pid,
    "restore": lambda: restore(opts.only_for("restore"), via=via).pid,
    "version": lambda: version(via=via).major,
    "feature-check": lambda: feature_check(via=via).mem_track,
}

def attempt(n):
    shim.fail_allocation(n)
    try:
        return str(calls[verb]())
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
    finally:
        seen.append(shim.allocations())
        shim.fail_allocation(-1)

def left():
    gc.collect()
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    while len(os.listdir("/proc/self/task")) > 1:  # a thread that was joined may still be ending
        time.sleep(0.001)
    return len(os.listdir("/proc/self/fd")), children

seen = []
good = attempt(0)
good = attempt(0)
before = left()
outcomes = [attempt(n) for n in range(1, seen[-1] + 1)]
assert attempt(0) == good
print(json.dumps([good, outcomes, [before, left()]]))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded malloc."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    library = tmp_path_factory.mktemp("shim") / "failing_malloc.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run([compiler, *flags], check=True)
    return library


ANSWERS: dict[str, list[list[Step]]] = {
    "dump": [notify("pre-dump"), notify("post-dump"), [send(GONE)]],
    "restore": [notify("pre-restore"), [send(answer_of("restore", restore={"pid": 77}))]],
    "version": [[send(answer_of("version", version={"major_number": 99, "minor_number": 0}))]],
    "feature-check": [[send(answer_of("feature-check", features={"mem_track": True}))]],
}


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="asan has its own malloc")
@pytest.mark.parametrize("verb", ANSWERS)
def test_memory_runs_out(shim: Path, tmp_path: Path, verb: str) -> None:
    """At each allocation: the call's result, MemoryError, or no thread; nothing is left."""
    program = tmp_path / "criu"
    program.write_text(f"#!{sys.executable} -SE\n" + FAKE.read_text())
    program.chmod(0o755)
    (tmp_path / "images").mkdir()
    if verb == "restore":
        write_images(tmp_path / "images")
    FakeCriu(program, tmp_path / "images").script(*ANSWERS[verb])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, verb, str(program), str(tmp_path / "images")],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    good, outcomes, clean = json.loads(done.stdout)
    assert good in ("4194305", "77", "99", "True")
    assert len(outcomes) > 5
    for outcome in outcomes:
        assert outcome == good or outcome.startswith("MemoryError") or "no thread" in outcome
    assert outcomes[-1] == good, "when CRIU has said yes it is done, whatever libcriu says"
    assert clean[0] == clean[1]

"""Snapshots for processors with fewer features, and processors that lack required features."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, OptionError
from pycriu_native._system.processor import cpu_flags
from pycriu_native.images import decode, encode
from pycriu_native.snapshots import Snapshot
from pycriu_native.snapshots.processor_level import LEVELS, level_problems

from .support.processes import PATIENCE
from .test_snapshots import COMMAND, ENVIRONMENT

LOADER = "/lib64/ld-linux-x86-64.so.2"

PROGRAM = f"""
import json, os, subprocess
from pycriu_native import guest
try:
    from numpy._core._multiarray_umath import __cpu_features__ as found
    numpy = [name for name in found if found[name]]
except ImportError:
    numpy = []
guest.wait()
done = subprocess.run([{LOADER!r}, "--help"], capture_output=True, text=True)
glibc = [line.split()[0] for line in done.stdout.splitlines() if "supported, searched" in line]
print(json.dumps([glibc, numpy, os.environ.get("GLIBC_TUNABLES")]))
"""

needs_level = pytest.mark.skipif(
    bool(list(level_problems("x86-64-v3", cpu_flags()))) or not os.path.exists(LOADER),
    reason="the processor is no x86-64-v3, or the C library is not glibc",
)


def answer(snapshot: Snapshot) -> Any:
    """The output of a copy of the program."""
    with snapshot.start(stdout=PIPE, text=True) as process:
        return json.loads(process.communicate(timeout=PATIENCE)[0])


@needs_level
def test_a_weaker_processor(tmp_path: Path) -> None:
    """The libraries use only features of the level, and a start needs only these."""
    command = [sys.executable, "-c", PROGRAM]
    env = {**ENVIRONMENT, "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    whole = answer(Snapshot.take(command, tmp_path / "all", env=env))
    assert "x86-64-v3" in whole[0]
    snapshot = Snapshot.take(command, tmp_path / "v2", env=env, processor="x86-64-v2")
    glibc, numpy, tunables = answer(snapshot)
    assert "x86-64-v2" in glibc
    assert "x86-64-v3" not in glibc
    assert not numpy or (set(whole[1]) - set(numpy)) & {"X86_V3", "AVX2"}
    assert tunables.startswith("glibc.malloc.check=0:glibc.cpu.hwcaps=")
    needed = set(snapshot.record.host.cpu_flags)
    assert LEVELS["x86-64-v2"] <= needed
    assert not needed & {"avx", "avx2", "bmi2", "fma"}
    assert snapshot.problems() == []


@pytest.mark.parametrize("processor", [None, pytest.param("x86-64-v2", marks=needs_level)])
def test_a_processor_that_lacks_something(tmp_path: Path, processor: str | None) -> None:
    """Such a processor is refused with the names of the missing features."""
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT, processor=processor)
    path = snapshot.directory / "snapshot.json"
    record = json.loads(path.read_text())
    record["host"]["cpu_flags"] += ["amx_future", "avx1024"]
    path.write_text(json.dumps(record))
    edited = Snapshot(snapshot.directory)
    with pytest.raises(OptionError, match=r"processor='amx_future avx1024': .* processor lacks"):
        edited.start(stdin=DEVNULL)
    with edited.start(stdin=DEVNULL, check=False) as process:
        assert process.wait(PATIENCE) == 0


@pytest.mark.cures("cpu-cap")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="cpuinfo.img of x86 is changed")
def test_cpu_cap(tmp_path: Path) -> None:
    """CRIU compares the processor with the recorded one if both calls have the option."""
    opts = CriuOpts(cpu_cap=2)
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT, opts=opts)
    with snapshot.start(stdin=DEVNULL, opts=opts) as process:
        assert process.wait(PATIENCE) == 0
    path = snapshot.directory / "cpuinfo.img"
    image = decode(path)
    entry = image["entries"][0]["x86_entry"][0]
    entry["capability"] = [0xFFFFFFFF for _ in entry["capability"]]
    path.write_bytes(encode(image))
    with pytest.raises(CriuError, match="this processor lacks instructions"):
        snapshot.start(stdin=DEVNULL, opts=opts, share_memory=False)


def test_levels_that_are_refused(tmp_path: Path) -> None:
    """Unknown levels, those that this machine lacks, and levels for a running process."""
    for program, level in ((COMMAND, "x86-64-v9"), (COMMAND, 3), (os.getpid(), "x86-64-v2")):
        with pytest.raises(OptionError, match="processor="):
            Snapshot.take(
                program,
                tmp_path / "snapshot",
                processor=level,  # type: ignore[arg-type]
                without_guest=program == os.getpid(),
            )
    assert not (tmp_path / "snapshot").exists()
    (problem,) = level_problems("x86-64-v2", LEVELS["x86-64-v2"] - {"popcnt", "ssse3"})
    assert os.uname().machine != "x86_64" or problem.rule.endswith("lacks popcnt ssse3")

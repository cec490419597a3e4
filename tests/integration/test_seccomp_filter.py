"""Processes under a seccomp filter, with a caller that is also under one, as in a container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, Verdict, preflight, restore

from .conftest import Spawn
from .support.predictions import enter

FILTER = """
import ctypes, struct
allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(1, ctypes.addressof(allow))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP: SECCOMP_MODE_FILTER
"""
"""Puts a filter that allows everything on the caller."""

CALLER = (
    FILTER
    + """
import json, sys
from pycriu_native import CriuError, CriuOpts, doctor, dump, preflight
pid, images = int(sys.argv[1]), sys.argv[2]
before = preflight(pid, CriuOpts(images_directory=images))
try:
    dump(pid, CriuOpts(images_directory=images))
    error = None
except CriuError as caught:
    error = str(caught.cause), str(caught.cure)
stops, severity = [each.id for each in before.stops], doctor().of("seccomp").severity
print(json.dumps([str(before.verdict), stops, error, str(severity)]))
"""
)


def as_filtered_caller(pid: int, images: Path) -> tuple[str, list[str], list[str] | None, str]:
    """Verdict, findings, error of a dump and doctor's severity, for a caller under a filter."""
    done = subprocess.run(
        [sys.executable, "-c", CALLER, str(pid), str(images)],
        capture_output=True,
        text=True,
        check=True,
    )
    verdict, stops, error, severity = json.loads(done.stdout)
    return verdict, stops, error, severity


@pytest.mark.cures("seccomp-suspend")
def test_a_filter_that_criu_may_not_suspend(orphans: None, spawn: Spawn, images: Path) -> None:
    """A caller under a seccomp filter cannot dump it; one without a filter can."""
    target = spawn(FILTER + "serve()")
    verdict, stops, error, severity = as_filtered_caller(target.pid, images)
    assert (verdict, stops) == ("fails", ["seccomp-suspend"])
    assert error is not None
    assert "seccomp filter" in error[0]
    assert "seccomp unconfined" in error[1]
    assert severity == "warning"
    assert target.runs_on()
    enter("a_filter_that_criu_may_not_suspend", Verdict(verdict), Verdict.FAILS)

    assert preflight(target.pid).verdict is Verdict.WORKS
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


def test_a_process_without_a_filter(spawn: Spawn, images: Path) -> None:
    """A caller under a filter can dump it."""
    target = spawn()
    assert as_filtered_caller(target.pid, images)[:3] == ("works", [], None)

"""The rules of ``install-criu`` on which CRIU fits the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pycriu_native.cli

SCRIPT = Path(pycriu_native.cli.__file__).with_name("install-criu")
RULES = r"/^readonly KERNEL_NEEDS=/,/^)/p; /^at_least()/,/^}/p; /^too_old()/,/^}/p"


def too_old(release: str, *, kernel: str, authenticates_pointers: bool) -> str:
    """Why the script refuses a release of CRIU on such a machine; empty if it fits."""
    rules = subprocess.check_output(["sed", "-n", RULES, SCRIPT], text=True)
    machine = (
        f"uname() {{ echo {kernel}; }}\n"
        f"authenticates_pointers() {{ {'true' if authenticates_pointers else 'false'}; }}\n"
    )
    run = subprocess.run(
        ["bash", "-eu", "-c", f"{rules}\n{machine}\ntoo_old {release} || test $? = 1"],
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stdout


@pytest.mark.parametrize(
    ("release", "kernel", "authenticates_pointers", "reason"),
    [
        ("4.1.1", "6.12.117", False, ""),
        ("4.1.1", "6.12.117", True, "pointer authentication (PAC) needs CRIU 4.2"),
        ("4.2.1", "6.12.117", True, ""),
        ("4.0", "6.13.1", False, "kernel 6.13.1 needs CRIU 4.1"),
        ("4.1.1", "6.18.44-cloud", False, "needs CRIU 4.2 or later"),
        ("4.2", "6.18.44-cloud", False, ""),
    ],
)
def test_a_criu_that_does_not_fit_is_too_old(
    release: str, kernel: str, authenticates_pointers: bool, reason: str
) -> None:
    """Kernel and processor each set a lowest release, with its reason."""
    result = too_old(release, kernel=kernel, authenticates_pointers=authenticates_pointers)
    assert reason in result
    assert bool(result) == bool(reason)

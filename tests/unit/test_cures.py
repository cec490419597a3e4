"""Each cure that the project names is followed in a test, or there is a reason why it is not.

A cure is that of a failure of CRIU (``known_failures.json``), or of a finding of ``preflight`` that
predicts none of them. A test follows it if it brings the failure about, does what the cure says,
and the same call works then. It is one of the cases of ``test_failures.py`` and
``test_restore_failures.py``, whose texts name the failure, or has the mark ``cures`` with its id.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pycriu_native._failures.log_excerpt import failures

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "integration"
PREFLIGHT = ROOT / "pycriu_native" / "diagnostics" / "preflight"

REFINED = {
    "process_that_is_traced": "ptrace-refused",
    "pid_of_a_running_process": "pid-in-use",
    "file_on_something_unmounted": "fd-mount",
    "images_of_pages_missing": "pages-unreadable",
}
"""Cases whose error has more precise texts than the entry of the failure."""

ADVICE = "the call cannot work: the cure is to choose another process, or to change the program"
REFUSED = "the library refuses the option, or an incomplete image set, before CRIU is started"
KERNEL = "needs another kernel, or one that is configured in another way"
CRIU = "needs another build or release of CRIU"
MODULE = "needs a security module (AppArmor, SELinux), which the test machine does not run"
PROCESSOR = "needs another processor"
DEVICE = "needs a device, a file system or a plugin that the test machine does not have"
PRECEDED = "another failure, which is followed, comes first on the test machine"
OPEN = "no test brings it about yet"
TIMING = "depends on the moment: no test can bring it about reliably"

NOT_FOLLOWED = {
    "seize-gone": ADVICE,
    "pid-missing": ADVICE,
    "zombie-root": ADVICE,
    "zombie-thread": ADVICE,
    "seize-refused": ADVICE,
    "pidns-init": ADVICE,
    "script": ADVICE,
    "userns-no-root": ADVICE,
    "preflight:option": ADVICE,
    "preflight:program": ADVICE,
    "preflight:thread-number": ADVICE,
    "preflight:hidden": ADVICE,
    "preflight:events": ADVICE,
    "preflight:watch-of-a-file-system": ADVICE,
    "preflight:unix-dangling": ADVICE,
    "preflight:socket-of-another-network": ADVICE,
    "preflight:file-not-saved": ADVICE,
    "preflight:caller-frozen": ADVICE,
    "track-mem": REFUSED,
    "predump-nodirty": REFUSED,
    "uffd": REFUSED,
    "inherit-fd": REFUSED,
    "ns-flags": REFUSED,
    "lsm-arg": REFUSED,
    "images-dir": REFUSED,
    "log-subdir": REFUSED,
    "parent-img": REFUSED,
    "parent-inventory": REFUSED,
    "img-no-file": REFUSED,
    "img-magic": REFUSED,
    "images-too-large": REFUSED,
    "kerndat": KERNEL,
    "rseq-kernel": KERNEL,
    "rseq-restore": KERNEL,
    "pid-mismatch": KERNEL,
    "last-pid": KERNEL,
    "preflight:32-bit": KERNEL,
    "cg-ctrl": KERNEL,
    "cg-prop": KERNEL,
    "mnt-slave-einval": CRIU,
    "net-lock-nolib": CRIU,
    "root-missing": CRIU,
    "preflight:pointer-authentication": CRIU,
    "lsm-mismatch": MODULE,
    "lsm-write": MODULE,
    "cpu-xsave": PROCESSOR,
    "fuse": DEVICE,
    "plugin": DEVICE,
    "uprobes": DEVICE,
    "lazy-transfer": TIMING,
    "pty-index": TIMING,
    "freeze-cgroup": TIMING,
    "memory-enomem": TIMING,
    "lazy-pipe-size": TIMING,
    "tcp-connect": TIMING,
    "path-unsupported": PRECEDED,
    "map-files-eperm": PRECEDED,
    "mapfile": PRECEDED,
    "sid-clash": OPEN,
    "pids-limit": OPEN,
    "no-parent-mount": OPEN,
    "root-without-tmp": OPEN,
    "cg-move": OPEN,
}
"""Cures that no test follows, and why."""


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The decorators of a module's functions that are calls, with the function's name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call):
                    yield node.name, decorator


def _texts(call: ast.Call) -> list[str]:
    return [str(each.value) for each in call.args if isinstance(each, ast.Constant)]


@cache
def followed() -> frozenset[str]:
    """The ids of the cures that tests follow."""
    result: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for name, call in _calls(path):
            decorator = ast.unparse(call.func)
            if decorator == "pytest.mark.cures":
                result.update(_texts(call))
            elif decorator in ("dump_fails", "restore_fails"):
                cause, cure, *_ = _texts(call)
                result.update(
                    entry.id for entry in failures() if cause in entry.cause and cure in entry.cure
                )
                result.update({REFINED[name]} if name in REFINED else ())
    return frozenset(result)


def named() -> Iterator[str]:
    """The ids of all cures: of failures, and of findings of ``preflight`` without one."""
    for entry in failures():
        if not entry.benign:
            yield entry.id
    for path in PREFLIGHT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                words = {each.arg for each in node.keywords}
                at = 1 if node.func.id == "needs" else 0
                if node.func.id in ("stops", "needs", "no_restore", "lost", "note") and (
                    "failure" not in words and ("cure" in words or at)
                ):
                    id = node.args[at]
                    if isinstance(id, ast.Constant):
                        yield f"preflight:{id.value!s}"


@pytest.mark.parametrize("id", sorted(set(named())))
def test_a_cure_is_followed(id: str) -> None:
    """By a test, or the table says why not."""
    assert (id in followed()) is not (id in NOT_FOLLOWED)


def test_nothing_else_is_in_the_tables() -> None:
    """No name is left of a cure that went, and no case is misspelt."""
    known = {*named(), "preflight:message-queue"}  # it has a cure besides that of its failure
    assert followed() | set(NOT_FOLLOWED) <= known
    cases = {name for path in TESTS.glob("test_*.py") for name, _ in _calls(path)}
    assert set(REFINED) <= cases

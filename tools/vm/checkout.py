"""Copies the files of the checkout that a guest needs: the built package and its tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PARTS = (
    *(".ci", "Makefile", "MANIFEST.in", "build_ffi.py", "setup.py"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"),
    *(
        "README.md",
        "pyproject.toml",
        "docs",
        "examples",
        "include",
        "native",
        "pycriu_native",
        "pycriu_native_main.py",
        "tools",
    ),
    *("benchmarks", "tests"),
)
PROGRAM = "build/bench/target"
"""A program of the benchmarks, compiled on this machine."""


def copy(place: Path, extension: Path | None) -> None:
    """Copy the files to a new directory; ``extension`` replaces this machine's modules."""
    if extension is None and not list(ROOT.glob("pycriu_native/_native/*.so")):
        sys.exit("the extension is not built: make build")
    place.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, place / part)
    if extension is not None:
        shutil.copytree(extension, place, dirs_exist_ok=True)
    elif (ROOT / PROGRAM).exists():
        (place / PROGRAM).parent.mkdir(parents=True)
        shutil.copy(ROOT / PROGRAM, place / PROGRAM)  # after its source, so it is not built again

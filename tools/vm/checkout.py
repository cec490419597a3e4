"""A copy of what a guest needs of the checkout: the package as it is built here, and its tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PARTS = (
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
"""A program that is compiled here: there is no compiler in a guest."""


def copy(place: Path, extension: Path | None) -> None:
    """Copy it to a new directory; with the modules of ``extension`` instead of this machine's."""
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
        shutil.copy(ROOT / PROGRAM, place / PROGRAM)  # newer than its source there

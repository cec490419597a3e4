"""The criu program in this package."""

from __future__ import annotations

import os

__all__ = ["libraries", "program"]

_HERE = os.path.dirname(os.path.realpath(__file__))


def program() -> str:
    """Return the absolute path of the criu program."""
    return os.path.join(_HERE, "bin", "criu")


def libraries() -> dict[str, str]:
    """Return the name and version of each library that is linked into the program."""
    with open(os.path.join(_HERE, "libraries.txt")) as file:
        lines = file.read().splitlines()
    return dict(line.split(" ", 1) for line in lines)

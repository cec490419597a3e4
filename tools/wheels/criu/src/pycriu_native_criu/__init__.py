"""The criu program that this package carries."""

from __future__ import annotations

import os

__all__ = ["libraries", "program"]

_HERE = os.path.dirname(os.path.realpath(__file__))


def program() -> str:
    """Return the absolute path of the criu program."""
    return os.path.join(_HERE, "bin", "criu")


def libraries() -> dict[str, str]:
    """Return the libraries in the program, by name, with their versions."""
    with open(os.path.join(_HERE, "libraries.txt")) as file:
        lines = file.read().splitlines()
    return dict(line.split(" ", 1) for line in lines)

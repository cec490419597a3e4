"""Skips tests of features that the installed CRIU is too old for, with the reason.

Where the library itself refuses, no mark is needed: a test that ends in its refusal
("needs CRIU 3.18") is skipped with that message, if this CRIU or libcriu is older.
"""

from __future__ import annotations

import functools
import re

import pytest

import pycriu_native
from pycriu_native import UnsupportedError, Version


@functools.cache
def _here(what: str) -> Version:
    return pycriu_native.version() if what == "CRIU" else pycriu_native.libcriu_version()


def has(release: str) -> bool:
    """Whether CRIU is of this release or newer."""
    return not _here("CRIU") < Version.parse(release)


def required(release: str, what: str) -> None:
    """Skip the test where CRIU is older than this release."""
    if not has(release):
        pytest.skip(f"needs CRIU {release}, this is {_here('CRIU')}: {what}")


def refused_for_age(error: UnsupportedError) -> str:
    """The library's message if this CRIU is too old, else an empty string."""
    result = []
    for problem in error.problems:
        needed = re.match(r"needs (CRIU|libcriu) ([\d.]+);", problem.rule)
        if needed is None or not _here(needed[1]) < Version.parse(needed[2]):
            return ""
        result.append(f"{problem.field} needs {needed[1]} {needed[2]}, this is {_here(needed[1])}")
    return "; ".join(result)

"""The package is typed for its users: ``typing_checks.py`` under mypy, in strict mode."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycriu_native

from .support.libraries import ROOT

CHECKS = ROOT / "tests" / "typing_checks.py"
IGNORED = re.compile(r"  # type: ignore\[([\w, -]+)\]")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's options in this module."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    return tmp_path_factory.mktemp("mypy")


def type_errors(source: Path, cache: Path) -> list[str]:
    """The output of strict mypy for a user's file, without the project's settings."""
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"),
        *(f"--cache-dir={cache}", "--no-error-summary", "--hide-error-context", source.name),
    ]
    ended = subprocess.run(
        command,
        cwd=source.parent,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr
    return [line for line in ended.stdout.splitlines() if " error: " in line]


def test_the_package_has_the_mark_of_types() -> None:
    """Without ``py.typed`` in the installed package, type checkers would ignore its types."""
    assert Path(pycriu_native.__file__).with_name("py.typed").exists()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


def test_what_a_user_writes(tmp_path: Path, cache: Path) -> None:
    """Right uses are accepted, results have their types, and wrong uses are refused."""
    mine = tmp_path / "mine.py"
    mine.write_text(CHECKS.read_text())
    assert type_errors(mine, cache) == []


def test_each_wrong_use_is_refused(tmp_path: Path, cache: Path) -> None:
    """Without the comments, mypy reports exactly those lines, with those errors."""
    text = CHECKS.read_text()
    expected = {
        number: set(result[1].replace(" ", "").split(","))
        for number, line in enumerate(text.splitlines(), 1)
        if (result := IGNORED.search(line))
    }
    assert len(expected) > 30
    mine = tmp_path / "mine.py"
    mine.write_text(IGNORED.sub("", text))
    message: dict[int, set[str]] = {}
    for line in type_errors(mine, cache):
        number, code = re.search(r":(\d+): error: .*\[([\w-]+)\]$", line).groups()  # type: ignore[union-attr]
        message.setdefault(int(number), set()).add(code)
    assert message == expected


def _functions(name: str) -> Iterator[object]:
    """A public callable, and the public methods of a class."""
    value = getattr(pycriu_native, name)
    if callable(value):
        yield value
    for attribute, member in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(function) and not attribute.startswith("_"):
            yield function


@pytest.mark.parametrize("name", pycriu_native.__all__)
def test_hints_are_evaluated(name: str) -> None:
    """``typing.get_type_hints``, as frameworks of command lines and of services call it."""
    for function in _functions(name):
        hints = typing.get_type_hints(function)
        if name == "dump":
            assert hints["return"] is pycriu_native.DumpResult

"""The benchmarks can be imported, and what they replace in the package exists."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks import call_limit, calls, run

NAMES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_each_module_can_be_imported(name: str) -> None:
    if name == "page":
        pytest.importorskip("matplotlib", reason="its pictures need matplotlib")
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize(("step", "owner", "method"), calls.PARTS)
def test_each_step_that_is_timed_exists(step: str, owner: object, method: str) -> None:
    assert callable(getattr(owner, method)), step


@pytest.mark.parametrize("part", call_limit.PARTS)
def test_each_part_that_is_left_out_exists(part: str) -> None:
    with call_limit.PARTS[part]():
        pass


@pytest.mark.parametrize("name", run.names())
def test_each_benchmark_measures(name: str) -> None:
    """Each module that is run has the function; others are in ``NO_BENCHMARKS``."""
    assert callable(importlib.import_module(f"benchmarks.{name}").measure)

"""Compares preflight's predictions with what CRIU then did.

Test modules record situations here; ``test_preflight.py`` checks the share of correct predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pycriu_native import (
    CriuError,
    CriuOpts,
    Preflight,
    Verdict,
    Worker,
    dump,
    preflight,
    restore,
)

from .failing_calls import Site
from .processes import Target


@dataclass(frozen=True)
class Situation:
    """A situation, its prediction, and CRIU's result."""

    predicted: Verdict
    actual: Verdict

    @property
    def right(self) -> bool:
        return self.predicted is self.actual


ledger: dict[str, Situation] = {}
"""All situations of this test run, by name."""

MISSED: dict[str, str] = {}
"""Situations that preflight cannot predict, and why: docs/preflight.md has the same list."""


def enter(name: str, predicted: Verdict, actual: Verdict) -> None:
    """Record a situation; the prediction must be right or listed as impossible."""
    ledger[name] = Situation(predicted, actual)
    if name in MISSED:
        assert predicted is not actual, f"preflight now predicts {name}: remove it from MISSED"
    else:
        assert predicted is actual, f"preflight predicted of {name} {predicted}; it is {actual}"


def compare(name: str, prediction: Preflight, site: Site) -> None:
    """Record a situation whose dump has failed, and whether preflight's options cure it."""
    actual = Verdict.FAILS
    needs_options = prediction.verdict is Verdict.NEEDS_OPTIONS
    if needs_options and works(prediction.pid, prediction.opts, site.via):
        actual = Verdict.NEEDS_OPTIONS
    elif isinstance(site.cure, Mapping) and not set(site.cure) & set(site.options):
        actual = Verdict.NEEDS_OPTIONS  # an option cures it
    enter(name, prediction.verdict, actual)


def works(pid: int, opts: CriuOpts, via: Worker | None = None) -> bool:
    """Whether CRIU dumps the process with these options; the process continues."""
    try:
        dump(pid, replace(opts, leave_running=True), via=via)
    except CriuError:
        return False
    return True


def check_continues(target: Target, opts: CriuOpts) -> None:
    """Preflight finds nothing, and the process continues after a dump and a restore."""
    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.WORKS, str(result)
    target.dump(opts)
    restore(result.restore_opts)
    assert target.runs_on()

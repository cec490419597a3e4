"""Compares preflight's predictions with what CRIU then did.

Test modules record situations here; ``test_preflight.py`` checks the share of correct predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pycriu_native import CriuError, CriuOpts, Preflight, Verdict, Worker, dump

from .failing_calls import Site


@dataclass(frozen=True)
class Situation:
    """A situation, its prediction, and CRIU's result."""

    said: Verdict
    did: Verdict

    @property
    def right(self) -> bool:
        return self.said is self.did


ledger: dict[str, Situation] = {}
"""All situations of this test run, by name."""

MISSED: dict[str, str] = {}
"""Situations that preflight cannot predict, and why: docs/preflight.md has the same list."""


def enter(name: str, said: Verdict, did: Verdict) -> None:
    """Record a situation; the prediction must be right or listed as impossible."""
    ledger[name] = Situation(said, did)
    if name in MISSED:
        assert said is not did, f"{name} is foretold by now: take it out of MISSED"
    else:
        assert said is did, f"preflight said of {name} that a dump {said}, and it {did}"


def compare(name: str, foretold: Preflight, site: Site) -> None:
    """Record a situation whose dump has failed, and whether preflight's options cure it."""
    did = Verdict.FAILS
    if foretold.verdict is Verdict.NEEDS_OPTIONS and works(foretold.pid, foretold.opts, site.via):
        did = Verdict.NEEDS_OPTIONS
    elif isinstance(site.cure, Mapping) and not set(site.cure) & set(site.options):
        did = Verdict.NEEDS_OPTIONS  # an option cures it
    enter(name, foretold.verdict, did)


def works(pid: int, opts: CriuOpts, via: Worker | None = None) -> bool:
    """Whether CRIU dumps the process with these options; the process continues."""
    try:
        dump(pid, replace(opts, leave_running=True), via=via)
    except CriuError:
        return False
    return True

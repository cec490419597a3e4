"""How often preflight was right: what it said of a situation, and what CRIU then did.

Test modules enter their situations here; ``test_preflight.py`` looks at the share at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pycriu_native import CriuError, CriuOpts, Preflight, Verdict, Worker, dump

from .failing_calls import Site


@dataclass(frozen=True)
class Situation:
    """A situation, what was said of it, and what CRIU did."""

    said: Verdict
    did: Verdict

    @property
    def right(self) -> bool:
        return self.said is self.did


ledger: dict[str, Situation] = {}
"""All situations of this run of the tests, by name."""

MISSED = {
    "udp_that_is_corked": "only the process itself can see that a socket holds back data",
}
"""Situations that preflight cannot tell, and why: docs/preflight.md has the same list."""


def enter(name: str, said: Verdict, did: Verdict) -> None:
    """Remember a situation; it must be right, or among those that cannot be."""
    ledger[name] = Situation(said, did)
    if name in MISSED:
        assert said is not did, f"{name} is foretold by now: take it out of MISSED"
    else:
        assert said is did, f"preflight said of {name} that a dump {said}, and it {did}"


def compare(name: str, foretold: Preflight, site: Site) -> None:
    """Enter a situation whose dump has failed; whether it works with preflight's options."""
    did = Verdict.FAILS
    if foretold.verdict is Verdict.NEEDS_OPTIONS and works(foretold.pid, foretold.opts, site.via):
        did = Verdict.NEEDS_OPTIONS
    elif isinstance(site.cure, Mapping) and not set(site.cure) & set(site.options):
        did = Verdict.NEEDS_OPTIONS  # an option does cure it
    enter(name, foretold.verdict, did)


def works(pid: int, opts: CriuOpts, via: Worker | None = None) -> bool:
    """Whether CRIU dumps the process with these options; it runs on."""
    try:
        dump(pid, replace(opts, leave_running=True), via=via)
    except CriuError:
        return False
    return True

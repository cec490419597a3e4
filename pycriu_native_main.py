"""The console script ``pycriu-native``. It is outside of the package, to run without libcriu too.

Without libcriu, ``pycriu_native`` cannot be imported: a command prints the cure instead of a
traceback, and ``doctor`` reports it as a finding.
"""

from __future__ import annotations

import gc
import sys

NO_CRIU = 8
"""The exit code of commands (``pycriu_native.cli.exit_codes.Exit.NO_CRIU``)."""
NO = 11
"""The exit code of doctor (``Exit.NO``)."""

COLLECT_AFTER = 50_000
"""New objects between two garbage collections. With the default of 700, a start, which creates
modules, spends a tenth of its time on collections."""


def main() -> None:
    """Run ``pycriu_native.cli``, or print why it cannot be imported."""
    gc.set_threshold(COLLECT_AFTER)
    if sys.argv[1:2] == ["run"]:
        # First, because the imports take time: a signal must end the command with the job's exit
        # code.
        from pycriu_native._support import held_signals

        held_signals.hold()
    try:
        import pycriu_native.lib  # noqa: F401  (the package alone does not load libcriu)
        from pycriu_native.cli import main
    except ImportError as error:
        sys.exit(without_library(sys.argv[1:], str(error)))
    main()


def without_library(words: list[str], reason: str) -> int:
    """Print why the library cannot be imported; returns the exit code."""
    message, _, cure = reason.partition("\n")
    if words[:1] != ["doctor"]:
        sys.stderr.write(f"pycriu-native: {message}\n  cure    {cure}\n")
        return NO_CRIU
    finding: dict[str, object] = {
        "id": "libcriu",
        "group": "criu",
        "severity": "stops",
        "subject": "libcriu",
        "message": message,
        "costs": "nothing works, and nothing else can be checked",
        "cure": cure,
        **dict.fromkeys(("pid", "fd", "path", "failure")),
        "options": [],
        "sets": {},
    }
    if "--json" in words:
        import json

        result = {"via": "no libcriu", "severity": "stops", "findings": [finding]}
        head = {"schema": 1, "command": "doctor", "ok": True}
        print(json.dumps({**head, "result": result, "exit_code": NO}))
    else:
        print(f"CRIU:\n    stops    libcriu: {message}")
        print(f"        costs: {finding['costs']}\n        cure: {cure}")
        print("this machine cannot checkpoint (no libcriu)")
    return NO


if __name__ == "__main__":
    main()

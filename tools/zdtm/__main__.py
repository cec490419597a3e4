"""Run CRIU's own test suite with the program ``criu``, and with this library in its place.

``python -m tools.zdtm h ns`` runs the tests of these flavors: h (host), ns (own namespaces), uns
(also a user namespace). It prints the tests that have different results, and each verdict of
``preflight`` and ``check_images`` that differs from what CRIU did; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .sources import BUILD, ROOT, compiled, machine_restored, run

SCRIPT = """#!/bin/sh
export PYTHONPATH="{root}" ZDTM_CRIU="{criu}" ZDTM_VERDICTS="{verdicts}"
exec "{python}" -P -m tools.zdtm.program "$@"
"""


def wrong_verdicts(verdicts: Path) -> list[str]:
    """The calls that failed though nothing was found against them, and the reverse."""
    result = []
    for line in verdicts.read_text().splitlines():
        call = json.loads(line)
        stops = [text for severity, text in call["found"] if severity != "no restore"]
        if bool(stops) != (call["error"] is not None):
            what = "; ".join(stops) if stops else f"nothing was found, but: {call['error']}"
            result.append(f"{call['images']}: {call['verb']}: {what}")
    return result


def compare(tree: Path, criu: Path, flavor: str, chosen: Sequence[str]) -> bool:
    """Whether the results are equal and each verdict is right."""
    verdicts, script = BUILD / f"verdicts-{flavor}.jsonl", BUILD / f"criu-by-library-{flavor}"
    verdicts.write_text("")
    script.write_text(SCRIPT.format(root=ROOT, criu=criu, verdicts=verdicts, python=sys.executable))
    script.chmod(0o755)
    expected = run(tree, criu, flavor, chosen, BUILD / f"criu-{flavor}.log")
    results = run(tree, script, flavor, chosen, BUILD / f"library-{flavor}.log")
    passed = [list(each.values()).count("ok") for each in (expected, results)]
    print(f"{flavor}: of {len(expected)} tests criu passes {passed[0]}, the library {passed[1]}")
    differences = [
        f"{name}: criu: {one}, library: {other}"
        for name in sorted(expected.keys() | results.keys())
        if (one := expected.get(name, "not run")) != (other := results.get(name, "not run"))
    ]
    differences += wrong_verdicts(verdicts)
    print(*differences, sep="\n", flush=True)
    return not differences


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.zdtm", description=__doc__)
    parser.add_argument("flavors", nargs="+", choices=("h", "ns", "uns"))
    parser.add_argument("--only", action="append", default=[], help="a test: zdtm/static/env00")
    parser.add_argument("--exclude", action="append", default=[], help="a regular expression")
    chosen = parser.parse_args()
    tests = [word for test in chosen.only for word in ("-t", test)] or ["-a"]
    tests += [word for each in chosen.exclude for word in ("-x", each)]
    facts = dict(line.split("=", 1) for line in (ROOT / ".criu").read_text().split())
    BUILD.mkdir(parents=True, exist_ok=True)
    tree, criu = compiled(facts["CRIU_VERSION"]), Path(facts["CRIU_PROGRAM"])
    with machine_restored():
        equal = [compare(tree, criu, each, tests) for each in chosen.flavors]
    return int(not all(equal))


if __name__ == "__main__":
    raise SystemExit(main())

"""Run every benchmark and merge the results: ``python -m benchmarks.run [--quick] [NAME]...``.

Each other file in this directory with a ``main`` is a benchmark, and is run with ``--json FILE``.
Results in another format than that of ``common.py`` are stored unchanged.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .common import HERE, machine

NO_BENCHMARKS = {
    *("__init__", "call_limit", "common", "newest", "page", "page_goals", "page_starts"),
    *("page_text", "run", "snapshot_programs"),
}
OUT = HERE.parent / "build"


def names() -> list[str]:
    """The names of all benchmarks."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)


def main() -> int:
    """Run the benchmarks one after the other; a failure does not stop the others."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="the benchmarks to run; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="fewer samples: three minutes in total"
    )
    parser.add_argument("--json", type=Path, default=OUT / "bench.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"unknown benchmark {min(unknown)}; known are {', '.join(names())}")
    benchmarks: dict[str, Any] = {}
    joined = {
        "machine": machine(),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "quick": arguments.quick,
        "benchmarks": benchmarks,
    }
    failed = []
    for name in arguments.names or names():
        print(f"\n== {name}", flush=True)
        part = OUT / "bench" / f"{name}.json"
        part.unlink(missing_ok=True)
        words = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(part)]
        started = time.monotonic()
        done = subprocess.run(
            [*words, *(["--quick"] if arguments.quick else [])], cwd=HERE.parent, check=False
        )
        if done.returncode or not part.exists():
            failed.append(name)
            continue
        result = json.loads(part.read_text())
        if isinstance(result, dict):
            result["seconds"] = round(time.monotonic() - started, 1)
        benchmarks[name] = result
        # Written after each benchmark, so an aborted run has the results so far.
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(joined, indent=1) + "\n")
    print(f"\n{arguments.json}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

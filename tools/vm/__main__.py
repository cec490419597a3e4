"""Run a command in a guest: ``python -m tools.vm trixie -- python3 examples/demo.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import machine, root
from .guests import GUESTS


def main() -> int:
    """Return the command's exit status, or 125 if the guest returned none."""
    parser = argparse.ArgumentParser(prog="python -m tools.vm", description=__doc__)
    parser.add_argument("guest", choices=sorted(GUESTS))
    parser.add_argument("--limit", type=float, default=600, help="seconds (default: 600)")
    parser.add_argument("--results", type=Path, help="where the guest's /results is copied to")
    parser.add_argument("--directory", type=Path, help="copied instead of the checkout")
    parser.add_argument("command", nargs="+", help="run as root in a copy of the checkout")
    chosen = parser.parse_args()
    results = chosen.results or root.CACHE / "left" / chosen.guest
    built = root.build(GUESTS[chosen.guest])
    ended = machine.run(
        GUESTS[chosen.guest],
        built,
        chosen.command,
        results=results,
        limit=chosen.limit,
        directory=chosen.directory,
    )
    if ended.status is None:
        print(f"the guest {chosen.guest} returned no exit status: {ended.why}", file=sys.stderr)
        return machine.NO_STATUS
    return ended.status


if __name__ == "__main__":
    sys.exit(main())

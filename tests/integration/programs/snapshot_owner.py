"""Starts copies of a snapshot, one after another, until its input ends.

Prints a line for each: ``ok``, or ``failed``. Ends with status 1 if a child is left after one.
"""

from __future__ import annotations

import json
import os
import select
import sys
from subprocess import PIPE

from pycriu_native import CriuError
from pycriu_native.snapshots import Snapshot


def main() -> None:
    """Start copies."""
    snapshot = Snapshot(sys.argv[1])
    cgroup = sys.argv[2] if len(sys.argv) > 2 else None
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            with snapshot.start(
                stdin=PIPE, stdout=PIPE, network=True, hostname="copy", cgroup=cgroup
            ) as process:
                out, _ = process.communicate(json.dumps(["orphan"]).encode() + b"\n")
            print("ok" if out and process.returncode == 0 else "failed", flush=True)
        except CriuError:
            print("failed", flush=True)
        try:
            os.waitpid(-1, os.WNOHANG)
            sys.exit("a child is left")
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()

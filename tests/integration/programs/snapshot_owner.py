"""Starts copies of a snapshot, one after another, until its input ends.

Arguments: the snapshot, a cgroup, and "plain" or "shared". Prints a line for each copy: ``ok``, or
``failed``. Ends with status 1 if a child is left after one, but for the fork servers.
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path
from subprocess import PIPE

from pycriu_native import CriuError
from pycriu_native.snapshots import Snapshot

FORK_SERVERS = 2
"""Most that a snapshot has for one worker: one with the template, one without."""


def main() -> None:
    """Start copies."""
    snapshot = Snapshot(sys.argv[1])
    cgroup, memory = sys.argv[2:]
    share_memory = None if memory == "shared" else False
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            with snapshot.start(
                stdin=PIPE,
                stdout=PIPE,
                network=True,
                hostname="copy",
                cgroup=cgroup,
                share_memory=share_memory,
            ) as process:
                out, _ = process.communicate(json.dumps(["orphan"]).encode() + b"\n")
            print("ok" if out and process.returncode == 0 else "failed", flush=True)
        except CriuError:
            print("failed", flush=True)
        remaining = names_of_children()
        if set(remaining) - {"criu"} or len(remaining) > FORK_SERVERS:
            sys.exit(f"children are left: {remaining}")


def names_of_children() -> list[str]:
    """The names of the children of this process."""
    pids = (pid for task in Path("/proc/self/task").iterdir() for pid in _words(task / "children"))
    return [word for pid in pids for word in _words(Path(f"/proc/{pid}/comm"))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # a thread that has ended
        return []


if __name__ == "__main__":
    main()

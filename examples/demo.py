"""Dumps a running process and restores it, with output for each step.

Run as root (``make demo`` does).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pycriu_native import (
    CriuError,
    CriuOpts,
    dump,
    feature_cache,
    libcriu_version,
    restore,
    version,
)

# The count is in the memory of the counter, which writes it to the file but never reads it: a
# restored counter continues from the count in its memory.
COUNTER = """
import sys, time
count = 0
ballast = bytearray(32 * 2**20)
while True:
    count += 1
    with open(sys.argv[1], "w") as shown:
        shown.write(str(count))
    time.sleep(0.01)
"""


def count_in(file: Path) -> int:
    """The count in the file (0 while the counter writes it)."""
    return int(file.read_text() or 0) if file.exists() else 0


def wait_for_more_than(file: Path, count: int) -> int:
    """Wait until the counter exceeds ``count``, and return its count."""
    until = time.monotonic() + 10
    while count_in(file) <= count:
        if time.monotonic() > until:
            sys.exit(f"the counter does not continue: its count is {count_in(file)}")
        time.sleep(0.01)
    return count_in(file)


def runs(pid: int) -> bool:
    """Whether a process with this pid exists."""
    return Path(f"/proc/{pid}").exists()


def tell(what: str, microseconds: int, meaning: str) -> None:
    """Print one of CRIU's times."""
    print(f"   {what:10} {microseconds / 1000:8.2f} ms  {meaning}")


def main() -> None:
    """Dump and restore a counter, and print each step."""
    print(f"CRIU {version()}, libcriu {libcriu_version()}\n")
    with tempfile.TemporaryDirectory(prefix="pycriu-native-demo-") as scratch:
        shown = Path(scratch) / "count"
        images = Path(scratch) / "images"
        counter = subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(shown)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a session of its own, without a terminal
        )
        pid = counter.pid
        try:
            wait_for_more_than(shown, 50)
            opts = CriuOpts(images_directory=images)

            print(f"1. pid {pid} is running, with a count of {count_in(shown)}. Dumping it.")
            dumped = dump(pid, opts)
            counter.wait()  # reap the child, so that its pid is free
            stopped_at = count_in(shown)
            size = sum(file.stat().st_size for file in images.iterdir())
            state = "still runs!" if runs(pid) else "is free"
            print(f"2. Dumped at a count of {stopped_at}; pid {pid} {state}.")
            print(f"   images     {size / 2**20:8.1f} MiB in {dumped.images}")
            if dumped.statistics is not None:
                s = dumped.statistics
                tell("freezing", s.freezing_time, "until all threads were stopped")
                tell("frozen", s.frozen_time, "duration of the stop of the process")
                tell("mem dump", s.memdump_time, "reading its memory")
                tell("mem write", s.memwrite_time, "writing the memory to the images")
            print(f"   whole call {dumped.duration * 1000:8.2f} ms\n")

            time.sleep(0.5)
            assert count_in(shown) == stopped_at, "the count changed after the dump"
            restored = restore(opts)
            now = wait_for_more_than(shown, stopped_at)
            print(f"3. Restored as pid {restored.pid}; count {stopped_at}, now {now}.")
            if restored.statistics is not None:
                tell("restore", restored.statistics.restore_time, "since the first fork")
            print(f"   whole call {restored.duration * 1000:8.2f} ms")
            cache = feature_cache()
            if cache.cure is not None:
                print(f"\nCRIU's feature cache {cache}")
        finally:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
            counter.poll()


if __name__ == "__main__":
    try:
        main()
    except CriuError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")

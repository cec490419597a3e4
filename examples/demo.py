"""The main job, shown on a live process: dump it, see it gone, restore it, see it go on.

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

# The counter's memory holds the count; its file only shows it. Nothing but the memory can tell a
# restored process where it stopped.
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
    """What the counter has shown last (0 in the instant in which it writes)."""
    return int(file.read_text() or 0) if file.exists() else 0


def wait_for_more_than(file: Path, count: int) -> int:
    """Wait until the counter has passed ``count``."""
    until = time.monotonic() + 10
    while count_in(file) <= count:
        if time.monotonic() > until:
            sys.exit(f"the counter does not count: it still shows {count_in(file)}")
        time.sleep(0.01)
    return count_in(file)


def runs(pid: int) -> bool:
    """Whether a process of this number exists."""
    return Path(f"/proc/{pid}").exists()


def tell(what: str, microseconds: int, meaning: str) -> None:
    """One of CRIU's own times."""
    print(f"   {what:10} {microseconds / 1000:8.2f} ms  {meaning}")


def main() -> None:
    """Dump and restore a counter, and tell what happens."""
    print(f"CRIU {version()}, libcriu {libcriu_version()}\n")
    with tempfile.TemporaryDirectory(prefix="pycriu-native-demo-") as scratch:
        shown = Path(scratch) / "count"
        images = Path(scratch) / "images"
        counter = subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(shown)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its own session: no terminal of ours to save
        )
        pid = counter.pid
        try:
            wait_for_more_than(shown, 50)
            opts = CriuOpts(images_directory=images)

            print(f"1. pid {pid} counts; it has reached {count_in(shown)}. It is dumped now.")
            dumped = dump(pid, opts)
            counter.wait()  # it is our child: we reap it, and its pid is free again
            stopped_at = count_in(shown)
            size = sum(file.stat().st_size for file in images.iterdir())
            state = "still runs!" if runs(pid) else "is free"
            print(f"2. It is gone (pid {pid} {state}), at {stopped_at}.")
            print(f"   images     {size / 2**20:8.1f} MiB in {dumped.images}")
            if dumped.statistics is not None:
                s = dumped.statistics
                tell("freezing", s.freezing_time, "until all its threads stood still")
                tell("frozen", s.frozen_time, "how long it stood still: what a user feels")
                tell("mem dump", s.memdump_time, "taking its memory out of it")
                tell("mem write", s.memwrite_time, "writing that to the images")
            print(f"   whole call {dumped.duration * 1000:8.2f} ms\n")

            time.sleep(0.5)
            assert count_in(shown) == stopped_at, "nobody counts while it is gone"
            restored = restore(opts)
            now = wait_for_more_than(shown, stopped_at)
            print(f"3. It runs again as pid {restored.pid}: on from {stopped_at} to {now} by now.")
            if restored.statistics is not None:
                tell("restore", restored.statistics.restore_time, "from the first fork on")
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

"""Dumps a container of runc, and restores it without runc.

Run as root, with runc and busybox installed.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pycriu_native import CriuError, dump, restore
from pycriu_native.oci import Bundle, Container

NAME = f"pycriu-native-example-{os.getpid()}"
COUNTER = "n=0; while :; do n=$((n + 1)); echo $n > /data/count; busybox sleep 0.01; done"


def runc(*words: str) -> None:
    """Run runc without standard streams of this process."""
    none = subprocess.DEVNULL
    subprocess.run(["runc", *words], stdin=none, stdout=none, stderr=none, check=True)


def make_bundle(bundle: Path) -> None:
    """Create a root with only busybox. The count is in memory, and is written to bundle/data."""
    for place in ("rootfs/bin", "rootfs/tmp", "data"):
        (bundle / place).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or sys.exit("busybox is missing"), bundle / "rootfs/bin")
    runc("spec", "--bundle", str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/busybox", "sh", "-c", COUNTER]}
    config["linux"]["cgroupsPath"] = f"/{NAME}"
    data = {"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}
    config["mounts"].append(data)
    (bundle / "config.json").write_text(json.dumps(config))


def end(pid: int) -> None:
    """Kill the restored container and remove its cgroups: runc does not manage it."""
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([process], [], [])
    os.close(process)
    for cgroup in Path("/sys/fs/cgroup").glob(f"**/{NAME}"):
        cgroup.rmdir()


def main() -> None:
    """Run, dump, restore, end."""
    with tempfile.TemporaryDirectory(prefix=NAME) as scratch:
        bundle, images = Path(scratch, "bundle"), Path(scratch, "images")
        count = bundle / "data" / "count"
        make_bundle(bundle)
        runc("run", "--detach", "--bundle", str(bundle), NAME)
        try:
            time.sleep(1)

            container = Container.from_runtime(NAME)
            container.write_descriptors(images)
            dump(container.pid, container.dump_opts(images))
            print(f"dumped: pid {container.pid}, count {count.read_text().strip()}")
        finally:
            runc("delete", "--force", NAME)

        with Bundle.load(bundle).restoring(images) as opts:
            pid = restore(opts).pid
        time.sleep(1)
        print(f"restored: pid {pid}, count {count.read_text().strip()}")

        end(pid)


if __name__ == "__main__":
    try:
        main()
    except CriuError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")

"""Podman with a storage of its own below a directory, and an image that counts.

The container counts in the shell's memory; each number goes to its standard output, which Podman
keeps in the container's log, so that its content shows whether a number was lost or printed twice.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .bundles import Runtime, repeated, runtime
from .cgroups import remove
from .leftovers import RUN
from .processes import PATIENCE, eventually

COUNTER = """
rm /etc/gone
echo changed > /etc/motd
n=0
while :; do
    n=$((n + 1))
    echo $n
    sleep 0.02
done
"""

IMAGE = "localhost/counter:1"

CONFIGURATION = """
[containers]
default_ulimits = []
[engine]
lock_type = "file"
"""

_numbers = itertools.count()


def make_root(root: Path) -> None:
    """The root file system of the image: busybox, and files that the counter changes."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    for place in ("bin", "proc", "dev", "sys", "etc", "tmp", "run"):
        (root / place).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in ("sh", "sleep", "cat", "rm"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "motd").write_text("of the image\n")
    (root / "etc" / "gone").write_text("of the image\n")


@dataclass
class Podman:
    """Podman as a command, with one directory for all of its state."""

    directory: Path
    runtime: Runtime
    root: Path
    """The root file system of the image."""
    run_root: str
    """Its run root, of at most 50 characters."""
    names: list[str] = field(default_factory=list)
    """Containers that it has run."""

    def words(self, *arguments: str) -> list[str]:
        """The command line."""
        return [
            "podman",
            f"--root={self.directory / 'storage'}",
            f"--runroot={self.run_root}",
            f"--tmpdir={self.directory / 'tmp'}",
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            f"--runtime={self.runtime.name}",
            *arguments,
        ]

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.words(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={
                **self.runtime.environment,
                "CONTAINERS_CONF": str(self.directory / "containers.conf"),
                "TMPDIR": str(self.directory),
            },
            timeout=PATIENCE,
        )

    def __call__(self, *arguments: str) -> str:
        """Run it to its end and return its output; it must succeed."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, f"podman {arguments}: {done.stderr}"
        return done.stdout

    def run(self, *options: str, command: str = COUNTER) -> str:
        """Run a container; returns its name."""
        name = f"pycriu-native-{RUN}-{next(_numbers)}"
        self.names.append(name)
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")  # none above our own
        done = self.attempt(
            *("run", "--detach", f"--name={name}", "--network=none", *limits),
            *(f"--cgroup-parent=/pycriu-native-{RUN}", "--pull=never", *options),
            *(IMAGE, "sh", "-c", command),
        )
        if done.returncode:
            pytest.skip(f"podman runs no container here: {done.stderr.strip()}")
        return name

    def checkpoint(self, name: str, archive: Path, *options: str) -> None:
        """Checkpoint a container into an archive."""
        arguments = ("container", "checkpoint", f"--export={archive}", *options, name)
        files = self.directory / "storage" / "vfs-containers" / self.id(name) / "userdata"
        repeated(lambda: self(*arguments), files / "dump.log")

    def export(self, name: str, archive: Path, *options: str) -> None:
        """Checkpoint a container into an archive, and remove it."""
        self.checkpoint(name, archive, *options)
        self("rm", "--force", name)

    def restored(self, archive: Path, name: str) -> None:
        """Restore an archive as a container of this name."""
        self.names.append(name)
        self("container", "restore", f"--import={archive}", f"--name={name}")

    def id(self, name: str) -> str:
        """The container's id."""
        return self("inspect", "--format={{.Id}}", name).strip()

    def pid(self, name: str) -> int:
        """The host's pid of its first process."""
        return int(self("inspect", "--format={{.State.Pid}}", name))

    def numbers(self, name: str) -> list[int]:
        """The numbers that it has counted since its start or restore here."""
        return [int(line) for line in self("logs", name).splitlines()]

    def counts(self, name: str) -> list[int]:
        """The numbers, once there are some."""
        eventually(lambda: len(self.numbers(name)) > 3, f"{name} counting")
        return self.numbers(name)

    def _has_processes(self) -> bool:
        """Whether a process has the run root in its arguments."""
        for arguments in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(self.run_root) in arguments.read_bytes():
                    return True
        return False

    def end(self) -> None:
        """Remove the containers and their remains."""
        for name in self.names:
            self.attempt("rm", "--force", "--time=0", name)
        # At the end of a container conmon starts a podman, which writes to the run root.
        eventually(lambda: not self._has_processes(), "podman's processes to end")
        for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            if (hierarchy / f"pycriu-native-{RUN}").is_dir():
                remove(hierarchy / f"pycriu-native-{RUN}")


@contextlib.contextmanager
def podman(directory: Path) -> Iterator[Podman]:
    """Podman with the image, or the test is skipped with the reason."""
    if shutil.which("podman") is None:
        pytest.skip("no podman is installed")
    (directory / "containers.conf").write_text(CONFIGURATION)
    by = runtime("runc", directory)
    by.state = None  # the path in Podman's storage
    make_root(directory / "image")
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", str(directory / "image"), "-cf", str(archive), "."], check=True)
    with tempfile.TemporaryDirectory(prefix=f"pn-{RUN}-") as run_root:
        result = Podman(directory, by, directory / "image", run_root)
        done = result.attempt("import", str(archive), IMAGE)
        if done.returncode:
            pytest.skip(f"podman cannot store an image here: {done.stderr.strip()}")
        try:
            yield result
        finally:
            result.end()


def as_of_a_pod(source: Path, archive: Path) -> None:
    """The same checkpoint with namespaces that were those of a pod, as CRI-O writes it."""
    work = archive.with_suffix(".d")
    work.mkdir()
    subprocess.run(["tar", "-C", str(work), "-xzf", str(source)], check=True)
    spec = json.loads((work / "spec.dump").read_text())
    spec["annotations"] = {"io.container.manager": "cri-o"}
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] in ("uts", "ipc"):
            namespace["path"] = f"/var/run/{namespace['type']}ns/0123abcd"
    (work / "spec.dump").write_text(json.dumps(spec))
    names = sorted(os.listdir(work))
    subprocess.run(["tar", "-C", str(work), "-czf", str(archive), *names], check=True)
    shutil.rmtree(work)

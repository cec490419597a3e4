"""OCI bundles with a counter, and the runtimes (runc, crun) that run them as containers.

The root file system has only busybox. The container counts in the shell's memory;
each number goes to standard output, to standard error and to a file in a bound directory. Both
streams are pipes of the test, so their content before and after shows whether a number was lost or
printed twice. There are also a directory bound inside the bound directory and a single file bound
read-only; the root is read-only, the runtime's own paths are masked, the cgroup has a limit, the
host name is the container's own.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pycriu_native import CriuError, restore
from pycriu_native._transport.program import find_program
from pycriu_native.oci import Bundle

from . import releases
from .cgroups import remove
from .leftovers import RUN
from .processes import PATIENCE, eventually, is_alive, kill

_numbers = itertools.count()

Result = TypeVar("Result")

DUMPS = 3
"""The number of dumps after which a timeout is a failure."""


def repeated(dump: Callable[[], Result], log: Path | None = None) -> Result:
    """Repeat a dump of a container that timed out; it leaves the container running.

    In a freezer cgroup of version 1, tasks that were seized while they were frozen sometimes stay
    in state D after they are thawed, also where Podman dumps (seen with Linux 6.18 under load).
    """
    for _ in range(1, DUMPS):
        try:
            return dump()
        except (AssertionError, CriuError) as error:
            text = str(error) + (log.read_text() if log is not None and log.exists() else "")
            if "Timeout reached. Try to interrupt" not in text:
                raise
    return dump()


COUNTER = """
n=0
while :; do
    n=$((n + 1))
    echo $n > /data/next && mv /data/next /data/count
    echo $n; echo $n >&2
    sleep 0.02
done
"""

HYBRID = """
mkdir -p "$1" && echo $$ > "$1/cgroup.procs" && umount "$2" && shift 2 && exec "$@"
"""
"""Run a program that must not see a cgroup v2 hierarchy, in a cgroup of that hierarchy."""

V2 = Path("/sys/fs/cgroup/cgroup.controllers")
"""The mount point of cgroup v2 on a machine without v1."""

LIMIT = "57"
"""The container's limit of processes."""


@dataclass
class Streams:
    """Two pipes for a container's standard output and error; the test holds both ends."""

    ours: list[int] = field(default_factory=list)
    theirs: list[int] = field(default_factory=list)
    output: list[str] = field(default_factory=lambda: ["", ""])

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Streams]:
        """Make the pipes, and close them at the end."""
        streams = cls()
        for _ in range(2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            streams.ours.append(reader)
            streams.theirs.append(writer)
        try:
            yield streams
        finally:
            streams.give()
            for reader in streams.ours:
                os.close(reader)

    def give(self) -> None:
        """Close the container's ends here, so that only the container has them."""
        while self.theirs:
            os.close(self.theirs.pop())

    def read(self) -> list[str]:
        """The output so far, of each of the two."""
        for index, reader in enumerate(self.ours):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reader, 65536):
                    self.output[index] += data.decode()
        return self.output

    def numbers(self) -> list[list[int]]:
        """The numbers printed so far, of each of the two.

        runc 1.3 and later writes warnings to the container's standard error.
        """
        return [
            [int(line) for line in text.splitlines() if "level=warning" not in line]
            for text in self.read()
        ]


@dataclass
class Runtime:
    """An OCI runtime as a command."""

    name: str
    program: str
    state: Path | None
    """Its --root; None: its default."""
    environment: Mapping[str, str]

    def words(self, *arguments: str) -> list[str]:
        """The command line."""
        root = [] if self.state is None else ["--root", str(self.state)]
        return [self.program, *root, *arguments]

    def __call__(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run it to its end and return its output; it must succeed."""
        done = subprocess.run(
            self.words(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=self.environment,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{self.name} {arguments}: {done.stderr}"
        return done.stdout

    def start(self, container: str, *arguments: str, streams: Streams) -> None:
        """Run a command that leaves a container running with these streams."""
        out, err = streams.theirs
        words = self.words(*arguments, container)
        done = subprocess.run(
            [*self._aside(container), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            check=False,
            env=self.environment,
            timeout=PATIENCE,
        )
        streams.give()
        assert done.returncode == 0, f"{words}: {streams.read()}"

    def _aside(self, container: str) -> Sequence[str]:
        """A prefix that hides cgroup v2 from crun, which refuses a machine with v1 and v2."""
        v2 = Path("/sys/fs/cgroup/unified")
        if self.name != "crun" or not os.path.ismount(v2):
            return ()
        words = (str(v2 / container), str(v2))
        return "unshare", "--mount", "--propagation=private", "sh", "-ec", HYBRID, "sh", *words


def _program(name: str) -> str:
    """The runtime's program: the system's, else one installed beside a libcriu for the tests."""
    system = shutil.which(name)
    candidates = [
        *([system] if system else []),
        *sorted(glob.glob(f"/opt/pycriu-native*/bin/{name}")),
    ]
    why = f"no {name} is installed"
    for program in candidates:
        if name != "crun":
            return program
        message = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        if "+CRIU" in message.stdout:
            return program
        why = f"this crun is built without CRIU: {message.stdout.splitlines()[0]}"
    pytest.skip(why)


def runtime(name: str, directory: Path) -> Runtime:
    """The runtime, or the test is skipped with the reason.

    It uses the same ``criu`` and libcriu as this library, not the system's.
    """
    if shutil.which("busybox") is None:
        pytest.skip("no busybox is installed")
    program = _program(name)
    (directory / "bin").mkdir()
    (directory / "bin" / "criu").symlink_to(find_program())
    maps = Path("/proc/self/maps").read_text()
    libcriu = re.search(r"(/\S*)/libcriu\.so", maps)
    assert libcriu is not None
    return Runtime(
        name=name,
        program=program,
        # crun 1.24 and later find their masks again only under the default.
        state=directory / "state" if name == "runc" else None,
        environment={
            "PATH": f"{directory / 'bin'}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": libcriu[1],
        },
    )


@dataclass
class Counting:
    """A container with the counter, run by a runtime and observed from outside."""

    id: str
    bundle: Path
    runtime: Runtime
    before: Streams
    """Its standard streams at its start."""
    after: Streams
    """Its standard streams after a restore."""
    pid: int = 0
    """The host's pid of the first process; the test updates it."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        result: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return result

    @config.setter
    def config(self, value: dict[str, Any]) -> None:
        (self.bundle / "config.json").write_text(json.dumps(value, indent=1))

    def run(self, *options: str) -> dict[str, object]:
        """Run it with the runtime; returns its state as seen from outside."""
        words = ("run", "--detach", "--bundle", str(self.bundle), *options)
        self.runtime.start(self.id, *words, streams=self.before)
        self._learn_pid()
        self.counts_past(2)
        return self.look()

    def checkpoint(self, images: Path) -> int:
        """Checkpoint it with the runtime; returns its last number."""
        arguments = ("checkpoint", "--image-path", str(images), self.id)
        repeated(lambda: self.runtime(*arguments), images / "dump.log")
        assert not is_alive(self.pid)
        return self.count

    def restored_by_runtime(self, images: Path) -> None:
        """Restore it with the runtime, after the dumped container is deleted there."""
        self.runtime("delete", self.id)
        where = ("--image-path", str(images), "--bundle", str(self.bundle))
        self.runtime.start(self.id, "restore", "--detach", *where, streams=self.after)
        self._learn_pid()

    def prepare_cgroup(self) -> None:
        """Make the cgroup that the runtime has removed, where CRIU cannot set its limit (v2)."""
        if V2.exists():
            cgroup = V2.parent / self.id
            cgroup.mkdir(exist_ok=True)
            (cgroup / "pids.max").write_text(LIMIT)

    def restore_here(self, images: Path, bundle: Path | None = None) -> None:
        """Restore it by this library."""
        streams = (None, *self.after.theirs)
        with Bundle.load(bundle or self.bundle).restoring(images, stdio=streams) as opts:
            self.restored_here(restore(opts).pid)

    def restored_here(self, pid: int) -> None:
        """Record a restore by this library, with this pid."""
        self.pid = pid
        self.after.give()

    def _learn_pid(self) -> None:
        self.pid = int(json.loads(self.runtime("state", self.id))["pid"])

    @property
    def count(self) -> int:
        """Its last number, from the bound directory."""
        file = self.bundle / "data" / "count"
        return int(file.read_text()) if file.exists() else 0

    def counts_past(self, number: int) -> None:
        """Wait until it is past a number."""
        eventually(lambda: self.count > number, f"{self.id} counting past {number}")

    def continued_from(self, number: int, *later: Streams) -> bool:
        """Whether it continues, and no number was lost or printed twice on either stream."""
        self.counts_past(number + 5)
        lives = [streams.numbers() for streams in (self.before, self.after, *later)]
        for index in range(2):
            assert all(life[index] for life in lives)
            response = [number for life in lives for number in life[index]]
            assert response == list(range(1, len(response) + 1))
        return is_alive(self.pid)

    def runs_on(self) -> bool:
        """Whether it runs and makes progress."""
        self.counts_past(self.count)
        return is_alive(self.pid)

    def inside(self, path: str) -> Path:
        """The host's path of a path in the container."""
        return Path(f"/proc/{self.pid}/root{path}")

    def enter(self, *words: str) -> str:
        """The output of a host's program in the container's network and uts namespaces."""
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--uts", *words],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def loopback(self) -> str:
        """The flags of its loopback interface."""
        return self.enter("ip", "-brief", "link", "show", "lo")

    def mounts(self) -> dict[str, tuple[str, bool]]:
        """Its mounts by mount point: the part of the file system, and whether it is read-only."""
        result = {}
        for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines():
            words = line.split()
            result[words[4]] = (words[3], "ro" in words[5].split(","))
        return result

    def look(self) -> dict[str, object]:
        """Its state as seen from outside, which must be equal before and after."""
        masked = self.config["linux"]["maskedPaths"]
        mounts = self.mounts()
        hidden = [path for path in mounts if path in masked]
        # Before 4.2 CRIU always restores the root writable.
        ignored = [*masked, *([] if releases.has("4.2") else ["/"])]
        return {
            "hostname": self.enter("hostname").strip(),
            "namespaces that are the host's": [
                name for name in os.listdir("/proc/self/ns") if self._shares(name)
            ],
            "cgroups": sorted(Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()),
            "limit": self._limit(),
            "places": sorted(mounts),
            "read-only": sorted(p for p, (_, ro) in mounts.items() if ro and p not in ignored),
            # The path of a root may change; the visible part of a cgroup hierarchy may not.
            "cgroup mounts": {p: root for p, (root, _) in mounts.items() if "/cgroup/" in p},
            "masked": {path: self._is_masked(path) for path in hidden},
            "bound file": self.inside("/etc/motd").read_text(),
            "bound directory": sorted(os.listdir(self.inside("/data/inner"))),
            "standard input": os.readlink(f"/proc/{self.pid}/fd/0"),
        }

    def _shares(self, namespace: str) -> bool:
        ours, theirs = (os.stat(f"/proc/{who}/ns/{namespace}") for who in ("self", self.pid))
        # CRIU restores into a time namespace; no option prevents that.
        return not namespace.startswith("time") and ours.st_ino == theirs.st_ino

    def _limit(self) -> str:
        for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for place in (f"/sys/fs/cgroup/{controllers}{path}", f"/sys/fs/cgroup{path}"):
                file = Path(place, "pids.max")
                if file.exists():
                    return file.read_text().strip()
        return ""

    def _is_masked(self, path: str) -> bool:
        seen = self.inside(path)
        if seen.is_dir():
            return os.listdir(seen) == []
        return stat.S_ISCHR(seen.stat().st_mode) and seen.stat().st_rdev == os.makedev(1, 3)

    def remove(self) -> None:
        """End it, delete it in the runtime, and remove its cgroups."""
        if self.pid:
            kill(self.pid)
        subprocess.run(
            self.runtime.words("delete", "--force", self.id),
            capture_output=True,
            check=False,
            env=self.runtime.environment,
        )
        for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            if (hierarchy / self.id).is_dir():
                remove(hierarchy / self.id)


def _make_root(root: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    for place in ("bin", "proc", "dev", "sys", "etc", "tmp"):
        (root / place).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in ("sh", "mv", "sleep"):
        (root / "bin" / name).symlink_to("busybox")


@contextlib.contextmanager
def counting(directory: Path, by: Runtime) -> Iterator[Counting]:
    """A container for the runtime, removed completely at the end."""
    bundle = directory / "bundle"
    _make_root(bundle / "rootfs")
    for place in ("data", "inner"):
        (bundle / place).mkdir()
    (bundle / "inner" / "here").touch()
    (bundle / "motd").write_text("from outside\n")
    by("spec", cwd=bundle)
    name = f"pycriu-native-{RUN}-{next(_numbers)}"
    with Streams.opened() as before, Streams.opened() as after:
        container = Counting(name, bundle, by, before, after)
        _configure(container)
        try:
            yield container
        finally:
            container.remove()


def _configure(container: Counting) -> None:
    config = container.config
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", COUNTER]}
    config["root"] |= {"readonly": True}
    config["hostname"] = "a-box"
    config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind"]},
        {"destination": "/data/inner", "type": "none", "source": "inner", "options": ["bind"]},
        {"destination": "/etc/motd", "type": "bind", "source": "motd", "options": ["bind", "ro"]},
    ]
    if container.runtime.name == "crun":
        for mount in config["mounts"][-3:]:  # crun cannot restore mounts of relative paths
            mount["source"] = str(container.bundle / mount["source"])
    config["linux"] |= {"cgroupsPath": f"/{container.id}"}
    config["linux"]["resources"]["pids"] = {"limit": int(LIMIT)}
    container.config = config

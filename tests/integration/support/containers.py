"""Small containers with new pid, mount, net, ipc and uts namespaces.

The root is a directory that contains only mount points and a few devices. The host's system
directories and the interpreter are bind mounts, read-only; /box is a bind mount of the test's
directory; /proc and /dev/pts are new. Each bind mount is external: a dump names it, and a restore
maps it (``given_on_dump``, ``given_on_restore``). So every option about namespaces has an effect.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .processes import TARGET, Target, children_of, eventually, kill

BOX = Path(__file__).parents[1] / "programs" / "container_init.py"
MS_RDONLY, MS_NOSUID, MS_NOEXEC, MS_BIND = 1, 2, 8, 4096
DATA = {"devpts": "newinstance,ptmxmode=0666"}
"""Options of file systems, by type."""
NAMESPACES = ("mount", "pid", "net", "ipc", "uts")


@dataclass
class Container(Target):
    """A container with a ``target.py`` as its first process; ``pid`` is the host's number."""

    root: Path = Path()
    """Its root on the host, which is a mount point while the container is in use."""
    binds: dict[str, Path] = field(default_factory=dict)
    """The host's directories that are mounted in it, by place."""

    @property
    def given_on_dump(self) -> list[str]:
        """The values of ``external`` for a dump, which name each bind."""
        return [f"mnt[{place}]:{_key(place)}" for place in self.binds]

    @property
    def given_on_restore(self) -> list[str]:
        """The values of ``external`` for a restore, which map each name to its source."""
        return [f"mnt[{_key(place)}]:{source}" for place, source in self.binds.items()]

    def run(self, *command: str) -> str:
        """The output of a host's program in the container's network namespace."""
        words = ["nsenter", f"--target={self.pid}", "--net", *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def ip(self, *words: str) -> Any:
        """The JSON output of ``ip`` in the container's network namespace."""
        message = self.run("ip", "-json", *words)
        return json.loads(message) if message else None

    def mounts(self) -> dict[str, str]:
        """Its mount points, with the type of file system on each."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        fields = [line.split() for line in lines]
        return {words[4]: words[words.index("-") + 1] for words in fields}

    def end(self) -> None:
        """Kill it, and any container that a test restored into the same root."""
        super().end()
        for pid in self._inhabitants():
            kill(pid)

    def _inhabitants(self) -> list[int]:
        result = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if (entry / "root").samefile(self.root):
                    result.append(int(entry.name))
        return result


def _key(place: str) -> str:
    return place.strip("/").replace("/", "-")


def _system() -> Iterator[str]:
    """The host's directories that a program needs, without those inside another one."""
    result: list[str] = []
    for place in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", sys.base_prefix, sys.prefix):
        inside = any(Path(place).is_relative_to(other) for other in result)
        if os.path.isdir(place) and not os.path.islink(place) and not inside:
            result.append(place)
    return iter(result)


def _make_root(root: Path, binds: Mapping[str, Path], places: Sequence[str]) -> None:
    for place in (*binds, *places, "/dev", "/tmp"):
        (root / place.strip("/")).mkdir(parents=True, exist_ok=True)
    for link in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(link):
            (root / link.strip("/")).symlink_to(os.readlink(link))
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        device = root / "dev" / name
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        device.chmod(0o666)
    (root / "dev" / "ptmx").symlink_to("pts/ptmx")


@contextlib.contextmanager
def mount_point(where: Path) -> Iterator[Path]:
    """Make a directory a mount point while the context lasts, as ``root`` requires."""
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", "--make-private", where, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--recursive", where], check=True)


@contextlib.contextmanager
def container(
    directory: Path,
    scenario: str = "serve()",
    *,
    binds: Mapping[str, Path] | None = None,
    mounts: Mapping[str, str | tuple[str, str]] | None = None,
    propagation: str = "private",
    keep: Sequence[int] = (),
) -> Iterator[Container]:
    """Start a container; ``scenario`` is as in ``processes.start``, and /box is its HERE.

    ``binds`` are more directories of the host, by mount point; ``mounts`` more file
    systems, by place and with their type, or type and source; ``propagation`` is that of
    ``unshare``; ``keep`` are descriptors of this process that it inherits under the same numbers.
    """
    work = directory / "work"
    work.mkdir(parents=True)
    (work / "scenario.py").write_text(textwrap.dedent(scenario))
    shutil.copy(TARGET, work / "target.py")
    outside = {place: Path(place) for place in _system()}
    outside |= {"/box": work, **(binds or {})}
    inside = {
        place: (kind, kind) if isinstance(kind, str) else kind
        for place, kind in {"/proc": "proc", "/dev/pts": "devpts", **(mounts or {})}.items()
    }
    root = directory / "root"
    _make_root(root, outside, tuple(inside))
    readonly = tuple(_system())
    bound = [
        [str(source), place, None, MS_BIND | (MS_RDONLY if place in readonly else 0), None]
        for place, source in outside.items()
    ]
    own = [
        [source, place, kind, MS_NOSUID | MS_NOEXEC, DATA.get(kind)]
        for place, (kind, source) in inside.items()
    ]
    spec = {
        "root": str(root),
        "keep": list(keep),
        "mounts": bound + own,
        "command": [sys.executable, "/box/target.py", "/box"],
    }
    with mount_point(root):
        with open(directory / "stderr", "wb") as errors:
            process = subprocess.Popen(
                [
                    *("unshare", "--propagation", propagation, "--fork"),
                    *(f"--{name}" for name in NAMESPACES),
                    *(sys.executable, str(BOX), json.dumps(spec)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=keep,
            )
        box = Container(process.pid, work, process, root=root, binds=outside)
        try:
            ready = work / "ready"
            eventually(lambda: ready.exists() or process.poll() is not None, "the start")
            assert process.poll() is None, (directory / "stderr").read_text()
            [box.pid] = children_of(process.pid)
            yield box
        finally:
            box.end()
            kill(process.pid)
            process.wait()

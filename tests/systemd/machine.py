"""A system that systemd boots, in namespaces of its own.

Its root is that of this machine, read-only; ``/etc``, ``/var`` and ``/usr/local/bin`` are new at
each boot. ``/srv`` is a directory of this machine, and keeps its contents. ``/proc`` is complete,
as on a real machine.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..integration.support.processes import PATIENCE, eventually

SYSTEMD = Path("/lib/systemd/systemd")
LIMITS = ("file-max", "nr_open")
"""Settings of the kernel below /proc/sys/fs that systemd increases in all namespaces."""
MASKED = (
    *("getty.target", "timers.target", "systemd-sysctl.service", "systemd-logind.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-timesyncd.service"),
    *("systemd-networkd.service", "systemd-resolved.service", "systemd-modules-load.service"),
)
"""Units that would change this machine, or are not needed."""
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}

IN_A_CGROUP = """\
set -eu
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir -p "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --pid --fork --kill-child --uts --ipc --net --cgroup bash -c "$3" bash "$1"
"""
BOOT = """\
set -eu
cd "$1"
mount --bind / root
mount -o remount,bind,ro root
for name in etc var usr/local/bin dev run tmp; do mount -t tmpfs -o mode=755 tmpfs root/$name; done
cp -a /etc/. root/etc
cp -a /usr/local/bin/. root/usr/local/bin
mkdir root/var/lib root/var/log root/var/cache root/var/spool
mkdir -m 1777 root/var/tmp
ln -s /run root/var/run
rm -rf root/etc/systemd/system
cp -r --no-preserve=ownership files/. root
mount --bind srv root/srv
mount -t proc proc root/proc
mount -t sysfs -o ro sysfs root/sys
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
chmod 1777 root/tmp
mkdir root/dev/pts root/dev/shm
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs root/dev/shm
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd
{devices}
mkdir root/tmp/old
cd root
pivot_root . tmp/old
umount -l tmp/old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin {systemd} --log-target=journal
"""


@dataclass
class Machine:
    """One system; ``boot`` and ``halt`` or ``cut_power`` can follow each other."""

    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    init: int = field(default=0, init=False)
    """The pid of its systemd on this machine."""

    def __post_init__(self) -> None:
        self.directory.chmod(0o755)
        for name in ("root", "cgroup", "files", "srv"):
            (self.directory / name).mkdir()
        self.srv = self.directory / "srv"
        for unit in MASKED:
            self.unit(unit).symlink_to("/dev/null")

    def file(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the root at the next boot; ``path`` is absolute."""
        place = self.directory / "files" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def unit(self, name: str) -> Path:
        """The path of a unit of the next boot."""
        place = self.directory / "files/etc/systemd/system" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def boot(self) -> None:
        """Start it, and wait until its units are started."""
        devices = "\n".join(
            f"mknod -m 666 root/dev/{name} c 1 {minor}" for name, minor in DEVICES.items()
        )
        script = BOOT.replace("{devices}", devices + "\nmknod -m 666 root/dev/tty c 5 0")
        script = script.replace("{systemd}", str(SYSTEMD))
        words = ["unshare", "--mount", "--propagation=private", "bash", "-c", IN_A_CGROUP, "bash"]
        words += [str(self.directory), self._cgroup, script]
        with _unchanged_limits(), open(self.directory / "console", "ab") as console:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
            eventually(self._is_up, "the start of systemd")
            state = self.systemctl("is-system-running", "--wait", check=False)
        assert state in ("running", "degraded"), (state, self.console())

    @property
    def _cgroup(self) -> str:
        return f"pycriu-native-systemd-{os.getpid()}"

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.console()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        if not children:
            return False
        self.init = int(children.split()[0])
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{self.init}/exe") == str(SYSTEMD.resolve()):
                return Path(f"/proc/{self.init}/root/run/systemd/private").exists()
        return False

    def run(self, *words: str, check: bool = True) -> str:
        """Run a program there as root, and return its output."""
        inside = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", *inside, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=5 * PATIENCE,
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def systemctl(self, *words: str, check: bool = True) -> str:
        """Run systemctl there, and return its output."""
        return self.run("systemctl", "--no-pager", *words, check=check)

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, such as ``ActiveState``."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def halt(self) -> None:
        """Reboot it, up to the moment at which the machine would start again."""
        self.systemctl("reboot", check=False)
        self._ended()

    def cut_power(self) -> None:
        """Kill all of its processes."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # the kernel kills its child, whose end is that of the namespace
        self._ended()

    def _ended(self) -> None:
        if self.process is None:
            return
        self.process.wait(5 * PATIENCE)
        eventually(lambda: not Path(f"/proc/{self.init}").exists(), "the end of its processes")
        self.process = None

    def remove(self) -> None:
        """End it, and remove its control groups."""
        self.cut_power()
        place = self.directory / "cgroup"
        remove = 'mount -t cgroup2 cgroup2 "$1" && find "$1/$2" -depth -type d -exec rmdir {} +'
        subprocess.run(
            ["unshare", "--mount", "sh", "-c", remove, "sh", str(place), self._cgroup], check=True
        )

    def console(self) -> str:
        """What was printed while it was started."""
        return (self.directory / "console").read_text(errors="replace")

    def report(self) -> str:
        """The journal, for the message of a test that fails."""
        return self.run("journalctl", "--no-pager", "--lines=100", check=False)


@contextlib.contextmanager
def _unchanged_limits() -> Iterator[None]:
    """Restore the kernel's settings that systemd changes when it starts."""
    places = [Path("/proc/sys/fs") / name for name in LIMITS]
    before = [place.read_text() for place in places]
    try:
        yield
    finally:
        for place, text in zip(places, before, strict=True):
            if place.read_text() != text:
                place.write_text(text)


def why_not() -> str:
    """Why no such system can be started here; an empty string if it can."""
    if os.geteuid() != 0:
        return "systemd cannot be started without root"
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return f"there is no {shlex.quote(str(SYSTEMD))}"
    return ""

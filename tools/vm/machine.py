"""Runs a guest in QEMU with software emulation, and copies its output and results.

The root disk is not written to: the changes of a guest are discarded. ``/dev/kvm`` is not used,
because it is missing, or does not work, on many machines that are guests themselves.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import checkout, disk
from .guests import Guest
from .root import Built

RESULTS = 256 * 2**20
"""Bytes that a command may leave in ``/results``."""

SPARE = 2**30
"""Free space for the command, in bytes."""


PARAMETERS = "quiet loglevel=4 panic=-1 mitigations=off nokaslr"
"""Kernel parameters. ``_qemu`` adds ``output``, which guest-init reads."""

NO_STATUS = 125
"""The exit status of this program if the guest returned none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a guest."""

    status: int | None
    """The exit status of the command; None if the guest ended before the command."""
    why: str
    """The reason for a missing exit status, with the last messages of the kernel."""


def run(
    guest: Guest,
    built: Built,
    command: Sequence[str],
    *,
    results: Path,
    limit: float,
    memory: int = 2048,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Ended:
    """Start a guest, run a command in a copy of the checkout, and copy its output to stdout.

    With ``directory`` the command runs in a copy of that directory, without the checkout.

    The files that the command writes to ``/results`` are copied to ``results``. ``limit`` is in
    seconds, ``memory`` in MiB.
    """
    with tempfile.TemporaryDirectory(prefix="pycriu-native-vm-") as scratch:
        job, out, console = (Path(scratch, name) for name in ("job", "out", "console"))
        _make_job(built, Path(scratch, "tree"), job, command, environment or {}, directory)
        with open(out, "wb") as file:
            file.truncate(RESULTS)
        words = _qemu(guest, built, job, out, console, memory=memory)
        late = _stream(words, limit)
        _unpack(out, results)
        status = results / "status"
        if not late and status.exists():
            return Ended(int(status.read_text()), "")
        why = f"it was killed after {limit:g} s" if late else "it ended before the command"
        last = console.read_text(errors="replace").splitlines()[-25:] if console.exists() else []
        return Ended(None, "\n".join([why, "the last messages of its kernel:", *last]))


def _make_job(
    built: Built,
    tree: Path,
    job: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
) -> None:
    if directory is None:
        checkout.copy(tree / "checkout", built.extension if built.extension.exists() else None)
    else:
        shutil.copytree(directory, tree / "checkout")
    variables = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines = [
        # On the root file system: without an option, CRIU does not save mounts of other disks.
        "cp -a /job/checkout /checkout",
        "umount --lazy /job",
        "cd /checkout",
        *([] if directory else ["export PYTHONPATH=$PWD"]),
        *variables,
        f"exec {shlex.join(command)}",
    ]
    (tree / "command").write_text("\n".join(lines) + "\n")
    disk.make(job, tree, spare=SPARE)


def _qemu(
    guest: Guest, built: Built, job: Path, out: Path, console: Path, *, memory: int
) -> list[str]:
    machine = guest.machine

    def drive(path: Path, snapshot: str) -> list[str]:
        return ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}"]

    # One processor: with two, an emulated kernel fails on code that the other processor has just
    # changed (int3 in finish_task_switch, QEMU 7.2).
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *(*machine.qemu, "-accel", "tcg", "-smp", "1", "-m", str(memory)),
        *("-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"),
        *("-kernel", str(built.kernel), "-initrd", str(built.initrd)),
        *("-append", f"console={machine.console} output={machine.output} {PARAMETERS}"),
        *("-serial", f"file:{console}", *machine.devices),
        *drive(built.root, "on"),
        *drive(job, "on"),
        *drive(out, "off"),
    ]


def _stream(words: list[str], limit: float) -> bool:
    """Run QEMU with its output on stdout. Returns whether it was killed at the limit."""
    late = threading.Event()
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:

        def end() -> None:
            late.set()
            qemu.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            assert qemu.stdout is not None
            while data := qemu.stdout.read1():  # type: ignore[attr-defined]
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        except BaseException:
            qemu.kill()
            raise
        finally:
            timer.cancel()
    return late.is_set()


def _unpack(out: Path, results: Path) -> None:
    """Unpack the archive that the guest wrote, if there is one."""
    results.mkdir(parents=True, exist_ok=True)
    for path in results.iterdir():
        path.unlink()
    try:
        with tarfile.open(out, "r:") as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    (results / Path(member.name).name).write_bytes(file.read())
    except tarfile.ReadError:
        return

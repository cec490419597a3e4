"""Runs programs of another architecture with qemu-user, and compiles them with a cross compiler.

``python -m tools.vm.foreign MACHINE COMMAND`` registers the interpreter in ``binfmt_misc`` of a new
user namespace, which Linux 6.7 and later support, so the settings of this machine do not change.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .guests import Guest

ROOT = Path(__file__).parents[2]
BINFMT = "/proc/sys/fs/binfmt_misc"
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
IDS = 65536
"""The number of user and group ids that are mapped to themselves in the namespace."""

ELF_MACHINE = {"aarch64": 183}
"""``e_machine`` of the headers of executable files (``elf.h``)."""


def command(guest: Guest, *words: str) -> list[str]:
    """The command that runs these words, which can be a program of the guest's architecture."""
    if not guest.is_foreign:
        return list(words)
    return [sys.executable, "-m", "tools.vm.foreign", guest.machine.uname, *words]


def build_extension(guest: Guest, tree: Path, place: Path) -> None:
    """Compile the extension for the guest's architecture with the libraries of its root."""
    triplet = f"{guest.machine.uname}-linux-gnu"
    libraries, headers = tree / "usr/lib" / triplet, tree / "usr/include"
    gcc = f"{triplet}-gcc"
    own = subprocess.check_output([gcc, "-print-file-name=include"], text=True).strip()
    compiler = (
        f"{gcc} --sysroot={tree} -nostdinc -isystem {own} -isystem {headers / triplet} "
        f"-isystem {headers} -B{libraries} -L{libraries}"
    )
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("CRIU_")
    } | {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
    made = place.with_name(f".{place.name}.new")
    subprocess.run(
        [
            *(sys.executable, "setup.py", "-q", "build_ext"),
            *("--build-lib", made / "lib", "--build-temp", made / "temp"),
        ],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    shutil.rmtree(place, ignore_errors=True)
    (made / "lib").rename(place)
    shutil.rmtree(made)


def main() -> int:
    """Run a command in a user namespace that can execute programs of an architecture."""
    machine, *words = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    ready, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            sys.exit(f"no user namespace: {os.strerror(ctypes.get_errno())}")
        os.write(ready[1], b"x")
        os.read(mapped[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        mount = ["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT]
        subprocess.run(mount, check=True)
        Path(BINFMT, "register").write_bytes(_interpreter(machine))
        os.execvp(words[0], words)
    os.read(ready[0], 1)
    for kind in ("uid", "gid"):
        Path(f"/proc/{child}/{kind}_map").write_text(f"0 0 {IDS}")
    os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _interpreter(machine: str) -> bytes:
    """The line for ``register``: 64-bit little-endian programs and libraries of this machine."""

    def escaped(data: bytes) -> bytes:
        return b"".join(b"\\x%02x" % byte for byte in data)

    head = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0" + ELF_MACHINE[machine].to_bytes(2, "little")
    )
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    program = os.fsencode(shutil.which(f"qemu-{machine}-static") or "")
    return b":pycriu-native:M::" + escaped(head) + b":" + escaped(mask) + b":" + program + b":OCF"


if __name__ == "__main__":
    sys.exit(main())

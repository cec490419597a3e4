"""Builds the root disk, the kernel and the initramfs of a guest once; they stay in ``build/vm``.

``mmdebstrap`` installs the suite's packages into a directory, pip installs Python packages there,
and ``mke2fs`` creates a disk image of it. The kernel's package is unpacked without its scripts,
because a guest needs no boot loader and has its own initramfs.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cpio, disk, foreign
from .guests import OMITTED, Guest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "vm"
KEPT = Path("/var/tmp/pycriu-native-roots")
"""The directory of guests of other architectures. All checkouts share it, since a build takes
long."""

DRIVERS = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""Kernel modules in the initramfs: those that the mount of the root disk needs."""

SOURCES = (
    "cpio.py",
    "disk.py",
    "fetch-kernel",
    "foreign.py",
    "guest-init",
    "guests.py",
    "initrd-init",
    "root.py",
)
"""The files of this directory that affect the content of a guest."""

NETWORK = r"Acquire::(https?|ftp|Check-|Retries|Force)"
"""The system's settings of apt, such as proxies, with which packages are fetched."""

SPARE = 3 * 2**30
"""Free space of the root disk for the tests, in bytes."""


@dataclass(frozen=True, slots=True)
class Built:
    """The files of a guest."""

    root: Path
    kernel: Path
    initrd: Path
    extension: Path
    """The compiled modules for its architecture; a guest of this machine's architecture has
    none."""


def build(guest: Guest) -> Built:
    """The files of the guest, which are built if they are missing or older than their sources."""
    place = _directory(guest)
    built = Built(
        place / "root.ext4", place / "vmlinuz", place / "initrd", CACHE / "extension" / guest.name
    )
    _make(guest, place)
    if guest.is_foreign:
        _build_extension(guest, place, built.extension)
    return built


def is_current(guest: Guest) -> bool:
    """Whether the guest has been built from the present sources."""
    record = _directory(guest) / "key"
    return record.exists() and record.read_text() == _key(guest)


def _directory(guest: Guest) -> Path:
    return (KEPT if guest.is_foreign else CACHE) / guest.name


def _make(guest: Guest, place: Path) -> None:
    if is_current(guest):
        return
    cache = place.parent
    print(f"building the guest {guest.name} with mmdebstrap", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{guest.name}-", dir=cache) as scratch:
        tree, made = Path(scratch, "tree"), Path(scratch, "made")
        made.mkdir()
        _install(guest, tree)
        _install_python_packages(guest, tree)
        shutil.copy(HERE / "guest-init", tree / "sbin" / "guest-init")
        [kernel] = (tree / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, made / "vmlinuz")
        _make_initrd(tree, made / "initrd")
        disk.make(made / "root.ext4", tree, spare=SPARE)
        if guest.is_foreign:
            _keep_for_builds(guest, tree, made)
        (made / "key").write_text(_key(guest))
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)


def _dangling(directory: str, names: list[str]) -> list[str]:
    """Names of links without a target. ``ignore_dangling_symlinks`` of ``shutil.copytree``
    interprets targets relative to the current directory, and omits valid links of linux-libc-dev
    6.12.117.
    """
    return [name for name in names if not os.path.exists(os.path.join(directory, name))]


def _keep_for_builds(guest: Guest, tree: Path, made: Path) -> None:
    """Keep the headers and libraries with which the extension is compiled."""
    kept = made / "tree/usr"
    # copytree() replaces links by the files that they refer to.
    shutil.copytree(tree / "usr/include", kept / "include", ignore=_dangling)
    libraries = f"lib/{guest.machine.uname}-linux-gnu"
    shutil.copytree(tree / "usr" / libraries, kept / libraries, symlinks=True)
    (made / "tree/lib").symlink_to("usr/lib")
    for loader in (tree / "usr/lib").glob("ld-linux-*"):
        shutil.copy(loader, kept / "lib", follow_symlinks=False)


def _build_extension(guest: Guest, place: Path, extension: Path) -> None:
    """Compile the extension if it is older than its sources."""
    sources = [*(ROOT / "native").iterdir(), *(ROOT / "include").iterdir(), place / "key"]
    newest = max(source.stat().st_mtime for source in sources)
    if not extension.exists() or extension.stat().st_mtime < newest:
        foreign.build_extension(guest, place / "tree", extension)
        os.utime(extension)


def _key(guest: Guest) -> str:
    """A digest of the sources of a guest; the versions of its packages are not included."""
    digest = hashlib.sha256(repr((guest, _requirements())).encode())
    for source in SOURCES:
        digest.update((HERE / source).read_bytes())
    return digest.hexdigest()


def _install(guest: Guest, tree: Path) -> None:
    mirrors = _output_lines(str(ROOT / "tools" / "install-criu"), "--mirrors")
    if not mirrors:
        sys.exit("the system's apt sources name no Debian mirror")
    network = [line for line in _output_lines("apt-config", "dump") if re.match(NETWORK, line)]
    foreign_only = [f"--architectures={guest.machine.architecture}"] if guest.is_foreign else []
    words = foreign.command(
        guest,
        *(
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            *foreign_only,
            f"--include={','.join(guest.packages)}",
            "--aptopt=APT::Install-Recommends false",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in OMITTED),
            *(f"--aptopt={line}" for line in network),
            f"--customize-hook={HERE / 'fetch-kernel'}",
            guest.suite,
            str(tree),
            f"deb {mirrors[0]} {guest.suite} main",
        ),
    )
    subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "KERNEL": guest.kernel})


def _output_lines(*command: str) -> list[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def _requirements() -> list[str]:
    """The requirements of the package and of its tests, except those for plots, archives and the
    compiler of ``.proto`` files.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = [line for line in extras["test"] if not line.startswith(("grpcio-tools", "pycriu"))]
    return [*project["dependencies"], *tests, *extras["images"], *extras["cli"]]


def _install_python_packages(guest: Guest, tree: Path) -> None:
    """Install the wheels for the guest's Python, which can differ from this one."""
    python = os.readlink(tree / "usr/bin/python3")
    release = python.removeprefix("python")
    place = tree / "usr/local/lib" / python / "dist-packages"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
            *("--no-input", "--no-compile", "--only-binary=:all:", "--python-version", release),
            *("--platform", f"manylinux2014_{guest.machine.uname}"),
            *("--platform", f"manylinux_2_28_{guest.machine.uname}"),
            *("--target", str(place), *_requirements()),
        ],
        check=True,
    )
    # The guest's Python compiles them here, because in the emulated guest it would take minutes.
    inside = ["python3", "-m", "compileall", "-q", f"/{place.relative_to(tree)}"]
    words = foreign.command(guest, "chroot", str(tree), *inside)
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _make_initrd(tree: Path, place: Path) -> None:
    """Create the initramfs, which loads the drivers of the root disk and mounts it."""
    [modules] = (tree / "lib/modules").iterdir()
    archive = cpio.Archive()
    for directory in ("bin", "dev", "proc", "root", "modules"):
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", (tree / "usr/bin/busybox").resolve().read_bytes(), 0o755)
    archive.file("init", (HERE / "initrd-init").read_bytes(), 0o755)
    names = []
    for path in _with_dependencies(modules, DRIVERS):
        data = (modules / path).read_bytes()
        data = lzma.decompress(data) if path.endswith(".xz") else data
        names.append(os.path.basename(path).removesuffix(".xz"))
        archive.file(f"modules/{names[-1]}", data)
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    place.write_bytes(gzip.compress(archive.content(), 1))


def _with_dependencies(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    """The files of these modules and of their dependencies, which come first."""
    needs = dict(_dependencies(modules))
    by_name = {os.path.basename(path).partition(".ko")[0].replace("-", "_"): path for path in needs}
    ordered: list[str] = []
    for name in wanted:
        # A missing module is part of the kernel. depmod lists the nearest dependency first.
        for path in reversed([by_name[name], *needs[by_name[name]]] if name in by_name else []):
            if path not in ordered:
                ordered.append(path)
    return ordered


def _dependencies(modules: Path) -> Iterator[tuple[str, list[str]]]:
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        yield path, needs.split()

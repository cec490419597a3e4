"""The root of a guest, its kernel and the first program: made once, kept under ``build/vm``.

``mmdebstrap`` installs the suite's packages into a directory, Python's packages are laid beside
them by pip, and ``mke2fs`` makes a disk of it. The kernel is unpacked, not installed: nothing
of what its scripts do (boot loader, initramfs) is needed.
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
"""Where the guests of other architectures are kept beside the checkouts: each takes long."""

DRIVERS = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""Modules that the disk with the root needs; all others are in it."""

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
"""The files of this directory that say what a guest is made of."""

NETWORK = r"Acquire::(https?|ftp|Check-|Retries|Force)"
"""What of the system's settings of apt the guest's apt gets while the root is made."""

SPARE = 3 * 2**30
"""Bytes of the disk beyond what the root fills: for what the tests write."""


@dataclass(frozen=True, slots=True)
class Built:
    """The files that a guest is started from."""

    root: Path
    kernel: Path
    initrd: Path
    extension: Path
    """Compiled modules for its architecture; not there if they are this machine's."""


def build(guest: Guest) -> Built:
    """The guest's files, made anew where what they are made from has changed."""
    cache = KEPT if guest.is_foreign else CACHE
    place = cache / guest.name
    built = Built(
        place / "root.ext4", place / "vmlinuz", place / "initrd", CACHE / "extension" / guest.name
    )
    _make(guest, cache, place)
    if guest.is_foreign:
        _build_extension(guest, place, built.extension)
    return built


def _make(guest: Guest, cache: Path, place: Path) -> None:
    key = _key(guest)
    record = place / "key"
    if record.exists() and record.read_text() == key:
        return
    print(f"making the guest {guest.name} with mmdebstrap", flush=True)
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
        (made / "key").write_text(key)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)


def _dangling(directory: str, names: list[str]) -> list[str]:
    """Links without a target. ``ignore_dangling_symlinks`` takes them to be relative to the current
    directory, and leaves out those of linux-libc-dev 6.12.117 (Debian 13).
    """
    return [name for name in names if not os.path.exists(os.path.join(directory, name))]


def _keep_for_builds(guest: Guest, tree: Path, made: Path) -> None:
    """What the extension is compiled against, for later checkouts."""
    kept = made / "tree/usr"
    # Links to elsewhere become what they point to.
    shutil.copytree(tree / "usr/include", kept / "include", ignore=_dangling)
    libraries = f"lib/{guest.machine.uname}-linux-gnu"
    shutil.copytree(tree / "usr" / libraries, kept / libraries, symlinks=True)
    (made / "tree/lib").symlink_to("usr/lib")
    for loader in (tree / "usr/lib").glob("ld-linux-*"):
        shutil.copy(loader, kept / "lib", follow_symlinks=False)


def _build_extension(guest: Guest, place: Path, extension: Path) -> None:
    """Newer than its sources, or made anew."""
    sources = [*(ROOT / "native").iterdir(), *(ROOT / "include").iterdir(), place / "key"]
    newest = max(source.stat().st_mtime for source in sources)
    if not extension.exists() or extension.stat().st_mtime < newest:
        foreign.build_extension(guest, place / "tree", extension)
        os.utime(extension)


def _key(guest: Guest) -> str:
    """A digest of everything that a guest is made from, but the packages' releases."""
    digest = hashlib.sha256(repr((guest, _requirements())).encode())
    for source in SOURCES:
        digest.update((HERE / source).read_bytes())
    return digest.hexdigest()


def _install(guest: Guest, tree: Path) -> None:
    mirrors = _told(str(ROOT / "tools" / "install-criu"), "--mirrors")
    if not mirrors:
        sys.exit("the system's apt sources name no Debian mirror")
    # The way to the mirror: proxies and the like.
    network = [line for line in _told("apt-config", "dump") if re.match(NETWORK, line)]
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


def _told(*command: str) -> list[str]:
    message = subprocess.run(command, check=True, capture_output=True, text=True)
    return message.stdout.splitlines()


def _requirements() -> list[str]:
    """What the package needs to run and to be tested with a real CRIU: neither the compiler of
    ``.proto`` files, nor what draws pictures or packs archives.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = [line for line in extras["test"] if not line.startswith(("grpcio-tools", "pycriu"))]
    return [*project["dependencies"], *tests, *extras["images"], *extras["cli"]]


def _install_python_packages(guest: Guest, tree: Path) -> None:
    """The wheels for the guest's Python, which need not be the one that runs here."""
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
    # By the guest's own Python, here: under emulation it takes minutes.
    inside = ["python3", "-m", "compileall", "-q", f"/{place.relative_to(tree)}"]
    words = foreign.command(guest, "chroot", str(tree), *inside)
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _make_initrd(tree: Path, place: Path) -> None:
    """The first program: it loads the disk's drivers and goes over to the root."""
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
    place.write_bytes(gzip.compress(archive.whole(), 1))


def _with_dependencies(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    """The files of these modules, each after those that it needs."""
    needs = dict(_dependencies(modules))
    by_name = {os.path.basename(path).partition(".ko")[0].replace("-", "_"): path for path in needs}
    ordered: list[str] = []
    for name in wanted:
        # A module that is not there is built in. depmod names the nearest need first.
        for path in reversed([by_name[name], *needs[by_name[name]]] if name in by_name else []):
            if path not in ordered:
                ordered.append(path)
    return ordered


def _dependencies(modules: Path) -> Iterator[tuple[str, list[str]]]:
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        yield path, needs.split()

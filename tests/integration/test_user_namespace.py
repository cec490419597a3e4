"""A tree with a user namespace whose root is another user here, as that of a container."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from pycriu_native import CriuError, CriuOpts, ImagesError, dump, restore
from pycriu_native._checks.option_rules import parents
from pycriu_native._integrity.image_access import ImageAccess
from pycriu_native._system.descriptors import opened_directory
from pycriu_native._wire.protobuf import image_of, message
from pycriu_native.images import check_images

from .support.processes import eventually, is_alive, kill

ROOT = 100000
"""The uid and gid of the root user of the namespace, outside of it."""

SLEEP = "/usr/bin/sleep"

PROGRAM = """
import ctypes, fcntl, os, struct, sys
CLONE_NEWNET, TUNSETIFF, TUNSETPERSIST, IFF_TUN = 0x40000000, 0x400454CA, 0x400454CB, 1
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())
check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID))
os.write(1, b"unshared")
os.read(0, 1)
os.setgroups([])
os.setgid(0)
os.setuid(0)
if child := os.fork():
    os.write(1, b"%d" % child)
    os._exit(0)
check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
if sys.argv[2:]:
    check(libc.unshare(CLONE_NEWNET))
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun7", IFF_TUN))
    fcntl.ioctl(device, TUNSETPERSIST, 1)
root = os.fsencode(sys.argv[1])
check(libc.mount(root, root, None, MS_BIND, None))
os.chdir(root)
check(libc.mount(b"none", b"proc", b"proc", 0, None))
check(libc.pivot_root(b".", b"old"))
os.chdir("/")
check(libc.umount2(b"/old", MNT_DETACH))
os.setsid()
for number in range(3):
    os.dup2(os.open("/null", os.O_RDWR), number)
os.closerange(3, 100)
os.execv("/usr/bin/sleep", ["sleep", "1000"])
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """The root directory of a container, a mount point that every user can reach."""
    result = Path(tempfile.mkdtemp(prefix="pycriu-native-test-"))
    subprocess.run(["mount", "--bind", result, result], check=True)
    try:
        result.chmod(0o755)
        libraries = subprocess.check_output(["ldd", SLEEP], text=True)
        for path in (SLEEP, *re.findall(r"(/\S+) \(", libraries)):
            (result / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, result / path[1:])
        for name in ("proc", "old"):
            (result / name).mkdir()
        (result / "null").touch()
        os.chown(result, ROOT, ROOT)
        (result / "null").chmod(0o666)
        yield result
    finally:
        subprocess.run(["umount", result], check=True)
        shutil.rmtree(result)


@contextlib.contextmanager
def container(root: Path, *arguments: str) -> Iterator[int]:
    """The first process of a container; with an argument it has a tun device."""
    command = [sys.executable, "-c", PROGRAM, str(root), *arguments]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, cwd="/") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if os.read(process.stdout.fileno(), 8) != b"unshared":
            pytest.skip("no user namespace can be made here")
        try:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text(f"0 {ROOT} 65536")
        except PermissionError:
            pytest.skip(f"no user namespace with uid {ROOT} can be made here")
        process.stdin.write(b"x")
        process.stdin.flush()
        result = int(os.read(process.stdout.fileno(), 20))
    comm = Path(f"/proc/{result}/comm")
    eventually(lambda: comm.read_text() == "sleep\n", "the program runs")
    try:
        yield result
    finally:
        kill(result)


@pytest.fixture
def pid(orphans: None, root: Path) -> Iterator[int]:
    with container(root) as result:
        yield result


@pytest.fixture
def tun(tmp_path: Path) -> Iterator[Path]:
    """A device that replaces /dev/net/tun, and that every user can open."""
    device = Path("/dev/net/tun")
    if not device.exists():
        pytest.skip(f"there is no {device}")
    ours = tmp_path / "tun"
    os.mknod(ours, stat.S_IFCHR, device.stat().st_rdev)
    ours.chmod(0o666)
    subprocess.run(["mount", "--bind", ours, device], check=True)
    try:
        try:
            device.open("rb").close()
        except PermissionError:
            pytest.skip("no device can be opened in the directory of the test")
        yield ours
    finally:
        subprocess.run(["umount", device], check=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    result = tmp_path / "images"
    result.mkdir(0o700)
    return result


def modes(images: Path) -> set[tuple[int, int]]:
    """Mode and group of each image, and of the directory."""
    found = [path.stat() for path in (images, *images.glob("*.img"))]
    return {(stat.S_IMODE(each.st_mode), each.st_gid) for each in found}


def test_its_root_can_read_the_images(pid: int, root: Path, images: Path) -> None:
    """They get its group for a restore, and their former one if that fails."""
    dump(pid, CriuOpts(images_directory=images))
    os.waitpid(pid, 0)
    with pytest.raises(CriuError):
        restore(CriuOpts(images_directory=images))
    assert modes(images) == {(0o700, 0), (0o600, 0)}
    restored = restore(CriuOpts(images_directory=images, root=root))
    assert is_alive(restored.pid)
    kill(restored.pid)
    assert modes(images) == {(0o710, ROOT), (0o640, ROOT)}


def test_images_for_a_group(pid: int, root: Path, images: Path) -> None:
    """Files that already have rights for a group, and those that are no images, keep it."""
    dump(pid, CriuOpts(images_directory=images))
    os.waitpid(pid, 0)
    disk, pages = images / "disk.img", images / "pages-1.img"
    disk.touch(0o600)
    pages.chmod(0o640)
    with pytest.raises(ImagesError, match="cannot read the images"):
        restore(CriuOpts(images_directory=images, root=root))
    pages.chmod(0o600)
    kill(restore(CriuOpts(images_directory=images, root=root)).pid)
    assert (disk.stat().st_gid, pages.stat().st_gid) == (0, ROOT)


def test_images_of_parents(tmp_path: Path, images: Path) -> None:
    """They are read by that root too: the groups of all are changed, and put back."""
    if os.geteuid():
        pytest.skip("only root can give files to another group")
    parent = tmp_path / "parent"
    parent.mkdir(0o700)
    (images / "parent").symlink_to("../parent")
    numbers = message((1, 0), (2, ROOT), (3, 65536))
    mapping = image_of("USERNS", message((1, numbers), (2, numbers)))
    for path in (images / "userns-9.img", parent / "pages-1.img", parent / "disk.img"):
        path.write_bytes(mapping)
        path.chmod(0o600)
    with opened_directory(images) as at:
        access = ImageAccess(at, parents(CriuOpts(images_directory=images)))
        assert modes(images) == {(0o710, ROOT), (0o640, ROOT)}
        assert modes(parent) == {(0o710, ROOT), (0o640, ROOT), (0o600, 0)}
        access.close()
    assert modes(images) == modes(parent) == {(0o700, 0), (0o600, 0)}


@pytest.mark.cures("root-of-another-owner")
def test_a_root_directory_of_another_owner(pid: int, root: Path, images: Path) -> None:
    """CRIU enters the root directory as that root."""
    dump(pid, CriuOpts(images_directory=images))
    os.waitpid(pid, 0)
    os.chown(root, 0, 0)
    opts = CriuOpts(images_directory=images, root=root)
    with pytest.raises(CriuError, match=r"make it the owner: chown UID:GID") as caught:
        restore(opts)
    assert caught.value.options == ("root",)
    os.chown(root, ROOT, ROOT)
    kill(restore(opts).pid)


@pytest.mark.cures("images-for-another-root")
def test_images_that_cannot_be_changed(pid: int, root: Path, images: Path, tmp_path: Path) -> None:
    """On a file system that is read-only, the groups have to be changed before."""
    dump(pid, CriuOpts(images_directory=images))
    os.waitpid(pid, 0)
    subprocess.run(["chmod", "-R", "go=", images], check=True)
    subprocess.run(["mount", "--bind", "-o", "ro", images, images], check=True)
    try:
        opts = CriuOpts(images_directory=images, work_directory=tmp_path, root=root)
        with pytest.raises(ImagesError, match=r"let it: chgrp -R GID DIRECTORY; chmod -R g\+rX"):
            restore(opts)
    finally:
        subprocess.run(["umount", images], check=True)
    subprocess.run(["chgrp", "-R", str(ROOT), images], check=True)
    subprocess.run(["chmod", "-R", "g+rX", images], check=True)
    subprocess.run(["mount", "--bind", "-o", "ro", images, images], check=True)
    try:
        kill(restore(opts).pid)
    finally:
        subprocess.run(["umount", images], check=True)


@pytest.mark.cures("tun-of-another-root")
def test_a_tun_device(orphans: None, root: Path, images: Path, tun: Path) -> None:
    """CRIU opens /dev/net/tun as root of the namespace."""
    opts = CriuOpts(images_directory=images, root=root)
    with container(root, "tun") as pid:
        dump(pid, CriuOpts(images_directory=images))
        os.waitpid(pid, 0)
        assert not check_images(images, opts)
        tun.chmod(0o600)
        (finding,) = check_images(images, opts)
        with pytest.raises(CriuError, match=r"cannot open /dev/net/tun.*chmod 666"):
            restore(opts)
        assert "chmod 666 /dev/net/tun" in finding.cure
        tun.chmod(0o666)
        kill(restore(opts).pid)

"""External devices: a container with a separate disk, as ``external=["dev[7/0]:disk"]``.

The contents of a file system on a disk are not saved, and the device can be another one after the
restore. In the dump ``dev[major/minor]:name`` names the device; in the restore
``dev[name]:/dev/path`` is the device to mount in its place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, dump, restore

from .support.containers import container
from .support.mounts import loop_device, why_no_loop_device
from .support.processes import is_alive

WHY_NOT = why_no_loop_device("mkfs.ext2")

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

READS = """
    import os
    from pathlib import Path

    serve(
        read=lambda: Path("/disk/file").read_text(),
        write=lambda words: (Path("/disk/file").write_text(words), os.sync()),
        device=lambda: [os.major(os.stat("/disk").st_dev), os.minor(os.stat("/disk").st_dev)],
    )
"""


class Disks:
    """Loop devices, which are detached after the test."""

    def __init__(self, directory: Path, owned: ExitStack) -> None:
        self._directory = directory
        self._owned = owned

    def attach(self, name: str, copy_of: str = "") -> str:
        """A device with an empty file system, or with a copy of another one."""
        image = self._directory / name
        if copy_of:
            shutil.copy(self._directory / copy_of, image)
        else:
            with open(image, "wb") as file:
                file.truncate(8 * 2**20)
            subprocess.run(["mkfs.ext2", "-q", image], check=True)
        return loop_device(image, self._owned)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """A factory of loop devices."""
    with ExitStack() as owned:
        yield Disks(tmp_path, owned)


def _numbers(device: str) -> tuple[int, int]:
    result = os.stat(device).st_rdev
    return os.major(result), os.minor(result)


def test_a_disk(tmp_path: Path, images: Path, disks: Disks) -> None:
    """The container continues with the same disk, or with another one."""
    first = disks.attach("first")
    with container(tmp_path / "box", READS, mounts={"/disk": ("ext2", first)}) as box:
        box.ask("write", "hello")
        major, minor = _numbers(first)
        assert box.ask("device") == [major, minor]
        external = [*box.given_on_dump, f"dev[{major}/{minor}]:disk"]
        box.dump(CriuOpts(images_directory=images, external=external))
        second = disks.attach("second", copy_of="first")

        for device in (first, second):
            opts = CriuOpts(
                images_directory=images,
                root=box.root,
                external=[*box.given_on_restore, f"dev[disk]:{device}"],
            )
            box.pid = restore(opts).pid
            assert box.ask("device") == list(_numbers(device))
            assert box.ask("read") == "hello"
            assert box.runs_on()
            box.end()


@pytest.mark.cures("dev-mapping", "fs-unsupported")
def test_a_disk_that_is_not_named(tmp_path: Path, images: Path, disks: Disks) -> None:
    """Dump and restore are refused, and each message has the required value."""
    disk = disks.attach("disk")
    with container(tmp_path / "box", READS, mounts={"/disk": ("ext2", disk)}) as box:
        box.ask("write", "hello")
        opts = CriuOpts(images_directory=images, external=box.given_on_dump)
        with pytest.raises(CriuError, match=r"dev\[major/minor\]") as caught:
            dump(box.pid, opts)
        assert "external" in caught.value.options
        assert box.ask("read") == "hello"
        assert box.runs_on()

        major, minor = _numbers(disk)
        external = [*box.given_on_dump, f"dev[{major}/{minor}]:disk"]
        box.dump(replace(opts, external=external))
        opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
        with pytest.raises(CriuError, match=r"dev\[KEY\]:/dev/path") as caught:
            restore(opts)
        assert "external" in caught.value.options
        assert not is_alive(box.pid)

"""root, skip_mnts, enable_fs and mntns_compat_mode: how the mounts of a container are restored.

``root`` is the root directory of a restored mount namespace: it must be a mount point (``mount
--bind``) with all directories that are mount points in the images. ``skip_mnts`` leaves mounts out
of a dump; they are missing after the restore. ``enable_fs`` names file systems that CRIU cannot
save, and that it mounts again without contents. ``mntns_compat_mode`` restores with CRIU's old
mount engine, from before 3.17.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, dump, restore
from pycriu_native.images import check_images

from .support.containers import Container, container, mount_point
from .support.processes import is_alive

KEEPS = """
    from pathlib import Path
    serve(
        read=lambda name: Path(name).read_text(),
        write=lambda name, words: Path(name).write_text(words),
        exists=lambda name: Path(name).exists(),
    )
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container with a tmpfs at /scratch."""
    with container(tmp_path / "box", KEEPS, mounts={"/scratch": "tmpfs"}) as box:
        box.ask("write", "/scratch/file", "kept")
        yield box


@pytest.fixture
def odd_box(tmp_path: Path) -> Iterator[Container]:
    """A container with a file system that CRIU cannot save."""
    with container(tmp_path / "box", KEEPS, mounts={"/odd": "ramfs"}) as box:
        box.ask("write", "/odd/file", "lost")
        yield box


def _opts(box: Container, images: Path) -> tuple[CriuOpts, CriuOpts]:
    """The options of each dump and restore of a container."""
    return (
        CriuOpts(images_directory=images, external=box.given_on_dump),
        CriuOpts(images_directory=images, external=box.given_on_restore, root=box.root),
    )


# ---- root ----


def test_root(box: Container, images: Path, tmp_path: Path) -> None:
    """The container is restored in its old root, or in another one with the same mount points."""
    saving, restoring = _opts(box, images)
    box.dump(saving)
    (box.root / "which").write_text("old")
    other = tmp_path / "other"
    subprocess.run(["cp", "-ax", box.root, other], check=True)
    (other / "which").write_text("other")
    with mount_point(other):
        for root, expected in ((box.root, "old"), (other, "other")):
            box.pid = restore(replace(restoring, root=root)).pid
            assert box.ask("read", "/which") == expected
            assert box.ask("read", "/scratch/file") == "kept"
            box.end()


@pytest.mark.cures("root-option", "root-missing")
@pytest.mark.parametrize("compat", [None, True], ids=["new engine", "old engine"])
def test_a_restore_without_root(box: Container, images: Path, compat: bool | None) -> None:
    """The restore is refused with either mount engine, and the message names root."""
    saving, restoring = _opts(box, images)
    box.dump(saving)
    with pytest.raises(CriuError, match='root="/path"') as caught:
        restore(replace(restoring, root=None, mntns_compat_mode=compat))
    assert caught.value.options == ("root",)
    box.pid = restore(restoring).pid
    assert box.runs_on()


@pytest.mark.cures("root-incomplete")
def test_a_root_without_the_mount_points(box: Container, images: Path, tmp_path: Path) -> None:
    """A root that lacks a directory to mount on is refused, and the message names root."""
    saving, restoring = _opts(box, images)
    box.dump(saving)
    with mount_point(tmp_path / "bare") as bare:
        with pytest.raises(CriuError, match="the root lacks") as caught:
            restore(replace(restoring, root=bare))
        assert caught.value.options == ("root",)
    assert not is_alive(box.pid)


PIVOTS = """
    import ctypes, os, signal
    libc = ctypes.CDLL(None, use_errno=True)
    begin, end = os.pipe()
    if os.fork() == 0:
        assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
        assert libc.mount(b"new", b"/scratch", b"tmpfs", 0, None) == 0
        os.chdir("/scratch")
        os.mkdir("old")
        assert libc.pivot_root(b".", b"old") == 0
        root = os.open("/", os.O_RDONLY)
        os.write(end, b".")
        signal.pause()
    os.read(begin, 1)
    serve()
"""


def test_another_root_in_a_nested_namespace(tmp_path: Path, images: Path) -> None:
    """Files of the nested root, a tmpfs with the mode 1777, are not searched below ``root``."""
    with container(tmp_path / "box", PIVOTS, mounts={"/scratch": "tmpfs"}) as box:
        saving, restoring = _opts(box, images)
        box.dump(saving)
        findings = check_images(images, restoring)
        assert not [each for each in findings if each.severity is Severity.STOPS]
        box.pid = restore(restoring).pid
        assert box.runs_on()


# ---- skip_mnts and enable_fs ----


def test_skip_mnts(box: Container, images: Path) -> None:
    """A skipped mount is missing after the restore; otherwise it is restored with its files."""
    saving, restoring = _opts(box, images)
    dump(box.pid, replace(saving, leave_running=True))
    skipping = images.with_name("skipping")
    box.dump(replace(saving, images_directory=skipping, skip_mnts=["/scratch"]))

    box.pid = restore(restoring).pid
    assert box.mounts()["/scratch"] == "tmpfs"
    assert box.ask("read", "/scratch/file") == "kept"
    box.end()
    box.pid = restore(replace(restoring, images_directory=skipping)).pid
    assert "/scratch" not in box.mounts()
    assert not box.ask("exists", "/scratch/file")
    assert box.runs_on()


@pytest.mark.parametrize("word", ["ramfs", "all"])
def test_enable_fs(odd_box: Container, images: Path, word: str) -> None:
    """A file system that CRIU does not support is mounted again, without its contents."""
    saving, restoring = _opts(odd_box, images)
    odd_box.dump(replace(saving, enable_fs=[word]))
    odd_box.pid = restore(replace(restoring, enable_fs=[word])).pid
    assert odd_box.mounts()["/odd"] == "ramfs"
    assert not odd_box.ask("exists", "/odd/file")
    assert odd_box.runs_on()


def test_a_file_system_that_criu_does_not_know(odd_box: Container, images: Path) -> None:
    """The dump is refused and names skip_mnts and enable_fs; with skip_mnts it works."""
    saving, restoring = _opts(odd_box, images)
    with pytest.raises(CriuError, match=r"skip_mnts=.*enable_fs=") as caught:
        dump(odd_box.pid, saving)
    assert {"skip_mnts", "enable_fs"} <= set(caught.value.options)
    assert odd_box.runs_on()
    assert odd_box.ask("read", "/odd/file") == "lost"
    shutil.rmtree(images)

    odd_box.dump(replace(saving, skip_mnts=["/odd"]))
    odd_box.pid = restore(restoring).pid
    assert "/odd" not in odd_box.mounts()
    assert odd_box.runs_on()


# ---- mntns_compat_mode ----


def test_mntns_compat_mode(tmp_path: Path, images: Path) -> None:
    """The engines differ for a mount that is shared with the host: the old one joins the host's
    peer group, and propagates mounts; the new one creates a new group.
    """
    with mount_point(tmp_path / "data") as data:
        subprocess.run(["mount", "--make-shared", data], check=True)
        (data / "below").mkdir()
        with container(
            tmp_path / "box", KEEPS, binds={"/data": data}, propagation="unchanged"
        ) as box:
            saving, restoring = _opts(box, images)
            box.dump(saving)
            for compat, seen in ((None, False), (True, True)):
                box.pid = restore(replace(restoring, mntns_compat_mode=compat)).pid
                with mount_point(data / "below"):
                    assert ("/data/below" in box.mounts()) == seen
                assert box.runs_on()
                box.end()

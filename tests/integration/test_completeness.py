"""An image set that lacks an image, or has a truncated or wrong one, is never restored.

Restores and inspections give the same verdict, on sets of a real CRIU.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, ImagesError, Severity, dump, restore, seal, verify
from pycriu_native._integrity import set_check
from pycriu_native._integrity.dump_marker import RECORD
from pycriu_native._integrity.unchanged import SetState
from pycriu_native._system.process import name_of
from pycriu_native.images import check_images, decode, encode, inspect, render_summary, render_tree

from .conftest import Spawn
from .support import cgroups
from .support.processes import children_of, eventually, start
from .support.sample_images import contained, make_sample

NOT_DERIVABLE = re.compile(
    r".*\.log|stats-dump|(filelocks|sk-queues|tty-data|seccomp|cgroup)\.img"
    r"|(rule|route6|ip6?tables|nftables|netns-ct|netns-exp|ipcns-msg|ipcns-sem|pidns|fdinfo)-\d+\.img"
)
"""CRIU writes these images only if needed, and no other image refers to them: without the record of
the dump, a missing one is not detected."""


KINDS = {
    "processes": {
        *("core", "fdinfo", "fifo-data", "filelocks", "files", "fs", "ghost-file", "ids", "memfd"),
        *("mm", "pagemap", "pagemap-shmem", "pages", "pipes-data", "pstree", "remap-fpath"),
        *("sk-queues", "tcp-stream", "timens", "tty-data", "tty-info", "inventory"),
    },
    "container": {
        *("ipcns-msg", "ipcns-sem", "ipcns-shm", "ipcns-var", "mountpoints", "netdev", "netns"),
        *("tmpfs-dev", "utsns", "timens"),
    },
    "cgroup": {"cgroup"},
}
"""Kinds of images that each set has."""


def _in_a_cgroup(directory: Path) -> Path:
    """Images of a process in a cgroup that is not that of CRIU, so that CRIU saves it."""
    hierarchy = cgroups.required("pids")
    target = start(directory / "target", "serve()")
    made = cgroups.maker()
    make = next(made)
    try:
        cgroups.enter(make(hierarchy), target.pid)
        dump(target.pid, CriuOpts(images_directory=directory / "images", leave_running=True))
    finally:
        target.end()
        next(made, None)
    return directory / "images"


@pytest.fixture(scope="module", params=KINDS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete set of each kind."""
    directory = tmp_path_factory.mktemp("sets")
    if request.param == "processes":
        return make_sample(directory).images
    if request.param == "cgroup":
        return _in_a_cgroup(directory)
    with contained(directory) as (images, _):
        return Path(shutil.copytree(images, directory / "copy", symlinks=True))


@pytest.fixture
def images(original: Path, tmp_path: Path) -> Path:
    """A copy of hard links to the original: tests replace files and do not write to them."""
    return Path(shutil.copytree(original, tmp_path / "images", copy_function=os.link))


@pytest.fixture(params=["recorded", "unrecorded"])
def recorded(request: pytest.FixtureRequest, images: Path) -> bool:
    """Whether the set has the record of its dump, which sets of other programs lack."""
    if request.param == "unrecorded":
        (images / RECORD).unlink()
    return bool(request.param == "recorded")


def _restorable(images: Path) -> bool:
    fd = os.open(images, os.O_RDONLY)
    try:
        set_check.check(SetState(fd), CriuOpts())
    except ImagesError:
        return False
    finally:
        os.close(fd)
    return True


def _complete(images: Path) -> bool:
    try:
        result = inspect(images)
        render_summary(result), render_tree(result)
    except ImagesError:
        return False
    return result.complete and result.kind == "dump"


def _names(images: Path) -> list[str]:
    return sorted(name for name in os.listdir(images) if name.endswith(".img"))


def test_the_kinds_of_images(original: Path, request: pytest.FixtureRequest) -> None:
    """The sets have all that the tests below are about."""
    kinds = {re.split(r"-[0-9a-f]*[0-9]|\.", name)[0] for name in os.listdir(original)}
    assert kinds >= KINDS[request.node.callspec.params["original"]]


def test_a_file_that_is_missing(original: Path, images: Path, recorded: bool) -> None:
    """A missing file is detected; without a record, only if another image refers to it."""
    assert _restorable(images)
    assert _complete(images)
    for name in _names(original):
        (images / name).unlink()
        verdicts = _restorable(images), _complete(images)
        assert verdicts[0] == verdicts[1], name
        assert not verdicts[0] or (not recorded and NOT_DERIVABLE.fullmatch(name)), name
        os.link(original / name, images / name)


def test_a_file_that_is_cut_short(original: Path, images: Path, recorded: bool) -> None:
    """Truncation in the header, in the middle, by one byte and by one page.

    Without a record, truncated rules are valid text.
    """
    for name in _names(original):
        data = (original / name).read_bytes()
        for size in {0, 3, len(data) // 2, len(data) - 1, len(data) - 4096} & {*range(len(data))}:
            (images / name).unlink()
            (images / name).write_bytes(data[:size])
            verdicts = _restorable(images), _complete(images)
            text = not recorded and name.startswith(("nftables-", "iptables-", "ip6tables-"))
            # No rules; no newline at the end; a table less.
            unnoticed = text and (size in (0, len(data) - 1) or data[:size].rstrip().endswith(b"}"))
            assert verdicts == (False, False) or unnoticed, (name, size)
        (images / name).unlink()
        os.link(original / name, images / name)


def test_the_record_of_another_dump(images: Path) -> None:
    """A record has no effect on images that another program has dumped to its directory."""
    (images / "seccomp.img").unlink()
    assert not _restorable(images)
    inventory = (images / "inventory.img").read_bytes()
    (images / "inventory.img").unlink()
    record = (images / RECORD).read_text().replace(inventory.hex(), inventory[:-1].hex())
    (images / RECORD).unlink()
    (images / RECORD).write_text(record)
    (images / "inventory.img").write_bytes(inventory)
    assert _restorable(images)
    assert _complete(images)


def test_a_record_that_is_damaged(original: Path, images: Path) -> None:
    """A damaged record is refused, and not read as a record of fewer images."""
    data = (original / RECORD).read_bytes()
    for size in (0, len(data) // 2, len(data) - 1, len(data) - 5):
        (images / RECORD).unlink()
        (images / RECORD).write_bytes(data[:size])
        assert (_restorable(images), _complete(images)) == (False, False), size


def test_an_image_that_is_made_shorter_on_purpose(images: Path) -> None:
    """``encode`` on the command line updates the recorded size."""
    described = decode(images / "files.img")
    for each in described["entries"]:
        if "reg" in each:
            each["reg"]["name"] = "/x"
    command = [sys.executable, "-m", "pycriu_native", "encode", "-", str(images / "files.img")]
    (images / "files.img").unlink()
    (images / "files.img").write_bytes(encode(described))
    assert not _restorable(images)
    subprocess.run(command, input=json.dumps(described).encode(), check=True)
    assert _restorable(images)


def test_a_file_that_is_another(original: Path, images: Path) -> None:
    """An image of another kind raises ``ImagesError``, in an inspection and in a restore."""
    names = _names(original)
    pairs = [(name, other) for name in names for other in names if name != other]
    for name, other in random.Random(7).sample(pairs, 60):
        (images / name).unlink()
        os.link(original / other, images / name)
        assert _restorable(images) == _complete(images), (name, other)
        (images / name).unlink()
        os.link(original / name, images / name)


def _kind(images: Path, name: str) -> str:
    """The kind of an image in which each file differs from the others by its structure."""
    pids = {each.pid for each in inspect(images).processes}
    kind, _, number = name.removesuffix(".img").rpartition("-")
    if kind in ("pagemap", "pagemap-shmem"):
        return "pagemap"
    if kind == "core":
        return "core of a process" if int(number) in pids else "core of a thread"
    return kind


def test_an_image_over_another_of_its_kind(original: Path, images: Path) -> None:
    """The core of a process over that of a thread, and each page map and set of ids over another
    one, are found by their contents.
    """
    alive = {each.pid for each in inspect(original).processes if each.descriptors}
    kinds = {name: _kind(original, name) for name in _names(original)}
    pairs = [
        (name, other)
        for name, kind in kinds.items()
        for other, instead in kinds.items()
        if name != other
        and ((kind == instead and kind in ("pagemap", "ids")) or {kind, instead} == CORES)
        and (kind != "ids" or {int(each.split("-")[1][:-4]) for each in (name, other)} <= alive)
    ]
    for name, other in pairs:
        (images / name).unlink()
        os.link(original / other, images / name)
        assert (_restorable(images), _complete(images)) == (False, False), (name, other)
        (images / name).unlink()
        os.link(original / name, images / name)


CORES = {"core of a process", "core of a thread"}


def test_a_copy_of_another_image(original: Path, images: Path) -> None:
    """The record detects a copy of an image under the name of another one of its kind."""

    def kind(name: str) -> str:
        return re.sub(r"-[0-9a-f]+\.img$", "", name)

    names = _names(original)
    contents = {name: (original / name).read_bytes() for name in names}
    for name, other in ((name, other) for name in names for other in names):
        if kind(name) != kind(other) or contents[name] == contents[other]:
            continue
        (images / name).unlink()
        os.link(original / other, images / name)
        assert (_restorable(images), _complete(images)) == (False, False), (name, other)
        (images / name).unlink()
        os.link(original / name, images / name)
    assert _restorable(images)


def test_images_that_have_changed_places(original: Path, images: Path) -> None:
    """The record detects two images of one kind whose names were exchanged."""

    def kind(name: str) -> str:
        return re.sub(r"-[0-9a-f]+\.img$", "", name)

    names = _names(original)
    pairs = [
        (name, other)
        for name in names
        for other in names
        if name < other
        and kind(name) == kind(other)
        and (original / name).read_bytes() != (original / other).read_bytes()
    ]
    if len(list(original.glob("core-*.img"))) > 1:
        assert {"pagemap", "pagemap-shmem", "core"} <= {kind(name) for name, _ in pairs}
    for name, other in pairs:
        for here, there in ((name, other), (other, name)):
            (images / here).unlink()
            os.link(original / there, images / here)
        assert (_restorable(images), _complete(images)) == (False, False), (name, other)
        for each in (name, other):
            (images / each).unlink()
            os.link(original / each, images / each)
    assert _restorable(images)


def test_images_of_another_process(spawn: Spawn, tmp_path: Path) -> None:
    """Without a record, memory, page map and registers of one process do not fit another one."""
    target = spawn(
        """
        import os
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "1000"])
        serve()
        """
    )
    eventually(
        lambda: [name_of(each) for each in children_of(target.pid)] == ["sleep"], "the program"
    )
    images = tmp_path / "images"
    opts = CriuOpts(images_directory=images, leave_running=True)
    dump(target.pid, opts)
    (images / RECORD).unlink()
    pids = (target.pid, *children_of(target.pid))

    def reported() -> set[str]:
        found = check_images(images, opts)
        return {each.subject for each in found if "where mm-" in each.message}

    assert not reported()
    for kind in ("core", "mm", "pagemap"):
        one, other = (images / f"{kind}-{pid}.img" for pid in pids)
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
        affected = "pagemap" if kind == "pagemap" else "core"
        assert {f"{affected}-{pid}.img" for pid in pids} <= reported(), kind
        other.write_bytes(one.read_bytes())
        one.write_bytes(kept)


def test_pages_of_equal_processes(spawn: Spawn, tmp_path: Path) -> None:
    """Forked processes have pages files of one size: a copy of one for another is named."""
    target = spawn(
        """
        import os, time
        for _ in range(2):
            if os.fork() == 0:
                while True: time.sleep(1)
        serve()
        """
    )
    images = tmp_path / "images"
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    sizes: dict[int, Path] = {}
    pairs = [
        (name, sizes[name.stat().st_size])
        for name in sorted(images.glob("pages-*.img"))
        if sizes.setdefault(name.stat().st_size, name) != name
    ]
    assert pairs, "no two pages files have the same size"
    for name, other in pairs:
        kept = name.read_bytes()
        name.write_bytes(other.read_bytes())
        with pytest.raises(
            ImagesError, match=f"{name.name} is damaged: it is a copy of {other.name}"
        ):
            restore(CriuOpts(images_directory=images))
        name.write_bytes(kept)
    assert _restorable(images)


def test_a_table_that_may_be_missing(spawn: Spawn, tmp_path: Path) -> None:
    """Without a record, an absent table of descriptors is a warning: it may have had none."""
    target = spawn(
        """
        import os, time
        if os.fork() == 0:
            while True: time.sleep(1)
        serve()
        """
    )
    images = tmp_path / "images"
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    child = next(each for each in inspect(images).processes if each.pid != target.pid)
    name = f"fdinfo-{child.files_table}.img"
    (images / name).rename(tmp_path / name)
    (images / RECORD).unlink()
    assert _complete(images)
    (found,) = (each for each in check_images(images) if each.id == "complete")
    assert (found.severity, found.subject) == (Severity.WARNING, name)
    assert f"pid {child.pid} had no open file" in found.message
    (tmp_path / name).rename(images / name)
    assert not [each for each in check_images(images) if each.id == "complete"]


def test_a_fifo_in_the_place_of_a_file(original: Path, images: Path) -> None:
    """A FIFO instead of an image is refused, without waiting for data."""
    for name in (*_names(original), "stats-dump", "stats-restore", "dump.log"):
        (images / name).unlink(missing_ok=True)
        os.mkfifo(images / name)
        assert _restorable(images) == _complete(images), name
        assert _complete(images) is not name.endswith(".img"), name
        (images / name).unlink()
        if (original / name).exists():
            os.link(original / name, images / name)


@pytest.mark.parametrize("name", ["restore.log", "stats-restore"])
def test_a_fifo_that_criu_would_write_to(original: Path, images: Path, name: str) -> None:
    """A FIFO is refused before the start of CRIU, which would block when it writes to it."""
    os.mkfifo(images / name)
    with pytest.raises(ImagesError, match=f"{name} is not a regular file") as caught:
        restore(CriuOpts(images_directory=images))
    assert caught.value.code is None
    (found,) = (each for each in check_images(images) if each.id == "outputs")
    assert found.severity is Severity.STOPS
    assert (name in found.subject, found.cure) == (True, "remove it")
    (images / name).unlink()
    assert not [each for each in check_images(images) if each.id == "outputs"]


def test_a_fifo_that_criu_would_not_write_to(spawn: Spawn, tmp_path: Path) -> None:
    """The files of a dump do not prevent a restore."""
    target = spawn("serve()")
    images = tmp_path / "images"
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    for name in ("stats-dump", "dump.log"):
        (images / name).unlink(missing_ok=True)
        os.mkfifo(images / name)
    assert not [each for each in check_images(images) if each.id == "outputs"]
    assert restore(CriuOpts(images_directory=images)).pid == target.pid


def test_a_manifest_lists_subdirectories(images: Path) -> None:
    """Files that are changed in a subdirectory, or added to it, are reported."""
    (images / "inner" / "deep").mkdir(parents=True)
    (images / "inner" / "deep" / "file").write_text("one")
    digest = seal(images)
    verify(images, digest)
    (images / "inner" / "deep" / "file").write_text("two")
    with pytest.raises(ImagesError, match="inner/deep/file was changed"):
        verify(images, digest)
    (images / "inner" / "deep" / "more").touch()
    with pytest.raises(ImagesError, match="inner/deep/more was added"):
        verify(images, digest)

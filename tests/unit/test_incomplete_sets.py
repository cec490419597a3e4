"""Incomplete image sets are detected: by the marker, and by the references of images.

With images that are made here; those of a real CRIU are in
``tests/integration/test_security_images.py``.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, ImagesError, restore
from pycriu_native._integrity import set_check
from pycriu_native._integrity.dump_marker import EARLIER, MOVING, UNFINISHED, DumpMarker, unfinished
from pycriu_native._integrity.unchanged import SetState
from pycriu_native._pages.page_server import page_server
from pycriu_native._support.unpatched import closing
from pycriu_native._wire.image_kinds import PATTERNS
from pycriu_native._wire.protobuf import image_of, message
from pycriu_native.errors import OptionError
from pycriu_native.images import check_images
from pycriu_native.testing import ScriptedCriu

PID = 42
ZOMBIE = 43


ALIVE = message((1, 1), (3, message((1, 1))))
THREAD = message((1, 1), (5, message((1, 0))))
DEAD = message((1, 1), (3, message((1, 2))))
IDS = image_of("IDS", message((1, 1), (2, 1), (3, 1), (4, 1)))
SET = {
    "inventory.img": image_of("INVENTORY", message((1, 2), (13, b"run"))),
    # A process of two threads, and a zombie, whose threads CRIU leaves to chance.
    "pstree.img": image_of(
        "PSTREE",
        message((1, PID), (2, 0), (3, PID), (4, PID), (5, PID), (5, 44)),
        message((1, ZOMBIE), (2, PID), (3, PID), (4, PID), (5, 2**32 - 7)),
    ),
    "files.img": image_of("FILES", message((1, 1), (2, 1)), message((1, 1), (2, 2))),
    "fdinfo-1.img": image_of("FDINFO", message((1, 2), (2, 0), (3, 1), (4, 0))),
    f"core-{PID}.img": image_of("CORE", ALIVE),
    "core-44.img": image_of("CORE", THREAD),
    f"core-{ZOMBIE}.img": image_of("CORE", DEAD),
    f"ids-{PID}.img": IDS,
    f"mm-{PID}.img": image_of("MM", message((1, 1))),
    f"fs-{PID}.img": image_of("FS", message((1, 1), (2, 1))),
    f"pagemap-{PID}.img": image_of("PAGEMAP", message((1, 7)), message((1, 4096), (2, 1))),
    "pages-7.img": bytes(4096),
}


def _write(directory: Path, content: dict[str, bytes] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    for name, data in (content or SET).items():
        (directory / name).write_bytes(data)
    return directory


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _check(directory: Path, lazy: bool = False) -> None:
    with _opened(directory) as fd:
        set_check.check(SetState(fd), CriuOpts(lazy_pages=lazy or None))


# ---- what a set must hold ----


def test_a_whole_set(tmp_path: Path) -> None:
    """A complete set has no problem; logs, statistics and other files do not matter."""
    _write(tmp_path, {**SET, "dump.log": b"", "descriptors.json": b"[]", "x.img": b"?"})
    _check(tmp_path)


@pytest.mark.parametrize("name", [name for name in SET if name != "files.img"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    """Each missing image is named before CRIU is started; the error is also OSError."""
    _write(tmp_path)
    (tmp_path / name).unlink()
    via = ScriptedCriu()
    with pytest.raises(ImagesError, match=f"there is no {name}") as caught:
        restore(CriuOpts(images_directory=tmp_path), via=via)
    assert via.sent == []
    assert caught.value.verb == "restore"
    assert "images_directory" in caught.value.options
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "kind", ["fdinfo-1", "remap-fpath", "tty-data", "sk-queues", "filelocks", "seccomp", "cgroup"]
)
def test_an_image_without_a_message(tmp_path: Path, kind: str) -> None:
    """CRIU creates these images with their first message: one that has none was truncated."""
    _write(tmp_path, {**SET, f"{kind}.img": image_of(PATTERNS.get(kind, "FDINFO"))})
    with pytest.raises(ImagesError, match=rf"{kind}\.img is cut short"):
        _check(tmp_path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(4), "is damaged: it is no output of ip"),
        (0x71706986.to_bytes(4, "little") + bytes(4), "is cut short"),
        (b"\x86", "is cut short"),
    ],
)
def test_rules_that_are_something_else(tmp_path: Path, data: bytes, why: str) -> None:
    """The output of ``ip rule save`` has its magic number, and complete messages."""
    good = 0x71706986.to_bytes(4, "little") + (16).to_bytes(4, "little") + bytes(12)
    _check(_write(tmp_path, {**SET, "rule-9.img": good}))
    with pytest.raises(ImagesError, match=rf"rule-9\.img {why}"):
        _check(_write(tmp_path, {"rule-9.img": data}))


def test_a_file_system_with_a_bind_from_outside(tmp_path: Path) -> None:
    """CRIU saves a tmpfs by the mount of its root, also if a file of it is bound as external."""
    mounts = [
        message((1, 0), (2, 1), (3, 100), (4, 0), (6, b"/box"), (7, b"/")),
        message((1, 5), (2, 2), (3, 71), (4, 1), (6, b"/"), (7, b"/dev")),
        message((1, 5), (2, 3), (3, 71), (4, 1), (6, b"/null"), (7, b"/x"), (18, b"/dev/null")),
        message((1, 5), (2, 4), (3, 72), (4, 1), (6, b"/"), (7, b"/given"), (18, b"given")),
        message((1, 5), (2, 5), (3, 72), (4, 1), (6, b"/"), (7, b"/again")),
        message((1, 5), (2, 6), (3, 73), (4, 1), (6, b"/sub"), (7, b"/part")),
    ]
    content = {
        **SET,
        "inventory.img": image_of("INVENTORY", message((1, 2), (3, message((9, 6))), (13, b"run"))),
        f"ids-{PID}.img": image_of("IDS", message((1, 1), (2, 1), (3, 1), (4, 1), (9, 14))),
        "mountpoints-14.img": image_of("MNTS", *mounts),
        "tmpfs-dev-71.tar.gz.img": gzip.compress(b"files"),
    }
    _check(_write(tmp_path, content))
    (tmp_path / "tmpfs-dev-71.tar.gz.img").unlink()
    with pytest.raises(ImagesError, match=r"there is no tmpfs-dev-71\.tar\.gz\.img"):
        _check(tmp_path)


def test_a_pre_dump_is_no_dump(tmp_path: Path) -> None:
    """The images of a pre-dump are refused as such, and its open files are not looked for."""
    content = {name: SET[name] for name in ("inventory.img", f"pagemap-{PID}.img", "pages-7.img")}
    with pytest.raises(ImagesError, match=r"a pre-dump has memory only .*the dump that builds on"):
        _check(_write(tmp_path, content))
    found = [each for each in check_images(tmp_path) if each.id == "complete"]
    assert [each.message for each in found] == ["a pre-dump has memory only"]


def test_a_zombie_with_memory(tmp_path: Path) -> None:
    """The core of a zombie over that of a process is detected: a zombie has no memory."""
    _write(tmp_path, {**SET, f"core-{PID}.img": SET[f"core-{ZOMBIE}.img"]})
    with pytest.raises(ImagesError, match=rf"core-{PID}\.img is damaged: .* zombie"):
        _check(tmp_path)


def test_pages_that_a_page_map_does_not_have(tmp_path: Path) -> None:
    """Both files are named: either of them can be the wrong one."""
    _write(tmp_path, {**SET, "pages-7.img": bytes(4096 + 1)})
    with pytest.raises(ImagesError, match=rf"pages-7\.img is 1 bytes longer than pagemap-{PID}"):
        _check(tmp_path)


FRAMED = [name for name in SET if name not in ("pages-7.img", "core-44.img", f"fs-{PID}.img")]


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("keep", [0, 5, -1])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str, keep: int) -> None:
    """A file that is truncated at its beginning, in its header, or in its end is refused."""
    _write(tmp_path)
    (tmp_path / name).write_bytes(SET[name][:keep])
    with pytest.raises(ImagesError, match=f"{name} is cut short"):
        _check(tmp_path)


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("writing", [True, False])
def test_a_pipe_in_the_place_of_a_file(tmp_path: Path, name: str, writing: bool) -> None:
    """A FIFO does not block, whether a process writes to it or not."""
    _write(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    held = os.open(tmp_path / name, os.O_RDWR) if writing else -1
    try:
        with pytest.raises(ImagesError, match=f"{name} is damaged"):
            _check(tmp_path)
    finally:
        if writing:
            os.close(held)


@pytest.mark.parametrize("name", FRAMED)
def test_a_file_that_is_something_else(tmp_path: Path, name: str) -> None:
    """A file without CRIU's magic number is damaged."""
    _write(tmp_path)
    (tmp_path / name).write_bytes(b"garbage " * 20)
    with pytest.raises(ImagesError, match=f"{name} is damaged"):
        _check(tmp_path)


def test_images_larger_than_one_read(tmp_path: Path) -> None:
    """Messages across the end of a read, and longer than one, are read like others."""
    long = message((1, 1), (2, 2), (3, message((6, b"/" * 100_000))))
    many = [message((1, 1), (2, number)) for number in range(3, 20_000)]
    opened = [message((1, number), (2, number), (3, 1), (4, 0)) for number in range(2, 20_000)]
    content = {
        **SET,
        "files.img": image_of("FILES", message((1, 1), (2, 1)), long, *many),
        "fdinfo-1.img": image_of("FDINFO", *opened),
    }
    _check(_write(tmp_path, content))
    content["files.img"] = image_of("FILES", message((1, 1), (2, 1)), long, *many[:-1])
    with pytest.raises(ImagesError, match="no file 0x4e1f, which other images refer to"):
        _check(_write(tmp_path, content))


@pytest.mark.parametrize("held", [2, 1])
def test_a_table_without_descriptors(tmp_path: Path, held: int) -> None:
    """A table without descriptors has no image; it is missing only if an unused file remains."""
    content = {
        **SET,
        "pstree.img": SET["pstree.img"]
        + image_of("PSTREE", message((1, 50), (2, PID), (3, PID), (4, PID), (5, 50)))[8:],
        "fdinfo-1.img": image_of("FDINFO", message((1, held), (2, 0), (3, 1), (4, 0))),
        **{name.replace("42", "50"): SET[name] for name in SET if name.endswith("-42.img")},
    }
    content["pagemap-50.img"] = image_of("PAGEMAP", message((1, 8)), message((1, 4096), (2, 1)))
    content["pages-8.img"] = bytes(4096)
    content["ids-50.img"] = image_of("IDS", message((1, 2), (2, 7), (3, 1), (4, 1)))
    _write(tmp_path, content)
    if held == 2:
        _check(tmp_path)
    else:
        with pytest.raises(ImagesError, match=r"there is no fdinfo-7\.img"):
            _check(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        (f"core-{PID}.img", image_of("CORE", THREAD), "it is that of a thread"),
        ("core-44.img", image_of("CORE", ALIVE), "it is that of a process"),
        (
            "pagemap-shmem-9.img",
            image_of("PAGEMAP", message((1, 7)), message((1, 0), (2, 1))),
            "it refers to pages-7.img, as pagemap-42.img does",
        ),
    ],
)
def test_an_image_over_another_of_its_kind(
    tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    """An image that another one of its kind has replaced is detected by its contents."""
    _write(tmp_path, {**SET, name: data})
    with pytest.raises(ImagesError, match=why):
        _check(tmp_path)


def test_messages_that_are_garbage(tmp_path: Path) -> None:
    """Random messages raise no other exception."""
    for name in FRAMED:
        _write(tmp_path)
        start = 4 if name == "inventory.img" else 8
        for odd in (b"\xff" * 30, b"\x0d\x01", b""):
            head = SET[name][:start]
            (tmp_path / name).write_bytes(head + len(odd).to_bytes(4, "little") + odd)
            with suppress(ImagesError):
                _check(tmp_path)


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("size", [8, 2**40], ids=["tail", "hole"])
def test_zeros_behind_the_messages(tmp_path: Path, name: str, size: int) -> None:
    """Zeros, as a file system leaves them for what was not written, are no messages; a hole of a
    terabyte is not read.
    """
    path = _write(tmp_path) / name
    os.truncate(path, path.stat().st_size + size)
    with pytest.raises(ImagesError, match=rf"{name} is damaged"):
        _check(tmp_path)


@pytest.mark.parametrize("name", [f"core-{PID}.img", f"mm-{PID}.img", f"ids-{PID}.img"])
def test_zeros_in_a_message(tmp_path: Path, name: str) -> None:
    """A message whose second half was not written has the field number 0."""
    kind = PATTERNS[name.partition("-")[0] + "-"]
    data = image_of(kind, message((1, 1), (2, 1)) + bytes(50))
    with pytest.raises(ImagesError, match=rf"{name} is damaged: a part of it is no message"):
        _check(_write(tmp_path, {**SET, name: data}))


@pytest.mark.parametrize("name", ["rule-9.img", "nftables-9.img"])
def test_a_hole_of_a_terabyte_in_rules(tmp_path: Path, name: str) -> None:
    """It is not read into memory."""
    path = _write(tmp_path, {**SET, name: b""}) / name
    os.truncate(path, 2**40)
    with pytest.raises(ImagesError, match=rf"{name} is damaged: 1099511627776 bytes"):
        _check(tmp_path)


def test_images_of_another_age(tmp_path: Path) -> None:
    """Images of older formats are accepted: CRIU checks them."""
    inventory = image_of("INVENTORY", message((1, 1)))
    _check(_write(tmp_path, {"inventory.img": inventory}))


@pytest.mark.parametrize("name", ["pages-7.img", f"pagemap-{PID}.img"])
def test_a_lazy_restore_needs_pages_and_page_map(name: str, tmp_path: Path) -> None:
    """CRIU reads pages that are not lazy from them, such as those of the vdso."""
    _write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ImagesError, match=f"there is no {name}"):
        _check(tmp_path, lazy=True)


def test_what_a_lazy_dump_kept(tmp_path: Path) -> None:
    """Without the page server's images there is no memory; lazy pages in the images are stored."""
    for flags, refused in ((2, True), (2 | 4, False), (4, False)):
        entry = message((1, 4096), (2, 1), (4, flags))
        page_map = image_of("PAGEMAP", message((1, 7)), entry)
        pages = SET["pages-7.img"] if flags & 4 else b""
        _write(tmp_path, {**SET, f"pagemap-{PID}.img": page_map, "pages-7.img": pages})
        _check(tmp_path, lazy=True)
        if not refused:
            _check(tmp_path)
            continue
        with pytest.raises(ImagesError, match="lack memory") as caught:
            _check(tmp_path)
        assert caught.value.options == ("lazy_pages",)


def test_parents(tmp_path: Path) -> None:
    """Each parent must exist and be complete; a cycle ends."""
    _write(tmp_path / "3")
    (tmp_path / "2").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "3" / "parent").symlink_to("../2")
    (tmp_path / "2" / "parent").symlink_to("../1")
    _check(tmp_path / "3")
    (tmp_path / "1" / UNFINISHED).touch()
    with pytest.raises(ImagesError, match="/1 did not finish"):
        _check(tmp_path / "3")
    (tmp_path / "1" / UNFINISHED).unlink()
    (tmp_path / "1" / "parent").symlink_to("../3")
    with pytest.raises(ImagesError, match="more than"):
        _check(tmp_path / "3")
    (tmp_path / "1" / "parent").unlink()
    (tmp_path / "1").rmdir()
    with pytest.raises(ImagesError, match=r"builds on the images in '../1'") as caught:
        _check(tmp_path / "3")
    assert caught.value.options == ("parent_image",)


# ---- the marker ----


def _names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def test_the_mark_of_a_dump(tmp_path: Path) -> None:
    """The marker exists while images are written, and is removed when they are complete."""
    with _opened(tmp_path) as fd:
        marker = DumpMarker(fd)
        _write(tmp_path)
        with pytest.raises(ImagesError, match="is under way"):
            _check(tmp_path)
        with pytest.raises(ImagesError, match="is under way"):
            DumpMarker(fd)
        marker.finish()
        _check(tmp_path)
        marker.close()
    assert _names(tmp_path) == SET.keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_the_mark_of_a_parent_without_a_path(tmp_path: Path) -> None:
    """The marker is found where no path leads to: by the descriptor of the images."""
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        (place / "1").mkdir()
        (place / "1" / UNFINISHED).touch()
        for number in (2, 3):
            (place / str(number)).mkdir()
            (place / str(number) / "parent").symlink_to(f"../{number - 1}")
        fd = os.open(place / "3", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    with closing(fd):
        assert unfinished(f"/proc/self/fd/{fd}") == f"/proc/self/fd/{fd}/parent/parent"


def test_a_dump_that_does_not_finish(tmp_path: Path) -> None:
    """The marker stays with the images; a restore refuses them, and the next dump removes them."""
    with _opened(tmp_path) as fd:
        first = DumpMarker(fd)
        _write(tmp_path)
        first.close()
        with pytest.raises(ImagesError, match=f"did not finish .{UNFINISHED} is there"):
            _check(tmp_path)
        (tmp_path / "cpuinfo.img").touch()  # another verb's
        (tmp_path / "descriptors.json").touch()
        second = DumpMarker(fd)
        assert _names(tmp_path) == {UNFINISHED, "cpuinfo.img", "descriptors.json"}
        second.close()
    assert _names(tmp_path) == {"cpuinfo.img", "descriptors.json"}


def test_nothing_was_written(tmp_path: Path) -> None:
    """A dump that fails before it writes an image leaves nothing."""
    with _opened(tmp_path) as fd:
        DumpMarker(fd).close()
    assert _names(tmp_path) == set()


def test_the_images_before_it(tmp_path: Path) -> None:
    """Earlier images are moved away; back if the dump fails, and removed if it succeeds."""
    _write(tmp_path, {**SET, "core-9.img": b"old", "tmpfs-1.tar.gz.img": b"old"})
    (tmp_path / "parent").symlink_to("../before")
    before = _names(tmp_path)
    with _opened(tmp_path) as fd:
        failing = DumpMarker(fd)
        assert _names(tmp_path) == {UNFINISHED, EARLIER, "parent"}
        (tmp_path / "core-1.img").write_bytes(b"half")
        (tmp_path / "pstree.img").write_bytes(b"half")
        with pytest.raises(ImagesError, match="is under way"):
            _check(tmp_path)
        failing.close()
        assert _names(tmp_path) == before
        assert (tmp_path / "pstree.img").read_bytes() == SET["pstree.img"]

        good = DumpMarker(fd)
        (tmp_path / "inventory.img").write_bytes(b"new")
        good.finish()
        good.close()
    assert _names(tmp_path) == {"inventory.img", "parent"}


def test_we_are_killed_in_the_middle(tmp_path: Path) -> None:
    """The error names the directory of the previous images; the next dump continues from there."""
    _write(tmp_path)
    pid = os.fork()
    if pid == 0:
        with _opened(tmp_path) as fd:
            DumpMarker(fd)
            (tmp_path / "inventory.img").write_bytes(b"half")
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(ImagesError, match=f"dump before it are whole, in {tmp_path}/{EARLIER}"):
        _check(tmp_path)
    _check(tmp_path / EARLIER)
    with _opened(tmp_path) as fd:
        DumpMarker(fd).close()
    assert _names(tmp_path) == SET.keys()


@pytest.mark.parametrize("moved", [0, 3, len(SET)])
def test_we_are_killed_while_they_are_moved(tmp_path: Path, moved: int) -> None:
    """After an interruption at any point the next dump completes the move, and loses no image."""
    _write(tmp_path)
    (tmp_path / UNFINISHED).touch()
    (tmp_path / MOVING).mkdir()
    for name in list(SET)[:moved]:
        (tmp_path / name).rename(tmp_path / MOVING / name)
    with pytest.raises(ImagesError, match="did not finish"):
        _check(tmp_path)
    with _opened(tmp_path) as fd:
        DumpMarker(fd).close()
    assert _names(tmp_path) == SET.keys()
    _check(tmp_path)


def test_a_child_that_somebody_forked(tmp_path: Path) -> None:
    """A forked child has a copy of the descriptor; the lock is released when the dump ends."""
    reader, writer = os.pipe()
    with _opened(tmp_path) as fd, ExitStack() as held:
        marker = DumpMarker(fd)
        _write(tmp_path)
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        held.callback(os.waitpid, pid, 0)
        held.callback(os.close, reader)
        held.callback(os.close, writer)
        marker.close()
        with pytest.raises(ImagesError, match="did not finish"):
            _check(tmp_path)


def test_a_page_server_overwrites_nothing(tmp_path: Path) -> None:
    """A page server is not started on the images of a finished dump."""
    opts = CriuOpts(images_directory=_write(tmp_path), page_server="127.0.0.1:0")
    with pytest.raises(OptionError, match="has the images of an earlier dump"):
        page_server(opts, via=ScriptedCriu())

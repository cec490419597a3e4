"""The root file system of a container: nothing is written outside, all attributes are restored."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from pycriu_native.errors import ImagesError
from pycriu_native.oci import root_file_system

MOST = 1 << 20


def archive(*members: tuple[str, bytes, str | bytes, dict[str, object]]) -> io.BytesIO:
    """A tar archive: each member's name, type, content or target, and attributes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, attributes in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.uid, info.gid = os.getuid(), os.getgid()
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            for key, value in attributes.items():
                setattr(info, key, value)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    out.seek(0)
    return out


def file(
    name: str, content: bytes = b"x", **attributes: object
) -> tuple[str, bytes, bytes, dict[str, object]]:
    """A regular file."""
    return name, tarfile.REGTYPE, content, attributes


def link(
    name: str, target: str, kind: bytes = tarfile.SYMTYPE
) -> tuple[str, bytes, str, dict[str, object]]:
    """A link."""
    return name, kind, target, {}


def directory(name: str, **attributes: object) -> tuple[str, bytes, str, dict[str, object]]:
    """A directory."""
    return name, tarfile.DIRTYPE, "", attributes


@pytest.fixture
def root(tmp_path: Path) -> str:
    """The new root, beside a file that must not change."""
    (tmp_path / "victim").write_text("as it was")
    (tmp_path / "root").mkdir()
    return str(tmp_path / "root")


@pytest.mark.parametrize(
    "members",
    [
        [link("out", "{outside}"), file("out/victim")],
        [link("out", "../../../../../..{outside}"), file("out/victim")],
        [link("a", "b"), link("b", "{outside}"), file("a/victim")],
        [link("victim", "{outside}/victim"), file("victim")],
        [link("here", "{outside}/victim", tarfile.LNKTYPE)],
        [link("out", "{outside}"), link("here", "out/victim", tarfile.LNKTYPE)],
        [link("out", "{outside}"), file("out/.wh.victim")],
        [link("out", "{outside}"), file("out/.wh..wh..opq")],
        [file(".wh...")],
    ],
)
def test_links_are_resolved_in_the_root(
    root: str, tmp_path: Path, members: list[tuple[str, bytes, str, dict[str, object]]]
) -> None:
    """A link is resolved with the new root as the root directory."""
    placed = [
        (name, kind, target.format(outside=tmp_path) if isinstance(target, str) else target, more)
        for name, kind, target, more in members
    ]
    with contextlib.suppress(ImagesError):
        root_file_system.extract(archive(*placed), root, limit=MOST, is_layer=True)
    assert (tmp_path / "victim").read_text() == "as it was"
    assert (tmp_path / "victim").stat().st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["root", "victim"]


def test_names_above_the_root_are_refused(root: str) -> None:
    """Paths above the root are refused, also of hard links and of deletions."""
    with pytest.raises(ImagesError, match="outside of its directory"):
        root_file_system.extract(archive(file("../victim")), root, limit=MOST)
    hard = link("here", "../victim", tarfile.LNKTYPE)
    with pytest.raises(ImagesError, match="outside of its directory"):
        root_file_system.extract(archive(hard), root, limit=MOST)
    with pytest.raises(ImagesError, match="outside of its directory"):
        root_file_system.remove(root, ["/../victim"])


@pytest.mark.parametrize("name", ["/", "", ".", "./", "//", "/."])
def test_the_root_is_not_deleted(root: str, name: str) -> None:
    """It is refused before anything is removed."""
    Path(root, "kept").touch()
    with pytest.raises(ImagesError, match="deletes its whole root"):
        root_file_system.remove(root, ["/kept", name])
    assert os.listdir(root) == ["kept"]


def test_deletions_follow_no_link(root: str, tmp_path: Path) -> None:
    """A file is removed in the container's directory."""
    os.symlink(str(tmp_path), f"{root}/out")
    root_file_system.remove(root, ["/out/victim", "/never"])
    assert (tmp_path / "victim").exists()
    root_file_system.remove(root, ["/out"])
    assert os.listdir(root) == []
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "headers", [{"uid": str(2**40)}, {"gid": str(2**70)}, {"mtime": "inf"}, {"mtime": "1e30"}]
)
def test_numbers_that_the_system_lacks(root: str, headers: dict[str, str]) -> None:
    """An owner or a time that the system cannot represent is an error of the archive."""
    members = archive(file("file", pax_headers=headers))
    with pytest.raises(ImagesError, match="'file' of the archive"):
        root_file_system.extract(members, root, limit=MOST)


def test_attributes_are_extracted(root: str) -> None:
    """Mode, time, links and attributes are set; existing files are replaced."""
    os.mkdir(f"{root}/file")
    members = archive(
        directory(".", mode=0o711),
        directory("d", mode=0o1777, mtime=7),
        file("d/inner"),
        file(
            "file", b"content", mode=0o4755, mtime=5, pax_headers={"SCHILY.xattr.user.note": "kept"}
        ),
        link("hard", "file", tarfile.LNKTYPE),
        link("soft", "/absolute"),
        ("fifo", tarfile.FIFOTYPE, "", {}),
    )
    assert root_file_system.extract(members, root, limit=MOST) == 8
    status = os.stat(f"{root}/file")
    assert (stat.S_IMODE(status.st_mode), status.st_mtime, status.st_nlink) == (0o4755, 5, 2)
    assert os.getxattr(f"{root}/file", "user.note") == b"kept"
    assert os.readlink(f"{root}/soft") == "/absolute"
    assert stat.S_ISFIFO(os.lstat(f"{root}/fifo").st_mode)
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o711
    assert (stat.S_IMODE(os.stat(f"{root}/d").st_mode), os.stat(f"{root}/d").st_mtime) == (
        0o1777,
        7,
    )


def test_layers(root: str) -> None:
    """A whiteout removes a file of lower layers, an opaque one all files that the layer lacks."""
    lower = archive(directory("a"), file("a/old"), file("b/old"), file("b/kept"))
    root_file_system.extract(lower, root, limit=MOST, is_layer=True)
    upper = archive(file("a/new"), file("a/.wh..wh..opq", b""), file("b/.wh.old", b""))
    root_file_system.extract(upper, root, limit=MOST, is_layer=True)
    assert (os.listdir(f"{root}/a"), os.listdir(f"{root}/b")) == (["new"], ["kept"])


def test_more_than_the_limit(root: str) -> None:
    """The bytes of all files together are bounded."""
    with pytest.raises(ImagesError, match="exceeds the limit of 3 bytes"):
        root_file_system.extract(archive(file("a", b"12"), file("b", b"34")), root, limit=3)


def test_changes(tmp_path: Path) -> None:
    """Added, changed and removed files are found; their archive makes an equal copy."""
    base, root = str(tmp_path / "base"), str(tmp_path / "root")
    for each in (base, root):
        os.makedirs(f"{each}/etc/deep")
        for name in ("same", "content", "mode", "gone", "kind"):
            Path(each, "etc", name).write_text("of the image")
            os.utime(f"{each}/etc/{name}", (1, 1))
        os.symlink("same", f"{each}/etc/link")
        os.mkdir(f"{each}/etc/directory")
    assert root_file_system.changes(root, base) == ([], [])

    Path(root, "etc/content").write_text("of the box  ")
    os.chmod(f"{root}/etc/mode", 0o600)
    for name in ("gone", "link", "kind"):
        os.unlink(f"{root}/etc/{name}")
    os.rmdir(f"{root}/etc/directory")
    os.symlink("content", f"{root}/etc/link")
    os.mkdir(f"{root}/etc/kind")
    Path(root, "etc/kind/added").write_text("added")
    Path(root, "etc/deep/added").write_text("added")
    for name in ("content", "kind/added", "deep/added"):
        os.utime(f"{root}/etc/{name}", (5, 5))  # archives do not keep nanoseconds
    changed, deleted = root_file_system.changes(root, base)
    names = ["content", "deep/added", "kind", "kind/added", "link", "mode"]
    assert changed == [f"/etc/{name}" for name in names]
    assert deleted == ["/etc/directory", "/etc/gone"]

    file = io.BytesIO()
    root_file_system.write_changes(root, changed, file)
    file.seek(0)
    root_file_system.extract(file, base, limit=MOST)
    root_file_system.remove(base, deleted)
    assert root_file_system.changes(root, base) == ([], [])


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh."])
def test_a_whiteout_of_no_file(root: str, name: str) -> None:
    """What is left of its name is no name of a file: nothing is removed."""
    root_file_system.extract(archive(file("a/b")), root, limit=MOST)
    with pytest.raises(ImagesError, match="a whiteout of no file"):
        root_file_system.extract(archive(file(name)), root, limit=MOST, is_layer=True)
    assert Path(root, "a", "b").exists()
    assert Path(root).with_name("victim").exists()

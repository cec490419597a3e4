"""A container's archive writes nothing outside of the directory that it is unpacked into."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pycriu_native.archive import unpack
from pycriu_native.errors import ImagesError, OptionError
from pycriu_native.oci import Bundle, Container, checkpoint_archive, from_archive, to_archive
from pycriu_native.oci.checkpoint_archive import host_mounts


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for info, data in members:
            info.size, info.uid, info.gid = len(data), os.getuid(), os.getgid()
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def link(name: str, target: Path) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link in an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, str(target)
    return info, b""


def file(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """A file in an archive."""
    return tarfile.TarInfo(name), data


ABOVE = "../" * 20


@pytest.mark.parametrize(
    "destinations",
    [
        ["{above}{outside}/new"],
        ["/{above}{outside}/new"],
        ["/data", "/data/link/new"],
        ["/etc", "/etc/hosts"],
    ],
)
def test_destinations_of_mounts_outside_are_refused(
    tmp_path: Path, destinations: list[str]
) -> None:
    """Paths with "..", or through a link in another volume, are refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("as before")
    (root := tmp_path / "rootfs").mkdir()
    places = [each.format(above=ABOVE, outside=str(outside)[1:]) for each in destinations]
    volume = tar(link("link", outside), link("hosts", outside / "hosts"), file("own", b"content"))
    named = [place for place in places if place != "/etc/hosts"]
    spec: dict[str, Any] = {
        "root": {},
        "linux": {},
        "mounts": [{"destination": place, "type": "bind", "source": "x"} for place in places],
    }
    config = {
        "namedVolumes": [
            {"volumeName": str(number), "dest": place} for number, place in enumerate(named)
        ]
    }
    archive = tmp_path / "theirs.tar"
    archive.write_bytes(
        tar(
            file("checkpoint/inventory.img", b""),
            file("spec.dump", json.dumps(spec).encode()),
            file("config.dump", json.dumps(config).encode()),
            *(file(f"volumes/{number}.tar", volume) for number in range(len(named))),
        )
    )
    made = from_archive(archive, tmp_path / "box", rootfs=root)
    assert [path.name for path in outside.iterdir()] == ["hosts"]
    assert (outside / "hosts").read_text() == "as before"
    sources = [mount["source"] for mount in made.bundle.config["mounts"]]
    assert len(set(sources)) == len(places)
    for source in sources:
        assert Path(made.bundle.path, source).parent == tmp_path / "box" / "binds"


BIND: dict[str, Any] = {"type": "bind", "destination": "/etc/hosts"}
GOOD: dict[str, Any] = {"root": {}, "linux": {}, "mounts": []}


def container(tmp_path: Path, spec: object, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    """An archive of a container."""
    archive = tmp_path / "box.tar"
    head = [file("checkpoint/inventory.img", b"x"), file("spec.dump", json.dumps(spec).encode())]
    archive.write_bytes(tar(*head, *more))
    (tmp_path / "rootfs").mkdir()
    return archive


@pytest.mark.parametrize("mounts", [5, ["x"], [{"type": "bind"}], [{**BIND, "destination": 5}]])
def test_mounts_of_another_form(tmp_path: Path, mounts: object) -> None:
    """A specification of another form is an error of the images, in either use of it."""
    archive = container(tmp_path, {**GOOD, "mounts": mounts})
    with pytest.raises(ImagesError, match=r"spec\.dump"):
        from_archive(archive, tmp_path / "box", rootfs=tmp_path / "rootfs")
    unpack(archive, tmp_path / "unpacked")
    with pytest.raises(ImagesError, match=r"spec\.dump"):
        host_mounts(tmp_path / "unpacked")


@pytest.mark.parametrize("part", ["linux", "root"])
def test_parts_of_another_form(tmp_path: Path, part: str) -> None:
    """The same for text in place of an object."""
    archive = container(tmp_path, {**GOOD, part: "x"})
    with pytest.raises(ImagesError, match=r"spec\.dump is not the specification"):
        from_archive(archive, tmp_path / "box", rootfs=tmp_path / "rootfs")


@pytest.mark.parametrize("named", [5, ["x"], [{}], [{"volumeName": 5, "dest": "/d"}]])
def test_volumes_of_another_form(tmp_path: Path, named: object) -> None:
    """The same for the volumes in ``config.dump``."""
    config = file("config.dump", json.dumps({"namedVolumes": named}).encode())
    archive = container(tmp_path, {**GOOD, "mounts": [BIND]}, config)
    with pytest.raises(ImagesError, match=r"config\.dump"):
        from_archive(archive, tmp_path / "box", rootfs=tmp_path / "rootfs")
    unpack(archive, tmp_path / "unpacked")
    with pytest.raises(ImagesError, match=r"config\.dump"):
        host_mounts(tmp_path / "unpacked")


@pytest.mark.parametrize(
    ("mounts", "more"),
    [
        ([{**BIND, "destination": "/\ud800"}], []),
        ([], [file("deleted.files", b'["a\\u0000b"]')]),
    ],
)
def test_paths_that_no_file_has(
    tmp_path: Path, mounts: object, more: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    """Text that cannot be a path is an error of the images, and nothing remains."""
    archive = container(tmp_path, {**GOOD, "mounts": mounts}, *more)
    with pytest.raises(ImagesError, match=r"dump|deleted\.files"):
        from_archive(archive, tmp_path / "box", rootfs=tmp_path / "rootfs")
    assert sorted(os.listdir(tmp_path)) == ["box.tar", "rootfs"]


def test_a_container_without_a_description(tmp_path: Path) -> None:
    """``config.dump`` may be missing: the name and the engine are then unknown."""
    archive = container(tmp_path, GOOD)
    made = from_archive(archive, tmp_path / "box", rootfs=tmp_path / "rootfs")
    assert (made.name, made.engine) == (None, None)
    assert os.path.isfile(f"{made.images}/inventory.img")


def running(bundle: str | Path) -> Container:
    """This process as a container."""
    return Container(
        id="web",
        runtime="runc",
        state_root="/run/runc",
        pid=os.getpid(),
        bundle=Bundle(path=str(bundle), config={"root": {"path": "rootfs"}}),
        descriptors=(),
    )


@pytest.mark.parametrize(
    ("to", "compress", "error"),
    [("a.tar", "bzip2", OptionError), ("rootfs", "gzip", FileExistsError)],
)
def test_arguments_are_checked_before_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, compress: Any, error: type[Exception]
) -> None:
    """An archive that cannot be written is refused while the container runs; nothing remains."""
    (tmp_path / "rootfs").mkdir()
    monkeypatch.setattr(checkpoint_archive, "dump", lambda *_, **__: pytest.fail("it was dumped"))
    with pytest.raises(error):
        to_archive(
            running(tmp_path),
            tmp_path / to,
            image="alpine",
            base=tmp_path / "rootfs",
            compress=compress,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rootfs"]


def test_a_bundle_at_the_top() -> None:
    """A bundle whose directory is in the root directory is in no storage of Podman."""
    with pytest.raises(OptionError, match="the name of the container's image is needed"):
        to_archive(running("/web"), "/nowhere/a.tar")

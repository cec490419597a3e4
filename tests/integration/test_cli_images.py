"""``inspect`` and ``decode`` on the command line: parts of images, memory, and archives."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from pathlib import Path

from pycriu_native import CriuOpts
from pycriu_native.archive import pack

from .conftest import Spawn
from .test_cli import CONNECTED, result, run


def test_an_image_from_standard_input(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """decode reads standard input, writes to a file, and counts entries."""
    target = spawn()
    target.dump(CriuOpts(images_directory=images))
    with open(images / "pstree.img", "rb") as file:
        message = run("decode", "-", "-o", tmp_path / "pstree.json", stdin=file)
    assert "pstree.json" in message.stdout
    described = json.loads((tmp_path / "pstree.json").read_text())
    assert described["entries"][0]["pid"] == target.pid
    assert run("decode", images / "pstree.img", "--info").stdout == "PSTREE, entries: 1\n"
    assert result("decode", images / "files.img", "--info")["entries"] > 3
    with open(images / "pages-1.img", "rb") as file:
        message = run("decode", "-", stdin=file, code=6)
    assert message.stderr.startswith("pycriu-native: decode: standard input, offset 0: ")


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    """It is refused like other text that is no image."""
    (tmp_path / "x.json").write_text("[" * 100_000)
    assert "is not JSON" in run("encode", tmp_path / "x.json", tmp_path / "x.img", code=6).stderr


def test_a_damaged_image_in_an_archive(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The error names the archive and the image, not the place to which it was extracted."""
    spawn().dump(CriuOpts(images_directory=images))
    damaged = next(images.glob("mm-*.img"))
    os.truncate(damaged, 100)
    archive = tmp_path / "set.tar.gz"
    pack(images, archive)
    for command in ("inspect", "check-images"):
        message = run(command, archive, code=6).stderr
        assert message.startswith(f"pycriu-native: {command}: {archive}: {damaged.name}, offset ")


def test_memory_sockets_and_mounts(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """Memory as digits and in a file, by kind and permissions; a search with a regular
    expression.
    """
    secret = "secret = ''.join(['token', '=']) + '12ab' * 8\n    serve()"
    target = spawn(CONNECTED.replace("serve()", secret))
    target.dump(CriuOpts(images_directory=images, tcp_established=True))
    search = ("inspect", images, "--search", "token=[12ab]{32}", "--regex")
    found = result(*search, "--context", "2")
    assert base64.b64decode(found[0]["data"])[2:-2] == b"token=" + b"12ab" * 8
    assert "token=12ab12ab" in run(*search).stdout
    refused = run("inspect", images, "--search", "(", "--regex", code=2).stderr
    assert "not a regular expression" in refused

    where = f"{found[0]['address']:x}+26"
    shown = run("inspect", images, "--read", where).stdout.splitlines()
    assert shown[0].startswith(f"{found[0]['address']:016x}  74 6f 6b 65 6e 3d 31 32")
    assert shown[0].endswith("  token=12ab12ab12")
    assert len(shown) == 3
    run("inspect", images, "--read", where, "-o", tmp_path / "bytes")
    assert (tmp_path / "bytes").read_bytes() == b"token=" + b"12ab" * 8
    run("inspect", images, "--read", "9-1", code=2)
    for option, value, rule in (
        ("--kind", "none", "one of file, shared file, anonymous"),
        ("--protection", "rz", "the letters r, w, x, p"),
        ("--search", "", "at least one character"),
    ):
        assert rule in run("inspect", images, option, value, code=2).stderr
    run("inspect", images, "--kind", found[0]["kind"], "-o", tmp_path / "kind")
    assert b"token=12ab" in (tmp_path / "kind").read_bytes()
    run("inspect", images, "--protection", "x", "-o", tmp_path / "code")
    assert b"token=12ab" not in (tmp_path / "code").read_bytes()

    sockets = result("inspect", images, "--sockets", "--mounts")["sockets"]
    assert [each["state"] for each in sockets].count("ESTABLISHED") == 2
    assert "ESTABLISHED" in run("inspect", images, "--sockets").stdout
    assert run("inspect", images, "--mounts").stdout.startswith("mount point")


def test_an_archive_is_looked_at(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """inspect shows the images in an archive and the data of its engine; nothing
    remains unpacked.
    """
    target = spawn()
    target.dump(CriuOpts(images_directory=images))
    pack(images, tmp_path / "plain.tar.gz")
    assert str(target.directory) in run("inspect", tmp_path / "plain.tar.gz").stdout
    plain = result("inspect", tmp_path / "plain.tar.gz")
    assert (plain["archive"]["engine"], plain["directory"]) == (None, f"{tmp_path}/plain.tar.gz")
    for words in (["verify"], ["seal"], ["pack"], ["diff", images]):
        message = run(*words, tmp_path / "plain.tar.gz", code=2).stderr
        assert f"pycriu-native unpack {tmp_path}/plain.tar.gz DIRECTORY" in message

    (tmp_path / "changed").write_text("changed")
    with tarfile.open(tmp_path / "rootfs-diff.tar", "w") as tar:
        tar.add(tmp_path / "changed", "etc/changed")
    described: dict[str, object] = {
        "config.dump": {
            "id": "0123abcd",
            "name": "looper",
            "rootfsImageName": "docker.io/library/alpine",
            "runtime": "crun",
            "createdTime": "2026-01-02T03:04:05Z",
        },
        "spec.dump": {"annotations": {"io.container.manager": "libpod"}},
        "deleted.files": ["/etc/motd"],
    }
    more = {"rootfs-diff.tar": tmp_path / "rootfs-diff.tar"}
    for name, value in described.items():
        (tmp_path / name).write_text(json.dumps(value))
        more[name] = tmp_path / name
    pack(images, tmp_path / "container.tar.gz", inside="checkpoint", more=more)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    text = run("inspect", tmp_path / "container.tar.gz", env=environment).stdout
    for part in ("looper", "0123abcd", "alpine", "crun", "Podman", "2026-01-02", "/etc/motd"):
        assert part in text
    assert "changed /etc/changed (7 B)" in text
    assert str(target.pid) in text
    assert list(temporary.iterdir()) == []
    checked = result("check-images", tmp_path / "container.tar.gz")
    assert (checked["restorable"], checked["archive"]["name"]) == (True, "looper")
    assert result("check-images", tmp_path / "plain.tar.gz")["restorable"]
    next(images.glob("core-*.img")).unlink()
    pack(images, tmp_path / "incomplete.tar.gz")
    checked = result("check-images", tmp_path / "incomplete.tar.gz", code=11)
    paths = {each["path"] for each in checked["findings"] if each["id"] == "complete"}
    assert paths == {f"{tmp_path}/incomplete.tar.gz"}
    (tmp_path / "spec.dump").unlink()
    archive = result("inspect", tmp_path / "container.tar.gz")["archive"]
    assert (archive["inside"], archive["deleted"]) == ("checkpoint", ["/etc/motd"])
    assert "is damaged" in run("inspect", tmp_path / "changed", code=6).stderr

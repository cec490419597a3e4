"""``seal`` and ``verify``: a set that has changed is refused, with each file by name."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycriu_native import ImagesError, seal, verify
from pycriu_native._integrity.dump_marker import UNFINISHED
from pycriu_native._integrity.manifest import MANIFEST


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A set of files."""
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "inventory.img").write_bytes(b"inventory")
    (directory / "pages-1.img").write_bytes(bytes(range(256)) * 1000)
    (directory / "parent").symlink_to("../before")
    (directory / "dump.log").write_text("a log\n")
    return directory


def test_as_it_was(images: Path) -> None:
    """A set is verified by path, text or descriptor; files that a restore adds are ignored."""
    digest = seal(images)
    assert len(bytes.fromhex(digest)) == 32
    assert stat.S_IMODE((images / MANIFEST).stat().st_mode) == 0o600
    verify(images)
    verify(str(images), digest.upper())
    (images / "restore.log").write_text("restored\n")
    (images / "stats-restore").touch()
    (images / "dump.log").unlink()
    fd = os.open(images, os.O_RDONLY)
    try:
        verify(fd, digest)
        assert seal(fd) == digest  # the same set, the same digest
    finally:
        os.close(fd)
    assert not list(images.glob("*.partial"))


def _flip(images: Path) -> None:
    data = bytearray((images / "pages-1.img").read_bytes())
    data[len(data) // 2] ^= 1
    (images / "pages-1.img").write_bytes(data)


def _relink(images: Path) -> None:
    (images / "parent").unlink()
    (images / "parent").symlink_to("../other")


def _swap_for_a_link(images: Path) -> None:
    (images / "pages-1.img").rename(images.parent / "pages")
    (images / "pages-1.img").symlink_to("../pages")


def _swap_for_a_pipe(images: Path) -> None:
    (images / "inventory.img").unlink()
    os.mkfifo(images / "inventory.img")


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (_flip, "pages-1.img was changed"),
    (lambda at: os.truncate(at / "pages-1.img", 4096), "pages-1.img has 4096 bytes, not 256000"),
    (lambda at: os.truncate(at / "inventory.img", 4096), "inventory.img has 4096 bytes, not 9"),
    (lambda at: (at / "inventory.img").unlink(), "inventory.img is missing"),
    (lambda at: (at / "core-1.img").touch(), "core-1.img was added"),
    (lambda at: (at / UNFINISHED).touch(), f"{UNFINISHED} was added"),
    (_relink, "parent was changed"),
    (_swap_for_a_link, "pages-1.img has 8 bytes"),
    (_swap_for_a_pipe, "inventory.img has 0 bytes"),
]


@pytest.mark.parametrize(("change", "flaw"), CHANGES)
def test_a_change(images: Path, change: Callable[[Path], object], flaw: str) -> None:
    """The changed files are named, and no others."""
    digest = seal(images)
    change(images)
    for words in ((images,), (images, digest)):
        with pytest.raises(ImagesError, match=f"as it was sealed: {flaw}") as caught:
            verify(*words)
        assert ", " not in str(caught.value).partition("sealed: ")[2].replace(" bytes, not", "")


def test_all_differences_at_once(images: Path) -> None:
    """All differences are named at once."""
    seal(images)
    _flip(images)
    (images / "inventory.img").unlink()
    (images / "x.img").touch()
    with pytest.raises(ImagesError, match=r"inventory.img is missing, pages-1.img was changed, x"):
        verify(images)


def test_a_changed_manifest(images: Path) -> None:
    """A changed manifest is detected by its digest only."""
    digest = seal(images)
    _flip(images)
    assert seal(images) != digest
    verify(images)
    with pytest.raises(ImagesError, match="has another digest"):
        verify(images, digest)


def test_an_image_that_is_not_a_file(images: Path) -> None:
    """An image that is no file is refused: the manifest would list an incomplete set."""
    os.mkfifo(images / "pages-9.img")
    with pytest.raises(ImagesError, match=r"pages-9\.img is not a regular file"):
        seal(images)
    assert not (images / MANIFEST).exists()


@pytest.mark.parametrize("call", [seal, verify])
def test_a_directory_that_cannot_be_opened(images: Path, call: Callable[[Path], object]) -> None:
    """The error is that of a set that cannot be used, as of ``inspect``."""
    for place in (images / "none", images / "dump.log"):
        with pytest.raises(ImagesError, match=f"{place} cannot be opened: ") as caught:
            call(place)
        assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)


def test_no_manifest(images: Path) -> None:
    """The error names the function that writes one."""
    with pytest.raises(ImagesError, match=r"no manifest that can be read.*seal\(\) writes one"):
        verify(images)
    (images / MANIFEST).symlink_to("dump.log")
    with pytest.raises(ImagesError, match="no manifest that can be read"):
        verify(images)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"format": 2, "files": {}}', b"\xff",
                                  b'{"format": 1}', b'{"format": 1, "files": {"a": 1}}',
                                  b"[" * 100_000])  # fmt: skip
def test_what_is_no_manifest(images: Path, text: bytes) -> None:
    """An invalid manifest is refused."""
    (images / MANIFEST).write_bytes(text)
    with pytest.raises(ImagesError, match="is no manifest"):
        verify(images)


def test_names_outside_of_the_directory(images: Path) -> None:
    """A manifest cannot make ``verify`` read files outside of the directory."""
    seal(images)
    manifest = json.loads((images / MANIFEST).read_text())
    manifest["files"]["../../etc/passwd"] = {"size": 0, "sha256": ""}
    (images / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ImagesError, match=r"\.\./etc/passwd is missing"):
        verify(images)


def test_a_dump_that_is_not_done(images: Path) -> None:
    """An unfinished set is not sealed."""
    (images / UNFINISHED).touch()
    with pytest.raises(ImagesError, match="did not finish"):
        seal(images)
    assert not (images / MANIFEST).exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 255_999), bit=st.integers(0, 7))
def test_any_bit(images: Path, at: int, bit: int) -> None:
    """One changed bit in the pages is detected."""
    digest = seal(images)
    with open(images / "pages-1.img", "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    with pytest.raises(ImagesError, match=r"pages-1\.img was changed"):
        verify(images, digest)

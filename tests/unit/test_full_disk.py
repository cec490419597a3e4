"""A disk that becomes full: the error of each writer has the path, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycriu_native import seal
from pycriu_native.archive import pack, unpack
from pycriu_native.errors import ImagesError
from pycriu_native.oci import Bundle, Container
from pycriu_native.oci.image_layout import pack_image


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with an image set."""
    if os.geteuid():
        pytest.skip("mount needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        (place / "set").mkdir()
        (place / "set" / "inventory.img").write_bytes(b"x")
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _container() -> Container:
    bundle = Bundle(path="/", config={"root": {"path": "rootfs"}})
    streams = ("/dev/null",) * 3
    return Container(
        id="x", runtime="runc", state_root="/run/runc", pid=1, bundle=bundle, descriptors=streams
    )


WRITERS: dict[str, tuple[bool, Callable[[Path, Path], object]]] = {
    "a.tar": (False, lambda small, big: pack(big, small / "a.tar", compress="none")),
    "b.tar": (False, lambda small, big: pack(big, small / "b.tar")),
    "new": (False, lambda small, big: unpack(big.parent / "big.tar", small / "new", limit=2**30)),
    "layout": (False, lambda small, big: pack_image(big, small / "layout")),
    "set/pycriu-native.manifest": (True, lambda small, big: seal(small / "set")),
    "set/descriptors.json": (
        True,
        lambda small, big: _container().write_descriptors(small / "set"),
    ),
}
"""Writers by the path that they write, and whether the disk is full before."""


@pytest.mark.parametrize("name", WRITERS)
def test_the_error_has_the_path(small: Path, tmp_path: Path, name: str) -> None:
    """It is an error of the library with the number, and files that were incomplete are removed."""
    big = tmp_path / "big"
    big.mkdir()
    (big / "inventory.img").write_bytes(b"x")
    (big / "pages-1.img").write_bytes(os.urandom(200_000))
    pack(big, tmp_path / "big.tar")
    is_full, write = WRITERS[name]
    if is_full:
        with open(small / "fill", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
    before = [path for path in small.rglob("*") if path.is_file()]
    with pytest.raises(ImagesError, match=f"{small / name} cannot be written: No space") as raised:
        write(small, big)
    assert raised.value.errno == errno.ENOSPC
    assert isinstance(raised.value.__cause__, OSError)
    assert [path for path in small.rglob("*") if path.is_file()] == before

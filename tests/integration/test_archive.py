"""``pycriu_native.archive``: images are packed, unpacked elsewhere, and restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, restore
from pycriu_native.archive import pack, unpack
from pycriu_native.oci.image_layout import pack_image, unpack_image

from .conftest import Spawn
from .support.processes import kill


@pytest.mark.parametrize("form", ["archive", "OCI image"])
def test_restored_from(form: str, spawn: Spawn, orphans: None, images: Path) -> None:
    """The original images are removed, and the unpacked ones are restored."""
    target = spawn("import os\nsecret = os.urandom(1 << 20)\nserve(sum=lambda: sum(secret))")
    before = target.ask("sum")
    target.dump(CriuOpts(images_directory=images))
    there, back = images.with_name("packed"), images.with_name("unpacked")
    if form == "archive":
        pack(images, there)
    else:
        pack_image(images, there)
    shutil.rmtree(images)
    if form == "archive":
        unpack(there, back)
    else:
        unpack_image(there, back)
    try:
        assert restore(CriuOpts(images_directory=back)).pid == target.pid
        assert target.ask("sum") == before
    finally:
        kill(target.pid)

"""External mounts: volumes of a container are not saved, but detected or named.

The images do not contain a bind mount of the host. A dump with an unknown one is refused. There are
three ways to declare it, and the restore has to use the same one:

* ``external=["mnt[/data]:data"]`` names the mount at /data; in the restore
  ``external=["mnt[data]:/host/path"]`` has the path to mount there, which can be another one
* ``ext_mounts=[("/data", "data")]`` and ``ext_mounts=[("data", "/host/path")]``, the old form
* ``auto_ext_mnt=True``: CRIU detects such mounts, and mounts the same paths again; mounts that
  receive propagation from the host (slaves) need ``ext_masters=True`` in the dump, those that are
  shared with it ``ext_sharing=True``
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, dump, restore

from .support.containers import Container, container, mount_point
from .support.processes import is_alive

READS = """
    from pathlib import Path
    serve(
        read=lambda name: Path("/data", name).read_text(),
        listing=lambda: sorted(path.name for path in Path("/data").iterdir()),
    )
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of the host."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("one")
    return tmp_path / "data"


@pytest.fixture
def box(tmp_path: Path, data: Path) -> Iterator[Container]:
    """A container with that directory at /data, and other directories of the host."""
    with container(tmp_path / "box", READS, binds={"/data": data}) as box:
        assert box.ask("read", "file") == "one"
        yield box


def _others(given: list[str]) -> list[str]:
    """The keys without the one for /data."""
    return [key for key in given if "data]" not in key]


def test_external(box: Container, data: Path, images: Path) -> None:
    """The mount is named in the dump; the restore mounts the same or another directory."""
    external = [*_others(box.given_on_dump), "mnt[/data]:data"]
    box.dump(CriuOpts(images_directory=images, external=external))
    other = data.with_name("other")
    other.mkdir()
    (other / "file").write_text("two")
    for source, expected in ((data, "one"), (other, "two")):
        opts = CriuOpts(
            images_directory=images,
            root=box.root,
            external=[*_others(box.given_on_restore), f"mnt[data]:{source}"],
        )
        box.pid = restore(opts).pid
        assert box.ask("read", "file") == expected
        box.end()


def test_ext_mounts(box: Container, images: Path) -> None:
    """The old form has the same effect."""
    named = [(place, f"the {place}") for place in box.binds]
    box.dump(CriuOpts(images_directory=images, ext_mounts=named))
    sources = [(f"the {place}", str(source)) for place, source in box.binds.items()]
    opts = CriuOpts(images_directory=images, root=box.root, ext_mounts=sources)
    box.pid = restore(opts).pid
    assert box.ask("read", "file") == "one"
    assert box.runs_on()


@pytest.mark.cures("mnt-auto")
@pytest.mark.parametrize("form", ["auto_ext_mnt", "external"])
def test_auto_ext_mnt(box: Container, images: Path, form: str) -> None:
    """Without names the mounts are detected, and mounted again from the same paths."""
    plain = CriuOpts(images_directory=images)
    opts = (
        replace(plain, auto_ext_mnt=True)
        if form == "auto_ext_mnt"
        else replace(plain, external=["mnt[]"])
    )
    box.dump(opts)
    with pytest.raises(CriuError, match="auto_ext_mnt=True"):
        restore(replace(plain, root=box.root))
    box.pid = restore(replace(opts, root=box.root)).pid
    assert box.ask("read", "file") == "one"
    assert box.runs_on()


@pytest.mark.cures("root-mount")
def test_a_dump_that_does_not_know_the_mount(box: Container, images: Path) -> None:
    """The dump is refused, the message names the options, and the container continues."""
    with pytest.raises(CriuError, match=r"external=.*auto_ext_mnt=True") as caught:
        dump(box.pid, CriuOpts(images_directory=images, external=_others(box.given_on_dump)))
    assert {"external", "auto_ext_mnt", "ext_mounts"} <= set(caught.value.options)
    assert "/data" in caught.value.lines[0]
    assert box.runs_on()


@pytest.mark.cures("mnt-mapping")
def test_a_restore_that_does_not_know_the_mount(box: Container, images: Path) -> None:
    """The restore is refused; the images are unchanged."""
    box.dump(CriuOpts(images_directory=images, external=box.given_on_dump))
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    with pytest.raises(CriuError, match=r"external=.mnt\[KEY\]") as caught:
        restore(replace(opts, external=_others(box.given_on_restore)))
    assert "external" in caught.value.options
    assert not is_alive(box.pid)
    box.pid = restore(opts).pid
    assert box.runs_on()


# ---- mounts that share with the host ----


@pytest.mark.cures("unreachable-sharing")
@pytest.mark.parametrize("found", [{"auto_ext_mnt": True}, {"external": ["mnt[]"]}])
@pytest.mark.parametrize(
    ("propagation", "mark", "field"),
    [("slave", "master:", "ext_masters"), ("unchanged", "shared:", "ext_sharing")],
)
def test_mounts_that_share_with_the_host(
    tmp_path: Path,
    data: Path,
    images: Path,
    propagation: str,
    mark: str,
    field: str,
    found: dict[str, Any],
) -> None:
    """A detected mount that is a slave of the host's or shared with it needs an option
    in the dump.
    """
    with mount_point(data):
        subprocess.run(["mount", "--make-shared", data], check=True)
        with container(
            tmp_path / "box", READS, binds={"/data": data}, propagation=propagation
        ) as box:
            assert mark in _sharing(box)
            plain = CriuOpts(images_directory=images, **found)
            with pytest.raises(CriuError, match=f"{field}=True") as caught:
                dump(box.pid, plain)
            assert field in caught.value.options
            assert box.runs_on()
            shutil.rmtree(images)

            dump(box.pid, replace(plain, **{field: True}))  # type: ignore[arg-type]
            box.reap()
            box.pid = restore(replace(plain, root=box.root)).pid
            assert mark in _sharing(box)
            assert box.ask("read", "file") == "one"
            assert box.runs_on()


def _sharing(box: Container) -> str:
    """The propagation of the mount at /data, as in /proc/PID/mountinfo."""
    lines = Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines()
    (result,) = [line for line in lines if line.split()[4] == "/data"]
    return " ".join(result.split(" - ")[0].split()[6:])

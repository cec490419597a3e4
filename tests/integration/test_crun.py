"""Interchange with crun: its checkpoints are restored here, and it restores dumps of this library.

It works as with runc (``test_runc.py``), except that crun uses other names for masked paths, and
saves the network namespace with its contents. The crun of Debian 12 is built without CRIU, that of
Debian 13 with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import NoSuchProcessError, dump
from pycriu_native.oci import Container

from .support.bundles import Counting, Runtime, counting, repeated, runtime
from .support.processes import PATIENCE


@pytest.fixture
def crun(tmp_path: Path) -> Runtime:
    """The crun runtime."""
    return runtime("crun", tmp_path)


@pytest.fixture
def box(crun: Runtime, tmp_path: Path) -> Iterator[Counting]:
    """A container of crun."""
    with counting(tmp_path, crun) as container:
        yield container


def test_what_crun_checkpointed_is_restored_here(box: Counting, images: Path) -> None:
    """A checkpoint of crun is restored here, without lost or repeated output."""
    seen = box.run()
    stopped_at = box.checkpoint(images)
    box.prepare_cgroup()
    box.restore_here(images)
    assert box.continued_from(stopped_at)
    assert box.look() == seen
    assert "UP" in box.loopback()


def test_what_is_dumped_here_crun_restores(box: Counting, images: Path) -> None:
    """crun restores a dump of this library, and manages the container again."""
    seen = box.run()
    container = Container.from_runtime(box.id, "crun")
    assert container.pid == box.pid
    container.write_descriptors(images)
    opts = container.dump_opts(images)
    assert repeated(lambda: dump(container.pid, opts, reap_timeout=PATIENCE)).pid_free
    stopped_at = box.count

    box.restored_by_runtime(images)
    assert box.continued_from(stopped_at)
    # crun shows a restored container its own cgroup as the container's.
    assert {**box.look(), "cgroup mounts": seen["cgroup mounts"]} == seen
    assert "UP" in box.loopback()


def test_dumped_and_restored_here(box: Counting, images: Path) -> None:
    """Dump and restore without crun."""
    seen = box.run()
    container = Container.from_runtime(box.id, "crun")
    container.write_descriptors(images)
    opts = container.dump_opts(images)
    assert repeated(lambda: dump(container.pid, opts, reap_timeout=PATIENCE)).pid_free
    stopped_at = box.count
    box.restore_here(images)
    assert box.continued_from(stopped_at)
    assert box.look() == seen


def test_a_container_that_is_unknown(crun: Runtime) -> None:
    """An unknown container is a ProcessLookupError with the searched directory."""
    with pytest.raises(NoSuchProcessError, match="crun has no container 'never' in /run/crun"):
        Container.from_runtime("never", "crun")

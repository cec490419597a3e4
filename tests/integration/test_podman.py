"""Archives of Podman are restored without Podman, and Podman restores archives of this library."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycriu_native import CriuError, ImagesError, OptionError, restore
from pycriu_native.archive.container_checkpoint import archive_contents
from pycriu_native.oci import Container, ContainerCheckpoint, from_archive, to_archive

from .support.bundles import Streams, counting, runtime
from .support.podman import IMAGE, Podman, as_of_a_pod, podman
from .support.processes import PATIENCE, eventually, is_alive, kill

TIMEOUT = int(PATIENCE)
"""Seconds for CRIU to stop the processes. Its ten can be too few on a loaded machine."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Podman]:
    """Podman with its image."""
    with podman(tmp_path) as result:
        yield result


@contextmanager
def restored(checkpoint: ContainerCheckpoint, streams: Streams) -> Iterator[int]:
    """Restore the container of an archive; returns its pid."""
    with checkpoint.restoring(stdio=(None, *streams.theirs)) as opts:
        pid = restore(opts).pid
    try:
        streams.give()
        yield pid
    finally:
        kill(pid)


def numbers(streams: Streams) -> list[int]:
    """The numbers that it has counted since its restore, if there are any."""
    eventually(lambda: len(streams.numbers()[0]) > 3, "counting")
    return streams.numbers()[0]


def follows(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether no number is lost or repeated."""
    whole = [*before, *after]
    return whole == list(range(whole[0], whole[0] + len(whole)))


def inside(pid: int, path: str) -> Path:
    """The host's path of a path in the container."""
    return Path(f"/proc/{pid}/root{path}")


def test_from_podman_to_here_and_back(engine: Podman, tmp_path: Path) -> None:
    """Exported by Podman, restored and dumped here, imported by Podman: the container continues to
    count.
    """
    name = engine.run()
    engine.counts(name)
    engine.checkpoint(name, tmp_path / "theirs.tar.gz")
    first = engine.numbers(name)
    engine("rm", name)

    checkpoint = from_archive(tmp_path / "theirs.tar.gz", tmp_path / "box", rootfs=engine.root)
    assert (checkpoint.name, checkpoint.image, checkpoint.engine) == (name, IMAGE, "Podman")
    with Streams.opened() as streams:
        with restored(checkpoint, streams) as pid:
            numbers(streams)
            assert inside(pid, "/etc/motd").read_text() == "changed\n"
            assert not inside(pid, "/etc/gone").exists()
            assert "localhost" in inside(pid, "/etc/hosts").read_text()
            inside(pid, "/etc/here").write_text("of this library\n")
            archive = tmp_path / "ours.tar.gz"
            assert to_archive(
                checkpoint.running(pid), archive, base=engine.root, timeout=TIMEOUT
            ).images == str(archive)
            assert not is_alive(pid)
        second = streams.numbers()[0]
    assert follows(first, second)
    assert not list(tmp_path.glob(".ours*"))

    engine.restored(archive, f"{name}-again")
    third = engine.counts(f"{name}-again")
    assert follows(second, third)
    pid = engine.pid(f"{name}-again")
    assert inside(pid, "/etc/motd").read_text() == "changed\n"
    assert inside(pid, "/etc/here").read_text() == "of this library\n"
    assert not inside(pid, "/etc/gone").exists()


def test_what_podman_runs_is_dumped_here(engine: Podman, tmp_path: Path) -> None:
    """Name and image are taken from Podman's storage; Podman restores it under its name."""
    name = engine.run()
    engine.counts(name)
    archive = tmp_path / "ours.tar.gz"
    to_archive(Container.from_runtime(engine.id(name)), archive, base=engine.root, timeout=TIMEOUT)
    first = engine.numbers(name)
    engine("rm", "--force", name)
    engine("container", "restore", f"--import={archive}")
    assert follows(first, engine.counts(name))
    assert engine("inspect", "--format={{.ImageName}}", name).strip() == IMAGE
    assert inside(engine.pid(name), "/etc/motd").read_text() == "changed\n"


def test_what_runc_runs_goes_to_podman(engine: Podman, tmp_path: Path) -> None:
    """A container that Podman does not know, of an image that it has."""
    (tmp_path / "runc").mkdir()
    with counting(tmp_path / "runc", runtime("runc", tmp_path / "runc")) as box:
        box.run()
        container = Container.from_runtime(box.id, root=box.runtime.state)
        archive = tmp_path / "ours.tar.gz"
        with pytest.raises(OptionError, match="image"):
            to_archive(container, archive, base=engine.root)
        with pytest.raises(OptionError, match="base"):
            to_archive(container, archive, image=IMAGE)
        with pytest.raises(OptionError, match="64 hexadecimal digits"):
            to_archive(container, archive, image=IMAGE, image_id=IMAGE, base=engine.root)
        assert box.runs_on()
        assert not archive.exists()
        image_id = engine("image", "inspect", "--format={{.Id}}", IMAGE).strip()
        to_archive(
            container, archive, image=IMAGE, image_id=image_id, base=engine.root, timeout=TIMEOUT
        )
        stopped_at = box.count
        engine.restored(archive, f"{box.id}-again")
        pid = engine.pid(f"{box.id}-again")
        box.counts_past(stopped_at)
        assert inside(pid, "/etc/motd").read_text() == "from outside\n"


def test_an_overlay_is_compared_with_what_is_below(tmp_path: Path) -> None:
    """If the root is an overlay, the changes of the container are determined without ``base``."""
    with counting(tmp_path, runtime("runc", tmp_path)) as box:
        root, lower = box.bundle / "rootfs", box.bundle / "lower"
        root.rename(lower)
        for place in ("rootfs", "empty", "upper", "work"):
            (box.bundle / place).mkdir()
        places = f"lowerdir={box.bundle / 'empty'}:{lower},upperdir={box.bundle / 'upper'}"
        words = ["mount", "-t", "overlay", "overlay", "-o", f"{places},workdir={box.bundle}/work"]
        done = subprocess.run([*words, root], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
        try:
            config = box.config
            config["root"]["readonly"] = False
            box.config = config
            box.run()
            inside(box.pid, "/bin/mv").unlink()
            inside(box.pid, "/tmp/note").write_text("added")
            container = Container.from_runtime(box.id, root=box.runtime.state)
            to_archive(container, tmp_path / "ours.tar.gz", image=IMAGE)
        finally:
            box.remove()
            subprocess.run(["umount", root], check=True)
    with tarfile.open(tmp_path / "ours.tar.gz") as tar:
        changes = tar.extractfile("rootfs-diff.tar")
        assert changes is not None
        with tarfile.open(fileobj=changes) as inner:
            assert inner.getmember("bin/mv").isreg()  # Podman would delete the link's target
    archive = archive_contents(tmp_path / "ours.tar.gz")
    assert archive.deleted == ("/bin/mv",)
    assert "/tmp/note" in [name for name, _ in archive.changed]
    assert "/bin/mv" not in [name for name, _ in archive.changed]
    assert "/bin/busybox" not in [name for name, _ in archive.changed]


def test_a_dump_that_fails(engine: Podman, tmp_path: Path) -> None:
    """The container continues, and there is no archive."""
    name = engine.run()
    first = engine.counts(name)
    archive = tmp_path / "there" / "ours.tar.gz"
    archive.parent.mkdir()
    container = Container.from_runtime(engine.id(name))
    with pytest.raises(CriuError):
        to_archive(
            container, archive, base=engine.root, ext_mounts=[], external=[], parent_image="no"
        )
    assert list(archive.parent.iterdir()) == []
    eventually(lambda: len(engine.numbers(name)) > len(first), "counting on")


def test_shared_memory_and_volumes(engine: Podman, tmp_path: Path) -> None:
    """The contents of /dev/shm and of a named volume are restored in both directions."""
    # Some programs named sleep end when their wait is interrupted, as it is by a restore.
    command = "echo shared > /dev/shm/note; echo kept > /data/note; while :; do sleep 1; done"
    name = engine.run("--volume=box:/data", command=command)
    note = inside(engine.pid(name), "/data/note")
    eventually(note.exists, "the note")
    archive = tmp_path / "theirs.tar.gz"
    engine.export(name, archive)
    checkpoint = from_archive(archive, tmp_path / "box", rootfs=engine.root)
    with Streams.opened() as streams, restored(checkpoint, streams) as pid:
        assert inside(pid, "/dev/shm/note").read_text() == "shared\n"
        assert inside(pid, "/data/note").read_text() == "kept\n"
        ours = tmp_path / "ours.tar.gz"
        to_archive(checkpoint.running(pid), ours, base=engine.root, timeout=TIMEOUT)
    with tarfile.open(ours) as tar:
        shared = tar.extractfile("devshm-checkpoint.tar")
        assert shared is not None
        with tarfile.open(fileobj=shared) as inner:
            assert "note" in inner.getnames()


def test_a_bind_mount_is_given_by_an_argument(engine: Podman, tmp_path: Path) -> None:
    """A container gets files of this host only by an argument."""
    for place in ("secret", "data"):
        (tmp_path / place).mkdir()
    name = engine.run(f"--volume={tmp_path / 'secret'}:/data")
    engine.counts(name)
    archive = tmp_path / "theirs.tar.gz"
    engine.export(name, archive)
    box = tmp_path / "box"
    with pytest.raises(ImagesError, match=rf"binds=\{{'/data': '{tmp_path / 'secret'}'\}}"):
        from_archive(archive, box, rootfs=engine.root)
    with pytest.raises(OptionError, match="an existing path"):
        from_archive(archive, box, rootfs=engine.root, binds={"/data": tmp_path / "none"})
    with pytest.raises(OptionError, match="/other"):
        from_archive(archive, box, rootfs=engine.root, binds={"/other": tmp_path})
    assert not box.exists()
    assert not list(tmp_path.glob(".box-*"))
    checkpoint = from_archive(archive, box, rootfs=engine.root, binds={"/data": tmp_path / "data"})
    (tmp_path / "data" / "note").write_text("here\n")
    with Streams.opened() as streams, restored(checkpoint, streams) as pid:
        assert inside(pid, "/data/note").read_text() == "here\n"


def test_archives_are_checked(engine: Podman, tmp_path: Path) -> None:
    """``check-images`` reads an archive; mounts of the engine are not reported, one of
    the host is.
    """
    (tmp_path / "data").mkdir()
    for volume in (False, True):
        name = engine.run(*([f"--volume={tmp_path / 'data'}:/data"] if volume else []))
        engine.counts(name)
        archive = tmp_path / f"{name}.tar.gz"
        engine.export(name, archive)
        words = [sys.executable, "-m", "pycriu_native", "check-images", str(archive)]
        words += ["--root", str(engine.root)]
        done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
        result = json.loads(done.stdout)["result"]
        stops = [each for each in result["findings"] if each["severity"] == "stops"]
        assert (result["archive"]["name"], result["archive"]["engine"]) == (name, "Podman")
        if volume:
            assert [each["path"] for each in stops] == ["/data"], stops
            given = ("--external", f"mnt[/data]:{tmp_path / 'data'}")
            done = subprocess.run([*words, *given], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        assert name in text
        assert ("a restore here would fail" in text) is volume


def test_namespaces_of_a_pod(engine: Podman, tmp_path: Path) -> None:
    """Namespaces of a pod have to be named: an existing one, or a new one."""
    name = engine.run()
    engine.counts(name)
    engine.export(name, tmp_path / "theirs.tar.gz", "--compress=gzip")
    archive = tmp_path / "pod.tar.gz"
    as_of_a_pod(tmp_path / "theirs.tar.gz", archive)
    box = tmp_path / "box"
    with pytest.raises(ImagesError, match=r"namespaces=\{'ipc': PATH\}"):
        from_archive(archive, box, rootfs=engine.root)
    with pytest.raises(OptionError, match="network"):
        from_archive(archive, box, rootfs=engine.root, namespaces={"net": None})
    new = {"ipc": None, "uts": None}
    checkpoint = from_archive(archive, box, rootfs=engine.root, namespaces=new)
    assert checkpoint.engine == "CRI-O"
    with Streams.opened() as streams, restored(checkpoint, streams):
        assert numbers(streams)


@pytest.mark.parametrize("form", ["tar", "layout"])
def test_forms_of_an_image(engine: Podman, tmp_path: Path, form: str) -> None:
    """The root file system is a tar archive, or an OCI layout, as well as a directory."""
    name = engine.run()
    engine.counts(name)
    archive = tmp_path / "theirs.tar.gz"
    engine.export(name, archive)
    rootfs = tmp_path / "image.tar"
    if form == "layout":
        rootfs = tmp_path / "layout"
        engine("save", "--format=oci-dir", f"--output={rootfs}", IMAGE)
    checkpoint = from_archive(archive, tmp_path / "box", rootfs=rootfs)
    with Streams.opened() as streams, restored(checkpoint, streams) as pid:
        assert numbers(streams)
        assert inside(pid, "/etc/motd").read_text() == "changed\n"


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    """An archive without a container is refused, and no file remains."""
    (tmp_path / "inventory.img").write_text("x")
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "plain.tar"), "inventory.img"],
        check=True,
    )
    (tmp_path / "root").mkdir()
    with pytest.raises(ImagesError, match=r"it has no spec\.dump"):
        from_archive(tmp_path / "plain.tar", tmp_path / "box", rootfs=tmp_path / "root")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "inventory.img").write_text("x")
    (tmp_path / "spec.dump").write_text(json.dumps({"root": 1}))
    words = ["spec.dump", "checkpoint"]
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "odd.tar"), *words], check=True
    )
    with pytest.raises(ImagesError, match=r"spec\.dump is not the specification"):
        from_archive(tmp_path / "odd.tar", tmp_path / "box", rootfs=tmp_path / "root")
    with pytest.raises(OptionError, match="rootfs"):
        from_archive(tmp_path / "odd.tar", tmp_path / "box", rootfs=tmp_path / "none")
    assert not (tmp_path / "box").exists()
    assert not list(tmp_path.glob(".box-*"))

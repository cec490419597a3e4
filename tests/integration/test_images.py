"""``inspect``: its result agrees with the process itself and with /proc."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, ImagesError, dump
from pycriu_native.images import (
    ImageSet,
    InetSocket,
    MemoryMapping,
    Pipe,
    Process,
    RegularFile,
    Terminal,
    UnixSocket,
    VmaKind,
    check_images,
    decode,
    diff,
    encode,
    inspect,
    render_diff,
    render_files,
    render_memory,
    render_processes,
    render_summary,
    render_tree,
)

from .conftest import Spawn
from .support import releases
from .support.sample_images import SampleImages, contained


@pytest.fixture
def found(sample: SampleImages) -> ImageSet:
    """The image set of the process."""
    return inspect(sample.images)


@pytest.fixture
def root(sample: SampleImages, found: ImageSet) -> Process:
    """The root process."""
    return found.process(sample.pid)


def _file(sample: SampleImages, found: ImageSet, root: Process, name: str) -> object:
    number = sample.facts["fds"][name]
    descriptor = next(each for each in root.descriptors if each.fd == number)
    return found.file(descriptor.file)


def test_the_process_tree(sample: SampleImages, found: ImageSet, root: Process) -> None:
    """All processes with parents and states, threads and command lines."""
    assert {each.pid for each in found.processes} == set(sample.facts["tree"])
    assert found.root is root or found.root == root
    assert list(root.command or ()) == sample.facts["cmdline"]
    assert "PATH=" in " ".join(root.environment or ())
    assert (root.name, root.umask) == ("sample", 0o027)
    assert [each.name for each in root.threads] == sample.facts["threads"]
    assert len(root.threads) == 4
    assert root.threads[0].tid == sample.pid
    assert found.process(sample.facts["stopped"]).state == "stopped"
    zombie = found.process(sample.facts["zombie"])
    assert (zombie.state, zombie.exit_code, zombie.mappings, zombie.threads) == (
        "zombie",
        3 << 8,
        (),
        (),
    )
    child = found.process(sample.facts["child"])
    assert len(child.children) == 1
    depths = {each.pid: depth for depth, each in found.tree()}
    assert depths[sample.pid] == 0
    assert depths[child.children[0]] == 2
    with pytest.raises(ImagesError, match="pid=1: not in"):
        found.process(1)


def test_the_process_itself(root: Process) -> None:
    """Limits, timers, signals, credentials."""
    assert root.limits["sigpending"] == (1000, 2000)
    kinds = {each.kind: each for each in root.timers}
    assert 4900 < kinds["real"].value <= 5000
    assert kinds["real"].interval == 60
    assert 2900 < kinds["timerfd"].value <= 3000
    assert kinds["timerfd"].interval == 7
    assert root.credentials is not None
    assert root.credentials.uid == os.getuid()
    status = Path("/proc/self/status").read_text()
    effective = int(re.findall(r"CapEff:\s*(\w+)", status)[0], 16)
    assert len(root.credentials.effective) == effective.bit_count()
    assert ("cap_sys_admin" in root.credentials.effective) == bool(effective >> 21 & 1)
    assert root.architecture == {"x86_64": "X86_64"}.get(os.uname().machine, root.architecture)


def test_files_pipes_and_sockets(sample: SampleImages, found: ImageSet, root: Process) -> None:
    """Each descriptor, with position, queue, address and state."""
    log = _file(sample, found, root, "log")
    assert isinstance(log, RegularFile)
    assert (log.path, log.position, log.size) == (str(sample.home / "log"), 321, 1000)
    ghost = _file(sample, found, root, "ghost")
    assert isinstance(ghost, RegularFile)
    assert (ghost.deleted, ghost.ghost_size) == ("ghost", 7000)
    holes = _file(sample, found, root, "holes")
    assert isinstance(holes, RegularFile)
    assert holes.ghost_size is not None
    assert holes.ghost_size < 1 << 17  # of 256 KiB, nearly all of which is a hole
    odd = _file(sample, found, root, "odd")
    assert isinstance(odd, RegularFile)
    assert os.fsencode(odd.path).endswith(b"/\xff\xfename")
    reader, writer = (_file(sample, found, root, name) for name in ("reader", "writer"))
    assert isinstance(reader, Pipe)
    assert isinstance(writer, Pipe)
    assert reader.pipe == writer.pipe
    assert reader.queued == len("still in the pipe")
    fifo = _file(sample, found, root, "fifo")
    assert isinstance(fifo, Pipe)
    assert (fifo.path, fifo.queued) == (str(sample.home / "fifo"), 11)

    server = _file(sample, found, root, "server")
    assert isinstance(server, InetSocket)
    assert server.local == f"127.0.0.1:{sample.facts['server']}"
    assert (server.state, server.backlog, server.remote) == ("LISTEN", 7, None)
    accepted = _file(sample, found, root, "accepted")
    assert isinstance(accepted, InetSocket)
    assert accepted.remote == f"127.0.0.1:{sample.facts['client']}"
    assert (accepted.state, accepted.received) == ("ESTABLISHED", len("unread bytes"))
    assert accepted.connected
    server6 = _file(sample, found, root, "server6")
    assert isinstance(server6, InetSocket)
    assert server6.local.startswith("[::1]:")
    udp = _file(sample, found, root, "udp")
    assert isinstance(udp, InetSocket)
    assert (udp.protocol, udp.kind) == ("UDP", "DGRAM")
    one, two = (_file(sample, found, root, name) for name in ("one", "two"))
    assert isinstance(one, UnixSocket)
    assert isinstance(two, UnixSocket)
    assert (one.peer, two.peer) == (two.inode, one.inode)
    assert two.queued == len("through a pair")
    named, abstract = (_file(sample, found, root, name) for name in ("named", "abstract"))
    assert isinstance(named, UnixSocket)
    assert isinstance(abstract, UnixSocket)
    assert (named.name, named.state) == (str(sample.home / "named"), "LISTEN")
    assert re.fullmatch("@sample-[0-9a-f]{8}", abstract.name)
    assert isinstance(_file(sample, found, root, "slave"), Terminal)
    assert {each.kind for each in found.locks} == {"posix", "flock"}
    posix = next(each for each in found.locks if each.kind == "posix")
    assert (posix.start, posix.length) == (5, 10)


def test_memory_by_mapping_and_kind(sample: SampleImages, root: Process) -> None:
    """The mappings are those of /proc/PID/maps, and each page is counted once."""
    # CRIU leaves out or merges mappings of the kernel.
    ours = [
        f"{each.start:08x}-{each.end:08x} {each.protection}"
        for each in root.mappings
        if each.kind is not VmaKind.VDSO
    ]
    theirs = sample.facts["maps"]
    assert set(ours) <= set(theirs)
    assert {tuple(each) for each in sample.facts["guards"]} <= set(root.guard_regions)
    assert len(ours) > len(theirs) - 6
    kinds = root.memory_by_kind
    assert {"file", "anonymous", "shared", "shared file", "heap", "stack", "vdso"} <= kinds.keys()
    untouched = _largest(root, VmaKind.ANONYMOUS)
    assert untouched.zero > 0
    for each in root.mappings:
        assert each.stored + each.in_parent + each.lazy + each.zero <= each.size


GUARDED = """
    import ctypes, mmap, os
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[8 * mmap.PAGESIZE:][:5]
    memory[8 * mmap.PAGESIZE] = 7
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    failed = libc.madvise(ctypes.c_void_p(at + mmap.PAGESIZE), mmap.PAGESIZE, 102)
    serve(at=lambda: None if failed else at)
"""


def test_guard_regions(spawn: Spawn, images: Path) -> None:
    """Guard pages inside of a mapping are not separate mappings."""
    releases.required("4.2", "guard regions")
    target = spawn(GUARDED)
    at = target.ask("at")
    if at is None:
        pytest.skip("this kernel has no guard regions (Linux 6.13)")
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    root = inspect(images).process(target.pid)
    starts, ends = zip(*((each.start, each.end) for each in root.mappings), strict=True)
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    page = root.page_size
    assert root.memory.read(at + 8 * page, 2) == b"\x07\x00"


def _largest(root: Process, kind: VmaKind) -> MemoryMapping:
    return max((each for each in root.mappings if each.kind is kind), key=lambda each: each.size)


def test_memory_is_read_and_searched(sample: SampleImages, root: Process) -> None:
    """Private, shared, written and untouched memory; an address that is not mapped is an error."""
    memory = root.memory
    assert memory.read(sample.facts["secret"], 11) == b"the-secret-"
    assert sample.facts["secret"] in set(memory.find(b"the-secret-\x00\x01\x02"))
    expression = re.compile(rb"shared-[a-z]+")
    places = [
        each
        for each in memory.search(expression, kinds=[VmaKind.SHARED])
        if each.data == b"shared-secret"
    ]
    assert len(places) == 1
    assert places[0].address == places[0].mapping.start + 100_000
    assert memory.read(places[0].address - 5, 18) == b"\0" * 5 + b"shared-secret"
    changed = next(memory.search(b"not on disk!", kinds=["file"]))
    assert changed.mapping.path == str(sample.home / "mapped")
    assert next(memory.search(b"in the memfd", kinds=["shared"])).mapping.path is not None
    with pytest.raises(ImagesError, match=r"are not in the images: .*mapped, offset 0"):
        memory.read(changed.mapping.start, 4)
    with pytest.raises(ImagesError, match="is not mapped in process"):
        memory.read(0x1000, 1)
    with pytest.raises(ValueError, match="size=-1"):
        memory.read(0, -1)
    with pytest.raises(ValueError, match=r"kinds=\['none'\]: the values of VmaKind"):
        memory.search(b"x", kinds=["none", "heap"])
    assert memory.read(sample.facts["secret"], 0) == b""
    with pytest.raises(ImagesError, match="has no memory"):
        _ = inspect(sample.images).process(sample.facts["zombie"]).memory


def test_the_set_as_a_whole(found: ImageSet, sample: SampleImages) -> None:
    """The set is complete, with sizes, statistics and CRIU's release, and can be
    converted to JSON.
    """
    assert found.complete, found.problems
    assert (found.kind, found.version, found.parents) == ("dump", 2, ())
    assert found.kernel == os.uname().release
    assert found.criu is not None
    assert found.statistics is not None
    stored = found.size_by_category["memory"]
    assert stored == mmap.PAGESIZE * (
        found.statistics.pages_written + (found.statistics.shpages_written or 0)
    )
    assert found.size == sum(path.stat().st_size for path in sample.images.iterdir())
    message = json.loads(json.dumps(found.to_dict()))
    assert message["complete"] is True
    assert message["processes"][0]["command"] == sample.facts["cmdline"]
    assert message["processes"][0]["memory_by_kind"]["heap"]["stored"] > 0
    assert "source" not in message["processes"][0]


def test_what_changed(sample: SampleImages, root: Process) -> None:
    """The differences between two dumps of a process: files, threads and memory."""
    found = diff(sample.images, sample.changed)
    assert found
    assert (found.added, found.removed) == ((), ())
    change = next(each for each in found.processes if each.pid == sample.pid)
    assert len(change.threads_removed) == 3
    fds = {each.fd: each for each in change.descriptors}
    numbers = sample.facts["fds"]
    position = {each.name: each for each in fds[numbers["log"]].changes}["position"]
    assert (position.before, position.after) == (321, 11)
    queued = {each.name: each for each in fds[numbers["reader"]].changes}["queued"]
    assert (queued.before, queued.after) == (17, 12)
    assert fds[numbers["event"]].after is None or "log" in str(fds[numbers["event"]].after)
    assert numbers["client"] not in fds
    secret = next(each for each in change.pages if each.start <= sample.facts["secret"] < each.end)
    assert secret.changed >= 1
    assert found.pages_changed >= 1
    assert found.pages_same > 1000
    assert json.loads(json.dumps(found.to_dict()))["pages_changed"] == found.pages_changed
    text = render_diff(found)
    assert f"process {sample.pid} (sample)" in text
    assert max(map(len, text.splitlines())) < 300
    assert not diff(sample.images, sample.images)
    assert not diff(sample.images, sample.changed, memory=False).pages_changed
    back = diff(sample.changed, sample.images)
    assert (back.pages_changed, back.pages_added, back.pages_removed) == (
        found.pages_changed,
        found.pages_removed,
        found.pages_added,
    )


def test_a_changed_entry_of_a_table(sample: SampleImages, found: ImageSet, root: Process) -> None:
    """Only the changed entry is printed, not the whole table."""
    limits = {**root.limits, "core": (1, 2)}
    changed = replace(root, limits=limits, timers=root.timers[1:])
    processes = tuple(changed if each is root else each for each in found.processes)
    lines = render_diff(diff(found, replace(found, processes=processes))).splitlines()
    assert f"  limits.core: {root.limits['core']} -> (1, 2)" in lines
    assert [line.startswith("  timers: Timer(") for line in lines].count(True) == 1
    assert not any("sigpending" in line for line in lines)


def test_a_pre_dump(sample: SampleImages, tmp_path: Path) -> None:
    """A pre-dump has only memory, which is searched, compared and drawn."""
    for name, source in (("1", sample.images), ("2", sample.changed)):
        (tmp_path / name).mkdir()
        for path in (*source.glob("pagemap-*"), *source.glob("pages-*")):
            os.link(path, tmp_path / name / path.name)
        described = decode(source / "inventory.img")
        described["entries"][0] = {"img_version": 0, "fdinfo_per_id": True}
        (tmp_path / name / "inventory.img").write_bytes(encode(described))
    first, second = inspect(tmp_path / "1"), inspect(tmp_path / "2")
    assert (first.kind, first.complete, first.problems) == ("pre-dump", True, ())
    process = first.process(sample.pid)
    assert sample.facts["secret"] in process.memory.find(b"the-secret-")
    assert process.memory.read(sample.facts["secret"], 11) == b"the-secret-"
    found = diff(first, second)
    assert found.pages_changed >= 1
    assert diff(first, inspect(sample.images)).pages_changed == 0
    assert "memory:" in render_diff(found)
    assert "other" in render_memory(process)
    messages = [each.message for each in check_images(first)]
    assert any("a pre-dump has memory only" in each for each in messages)
    assert not any("version" in each for each in messages)
    if find_spec("matplotlib") is None:
        pytest.skip("pictures need matplotlib")
    command = [sys.executable, "-m", "pycriu_native", "plot", "memory", first.directory]
    subprocess.run([*command, tmp_path / "x.svg"], check=True)


def test_a_picture_of_memory_that_is_only_reserved(spawn: Spawn, tmp_path: Path) -> None:
    """Address space that was never written to does not make the bars of memory invisible."""
    if find_spec("matplotlib") is None:
        pytest.skip("pictures need matplotlib")
    target = spawn("""
        import mmap
        NORESERVE = 0x4000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        reserved = mmap.mmap(-1, 64 << 30, flags=flags)
        reserved[0] = 1
        serve()
    """)
    dump(target.pid, CriuOpts(images_directory=tmp_path / "images", leave_running=True))
    # In another process: matplotlib keeps files of fonts open.
    command = [sys.executable, "-m", "pycriu_native", "plot", "memory"]
    subprocess.run([*command, tmp_path / "images", tmp_path / "x.svg"], check=True)
    text = (tmp_path / "x.svg").read_text()
    assert "MiB and 64.0 GiB of zeros" in text
    assert "by kind, MiB" in text


def test_the_text_of_an_image_set(sample: SampleImages, found: ImageSet, root: Process) -> None:
    """The text has all parts, with control characters escaped."""
    tree = render_tree(found)
    assert "sample" in tree
    assert f"127.0.0.1:{sample.facts['server']} LISTEN" in tree
    assert "\\xff\\xfename" in tree
    assert str(sample.facts["zombie"]) in render_processes(found)
    assert "shared-secret" not in tree
    assert {"posix", "flock"} == {
        line.split()[1] for line in tree.splitlines() if line.startswith("lock ")
    }
    assert "memfd" in render_files(found, root)
    assert "[" not in render_memory(root).splitlines()[0]
    assert render_summary(found).endswith("complete")
    for text in (tree, render_processes(found), render_files(found, root), render_memory(root)):
        assert all(each.isprintable() or each == "\n" for each in text)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Images of a container."""
    with contained(tmp_path / "container") as found:
        yield found


def test_a_container(inside: tuple[Path, int]) -> None:
    """Namespaces, mounts, devices, and System V memory."""
    found = inspect(inside[0])
    assert found.complete, found.problems
    own = {each.kind for each in found.namespaces if not each.host}
    assert {"mnt", "pid", "net", "ipc", "uts"} <= own
    shown = render_tree(found).splitlines()
    assert {line.split()[1] for line in shown if line.startswith("namespace ")} == own
    mounts = {each.point: each for each in found.mounts}
    assert mounts["/scratch"].type == "tmpfs"
    assert mounts["/usr"].external == "usr"
    assert mounts["/scratch"].external is None
    assert [each.name for each in found.devices] == ["lo"]
    uts = next(each for each in found.namespaces if each.kind == "uts")
    assert uts.details["nodename"] == os.uname().nodename
    process = found.process(1)
    assert process.memory.read(inside[1], 14) == b"in the segment"
    assert process.memory.read(inside[1] + 9000, 4) == bytes(4)

"""Copies of a snapshot share its memory, and each has the same contents as after a
plain restore.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import CriuError, ImagesError, OptionError, ProgramError, Worker, WorkerPool
from pycriu_native._transport.lifetime_sockets import LifetimeSockets
from pycriu_native._transport.program import find_program
from pycriu_native._transport.spawn import RESTORING
from pycriu_native.images import decode, encode
from pycriu_native.snapshots import SharedTemplate, Snapshot, prepare
from pycriu_native.snapshots.sharing import CHANGED, FIRST, SHARED
from pycriu_native.snapshots.template import MARK, NAME

from .support.copies import NO_RSEQ, Saved, copy, mappings_of, memory_of, save
from .support.processes import PATIENCE, children, eventually, is_alive, tree
from .test_snapshots_kills import settled

PROGRAMS = Path(__file__).parent / "programs"

ALLOCATORS = {
    "glibc": ("", {}),
    "jemalloc": ("libjemalloc.so.2", {}),
    "jemalloc-decay": ("libjemalloc.so.2", {"MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}),
    "mimalloc": ("libmimalloc.so.2", {}),
    "tcmalloc": ("libtcmalloc_minimal.so.4", {}),
}
"""The library of each allocator (Debian: libjemalloc2, libmimalloc2.0, libtcmalloc-minimal4)."""

PYTHON = """
import hashlib, os, sys, threading, time
try:
    import numpy
except ImportError:
    numpy = None
blocks = [bytes([number % 256]) * (number % 9000) for number in range(6000)]
large = bytearray(os.urandom(4096)) * 2000
table = None if numpy is None else numpy.arange(2_000_000, dtype="u8")
def hash_all(text=""):
    found = hashlib.blake2b(b"".join(blocks) + large)
    if table is not None:
        found.update(table.data)
    return found.hexdigest()
children = []
def family():
    reader, writer = os.pipe()
    for number in range(2):
        pid = os.fork()
        if not pid:
            large[number] ^= 255
            extra = bytearray([number + 1]) * 3_000_000
            if not number and not os.fork():
                large[-1] ^= 255
            os.close(reader)
            os.write(writer, b".")
            os.close(writer)
            while True:
                time.sleep(1000)
        children.append(pid)
    for _ in range(3):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
def churn():
    global large, blocks, table
    for number in range(20):
        large.extend(bytes(500_000))
        blocks = [each + b"x" for each in blocks]
        if table is not None:
            table = numpy.concatenate([table, table[:100_000]]) * 2 // 2
            table.resize(table.size + 50_000, refcheck=False)
    return str(len(large) == 4096 * 2000 + 10_000_000 and not any(large[-10_000_000:]))
for _ in range(2):
    threading.Thread(target=time.sleep, args=[100000], daemon=True).start()
if "family" in sys.argv:
    family()
print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


def _library(name: str) -> str:
    """The path of a library; skips if it is not installed."""
    for directory in ("/usr/lib", "/usr/lib64", f"/usr/lib/{os.uname().machine}-linux-gnu"):
        if (path := Path(directory, name)).exists():
            return str(path)
    pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def churning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program memory_churn.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    result = tmp_path_factory.mktemp("program") / "memory_churn"
    source = PROGRAMS / "memory_churn.c"
    subprocess.run([compiler, "-O1", "-pthread", "-o", result, source], check=True)
    return result


@pytest.fixture
def python(tmp_path: Path) -> Saved:
    """A saved Python with threads, and numpy if that is installed."""
    return save([sys.executable, "-c", PYTHON], tmp_path / "images")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Callable[[Saved], SharedTemplate]]:
    """Prepares images, and opens the template."""
    with contextlib.ExitStack() as stack:

        def make(saved: Saved) -> SharedTemplate:
            prepare(saved.images, tmp_path / "shared")
            return stack.enter_context(SharedTemplate(tmp_path / "shared"))

        yield make


# ---- the memory of copies ----


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_memory_of_each_kind(
    churning: Path, tmp_path: Path, shared: Callable[[Saved], SharedTemplate], allocator: str
) -> None:
    """Shared memory has the contents of a plain restore, and two copies change it independently."""
    name, variables = ALLOCATORS[allocator]
    env = {**variables, "LD_PRELOAD": _library(name)} if name else variables
    saved = save([str(churning)], tmp_path / "images", env=env)
    via = shared(saved)
    with (
        copy(saved, via.directory, via) as first,
        copy(saved, via.directory, via) as second,
    ):
        assert first.ask("check") == "ok"
        assert first.ask("churn") == "ok"
        assert first.ask("refill") == "ok"
        assert first.ask("churn") == "ok"
        assert second.ask("check") == "ok"
        assert first.ask("mappings") == "ok"
        assert second.ask("mappings") == "ok"
        assert second.ask("refill") == "ok"
        assert second.ask("churn") == "ok"
    with copy(saved, via.directory, via) as third:
        assert third.ask("check") == "ok"


def test_every_byte(
    churning: Path, tmp_path: Path, shared: Callable[[Saved], SharedTemplate]
) -> None:
    """The mappings, their protection and contents equal those of a plain restore."""
    saved = save([str(churning)], tmp_path / "images")
    _compare(saved, shared(saved))


def test_every_byte_of_several_processes(
    tmp_path: Path, shared: Callable[[Saved], SharedTemplate]
) -> None:
    """Each of several processes, forked from each other, has its own contents."""
    saved = save([sys.executable, "-c", PYTHON, "family"], tmp_path / "images")
    assert len(list(saved.images.glob("mm-*.img"))) == 4
    _compare(saved, shared(saved))


def _compare(saved: Saved, via: SharedTemplate) -> None:
    """Compare the processes of both copies when they wait again, as when they were saved."""
    with copy(saved) as plain, copy(saved, via.directory, via) as ours:
        for expected, pid in zip(tree(plain.pid), tree(ours.pid), strict=True):
            assert mappings_of(pid) == mappings_of(expected)
            equal = functools.partial(_are_equal, pid, expected)
            eventually(equal, f"equal memory of {pid} and {expected}")


def _are_equal(pid: int, other: int) -> bool:
    return memory_of(pid) == memory_of(other)


def test_python(python: Saved, shared: Callable[[Saved], SharedTemplate]) -> None:
    """Two copies of Python change their objects independently, with little private memory."""
    via = shared(python)
    with copy(python) as plain:
        expected = plain.ask("hash_all()")
    with (
        copy(python, via.directory, via) as first,
        copy(python, via.directory, via) as second,
    ):
        own = _private(first.pid)
        assert own < 4 * 2**20 < _stored(via.directory)
        assert first.ask("churn()") == "True"
        assert second.ask("hash_all()") == expected
        assert first.ask("hash_all()") != expected
    with copy(python, via.directory, via) as third:
        assert third.ask("hash_all()") == expected


def _private(pid: int) -> int:
    """Bytes of private anonymous memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    numbers = {words[0]: int(words[1]) for words in map(str.split, lines[1:])}
    return 1024 * numbers["Private_Dirty:"]


def _stored(directory: Path) -> int:
    stored: int = json.loads((directory / NAME).read_text())["stored"]
    return stored


def _tool(name: str) -> str:
    """The path of a program; skips if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_node(tmp_path: Path, shared: Callable[[Saved], SharedTemplate]) -> None:
    """The heap of V8, with forced garbage collections; its code is in read-only mappings."""
    program = [_tool("node"), "--expose-gc", str(PROGRAMS / "memory_churn.js")]
    _check_runtime(save(program, tmp_path / "images"), shared)


def test_go(tmp_path: Path, shared: Callable[[Saved], SharedTemplate]) -> None:
    """The heap of Go, collected and returned to the system, by several threads."""
    program = tmp_path / "churn"
    env = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    source = PROGRAMS / "memory_churn.go"
    subprocess.run([_tool("go"), "build", "-o", program, source], check=True, env=env)
    _check_runtime(save([str(program)], tmp_path / "images"), shared)


def test_redis(tmp_path: Path, shared: Callable[[Saved], SharedTemplate]) -> None:
    """A server with jemalloc (of Debian) and its client: the digest of all data is the same."""
    program = [sys.executable, str(PROGRAMS / "redis_churn.py"), _tool("redis-server")]
    saved = save([*program, str(tmp_path / "socket")], tmp_path / "images")
    assert len(list(saved.images.glob("mm-*.img"))) == 2
    _check_runtime(saved, shared)


TORCH = """
import sys
import torch
torch.manual_seed(1)
model = torch.nn.Sequential(*[torch.nn.Linear(400, 400) for _ in range(8)])
data = torch.rand(500, 400)
def check():
    with torch.no_grad():
        return float(model(data).double().sum())
def churn():
    before = check()
    kept = [each.detach().clone() for each in model.parameters()]
    for _ in range(5):
        model(data).sum().backward()
        with torch.no_grad():
            for each in model.parameters():
                each -= 0.1 * each.grad
        model.zero_grad()
        if torch.zeros(3000, 1000).any():
            return "new memory is not zero"
    with torch.no_grad():
        for each, value in zip(model.parameters(), kept):
            each.copy_(value)
    return "same" if check() == before else "the result has changed"
check()
print("ready", flush=True)
for line in sys.stdin:
    print(churn() if line == "churn\\n" else check(), flush=True)
"""


def test_torch(tmp_path: Path, shared: Callable[[Saved], SharedTemplate]) -> None:
    """A model of PyTorch on the processor, with its threads: it is trained, and unchanged in
    another copy.
    """
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    _check_runtime(save([sys.executable, "-c", TORCH], tmp_path / "images"), shared)


@pytest.mark.parametrize("collector", ["G1", "Serial", "Parallel", "Shenandoah", "Z"])
def test_java(tmp_path: Path, shared: Callable[[Saved], SharedTemplate], collector: str) -> None:
    """The heap of each collector. That of ZGC is a memfd, which is not shared."""
    subprocess.run([_tool("javac"), "-d", tmp_path, PROGRAMS / "MemoryChurn.java"], check=True)
    options = [f"-XX:+Use{collector}GC", "-Xmx256m", "-XX:-UsePerfData"]
    java = [_tool("java"), *options]
    if subprocess.run([*java, "-version"], capture_output=True, check=False).returncode:
        pytest.skip(f"this java has no {collector} collector")
    program = [*java, "-cp", str(tmp_path), "MemoryChurn"]
    _check_runtime(save(program, tmp_path / "images"), shared)


def _check_runtime(saved: Saved, shared: Callable[[Saved], SharedTemplate]) -> None:
    via = shared(saved)
    with copy(saved) as plain:
        expected = plain.ask("check")
    with (
        copy(saved, via.directory, via) as first,
        copy(saved, via.directory, via) as second,
    ):
        assert first.ask("churn") == "same"
        assert second.ask("check") == expected
        assert second.ask("churn") == "same"
        assert first.ask("check") == expected


# ---- the fork server ----


def test_copies_outlive_the_fork_server(
    python: Saved, shared: Callable[[Saved], SharedTemplate]
) -> None:
    """Copies continue after the fork server was killed or closed; the next start uses a new one."""
    before = children()  # earlier tests can have started fork servers
    via = shared(python)
    with copy(python, via.directory, via) as first:
        expected = first.ask("hash_all()")
        killed = via.pid
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: not is_alive(killed), "its end")
        assert first.ask("hash_all()") == expected
        with copy(python, via.directory, via) as second:
            assert via.pid != killed
            assert second.ask("hash_all()") == expected
        via.close()
        eventually(lambda: children() <= {*before, first.pid}, "the end of the others")
        assert first.ask("hash_all()") == expected
        with pytest.raises(ValueError, match="closed"):
            copy(python, via.directory, via).__enter__()


@pytest.mark.cures("template-missing")
def test_without_the_template(python: Saved, tmp_path: Path) -> None:
    """CRIU alone, or with another template, refuses the images before a process runs."""
    prepare(python.images, tmp_path / "shared")
    prepare(python.images, tmp_path / "other")
    before = children()
    with SharedTemplate(tmp_path / "other") as other:
        for via in (Worker(), other):
            with pytest.raises(ImagesError, match="share memory with a template"):
                copy(python, tmp_path / "shared", via).__enter__()
            assert children() - {other.pid} <= before
        with copy(python, tmp_path / "other", other) as each:
            assert each.ask("1 + 1") == "2"


def test_a_mapping_that_is_mapped_late(python: Saved, tmp_path: Path) -> None:
    """The kernel refuses a marked mapping that CRIU does not map in its own process."""
    prepare(python.images, tmp_path / "shared")
    (path,) = (tmp_path / "shared").glob("mm-*.img")
    image = decode(path)
    for vma in image["entries"][0]["vmas"]:
        if vma["pgoff"] & MARK:
            vma["flags"] &= ~0x100  # MAP_GROWSDOWN
    path.write_bytes(encode(image))
    with SharedTemplate(tmp_path / "shared") as via, pytest.raises(CriuError) as caught:
        copy(python, tmp_path / "shared", via).__enter__()
    assert "Can't restore" in str(caught.value)


def test_an_incomplete_template(python: Saved, tmp_path: Path) -> None:
    """The call is refused before a worker starts."""
    directory = tmp_path / "shared"
    before = children()

    def refused(why: str) -> None:
        with pytest.raises(ImagesError, match=why):
            SharedTemplate(directory)
        assert children() <= before

    refused("is not an image set with a template")
    prepare(python.images, directory)
    (pages,) = directory.glob("*.pages")
    whole = pages.read_bytes()
    pages.unlink()
    refused("cannot be opened")
    pages.write_bytes(whole[:-4096])
    refused("bytes")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    pages.write_bytes(changed)
    refused("has changed")
    pages.write_bytes(whole)
    SharedTemplate(directory).close()
    description = (directory / NAME).read_text()
    (directory / NAME).write_text(description[:-10])
    refused("is damaged")
    (directory / NAME).write_text(description.replace('"size": ', '"size": 1', 1))
    refused("is damaged")


def test_where_criu_cannot_be_preloaded(
    python: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a library cannot be preloaded into CRIU, the error has the reason."""
    prepare(python.images, tmp_path / "shared")
    program = tmp_path / "criu"
    shutil.copy(find_program(), program)
    program.chmod(0o4755)
    with pytest.raises(ProgramError, match="is setuid or setgid"):
        SharedTemplate(tmp_path / "shared", worker=Worker(program=program, allow_untrusted=True))
    worker = Worker(env={"LD_PRELOAD": "/none"})
    with pytest.raises(ProgramError, match="LD_PRELOAD is set"):
        SharedTemplate(tmp_path / "shared", worker=worker)


def test_a_worker_ends_with_its_caller(
    python: Saved, shared: Callable[[Saved], SharedTemplate]
) -> None:
    """A worker ends with the sockets of its caller, also while CRIU waits for a killed copy."""
    via = shared(python)
    with LifetimeSockets() as sockets:
        connection = via.connect(sockets.ends, RESTORING)
        eventually(lambda: os.getpgid(connection.pid) == connection.pid, "its process group")
        sockets.bind(connection.pid)
        sockets.close()
        assert connection.has_ended(PATIENCE)
        connection.wait()
        assert connection.status == -signal.SIGKILL


# ---- prepare ----


def test_images_that_cannot_be_prepared(python: Saved, tmp_path: Path) -> None:
    """If the images cannot be prepared, no file of the attempt remains."""
    target = tmp_path / "shared"

    def refused(why: str, smallest: int = 65536) -> None:
        with pytest.raises(ImagesError, match=why):
            prepare(python.images, target, smallest=smallest)
        assert not target.exists()

    refused("no memory can be shared", smallest=2**40)
    pages = max(python.images.glob("pages-*.img"), key=lambda file: file.stat().st_size)
    os.truncate(pages, pages.stat().st_size - 4096)
    refused("too short")
    pages.unlink()
    refused("No such file")
    target.mkdir()
    (target / "file").touch()
    with pytest.raises(ImagesError, match="it is not empty"):
        prepare(python.images, target)
    assert [each.name for each in target.iterdir()] == ["file"]


def test_the_images_of_the_dump_may_go(
    python: Saved, shared: Callable[[Saved], SharedTemplate]
) -> None:
    """The prepared set is complete without the images of the dump."""
    via = shared(python)
    with copy(python) as plain:
        expected = plain.ask("hash_all()")
    shutil.rmtree(python.images)
    with copy(python, via.directory, via) as each:
        assert each.ask("hash_all()") == expected


# ---- snapshots ----


PROGRAM = [sys.executable, str(PROGRAMS / "guest_server.py"), "saved"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAMS.parents[2])}


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[Snapshot]:
    """A snapshot of guest_server.py."""
    with Snapshot.take(PROGRAM, tmp_path / "server", env=ENVIRONMENT) as result:
        yield result


def reason(snapshot: Snapshot, **options: Any) -> str | None:
    """Start one more copy, which responds; returns why it does not share memory."""
    with snapshot.start(stdin=PIPE, stdout=PIPE, text=True, **options) as process:
        answer, _ = process.communicate('["identity"]\n', timeout=PATIENCE)
        assert json.loads(answer)[0] == process.number
    assert process.returncode == 0
    return process.unshared_reason


def test_memory_is_shared_by_default(churning: Path, tmp_path: Path) -> None:
    """From the second copy on, copies share memory by default; ``close`` ends the template."""
    before = children()
    with subprocess.Popen(
        [str(churning)],
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=NO_RSEQ,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        snapshot = Snapshot.take(program, tmp_path / "snapshot", without_guest=True)
    with snapshot, contextlib.ExitStack() as stack:
        copies = []
        for _ in range(3):
            copies.append(stack.enter_context(snapshot.start(stdin=PIPE, stdout=PIPE)))
        reasons = [each.unshared_reason for each in copies]
        if (lacks := str(reasons[1])).endswith("are available"):
            pytest.skip(f"the machine has too little memory: {lacks}")
        assert reasons == [FIRST, None, None]
        plain, *shared = [(mappings_of(each.pid), memory_of(each.pid)) for each in copies]
        for mappings, memory in shared:
            assert mappings == plain[0]
            assert not memory ^ plain[1]
        assert copies[1].communicate(b"check\nchurn\ncheck\n")[0].split()[:2] == [b"ok", b"ok"]
        assert copies[2].communicate(b"check\n")[0] == b"ok\n"
        copies[0].kill()
    assert children() <= before


def test_sharing_is_chosen(snapshot: Snapshot) -> None:
    """Sharing can begin at once or never, and not with a pool; a closed snapshot starts again."""
    assert reason(snapshot, share_memory=True) is None
    assert reason(snapshot) is None
    assert reason(snapshot, via=Worker()) is None
    assert reason(snapshot, share_memory=False) == "share_memory=False"
    assert reason(snapshot, via=Worker(env={"OTHER": "1"})) == FIRST
    snapshot.close()
    assert reason(snapshot) == FIRST
    with WorkerPool(1) as pool:
        assert "not a Worker" in str(reason(snapshot, via=pool))
        with pytest.raises(OptionError, match="a Worker without stdin"):
            snapshot.start(share_memory=True, via=pool)
    with snapshot.share() as template, pytest.raises(OptionError, match="is a SharedTemplate"):
        snapshot.start(share_memory=False, via=template)
    with pytest.raises(OptionError, match="None, True or False"):
        snapshot.start(share_memory=1)  # type: ignore[arg-type]


def test_a_worker_that_cannot_share(snapshot: Snapshot) -> None:
    """It is refused before the images with the template are written."""
    shutil.rmtree(snapshot.directory / SHARED, ignore_errors=True)
    with open(os.devnull) as null, pytest.raises(OptionError, match="without stdin"):
        snapshot.share(worker=Worker(stdin=null))
    assert not (snapshot.directory / SHARED).exists()


def test_plain_starts_are_forked(snapshot: Snapshot) -> None:
    """Copies share memory from the second one on; ``close`` removes the template."""
    before = children()
    assert reason(snapshot, share_memory=False) == "share_memory=False"
    assert children() <= before
    for _ in range(2):
        assert reason(snapshot, share_memory=False) == "share_memory=False"
        (server,) = children() - before
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_alive(server), "its end")
    for _ in range(4):
        assert reason(snapshot, share_memory=False) == "share_memory=False"
    assert children() - before - {server}
    snapshot.close()
    assert children() <= before


def test_threads_wait_for_the_template(snapshot: Snapshot) -> None:
    """One of many concurrent starts does not share memory."""
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        reasons = list(pool.map(lambda _: reason(snapshot, deadline=PATIENCE), range(6)))
    assert sorted(map(str, reasons)) == sorted([FIRST, *["None"] * 5])


FORKED = """
import os, signal, sys, threading
from subprocess import DEVNULL
from pycriu_native.snapshots import Snapshot, sharing
reading, goes_on = threading.Event(), threading.Event()
check = sharing.check_files

def slow(*arguments):
    reading.set()
    goes_on.wait()
    check(*arguments)

def start():
    with snapshot.start(stdin=DEVNULL) as process:
        print(process.unshared_reason, flush=True)

snapshot = Snapshot(sys.argv[1])
start()
sharing.check_files = slow
thread = threading.Thread(target=start)
thread.start()
reading.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    sharing.check_files = check
    start()
    start()
    sys.exit(0)  # with the functions for the end of the interpreter
status = os.waitpid(child, 0)[1]
goes_on.set()
thread.join()
print(status)
"""


def test_a_fork_while_the_template_is_read(snapshot: Snapshot) -> None:
    """The child starts copies with a template of its own, and ends."""
    command = [sys.executable, "-c", FORKED, str(snapshot.directory)]
    done = subprocess.run(
        command, env=ENVIRONMENT, stdout=PIPE, text=True, timeout=2 * PATIENCE, check=True
    )
    assert done.stdout.splitlines() == [FIRST, FIRST, "None", "None", "0"]


def test_where_memory_cannot_be_shared(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is restored plainly and has the reason; if sharing is required, this is an error."""
    program = tmp_path / "criu"
    shutil.copy(find_program(), program)
    program.chmod(0o4755)
    via = Worker(program=program, allow_untrusted=True)
    reasons = [str(reason(snapshot, via=via)) for _ in range(3)]
    assert reasons[0] == FIRST
    assert all("is setuid or setgid" in each for each in reasons[1:])
    with pytest.raises(ProgramError, match="is setuid or setgid"):
        snapshot.start(share_memory=True, via=via)
    assert reason(snapshot) == FIRST
    with monkeypatch.context() as patched:
        patched.setattr("pycriu_native.snapshots.sharing.memory_room", lambda: 2**20)
        assert "1048576 bytes are available" in str(reason(snapshot))
        assert "1048576 bytes are available" in str(reason(snapshot))
    assert [reason(snapshot) for _ in range(3)][-1] is None


def test_a_template_that_was_killed(snapshot: Snapshot) -> None:
    """Some copies are restored plainly; then the template is read again."""
    before = children()
    assert [reason(snapshot), reason(snapshot)] == [FIRST, None]
    (server,) = children() - before
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_alive(server), "its end")
    reasons = [reason(snapshot) for _ in range(3)]
    assert reasons[-1] is None
    assert set(reasons[:-1]) <= {CHANGED, None}
    snapshot.close()
    assert children() <= before


def test_a_template_that_was_changed(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed template is refused by each start, since the images can have the same file. A start
    that uses no template works.
    """
    snapshot.share().close()
    (pages,) = (snapshot.directory / "shared").glob("*.pages")
    data = bytearray(pages.read_bytes())
    pages.unlink()
    data[len(data) // 2] ^= 1
    pages.write_bytes(data)
    assert reason(snapshot) == FIRST
    for room in (2**40, 2**40, 0):
        monkeypatch.setattr("pycriu_native.snapshots.sharing.memory_room", lambda room=room: room)
        with pytest.raises(ImagesError, match="has changed; remove the directory"):
            snapshot.start()
    assert reason(snapshot, share_memory=False) == "share_memory=False"


@pytest.mark.parametrize("name", ["template-1.pages", NAME])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 4096)])
def test_a_template_that_is_damaged(
    snapshot: Snapshot, name: str, damage: Callable[[str], None]
) -> None:
    """Each start that would use the template is refused until the cure of the error is followed."""
    directory = snapshot.directory / "shared"
    snapshot.share().close()
    file = directory / name
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)  # no hard link
    damage(str(file))
    before = children()
    assert reason(snapshot) == FIRST
    for required in (None, None, True, None):
        with pytest.raises(ImagesError, match=f"{name}.*; ") as caught:
            snapshot.start(share_memory=required)
        assert caught.value.cure
    assert children() <= before
    shutil.rmtree(directory)
    assert [reason(snapshot), reason(snapshot)] == [None, None]


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"files": [{"name": "/etc/passwd", "size": 1, "crc32": 0}]},
        {"files": [{"name": 5, "size": 1, "crc32": 0}]},
        {"tag": -(2**62)},
        {"tag": 2.5},
        {"extents": [[0, 4096, 99, 0]]},
        {"extents": [[0, 4096, 0, 0.5]]},
        {"regions": [["x", 1]]},
    ],
)
def test_a_description_of_other_values(snapshot: Snapshot, values: Any) -> None:
    """Each value of the description is checked; a FIFO does not block the start."""
    snapshot.share().close()
    file = snapshot.directory / "shared" / NAME
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, **values} if isinstance(values, dict) else values))
    with pytest.raises(ImagesError, match="is damaged"):
        snapshot.start(share_memory=True)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ImagesError, match="not a regular file"):
        snapshot.start(share_memory=True)


@pytest.mark.parametrize("end", ["exit", "collected", "kill"])
def test_the_template_ends_with_its_owner(snapshot: Snapshot, orphans: None, end: str) -> None:
    """The template ends with the interpreter, the object, or the process."""
    before = children()
    code = (
        "import gc, os, signal, sys\n"
        "from subprocess import DEVNULL\n"
        "from pycriu_native.snapshots import Snapshot\n"
        f"snapshot = Snapshot({str(snapshot.directory)!r})\n"
        "with snapshot.start(share_memory=True, stdin=DEVNULL) as process:\n"
        "    assert process.unshared_reason is None\n"
        "def children():\n"
        "    return open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "assert len(children()) == 1\n"
        f"if {end!r} == 'kill':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"if {end!r} == 'collected':\n"
        "    del snapshot\n"
        "    gc.collect()\n"
        "    assert not children()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False)
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0)
    eventually(lambda: settled(before), "the end of the template's process")


def test_a_snapshot_that_shares(snapshot: Snapshot, tmp_path: Path) -> None:
    """Copies of a snapshot run at the same time, in separate namespaces, on one template."""
    size = snapshot.size()
    with snapshot.share() as template, contextlib.ExitStack() as stack:
        assert snapshot.size() < size * 1.5
        copies = []
        for number in range(4):
            copies.append(
                stack.enter_context(
                    snapshot.start([str(number)], stdin=PIPE, stdout=PIPE, text=True, via=template)
                )
            )
        for number, each in enumerate(copies):
            answer, _ = each.communicate('["identity"]\n', timeout=PATIENCE)
            assert json.loads(answer)[1]["arguments"] == [str(number)]
            assert each.returncode == 0
        other = Snapshot.take(PROGRAM, tmp_path / "other", env=ENVIRONMENT)
        with pytest.raises(OptionError, match="belongs to another snapshot"):
            other.start(via=template)
    with snapshot.share() as again:
        assert again.directory == template.directory
    assert not list(snapshot.directory.glob("*.partial"))
    snapshot.remove()
    assert not snapshot.directory.exists()

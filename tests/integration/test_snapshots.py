"""Snapshots: a program is saved in guest.wait() and started many times; each copy is a child of the
caller.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import inspect
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    ImagesError,
    OptionError,
    Progress,
    Worker,
    WorkerPool,
)
from pycriu_native._calls import requirements
from pycriu_native._calls.request import Request
from pycriu_native.snapshots import Snapshot, SnapshotProcess, Zygote, copy_request, list_snapshots
from pycriu_native.snapshots import restore as restore_module

from .conftest import Spawn
from .support.processes import PATIENCE, children, eventually, is_alive

REPO = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "guest_server.py"
COMMAND = [sys.executable, str(PROGRAM)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "SNAPSHOT_TEST": "saved"}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A snapshot of guest_server.py."""
    directory = tmp_path_factory.mktemp("snapshots") / "server"
    yield Snapshot.take([*COMMAND, "saved"], directory, env=ENVIRONMENT)
    assert sorted(path.name for path in directory.glob("*.partial")) == []


@pytest.fixture
def snapshot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot, which tests only start."""
    with taken:
        yield taken


def started(snapshot: Snapshot, *args: str, **options: Any) -> SnapshotProcess[str]:
    """A copy with text pipes for input and output."""
    options = {"stdin": PIPE, "stdout": PIPE, "text": True, **options}
    return snapshot.start(args or None, **options)


def ask(process: SnapshotProcess[str], *question: Any) -> Any:
    """Send a request to a copy; returns the number of the start and the response."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def identity(process: SnapshotProcess[str]) -> Any:
    """The state that a copy reports."""
    return ask(process, "identity")[1]


# ---- what a copy is ----


def test_a_copy_receives_its_arguments(snapshot: Snapshot, tmp_path: Path) -> None:
    """A copy has its arguments, environment, directory and number, and is a child of the caller."""
    variables = {"SNAPSHOT_TEST": "given"}
    with started(snapshot, "a", "b c", env=variables, cwd=tmp_path) as process:
        number, seen = ask(process, "identity")
        assert number == process.number
        assert seen["arguments"] == ["a", "b c"]
        assert (seen["variable"], seen["directory"]) == ("given", str(tmp_path))
        assert process.pid in children()
        assert isinstance(process, subprocess.Popen)
    assert process.returncode == 0


def test_what_is_not_given_stays(snapshot: Snapshot) -> None:
    """Arguments, environment and working directory are those of the snapshot; variables can be
    added.
    """
    with started(snapshot) as process:
        seen = identity(process)
    assert (seen["arguments"], seen["variable"]) == (["saved"], "saved")
    assert seen["directory"] == os.getcwd()
    with started(snapshot, extra_env={"SNAPSHOT_TEST": "more"}) as process:
        assert identity(process)["variable"] == "more"


def test_many_at_once(snapshot: Snapshot) -> None:
    """Copies run at the same time, each with separate processes, /proc, numbers and
    random numbers.
    """
    copies: list[SnapshotProcess[str]] = []
    threads = [threading.Thread(target=lambda: copies.append(started(snapshot))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copies += [started(snapshot) for _ in range(2)]
    try:
        seen = [identity(copy) for copy in copies]
        for each in seen:
            assert each["pid"] == snapshot.record.pid
            assert each["processes"] == [1, snapshot.record.pid]
            assert each["parent"] == 0
        assert len({copy.number for copy in copies}) == len(copies)
        check_random_numbers(copies)
    finally:
        kill_all(copies)


def check_random_numbers(copies: Sequence[SnapshotProcess[str]]) -> None:
    """No two copies draw the same random numbers."""
    drawn = [ask(copy, "random")[1] for copy in copies]
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(copies)


LIBCRYPTO = """
import ctypes, hashlib
(path,) = {line.split()[5] for line in open("/proc/self/maps") if "/libcrypto" in line}
library = ctypes.CDLL(path)
def draw():
    buffer = ctypes.create_string_buffer(16)
    library.RAND_bytes(buffer, 16)
    return buffer.raw
"""
CRYPTOGRAPHY = """
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
draw = lambda: X25519PrivateKey.generate().private_bytes_raw()
"""
DRAW = """
from pycriu_native import guest
import sys
assert "ssl" not in sys.modules
draw()
guest.wait()
print(draw().hex())
"""


@pytest.mark.parametrize("library", [LIBCRYPTO, CRYPTOGRAPHY], ids=["libcrypto", "cryptography"])
def test_generators_of_openssl(tmp_path: Path, library: str) -> None:
    """Copies draw different keys from an OpenSSL that is loaded without ``ssl``."""
    if library is CRYPTOGRAPHY:
        pytest.importorskip("cryptography", minversion="40")
    else:
        code = "import hashlib; print('/libcrypto' in open('/proc/self/maps').read())"
        if subprocess.check_output([sys.executable, "-c", code], text=True) != "True\n":
            pytest.skip("this Python has a static OpenSSL")
    command = [sys.executable, "-c", library + DRAW]
    drawn = set()
    with Snapshot.take(command, tmp_path / "snapshot", env=ENVIRONMENT) as snapshot:
        for _ in range(3):
            with snapshot.start(stdout=PIPE, text=True) as process:
                drawn.add(process.communicate(timeout=PATIENCE)[0])
    assert len(drawn) == 3


def kill_all(copies: Sequence[SnapshotProcess[str]]) -> None:
    """Kill and reap copies, each of which runs."""
    for copy in copies:
        copy.kill()
        copy.communicate()
    assert {copy.returncode for copy in copies} == {-signal.SIGKILL}


def check_descriptors(start: Callable[..., SnapshotProcess[str]]) -> None:
    """A copy has the descriptors of pass_fds with their numbers, and inheritable; no others."""
    reader, writer = os.pipe()
    number = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(writer)
    try:
        with start(pass_fds=iter([number, 1])) as process:
            assert ask(process, "write", number, "passed")[1] is True
        assert os.read(reader, 100) == b"passed"
        with start() as process:
            process.communicate(json.dumps(["write", number, "no"]) + "\n", timeout=PATIENCE)
            assert process.returncode == 1
        os.close(number)
        assert os.read(reader, 100) == b""
        with pytest.raises(OptionError, match="numbers of open descriptors are accepted"):
            start(pass_fds=[number])
    finally:
        os.close(reader)


def test_descriptors(snapshot: Snapshot) -> None:
    """Descriptors are passed as by Popen; the record has those that the program uses itself."""
    record = snapshot.record
    assert {0, 1, 2, record.guest_fd} <= set(record.descriptors)
    check_descriptors(lambda **options: started(snapshot, **options))


@pytest.mark.parametrize("pooled", [False, True])
def test_exit_statuses(snapshot: Snapshot, pooled: bool) -> None:
    """Exit statuses of exits, signals and signal handlers are those of the copy."""
    with WorkerPool(1) as pool:
        via = pool if pooled else None
        for question, status in (
            (["exit", 42], 42),
            (["kill", signal.SIGTERM], -signal.SIGTERM),
        ):
            with started(snapshot, via=via) as process:
                out, _ = process.communicate(json.dumps(question) + "\n", timeout=PATIENCE)
            assert (out, process.returncode) == ("", status)
        with started(snapshot, via=via) as process:
            identity(process)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(PATIENCE) == 31
        with started(snapshot, via=via) as process:
            process.terminate()
            assert process.wait(PATIENCE) == -signal.SIGTERM
            process.terminate()  # ignored


def test_timeouts(snapshot: Snapshot) -> None:
    """wait and communicate raise TimeoutExpired, without loss of data."""
    with started(snapshot) as process:
        with pytest.raises(TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(json.dumps(["sleep", PATIENCE]) + "\n", timeout=0.01)
        assert (caught.value.output, caught.value.stderr) == (None, None)
        process.kill()
    with started(snapshot) as process:
        question = json.dumps(["sleep", 1.0]) + "\n" + json.dumps(["random"]) + "\n"
        with pytest.raises(TimeoutExpired):
            process.communicate(question, timeout=0.05)
        out, errors = process.communicate(timeout=PATIENCE)
        assert [json.loads(line)[0] for line in out.splitlines()] == [process.number] * 2
        assert errors is None
        assert process.poll() == 0


def test_threads_that_wait(snapshot: Snapshot) -> None:
    """Each of many threads gets the exit status, while others poll and send signals."""
    for _ in range(3):
        with snapshot.start(stdin=PIPE, stdout=PIPE) as process:

            def end(number: int, process: SnapshotProcess[bytes] = process) -> int:
                if number == 5:
                    process.kill()
                while number % 2 and process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                return process.wait(PATIENCE)

            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                assert set(threads.map(end, range(8))) == {-signal.SIGKILL}
            assert process.pidfd == -1


def test_input_of_the_other_kind(snapshot: Snapshot) -> None:
    """Text for a binary stream, and bytes for a text stream, are refused as by subprocess."""
    with started(snapshot) as process:
        with pytest.raises(AttributeError):
            process.communicate(b"bytes")  # type: ignore[arg-type]
        process.kill()
    with snapshot.start(stdin=PIPE, stdout=PIPE) as binary:
        with pytest.raises(TypeError):
            binary.communicate("text")
        assert binary.communicate(b"") == (b"", None)


def test_a_lot_of_data(snapshot: Snapshot) -> None:
    """communicate neither blocks nor truncates data that is larger than pipes, in both
    directions.
    """
    text = "x" * 300_000
    questions = "".join(json.dumps(["errors", text]) + "\n" for _ in range(3))
    with started(snapshot, stderr=PIPE) as process:
        out, errors = process.communicate(questions, timeout=PATIENCE)
    assert errors == (text + "\n") * 3
    assert len(out.splitlines()) == 3


def test_bytes(snapshot: Snapshot) -> None:
    """Without text=True the streams are binary."""
    with snapshot.start(stdin=PIPE, stdout=PIPE) as process:
        out, errors = process.communicate(b'["exit", 3]\n', timeout=PATIENCE)
    assert (out, errors, process.returncode) == (b"", None, 3)


def test_a_copy_is_not_saved_again(snapshot: Snapshot) -> None:
    """A second wait() ends the copy with a message, since it was not started as savable."""
    with started(snapshot, stderr=PIPE) as process:
        out, errors = process.communicate(json.dumps(["wait"]) + "\n", timeout=PATIENCE)
        assert (out, process.returncode) == ("", 1)
        assert "given up" in errors


# ---- its streams ----


def check_files(copies: Snapshot | Zygote, tmp_path: Path) -> None:
    """A stream can be a file, or the other output."""
    (tmp_path / "in").write_text(json.dumps(["errors", "said"]) + "\n")
    with (
        open(tmp_path / "in") as given,
        open(tmp_path / "out", "w") as out,
        copies.start(stdin=given, stdout=out, stderr=STDOUT) as process,
    ):
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_text() == f"said\n[{process.number}, null]\n"


def check_socket(copies: Snapshot | Zygote) -> None:
    """A stream can be a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs, copies.start(stdin=theirs, stdout=theirs.fileno()) as process:
        theirs.close()
        ours.sendall(b'["exit", 5]\n')
        assert process.wait(PATIENCE) == 5


def test_files_and_null(snapshot: Snapshot, tmp_path: Path) -> None:
    """A stream can be a file or /dev/null."""
    check_files(snapshot, tmp_path)
    with snapshot.start(stdin=DEVNULL, stdout=PIPE) as process:
        assert process.communicate(timeout=PATIENCE) == (b"", None)


def test_a_socket(snapshot: Snapshot) -> None:
    """A socket can replace a pipe."""
    check_socket(snapshot)


def test_the_streams_of_this_process(snapshot: Snapshot, capfd: pytest.CaptureFixture[str]) -> None:
    """Without arguments the streams of a copy are those of this process."""
    with snapshot.start(stdin=PIPE, text=True) as process:
        process.communicate(json.dumps(["errors", "said"]) + "\n", timeout=PATIENCE)
    assert capfd.readouterr() == (f"[{process.number}, null]\n", "said\n")


# ---- its place ----


def test_host_name(snapshot: Snapshot) -> None:
    """The host name is set in the copy only."""
    before = socket.gethostname()
    with started(snapshot, hostname="copy-1") as process:
        assert identity(process)["hostname"] == "copy-1"
    assert socket.gethostname() == before


def test_network(snapshot: Snapshot) -> None:
    """A new network namespace has the loopback interface, up; or an existing one is used."""
    with started(snapshot, network=True) as process:
        assert identity(process)["links"] == ["lo"]
        assert ask(process, "loopback")[1] is True
        relative = os.path.relpath(f"/proc/{process.pid}/ns/net")
        with started(snapshot, network=relative) as other:
            assert os.stat(f"/proc/{other.pid}/ns/net") == os.stat(f"/proc/{process.pid}/ns/net")
    with started(snapshot) as process:
        assert os.stat(f"/proc/{process.pid}/ns/net") == os.stat("/proc/self/ns/net")


# ---- its end ----


def test_the_end_of_a_copy_ends_what_it_has_started(snapshot: Snapshot) -> None:
    """The orphans of a copy end with it, and so do its namespaces."""
    with started(snapshot) as process:
        orphan = ask(process, "orphan")[1]
        inside = f"/proc/{process.pid}/root/proc/{orphan}/stat"
        assert "sleep" in Path(inside).read_text()
        namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
    assert process.returncode == 0
    assert not in_namespace(namespace)


def in_namespace(namespace: str) -> list[int]:
    """The processes of a pid namespace."""
    result = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                result.append(int(name))
        except OSError:
            continue
    return result


def test_a_copy_without_owner(snapshot: Snapshot) -> None:
    """A copy continues when its object is deleted, as with subprocess; the next start reaps it."""
    process = started(snapshot)
    pid = process.pid
    assert process.stdin is not None
    assert process.stdout is not None
    streams = process.stdin, process.stdout
    with pytest.warns(ResourceWarning, match="still running"):
        del process
    assert is_alive(pid)
    for stream in streams:
        stream.close()
    eventually(lambda: not is_alive(pid), "its end")
    started(snapshot).communicate(timeout=PATIENCE)
    eventually(lambda: started(snapshot).communicate() and pid not in children(), "its reaping")


OWNER = """
import os, sys
from subprocess import PIPE
from pycriu_native.snapshots import Snapshot
snapshot = Snapshot(sys.argv[1])
copies = [snapshot.start(stdin=PIPE, stdout=PIPE) for _ in range(2)]
if os.fork() == 0:  # holds all descriptors, and outlives this process
    sys.stdin.read()
    os._exit(0)
print(*(copy.pid for copy in copies), os.readlink(f"/proc/{copies[0].pid}/ns/pid"), flush=True)
sys.stdin.read()
"""


def test_the_end_of_the_caller(snapshot: Snapshot) -> None:
    """If the caller is killed, its copies end, although a fork of it has its descriptors."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(snapshot.directory)],
        stdin=reader,
        stdout=PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as owner:
        os.close(reader)
        assert owner.stdout is not None
        *pids, namespace = owner.stdout.readline().split()
        assert all(is_alive(int(pid)) for pid in pids)
        owner.kill()
        owner.wait()
        eventually(lambda: not any(is_alive(int(pid)) for pid in pids), "the copies' end")
        eventually(lambda: not in_namespace(namespace), "the namespace's end")
        os.close(writer)


FORKED = """
import os, signal, sys
from subprocess import PIPE
from pycriu_native.snapshots import Snapshot
process = Snapshot(sys.argv[1]).start(stdin=PIPE, stdout=PIPE, text=True)
child = os.fork()
if child == 0:
    signal.alarm(30)
    with process:
        process.kill()
    sys.exit(process.returncode)
print(os.waitpid(child, 0)[1], process.poll())
process.communicate('["exit", 5]\\n')
print(process.returncode)
"""


def test_a_forked_child_of_the_caller(snapshot: Snapshot) -> None:
    """It can neither wait for a copy nor end it: the copy has ended for it, as in subprocess."""
    assert output_of_fork(FORKED, snapshot) == ("0 None\n5\n", "")


def output_of_fork(program: str, snapshot: Snapshot) -> tuple[str, str]:
    """Output and errors of a program that uses the snapshot and forks."""
    # Python 3.12 warns of a fork beside the thread that reaps CRIU.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    command = [*words, str(snapshot.directory)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    return done.stdout, done.stderr


def test_the_end_of_the_first_process(snapshot: Snapshot) -> None:
    """If the init process of its namespace is killed, the copy ends by SIGKILL."""
    with started(snapshot) as process:
        namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
        (init,) = set(in_namespace(namespace)) - {process.pid}
        os.kill(init, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_a_process_of_another_cgroup(cgroup: Path, spawn: Spawn, tmp_path: Path) -> None:
    """Its copies are in the cgroup of the caller."""
    target = spawn()
    (cgroup / "cgroup.procs").write_text(str(target.pid))
    snapshot = Snapshot.take(target.pid, tmp_path / "snapshot", without_guest=True)
    with snapshot, snapshot.start(opts=CriuOpts(manage_cgroups=False)) as process:
        mine = Path("/proc/self/cgroup").read_text()
        assert Path(f"/proc/{process.pid}/cgroup").read_text() == mine
        process.kill()


def test_a_cgroup(cgroup: Path, snapshot: Snapshot) -> None:
    """The copy and its children are in it; the caller stays in its own."""
    before = Path("/proc/self/cgroup").read_text()
    with started(snapshot, cgroup=cgroup) as process:
        orphan = ask(process, "orphan")[1]
        pids = (cgroup / "cgroup.procs").read_text().split()
        assert str(process.pid) in pids
        assert len(pids) == 2, orphan
    assert (cgroup / "cgroup.procs").read_text() == ""
    assert Path("/proc/self/cgroup").read_text() == before


# ---- what is refused ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", "text"),
        ("args", ["a\0b"]),
        ("args", [1]),
        ("env", {"a=b": "c"}),
        ("env", {"a": 1}),
        ("env", ["a=b"]),
        ("extra_env", {"": "x"}),
        ("cwd", "none-such"),
        ("cwd", ""),
        ("cwd", "/nowhere"),
        ("stdin", STDOUT),
        ("stdout", -7),
        ("stdout", "file"),
        ("stderr", 999_999),
        ("hostname", ""),
        ("hostname", "x" * 65),
        ("network", "/nowhere"),
        ("network", "/proc/self/status"),
        ("network", "/proc/self/ns/uts"),
        ("stdout", 2**40),
        ("bufsize", 2**70),
        ("cgroup", "/tmp"),
        ("cgroup", "relative"),
        ("opts", CriuOpts(auto_dedup=True)),
        ("opts", CriuOpts(manage_cgroups_mode="soft")),
        ("opts", CriuOpts(manage_cgroups=True)),
        ("opts", CriuOpts(cg_roots=["/other"])),
        ("network", 1),
        ("network", 0),
        ("network", [1]),
        ("network", b"/run"),
        ("network", ()),
        ("deadline", "x"),
        ("deadline", True),
        ("deadline", float("nan")),
        ("via", 0),
        ("via", Worker),
        ("args", ["\ud800"]),
        ("env", {"a": "\ud800"}),
        ("encoding", "no-such"),
        ("errors", "no-such"),
        ("cgroup", b"/sys/fs/cgroup"),
        ("pass_fds", "12"),
    ],
)
def test_bad_arguments(snapshot: Snapshot, field: str, value: Any) -> None:
    """Each invalid argument is named with the accepted values, and nothing is started."""
    before = children()
    with pytest.raises(OptionError) as caught:
        snapshot.start(**{field: value})
    assert [problem.field for problem in caught.value.problems] == [field]
    assert children() <= before


def test_each_argument_has_a_type(snapshot: Snapshot, tmp_path: Path) -> None:
    """An object of another type is refused for each argument of each call, by the argument's name,
    and nothing is started or written.
    """
    target = tmp_path / "snapshot"
    with snapshot.zygote() as zygote:
        calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
            (snapshot.start, {}),
            (snapshot.zygote, {}),
            (zygote.start, {}),
            (snapshot.share, {}),
            (snapshot.problems, {}),
            (Snapshot.take, {"program": COMMAND, "directory": target}),
        ]
        before = children()
        for call, needed in calls:
            for name in inspect.signature(call).parameters:
                with pytest.raises(OptionError) as caught:
                    call(**{**needed, name: object()})
                assert {each.field for each in caught.value.problems} == {name}, (call, name)
        assert children() <= before
    for program in ([1, 2], ["true", None]):
        with pytest.raises(OptionError, match="program="):
            Snapshot.take(program, target)  # type: ignore[arg-type]
    assert not target.exists()


def test_arguments_as_for_popen(snapshot: Snapshot, tmp_path: Path) -> None:
    """Paths and bytes, and a relative directory, have the meaning that they have for Popen."""
    variables = {b"SNAPSHOT_TEST": b"\xff"}
    seen = []
    with contextlib.chdir(tmp_path.parent), snapshot.zygote() as zygote:
        for start in (snapshot.start, zygote.start):
            with start(
                [tmp_path, b"\xfe"],
                extra_env=variables,
                cwd=tmp_path.name,
                stdin=PIPE,
                stdout=PIPE,
                text=True,
            ) as process:
                seen.append(identity(process))
    for each in seen:
        assert each["arguments"] == [str(tmp_path), os.fsdecode(b"\xfe")]
        assert each["variable"] == os.fsdecode(b"\xff")
        assert each["directory"] == str(tmp_path)


def test_a_process_of_another_user_namespace(tmp_path: Path) -> None:
    """The error for a process whose namespaces cannot be read is typed."""
    code = (
        "import sys\n"
        "from pycriu_native import PermissionDeniedError\n"
        "from pycriu_native.snapshots import Snapshot\n"
        "try:\n"
        "    Snapshot.take(int(sys.argv[1]), sys.argv[2], without_guest=True)\n"
        "except PermissionDeniedError as error:\n"
        "    print(error.pid)\n"
    )
    with subprocess.Popen(["sleep", "1000"]) as process:
        command = ["unshare", "--user", sys.executable, "-c", code, str(process.pid)]
        command.append(str(tmp_path / "s"))
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        process.kill()
    # Root of another user namespace has no rights in the home directory of an ordinary user.
    if "unshare failed" in done.stderr or "failed to execute" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.stdout, done.returncode) == (f"{process.pid}\n", 0), done.stderr


def test_a_configuration_file_with_auto_dedup(snapshot: Snapshot, tmp_path: Path) -> None:
    """A configuration file that would remove pages of the snapshot is refused."""
    file = tmp_path / "criu.conf"
    file.write_text("auto-dedup\n")
    with pytest.raises(OptionError, match="auto_dedup would remove"):
        snapshot.start(opts=CriuOpts(config_file=file))
    file.write_text("no-auto-dedup\n")
    with started(snapshot, opts=CriuOpts(config_file=file)) as process:
        identity(process)


def test_too_large_arguments(snapshot: Snapshot) -> None:
    """A large environment is sent completely; one that exceeds the socket's buffer is refused."""
    with started(snapshot, extra_env={"SNAPSHOT_TEST": "x" * 500_000}) as process:
        assert len(identity(process)["variable"]) == 500_000
    with pytest.raises(OptionError, match="too large"):
        started(snapshot, extra_env={"SNAPSHOT_TEST": "x" * 100_000_000})


def test_requests_before_the_restore(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy does not get its line when CRIU has told its release."""
    order: list[str] = []
    check, send_line = requirements.check, copy_request.send_line

    def asks(request: Request) -> None:
        requirements.ask_version(request.via)
        order.append("asked")
        check(request)

    def sends(*arguments: Any) -> None:
        order.append("sent")
        send_line(*arguments)

    monkeypatch.setattr(requirements, "check", asks)
    monkeypatch.setattr(restore_module, "send_line", sends)
    with started(snapshot) as process:
        identity(process)
    assert order == ["asked", "sent"]


def test_a_failed_start_leaves_nothing(snapshot: Snapshot) -> None:
    """CRIU refuses: no process, namespace or descriptor remains, and the snapshot is unchanged."""
    with pytest.raises(CriuError):
        snapshot.start(opts=CriuOpts(lsm_profile="apparmor:none-such"))
    with pytest.raises(DeadlineError, match=r"the deadline of 0\.001 s passed"):
        snapshot.start(deadline=0.001)
    with started(snapshot) as process:
        identity(process)


def leave_interrupted(
    process: SnapshotProcess[str], method: str, patch: pytest.MonkeyPatch
) -> None:
    """Leave a with block by an exception in it, or in this method of the process."""
    with process:
        identity(process)
        if not method:
            raise KeyboardInterrupt
        assert process.stdin is not None
        target = process.stdin if method == "close" else process
        original = getattr(target, method)

        def once(*_: Any) -> Any:
            patch.setattr(target, method, original)
            raise KeyboardInterrupt

        patch.setattr(target, method, once)
        process.stdin.write('["sleep", 3600]\n')
        process.stdin.flush()


@pytest.mark.parametrize("method", ["", "_has_ended", "close"])
def test_an_interrupted_with_block(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """KeyboardInterrupt in the block, or while it waits for the end of the copy, kills the copy,
    which gets no SIGINT from a terminal.
    """
    process = started(snapshot)
    with pytest.raises(KeyboardInterrupt):
        leave_interrupted(process, method, monkeypatch)
    assert process.returncode == -signal.SIGKILL
    assert process.stdin is not None
    process.stdin.close()


LATE = """
import os, sys, time
from pycriu_native import guest
place, number = sys.argv[1:]
open(f"{place}/begun-{number}", "w").close()
while not os.path.exists(f"{place}/go"):
    time.sleep(0.01)
guest.wait()
sys.exit(int(number))
"""


def test_two_snapshots_in_one_directory(tmp_path: Path) -> None:
    """One is taken, and the other call refused, also if both began with a new directory."""
    results: list[Snapshot | OptionError] = []

    def take(number: int) -> None:
        command = [sys.executable, "-c", LATE, str(tmp_path), str(number)]
        try:
            results.append(Snapshot.take(command, tmp_path / "new", env=ENVIRONMENT))
        except OptionError as error:
            results.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in (3, 4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 2, "the start of both programs")
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    (taken,) = (each for each in results if isinstance(each, Snapshot))
    (refused,) = (each for each in results if isinstance(each, OptionError))
    assert "a new or empty directory" in str(refused)
    with taken, taken.start() as process:
        pass
    assert process.returncode == int(taken.record.command[-1])


def test_bad_programs(tmp_path: Path) -> None:
    """Unsuitable programs are refused, and nothing is created."""
    directory = tmp_path / "snapshot"
    programs: list[Any] = [[], "text", True, 1.5]
    for program in programs:
        with pytest.raises(OptionError, match="program="):
            Snapshot.take(program, directory)
    with pytest.raises(OptionError, match="without_guest=True accepts that"):
        Snapshot.take(os.getpid(), directory)
    with pytest.raises(FileNotFoundError):
        Snapshot.take(["/nowhere/program"], directory)
    with pytest.raises(OptionError, match="leave_running=True: accepted with a running process"):
        Snapshot.take(COMMAND, directory, leave_running=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OptionError, match="new or empty"):
        Snapshot.take(COMMAND, tmp_path / "full")
    with pytest.raises(OptionError, match="parent directory"):
        Snapshot.take(COMMAND, tmp_path / "none" / "snapshot")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "print('why'); raise SystemExit(3)",
            r"status 3 before it called guest.wait\(\)\nits last output:\nwhy$",
        ),
        ("import os; os.write(int(os.environ['PYCRIU_NATIVE_GUEST_FD']), b'no')", "wrote b'no'"),
        ("import os; os.close(int(os.environ['PYCRIU_NATIVE_GUEST_FD'])); input()", "has closed"),
        (
            "import os; from pycriu_native import guest; parent = os.getpid()\n"
            "if os.fork(): os._exit(0)\n"
            "while os.getppid() == parent: pass\n"
            "guest.wait()",
            "has ended; a process that it has started may have called",
        ),
    ],
)
def test_a_program_that_does_not_park(tmp_path: Path, code: str, message: str) -> None:
    """The error for a program without a call of wait() has its exit status and its output."""
    with pytest.raises(CriuError, match=message):
        Snapshot.take([sys.executable, "-c", code], tmp_path / "snapshot", env=ENVIRONMENT)
    with pytest.raises(DeadlineError, match="has not called"):
        Snapshot.take(["sleep", "1000"], tmp_path / "snapshot", deadline=0.2)
    assert not (tmp_path / "snapshot").exists()


def test_the_deadline_in_a_message(spawn: Spawn, tmp_path: Path) -> None:
    """It is that of the call, not what remained for the dump."""
    target = spawn(start_new_session=True)
    with pytest.raises(DeadlineError, match=r"the deadline of 0\.002 s passed"):
        Snapshot.take(target.pid, tmp_path / "snapshot", without_guest=True, deadline=0.002)
    assert target.runs_on()


def test_a_dump_that_fails(tmp_path: Path) -> None:
    """After a failed dump, here of a program with a connection, no directory remains."""
    code = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "one = socket.create_connection(server.getsockname())\n"
        "two, _ = server.accept()\n"
        "from pycriu_native import guest\n"
        "guest.wait()\n"
    )
    command = [sys.executable, "-c", code]
    with pytest.raises(CriuError, match="tcp_established"):
        Snapshot.take(command, tmp_path / "snapshot", env=ENVIRONMENT)
    assert not (tmp_path / "snapshot").exists()
    opts = CriuOpts(tcp_close=True)
    snapshot = Snapshot.take(command, tmp_path / "snapshot", env=ENVIRONMENT, opts=opts)
    with snapshot.start(opts=opts) as process:
        assert process.wait(PATIENCE) == 0


# ---- running processes ----


def test_a_running_process(spawn: Spawn, tmp_path: Path) -> None:
    """The process ends, or continues with leave_running; copies have its state."""
    target = spawn(start_new_session=True)
    kept = Snapshot.take(target.pid, tmp_path / "kept", without_guest=True, leave_running=True)
    assert target.runs_on()
    Snapshot.take(target.process, tmp_path / "snapshot", without_guest=True)
    assert target.process.returncode == -signal.SIGKILL
    with kept.start() as process:
        assert target.runs_on()
        process.kill()
    with pytest.raises(OptionError, match="without_guest: it cannot be changed") as caught:
        kept.start(["a"], env={}, cwd="/")
    assert len(caught.value.problems) == 3
    with pytest.raises(OptionError, match="was not a pipe"):
        kept.start(stdin=PIPE)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (["unshare", "--pid", "--fork", "--kill-child", "setsid"], "first process of a pid"),
        (["unshare", "--user", "--map-root-user"], "another user namespace"),
    ],
)
def test_a_process_in_other_namespaces(tmp_path: Path, prefix: list[str], message: str) -> None:
    """A process is refused, and continues, if CRIU could not restore it as a copy."""
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip(f"{prefix[1]} is not available")

    def sleeper(pid: int) -> int | None:
        """The process that executes ``sleep``, or its descendant."""
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
            return pid
        return sleeper(int(below[0])) if below else None

    with subprocess.Popen([*prefix, "sleep", "1000"], stdin=DEVNULL) as process:
        try:
            pid = eventually(lambda: sleeper(process.pid), "sleep runs")
            with pytest.raises(OptionError, match=f"program={pid}: .*{message}"):
                Snapshot.take(pid, tmp_path / "snapshot", without_guest=True)
            assert is_alive(pid)
            assert not (tmp_path / "snapshot").exists()
        finally:
            process.kill()


def test_a_tree_of_processes(tmp_path: Path) -> None:
    """All processes of a snapshot are started, and end with the first one."""
    code = (
        "import subprocess, sys\n"
        "from pycriu_native import guest\n"
        "child = subprocess.Popen(['sleep', '1000'], stdin=-3, stdout=-3, stderr=-3)\n"
        "guest.wait()\n"
        "print(child.pid, child.poll(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    snapshot = Snapshot.take([sys.executable, "-c", code], tmp_path / "tree", env=ENVIRONMENT)
    assert snapshot.record.processes == 2
    with started(snapshot) as process:
        namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
        assert process.stdout is not None
        assert process.stdout.readline().split()[1] == "None"
        assert len(in_namespace(namespace)) == 3
    assert process.returncode == 0
    assert not in_namespace(namespace)


# ---- other languages ----

SHELL = """
echo ready >&$PYCRIU_NATIVE_GUEST_FD
IFS= read -r line <&$PYCRIU_NATIVE_GUEST_FD
echo "copy: $line"
"""

C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	int guest = atoi(getenv("PYCRIU_NATIVE_GUEST_FD"));
	char line[65536];
	size_t length = 0;
	ssize_t part;

	write(guest, "ready\n", 6);
	do {
		part = read(guest, line + length, sizeof(line) - 1 - length);
		if (part <= 0)
			return 1;
		length += part;
	} while (line[length - 1] != '\n');
	line[length] = 0;
	printf("copy: %s", line);
	return 4;
}
"""


def check_protocol(command: list[str], directory: Path, status: int) -> None:
    """A program in another language receives its line in each copy."""
    snapshot = Snapshot.take(command, directory)
    seeds = set()
    for number in (1, 2):
        with snapshot.start(["x"], extra_env={"A": "1"}, stdout=PIPE, text=True) as process:
            out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == status
        line = json.loads(out.removeprefix("copy: "))
        seeds.add(line.pop("seed"))
        assert line == {
            "number": number,
            "arguments": ["x"],
            "environment": None,
            "variables": {"A": "1"},
            "directory": None,
        }
    assert len(seeds) == 2


def test_a_shell_script(tmp_path: Path) -> None:
    """A shell script implements the protocol in two lines."""
    check_protocol(["bash", "-c", SHELL], tmp_path / "shell", 0)


def test_a_c_program(tmp_path: Path) -> None:
    """A program in C implements the protocol."""
    (tmp_path / "program.c").write_text(C_PROGRAM)
    program = str(tmp_path / "program")
    subprocess.run(["cc", "-w", "-o", program, str(tmp_path / "program.c")], check=True)
    check_protocol([program], tmp_path / "c", 4)
    snapshot = Snapshot(tmp_path / "c")
    for _ in range(20):  # it ends before CRIU's response
        assert snapshot.start(stdout=DEVNULL).wait(PATIENCE) == 4


# ---- the directory ----


def test_a_template_whose_directory_was_removed(snapshot: Snapshot) -> None:
    """It is made again by a start that uses the template, as by other starts."""
    with snapshot.share() as shared:
        shutil.rmtree(snapshot.directory / "shared")
        with started(snapshot, via=shared) as process:
            assert process.unshared_reason is None
            process.kill()


def test_the_directory(snapshot: Snapshot) -> None:
    """Only the owner can access the directory of a snapshot; its record describes the contents."""
    assert stat.S_IMODE(snapshot.directory.stat().st_mode) == 0o700
    snapshot.share().close()
    for path in snapshot.directory.rglob("*"):
        accepted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == accepted, path
    assert list(snapshot.record.command) == [*COMMAND, "saved"]
    assert snapshot.size() > 1_000_000
    assert {each.path for each in snapshot.record.files} >= {os.path.realpath(sys.executable)}
    again = Snapshot(snapshot.directory)
    assert again.record == snapshot.record
    assert [each.directory for each in list_snapshots(snapshot.directory.parent)] == [
        snapshot.directory
    ]


def test_progress_of_a_snapshot(tmp_path: Path) -> None:
    """Progress is reported while memory is saved, and the last report has all bytes."""
    seen: list[Progress] = []
    snapshot = Snapshot.take(
        COMMAND, tmp_path / "snapshot", env=ENVIRONMENT, on_progress=seen.append
    )
    assert {each.phase for each in seen} == {"dump"}
    assert 0 < seen[-1].done <= snapshot.size()


def test_timings(snapshot: Snapshot) -> None:
    """Phases follow each other without gaps, and include CRIU's own time."""
    for share_memory in (False, True):
        with snapshot.start(stdin=PIPE, share_memory=share_memory) as process:
            timings = process.timings
        names = ["check", "memory", "namespaces", "worker", "prepare", "restore", "finish"]
        assert [each.name for each in timings.phases] == names
        assert timings.number == process.number
        assert timings.way == ("shared" if share_memory else "plain")
        ends = [0.0, *(each.end for each in timings.phases)]
        assert [each.begin for each in timings.phases] == ends[:-1]
        assert ends == sorted(ends)
        assert timings.total == ends[-1]
        assert timings.phases[5].end > timings.phases[5].begin
    snapshot.close()


def test_remove(tmp_path: Path) -> None:
    """The directory is removed, and running copies continue; a start reports the
    missing snapshot.
    """
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    with started(snapshot) as process:
        snapshot.remove()
        assert not snapshot.directory.exists()
        identity(process)
        with pytest.raises(ImagesError, match="no longer has a snapshot"):
            snapshot.start()
    with pytest.raises(ImagesError, match="has no complete snapshot"):
        Snapshot(tmp_path / "snapshot")


def test_remove_by_a_link(tmp_path: Path) -> None:
    """All of the directory is removed, not only the record."""
    Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    (tmp_path / "link").symlink_to("snapshot")
    Snapshot(tmp_path / "link").remove()
    assert not (tmp_path / "snapshot").exists()


def test_records_that_are_none(tmp_path: Path) -> None:
    """Each invalid record is refused with its path."""
    for text in ("", "[]", "{}", '{"format": 99}', '{"format": 1, "host": 3}'):
        (tmp_path / "snapshot.json").write_text(text)
        with pytest.raises(ImagesError, match=r"snapshot\.json is not a record") as refused:
            Snapshot(tmp_path)
        assert ("it has no 'format'" in str(refused.value)) == (text == "{}")

"""pycriu_native.guest without CRIU: a program that parks itself to be saved."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import guest
from pycriu_native._system.process import stat_of

REPO = Path(__file__).parents[2]
START: dict[str, Any] = {
    "number": 1,
    "arguments": None,
    "environment": None,
    "variables": None,
    "directory": None,
    "seed": "0" * 64,
}


class Parked:
    """A program that runs ``code`` with the guest's socket; the test has the other end."""

    def __init__(self, code: str, directory: Path, *words: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *words],
                env={**os.environ, guest.VARIABLE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def ready(self) -> bytes:
        """The text that a program writes when it waits."""
        return self.socket.recv(100)

    def start(self, **values: Any) -> None:
        """Send the start of a copy."""
        self.socket.sendall(json.dumps({**START, **values}).encode() + b"\n")

    def until_it_sleeps(self) -> None:
        """Wait until it waits for the line, or has ended."""
        pid = self.process.pid
        while (stat := stat_of(pid)) is not None and stat.state not in "SZ":
            time.sleep(0.01)

    def output(self) -> str:
        """Its output."""
        out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return out

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A directory with a copy of guest.py and nothing else."""
    shutil.copy(guest.__file__, tmp_path)
    return tmp_path


def run(code: str, directory: Path) -> str:
    """The output of a program that does not wait for a snapshot."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != guest.VARIABLE},
    )
    return done.stdout


def test_the_package_is_not_loaded_further() -> None:
    """Importing it from the package loads neither the extension nor cffi."""
    code = "import sys, pycriu_native.guest; print(*sys.modules)"
    loaded = set(run(code, REPO).split())
    assert not {name for name in loaded if "cffi" in name or "extension" in name}
    ours = {name for name in loaded if name.startswith("pycriu_native")}
    assert ours <= {
        "pycriu_native",
        "pycriu_native._support",
        "pycriu_native._support.lazy",
        "pycriu_native._support.light_typing",
        "pycriu_native._support.no_fork",
        "pycriu_native._support.unpatched",
        "pycriu_native.guest",
    }


def test_without_a_snapshot_the_program_goes_on(alone: Path) -> None:
    """Without the variable, wait() returns None at once."""
    assert run("import guest; print(guest.wait())", alone) == "None\n"


def test_one_file_is_enough(alone: Path) -> None:
    """A program waits; wait() returns once, with arguments, environment, directory and number."""
    (alone / "below").mkdir()
    code = (
        "import guest, os, sys\n"
        "start = guest.wait()\n"
        "print(start.number, sys.argv[1:])\n"
        "print(os.environ.get('A'), os.environ.get('HOME'), os.getcwd())\n"
    )
    parked = Parked(code, alone, "old")
    try:
        assert parked.ready() == guest.READY_TO_FORK
        parked.start(
            number=3,
            arguments=["x", "y"],
            environment={"A": "1"},
            directory=str(alone / "below"),
        )
        assert parked.output() == f"3 ['x', 'y']\n1 None {alone / 'below'}\n"
    finally:
        parked.close()


def test_what_is_null_stays(alone: Path) -> None:
    """Arguments, environment and directory are set; variables are added."""
    code = (
        "import guest, os, sys\n"
        "guest.wait()\n"
        "print(sys.argv[1:], 'PATH' in os.environ, os.environ.get('B'), os.getcwd())\n"
    )
    parked = Parked(code, alone, "old")
    try:
        parked.ready()
        parked.start(variables={"B": "2"})
        assert parked.output() == f"['old'] True 2 {alone}\n"
    finally:
        parked.close()


@pytest.mark.parametrize("file", [False, True], ids=["closed", "a file"])
def test_a_launcher_that_does_not_pass_the_socket_on(alone: Path, file: bool) -> None:
    """The error says so; nothing is written to a file that has the number."""
    with open(alone / "file", "w") as other:
        done = subprocess.run(
            [sys.executable, "-c", "import guest; guest.wait()"],
            env={**os.environ, guest.VARIABLE: str(other.fileno())},
            pass_fds=[other.fileno()] if file else (),
            cwd=alone,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"the socket {other.fileno()} of {guest.VARIABLE} is not open" in done.stderr
    assert "must pass it on" in done.stderr
    assert (alone / "file").read_text() == ""


def test_the_variable_is_not_inherited(alone: Path) -> None:
    """Programs that the waiting program starts have neither the variable nor the descriptor."""
    code = (
        "import guest, os, subprocess, sys\n"
        "fd = os.environ[guest.VARIABLE]\n"
        "guest.wait()\n"
        "print(guest.VARIABLE in os.environ)\n"
        "sys.stdout.flush()\n"
        "done = subprocess.run(['test', '-e', '/proc/self/fd/' + fd], close_fds=False)\n"
        "print(done.returncode)\n"
    )
    parked = Parked(code, alone)
    try:
        parked.ready()
        parked.start()
        assert parked.output() == "False\n1\n"
    finally:
        parked.close()


def test_hooks_in_order(alone: Path) -> None:
    """Callbacks before the snapshot run before parking, those after it at the start, in order."""
    code = (
        "import guest\n"
        "guest.before_snapshot(lambda: print('one'))\n"
        "@guest.before_snapshot\n"
        "def two(): print('two')\n"
        "guest.after_start(lambda start: print('three', start.number))\n"
        "guest.after_start(lambda start: print('four'))\n"
        "guest.wait()\n"
        "print('five')\n"
        "guest.wait()\n"
    )
    parked = Parked(code, alone)
    try:
        assert parked.ready() == guest.READY_TO_FORK
        assert parked.process.stdout is not None
        assert [parked.process.stdout.readline() for _ in range(2)] == ["one\n", "two\n"]
        parked.start(number=9)
        assert parked.ready() == guest.READY_TO_FORK
        parked.start(number=0)
        assert parked.output() == "three 9\nfour\nfive\none\ntwo\nthree 0\nfour\n"
    finally:
        parked.close()


def test_garbage_is_collected_and_frozen(alone: Path) -> None:
    """Garbage is collected by default, not with collect=False."""
    code = (
        "import gc, guest\n"
        "guest.wait(collect=False)\nprint(gc.get_freeze_count())\n"
        "guest.wait()\nprint(gc.get_freeze_count() > 1000)\n"
    )
    parked = Parked(code, alone)
    try:
        parked.ready()
        parked.start()
        assert parked.ready() == guest.READY_TO_FORK
        parked.start()
        first, second = parked.output().split()
        assert (int(first) < 1000, second) == (True, "True")
    finally:
        parked.close()


@pytest.mark.parametrize(
    "generator",
    [
        "import random; random.seed(1); show = random.random",
        "numpy = __import__('numpy'); numpy.random.seed(1); show = numpy.random.random",
    ],
    ids=["random", "numpy"],
)
def test_generators_are_seeded_again(alone: Path, generator: str) -> None:
    """Two starts have different random numbers; the original, number 0, keeps its state."""
    if "numpy" in generator:
        pytest.importorskip("numpy")
    code = f"import guest\n{generator}\nstart = guest.wait()\nprint(show())\n"
    results = []
    for number in (1, 2, 0, 0):
        parked = Parked(code, alone)
        try:
            parked.ready()
            parked.start(number=number)
            results.append(parked.output())
        finally:
            parked.close()
    assert len(set(results)) == 3
    assert results[2] == results[3]


def test_openssl_gets_new_bytes(alone: Path) -> None:
    """ssl.RAND_add is called with bytes that differ, if ssl is loaded."""
    code = (
        "import guest, ssl\n"
        "ssl.RAND_add = lambda data, entropy: print(data.hex(), entropy)\n"
        "guest.wait()\n"
    )
    results = set()
    for _ in range(2):
        parked = Parked(code, alone)
        try:
            parked.ready()
            parked.start()
            data, entropy = parked.output().split()
            assert len(data) == 128
            assert float(entropy) == 64
            results.add(data)
        finally:
            parked.close()
    assert len(results) == 2


TERMINAL = """
import os, sys, guest
master, slave = os.openpty()
guest.before_snapshot(lambda: os.dup2(slave, 1))
guest.wait()
print("line")
os.set_blocking(master, False)
sys.stderr.write(os.read(master, 100).decode())
"""


def test_lines_on_a_terminal(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy writes each line to a terminal at once; the program began with a pipe."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    parked = Parked(TERMINAL, alone)
    try:
        parked.ready()
        parked.start()
        _, errors = parked.process.communicate(timeout=60)
        assert errors.split() == ["line"]
    finally:
        parked.close()


@pytest.mark.parametrize("end", ["close", "detach"])
def test_a_closed_stream(alone: Path, end: str) -> None:
    """The program can have closed its standard output."""
    code = f"import guest, os, sys\nsys.stdout.{end}()\nguest.wait()\nos.write(2, b'copy')\n"
    parked = Parked(code, alone)
    try:
        parked.ready()
        parked.start()
        assert parked.process.communicate(timeout=60)[1].startswith("copy")
    finally:
        parked.close()


@pytest.mark.parametrize("parked_first", [True, False])
def test_the_end_of_the_caller_that_takes_the_snapshot(alone: Path, parked_first: bool) -> None:
    """If the snapshot fails, the program ends with a message and does not go on as a copy."""
    code = "import guest, sys\nsys.stdin.read()\nguest.wait()\nprint('on')\n"
    parked = Parked(code if not parked_first else code.replace("sys.stdin.read()", ""), alone)
    try:
        if parked_first:
            parked.ready()
        parked.socket.close()
        out, errors = parked.process.communicate(timeout=60)
        assert (parked.process.returncode, out) == (1, "")
        assert "has ended or given up" in errors
    finally:
        parked.close()


# ---- copies that are forked ----

FORKING = """
import os, signal, sys, threading
import guest
if sys.argv[1:] == ["threads"]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
os.register_at_fork(after_in_child=lambda: print("forked", flush=True))
start = guest.wait()
signal.signal(signal.SIGUSR1, lambda *_: print("signal", start.number, flush=True))
main = threading.get_ident()
sender = threading.Thread(target=signal.pthread_kill, args=[main, signal.SIGUSR1])
sender.start()
sender.join()
"""


def test_a_copy_is_forked(alone: Path) -> None:
    """A copy is a child of this process, reads its start from its socket, and has the right thread
    id.
    """
    parked = Parked(FORKING, alone)
    try:
        parked.ready()
        parked.socket.sendall(json.dumps({"zygote": []}).encode() + b"\n")
        assert parked.ready() == guest.READY
        for number in (1, 2):
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    socket.send_fds(parked.socket, [b"\n"], [theirs.fileno()])
                answer, (pidfd,), _, _ = socket.recv_fds(ours, 100, 1)
                assert answer == guest.READY
                ours.sendall(json.dumps({**START, "number": number}).encode() + b"\n")
                result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                os.close(pidfd)
                assert result is not None
                assert result.si_status == 0
                assert result.si_pid != parked.process.pid
        parked.socket.close()
        assert parked.output() == "forked\nsignal 1\nforked\nsignal 2\n"
    finally:
        parked.close()


def test_a_program_with_threads_does_not_fork(alone: Path) -> None:
    """A program with other threads cannot be a zygote: it ends with the reason."""
    parked = Parked(FORKING, alone, "threads")
    try:
        parked.ready()
        parked.socket.sendall(json.dumps({"zygote": []}).encode() + b"\n")
        assert parked.ready() == b""
        _, errors = parked.process.communicate(timeout=60)
        assert "a program with 2 threads cannot fork copies" in errors
        assert parked.process.returncode == 1
    finally:
        parked.close()


RECEIVING = """
import guest, os, socket, sys
socket.setdefaulttimeout(0)  # of other sockets
guest.wait()
for number in map(int, sys.argv[1:]):
    print(os.read(number, 100).decode(), os.get_inheritable(number))
print(sorted(map(int, os.listdir("/proc/self/fd"))))
"""


def test_descriptors_come_with_the_line(alone: Path) -> None:
    """Descriptors get the numbers of the line, also those that the kernel has used for others."""
    parked = Parked(RECEIVING, alone)
    try:
        assert parked.ready() == guest.READY_TO_FORK
        parked.until_it_sleeps()
        open_before = sorted(map(int, os.listdir(f"/proc/{parked.process.pid}/fd")))
        free = next(number for number in range(3, 99) if number not in open_before)
        numbers = [free + 4, free + 3, 70]
        pipes = [os.pipe() for _ in numbers]
        for number, (_, writer) in zip(numbers, pipes, strict=True):
            os.write(writer, b"for %d" % number)
        values = {**START, "descriptors": numbers, "arguments": [str(each) for each in numbers]}
        line = json.dumps(values).encode() + b"\n"
        socket.send_fds(parked.socket, [line], [reader for reader, _ in pipes])
        for pair in pipes:
            for fd in pair:
                os.close(fd)
        *read, listed = parked.output().splitlines()
        assert read == [f"for {number} True" for number in numbers]
        # The directory of the list has a number of its own.
        assert set(json.loads(listed)) >= {*open_before, *numbers}
        assert len(json.loads(listed)) == len(open_before) + len(numbers) + 1
    finally:
        parked.close()


def test_too_many_descriptors(alone: Path) -> None:
    """The kernel closes those beyond the limit of the program, which ends with the reason."""
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n" + RECEIVING
    parked = Parked(code, alone)
    try:
        parked.ready()
        line = json.dumps({**START, "descriptors": list(range(20, 60))}).encode() + b"\n"
        socket.send_fds(parked.socket, [line], [0] * 40)
        _, errors = parked.process.communicate(timeout=60)
        assert "pass_fds: Too many open files" in errors
    finally:
        parked.close()


def test_a_descriptor_that_a_thread_has_opened(alone: Path) -> None:
    """A file that the program has open is not closed; the program ends with the reason."""
    parked = Parked("import guest, os\nos.dup2(0, 50)\nguest.wait()\n", alone)
    try:
        parked.ready()
        line = json.dumps({**START, "descriptors": [50]}).encode() + b"\n"
        socket.send_fds(parked.socket, [line], [0])
        _, errors = parked.process.communicate(timeout=60)
        assert "pass_fds: a thread has opened a file as 50" in errors
    finally:
        parked.close()

"""The programs of docs/snapshots.md, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from pycriu_native.archive.pack import pack, unpack
from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE, eventually
from .test_snapshots import ENVIRONMENT

DOCUMENT = Path(__file__).parents[2] / "docs" / "snapshots.md"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with the programs that begin with their names; heavy imports are left out."""
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            code = re.sub(r"^import numpy,? ?(pandas)?.*\n", "", block, flags=re.M)
            code = code.replace("numpy.random.random()", "0.5")
            (tmp_path / name[1]).write_text(code)
    return tmp_path


def taken(programs: Path, name: str) -> Snapshot:
    """A snapshot of a program of the page."""
    command = [sys.executable, str(programs / f"{name}.py")]
    return Snapshot.take(command, programs / f"{name}.snapshot", env=ENVIRONMENT)


def test_the_first_program(programs: Path) -> None:
    """Saved, started with arguments; by itself it goes on at once."""
    with taken(programs, "app").start(["--n", "3"], stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0.5 --n 3\n"
    alone = [sys.executable, str(programs / "app.py"), "x"]
    done = subprocess.run(alone, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert done.stdout == "0.5 x\n"


def test_the_function_server(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered at the same time, each by a copy."""
    taken(programs, "function")
    monkeypatch.chdir(programs)
    names: dict[str, Any] = {}
    exec((programs / "server.py").read_text(), names)

    async def main() -> list[bytes]:
        bodies = [json.dumps({"numbers": [number, 1]}).encode() for number in range(4)]
        result: list[bytes] = await asyncio.gather(*map(names["call"], bodies))
        return result

    assert [json.loads(out)["sum"] for out in asyncio.run(main())] == [1, 2, 3, 4]


def test_a_snapshot_of_a_copy(programs: Path) -> None:
    """It has what the copy has loaded for its arguments."""
    (programs / "data.csv").write_text("1,2,3\n")
    streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    data = [str(programs / "data.csv")]
    with taken(programs, "levels").start(data, **streams, savable=True) as process:
        loaded = Snapshot.take(process, programs / "loaded.snapshot", deadline=PATIENCE)
    with loaded.start(["3"], **streams, text=True) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (out, errors, process.returncode) == ("6 ['3']\n", "", 0)


def test_a_warm_process_for_each_test(programs: Path) -> None:
    """pytest runs in the copies, and its exit status comes out."""
    (programs / "test_one.py").write_text("def test_good(): pass\n")
    (programs / "test_two.py").write_text("def test_bad(): assert 0\n")
    snapshot = taken(programs, "warm")
    options = {"cwd": programs, "stdout": subprocess.DEVNULL}
    for name, status in (("test_one.py", 0), ("test_two.py", 1)):
        arguments = ["-q", "-p", "no:cacheprovider", name]
        with snapshot.start(arguments, **options) as process:  # type: ignore[arg-type]
            assert process.wait(PATIENCE) == status


def test_web_servers(programs: Path) -> None:
    """Two copies serve on two ports."""
    snapshot = taken(programs, "web")
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            ports.append(probe.getsockname()[1])
    copies = [snapshot.start([str(port)], stderr=subprocess.DEVNULL) for port in ports]

    def answers(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
                return bool(response.read() == b"hello\n")
        except OSError:
            return False

    try:
        for port in ports:
            eventually(lambda port=port: answers(port), "an answer")  # type: ignore[misc]
    finally:
        for copy in copies:
            copy.kill()
            copy.wait()


def test_an_archive(programs: Path) -> None:
    """A snapshot that was packed and unpacked elsewhere starts."""
    snapshot = taken(programs, "app")
    pack(snapshot.directory, programs / "app.tar")
    snapshot.remove()
    unpack(programs / "app.tar", programs / "elsewhere")
    with Snapshot(programs / "elsewhere").start(["y"], stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0.5 y\n"

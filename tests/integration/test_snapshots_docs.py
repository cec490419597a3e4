"""The programs of docs/snapshots.md, run unchanged."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
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
from pycriu_native.oci.image_layout import pack_image, unpack_image
from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE, eventually
from .test_snapshots import ENVIRONMENT

DOCUMENT = Path(__file__).parents[2] / "docs" / "snapshots.md"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with the programs of the page by their file names, without slow imports."""
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
    """The first program of the page is saved, and started with arguments."""
    with taken(programs, "app").start(["--n", "3"], stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0.5 --n 3\n"
    alone = [sys.executable, str(programs / "app.py"), "x"]
    done = subprocess.run(alone, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert done.stdout == "0.5 x\n"


def test_the_function_server(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent requests are handled, each by a copy."""
    taken(programs, "function")
    monkeypatch.chdir(programs)
    names: dict[str, Any] = {}
    exec((programs / "server.py").read_text(), names)

    async def main() -> list[bytes]:
        bodies = [json.dumps({"numbers": [number, 1]}).encode() for number in range(4)]
        result: list[bytes] = await asyncio.gather(*map(names["call"], bodies))
        return result

    assert [json.loads(out)["sum"] for out in asyncio.run(main())] == [1, 2, 3, 4]


def test_copies_of_a_zygote_from_a_shell(programs: Path) -> None:
    """Each line of the input starts a copy."""
    directory = taken(programs, "app").directory
    lines = f"printf 'a b\\nc\\n' | python3 many.py {directory}"
    done = run_commands(programs, lines)
    assert done.stdout == "0.5 a b\n0.5 c\n", done.stderr


def test_a_snapshot_of_a_copy(programs: Path) -> None:
    """A snapshot of a copy has the data that the copy loaded for its arguments."""
    (programs / "data.csv").write_text("1,2,3\n")
    streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    data = [str(programs / "data.csv")]
    with taken(programs, "levels").start(data, **streams, savable=True) as process:
        loaded = Snapshot.take(process, programs / "loaded.snapshot", deadline=PATIENCE)
    with loaded.start(["3"], **streams, text=True) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (out, errors, process.returncode) == ("6 ['3']\n", "", 0)


def test_a_warm_process_for_each_test(programs: Path) -> None:
    """pytest runs in the copies, and its exit status is returned."""
    (programs / "test_one.py").write_text("def test_good(): pass\n")
    (programs / "test_two.py").write_text("def test_bad(): assert 0\n")
    snapshot = taken(programs, "warm")
    options = {"cwd": programs, "stdout": subprocess.DEVNULL}
    for name, status in (("test_one.py", 0), ("test_two.py", 1)):
        arguments = ["-q", "-p", "no:cacheprovider", name]
        with snapshot.start(arguments, **options) as process:  # type: ignore[arg-type]
            assert process.wait(PATIENCE) == status


def test_a_warm_process_on_the_command_line(programs: Path) -> None:
    """The commands of the page, unchanged."""
    section = DOCUMENT.read_text().split("## A prepared process for each test")[1]
    lines = re.findall(r"^# (.*)", section.split("```console")[1].split("```")[0], re.M)
    assert len(lines) == 2
    tests = programs / "tests"
    tests.mkdir()
    for name in ("one", "two"):
        (tests / f"test_{name}.py").write_text("def test_good(): pass\n")
    done = run_commands(programs, "\n".join(lines))
    assert done.stdout.count("1 passed") == 2, done.stderr


def run_commands(directory: Path, lines: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a directory, with this Python and this package."""
    for name, command in (("python3", ""), ("pycriu-native", " -m pycriu_native")):
        script = directory / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable}{command} "$@"\n')
        script.chmod(0o755)
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-euc", lines],
        cwd=directory,
        env={**ENVIRONMENT, "PATH": path, "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
    )


CLIENT = """
from jupyter_client import KernelManager
manager = KernelManager(kernel_name="warm")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute_interactive("import sys; print(6 * 7, sys.argv[1])", timeout=60)
manager.shutdown_kernel()
"""


def test_a_jupyter_kernel(programs: Path) -> None:
    """The kernel.json of the page starts a kernel, which responds and ends on request."""
    for name in ("ipykernel", "jupyter_client"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    snapshot = taken(programs, "kernel")
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.S)
    spec = json.loads(text.replace("/srv/kernel.snapshot", str(snapshot.directory)))
    assert spec["argv"][0] == "pycriu-native"
    spec["argv"][:1] = [sys.executable, "-m", "pycriu_native"]
    place = programs / "jupyter" / "kernels" / "warm" / "kernel.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env={**ENVIRONMENT, "JUPYTER_PATH": str(programs / "jupyter")},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        check=False,
    )
    assert done.stdout.endswith("42 -f\n"), done.stderr  # after a message of IPython
    assert done.returncode == 0


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


@pytest.mark.parametrize("kind", ["archive", "OCI image"])
def test_an_archive(programs: Path, kind: str) -> None:
    """A snapshot that was packed and unpacked elsewhere starts."""
    snapshot = taken(programs, "app")
    if kind == "archive":
        pack(snapshot.directory, programs / "app.tar")
    else:
        pack_image(snapshot.directory, programs / "app.image")
    snapshot.remove()
    if kind == "archive":
        unpack(programs / "app.tar", programs / "elsewhere")
    else:
        unpack_image(programs / "app.image", programs / "elsewhere")
    with Snapshot(programs / "elsewhere").start(["y"], stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0.5 y\n"

"""``pycriu-native`` as a separate program, with real processes and a real CRIU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import pycriu_native
from pycriu_native.cli.exit_codes import Exit
from pycriu_native.plots import read_timeline

from .conftest import Spawn
from .support.features import needs_lazy_pages
from .support.processes import PATIENCE, eventually, is_alive, kill, tree

INSTALLED = Path(sys.executable).with_name("pycriu-native")
PROGRAM = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "pycriu_native"]
"""The console script, if it is installed."""

MEMORY = """
    import os
    memory = bytearray(os.urandom(2**20) * 8)
    serve()
"""

CONNECTED = """
    import socket
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    serve()
"""


def run(*words: object, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the program, and check its exit code."""
    message = subprocess.run(
        [*PROGRAM, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=60,
        **{"stdin": subprocess.DEVNULL, **more},
    )  # fmt: skip
    assert message.returncode == code, message.stdout + message.stderr
    return message


def result(*words: object, code: int = 0) -> Any:
    """The result that ``--json`` prints."""
    message = run(*words, "--json", code=code)
    assert message.stderr == ""
    results = json.loads(message.stdout.splitlines()[-1])
    assert results["exit_code"] == code
    return results["result"]


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """Run the program in the background."""
    process = subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            kill(process.pid)


def line(process: subprocess.Popen[str]) -> Any:
    """Read the next line of JSON."""
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text, process.stderr and process.stderr.read()
    return json.loads(text)


def test_dump_and_restore(spawn: Spawn, images: Path) -> None:
    """``dump`` and ``restore`` print their results with CRIU's statistics, as text and as JSON."""
    target = spawn("import os\nif os.fork() == 0:\n    import time; time.sleep(1e6)\n" + "serve()")
    pids = tree(target.pid)
    message = run("dump", target.pid, "--images-dir", images)
    target.reap()
    assert message.stderr == ""
    lines = dict(entry.strip().split("  ", 1) for entry in message.stdout.splitlines()[1:])
    assert message.stdout.startswith(f"dumped pid {target.pid} (python")
    for label in ("freezing", "frozen", "memory dump", "memory write", "whole call"):
        assert lines[label].split()[1] in ("s", "ms", "us"), message.stdout
    size = sum(path.stat().st_size for path in images.glob("*.img"))
    assert f"{len(pids)}: " in lines["processes"]
    assert f"in {len(list(images.glob('*.img')))} files" in lines["images"]

    restored = result("restore", "-D", images)
    assert restored["pid"] == target.pid
    assert sorted(restored["pids"]) == sorted(pids)
    assert restored["statistics"]["pages_restored"] > 0
    assert target.runs_on()

    again = result("dump", target.pid, "-D", images, "--leave-running")
    assert sorted(again["pids"]) == sorted(pids)
    assert again["pid_free"] is False
    assert again["statistics"]["frozen_time"] > 0
    assert again["image_bytes"] == sum(path.stat().st_size for path in images.glob("*.img"))
    assert abs(again["image_bytes"] - size) < size // 2
    assert target.runs_on()


@pytest.mark.parametrize("how", [">/dev/full", ">&-", "<&- >&- 2>&-", "--json >/dev/full"])
def test_a_dump_whose_output_cannot_be_written(how: str, spawn: Spawn, images: Path) -> None:
    """The exit code is that for lost output; the dump is complete and can be restored."""
    target = spawn("serve()")
    words = [*PROGRAM, "dump", str(target.pid), "-D", str(images)]
    message = subprocess.run(
        ["sh", "-c", f'"$@" {how}', "sh", *words], capture_output=True, text=True, check=False
    )
    target.reap()
    assert message.returncode == Exit.OUTPUT, message.stderr
    assert "2>&-" in how or message.stderr.count("the command itself worked") == 1
    run("restore", "-D", images)
    assert target.runs_on()


def test_errors(spawn: Spawn, images: Path) -> None:
    """Each error has its cause, and an exit code for scripts."""
    target = spawn(CONNECTED)
    message = run("dump", target.pid, "-D", images, code=1)
    assert "--tcp-established" in message.stderr
    assert "CRIU    Error (criu/sk-inet.c" in message.stderr
    assert f"log     {images}/dump.log" in message.stderr
    assert target.runs_on()
    run("dump", target.pid, "-D", images, "--tcp-established", "--leave-running")
    message = run("restore", "-D", images, "--tcp-established", code=5)
    assert f"pid {target.pid} is taken by a running process" in message.stderr
    run("dump", 999999999, "-D", images, code=4)
    run("dump", target.pid, "-D", images, "--criu", "/none", code=8)
    run("restore", "-D", images / "none", code=2)
    (images / "empty").mkdir()
    run("restore", "-D", images / "empty", code=6)
    assert target.runs_on()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_undoes_a_dump(number: int, spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A signal during a dump, with all processes frozen: CRIU undoes its work, and the process
    runs.
    """
    target = spawn()
    script = tmp_path / "script"
    script.write_text(
        '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || '
        f"{{ touch {tmp_path}/reached; kill -{int(number)} $PPID; exec sleep 5; }}\n"
    )
    script.chmod(0o755)
    words = ["dump", target.pid, "-D", images, "--action-script", script]
    message = run(*words, code=128 + number)
    assert (tmp_path / "reached").exists()
    assert f"interrupted; dump of pid {target.pid} undone after" in message.stderr
    assert target.runs_on()


def test_restore_and_wait(spawn: Spawn, images: Path) -> None:
    """With --wait the command forwards signals to the process, and ends with its exit code."""
    target = spawn("import signal, os\nsignal.signal(15, lambda *_: os._exit(7))\nserve()")
    run("dump", target.pid, "-D", images)
    target.reap()
    with started("restore", "-D", images, "--wait", "--json") as program:
        assert line(program)["event"] == "running"
        assert target.runs_on()
        os.kill(target.pid, signal.SIGKILL)
        assert program.wait(PATIENCE) == 128 + signal.SIGKILL
    with started("restore", "-D", images, "--wait", "--json") as program:
        line(program)
        assert target.runs_on()
        program.send_signal(signal.SIGTERM)
        assert program.wait(PATIENCE) == 7


def test_exec_cmd(spawn: Spawn, images: Path) -> None:
    """The command becomes the parent of the restored process, and its exit code is returned."""
    target = spawn()
    run("dump", target.pid, "-D", images)
    target.reap()
    run("restore", "-D", images, "--exec-cmd", "--", "sh", "-c", "kill -9 $0; exit 6",
        target.pid, code=6)  # fmt: skip
    eventually(lambda: not is_alive(target.pid), "the end of what was restored")


def test_check_and_doctor() -> None:
    """``check`` and ``doctor`` describe this machine; each finding of doctor has a stable id."""
    checked = result("check")
    assert checked["criu"] == str(pycriu_native.version())
    assert checked["features"]["lazy_pages"] is pycriu_native.feature_check().lazy_pages
    results = result("doctor")
    assert {"criu", "libcriu"} <= {finding["id"] for finding in results["findings"]}
    everything = run("doctor", "--all").stdout
    for finding in results["findings"]:
        assert finding["subject"] in everything
        assert finding["cure"] in everything or "_" in finding["cure"]


def test_preflight_gives_the_command(spawn: Spawn, tmp_path: Path) -> None:
    """preflight ends with exit code NO; the command line that it prints works."""
    target = spawn(CONNECTED)
    results = result("preflight", target.pid, code=11)
    assert results["verdict"] == "needs options"
    assert results["options"] == {"tcp_established": True}
    assert "--tcp-established" in run("preflight", target.pid, code=11).stdout
    assert result("preflight", target.pid, "--tcp-established")["verdict"] == "works"
    message = run(*results["command"][1:], "--leave-running", cwd=tmp_path)
    assert message.stdout.startswith(f"dumped pid {target.pid}")
    assert target.runs_on()


def test_images_are_looked_at(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """inspect, diff, decode, encode and check-images, on the images of a new dump."""
    target = spawn("secret = 'xyzzy' * 3\n" + MEMORY.replace("    ", ""))
    run("dump", target.pid, "-D", images, "--leave-running")
    run("dump", target.pid, "-D", tmp_path / "second", "--leave-running")
    core = images / f"core-{target.pid}.img"
    shown = run("inspect", images).stdout
    assert str(target.directory) in shown
    results = result("inspect", images)
    assert results["complete"] is True
    assert [process["pid"] for process in results["processes"]] == [target.pid]
    assert result("inspect", images, "--search", "xyzzyxyzzyxyzzy")
    assert result("inspect", images, "--search", "nowhere-at-all-" + str(tmp_path), code=11) == []
    assert "pages" in run("diff", images, tmp_path / "second", code=11).stdout
    run("diff", images, images)
    decoded = json.loads(run("decode", images / "pstree.img").stdout)
    assert decoded["entries"][0]["pid"] == target.pid
    for form in ([], ["--json"]):
        (tmp_path / "core.json").write_text(run("decode", core, *form).stdout)
        run("encode", tmp_path / "core.json", tmp_path / "core.img")
        assert (tmp_path / "core.img").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "core.img").read_bytes() == core.read_bytes()
    (tmp_path / "core.json").write_text("[")
    run("encode", tmp_path / "core.json", tmp_path / "core.img", code=6)
    assert result("check-images", images, code=11)["restorable"] is False
    kill(target.pid)
    target.reap()
    assert result("check-images", images)["restorable"] is True
    for options in (["--tree"], ["--memory", "--files"], ["--pid", target.pid]):
        assert str(target.pid) in run("inspect", images, *options).stdout


# Not imported: its libraries would start a thread in this process.
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="pictures need matplotlib")
def test_pictures(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A timeline with times from the log, which agree with CRIU's statistics."""
    target = spawn("import os\nif os.fork() == 0:\n    import time; time.sleep(1e6)\n" + "serve()")
    run("dump", target.pid, "-D", images, "--leave-running", "-v4")
    for what in ("timeline", "rounds", "memory"):
        run("plot", what, images, tmp_path / f"{what}.png")
        assert (tmp_path / f"{what}.png").read_bytes().startswith(b"\x89PNG")
        run("plot", what, images, tmp_path / f"{what}.svg")
        assert "<svg" in (tmp_path / f"{what}.svg").read_text()
    results = read_timeline(images)
    message = results.statistics
    assert message is not None
    assert results.frozen is not None
    assert [span.pid for span in results.processes] == tree(target.pid)
    assert abs(results.frozen[1] - results.frozen[0] - message.frozen_time / 1e6) < 1e-6
    assert results.phases[0].name == "start"
    saving = next(phase for phase in results.phases if phase.name == "save processes")
    assert results.frozen[0] <= saving.begin < saving.end <= results.frozen[1] <= results.end
    for span in (*results.processes, *results.memory):
        assert saving.begin <= span.begin <= span.end <= saving.end
    # The measured memory phase is most of CRIU's memory times.
    memory = sum(span.end - span.begin for span in results.memory)
    assert memory > 0


def test_the_page_server(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """page-server prints its address, receives the pages of one dump, and ends."""
    target = spawn(MEMORY)
    images.mkdir()
    where = ["--address", "127.0.0.1", "--port"]
    with started("page-server", "-D", images, *where, "0", "--json") as server:
        port = line(server)["port"]
        run("dump", target.pid, "-D", images, "--page-server", *where, port)
        target.reap()
        done = line(server)
        assert server.wait(PATIENCE) == 0
    assert done["result"]["image_bytes"] > 8 * 2**20
    assert result("restore", "-D", images)["pid"] == target.pid
    assert target.runs_on()


@needs_lazy_pages
def test_lazy_pages(spawn: Spawn, images: Path) -> None:
    """The daemon sends pages to a restore, and ends after the last page."""
    target = spawn(MEMORY)
    run("dump", target.pid, "-D", images)
    target.reap()
    with started("lazy-pages", "-D", images, "--json") as daemon:
        assert line(daemon)["event"] == "listening"
        run("restore", "-D", images, "--lazy-pages")
        assert line(daemon)["ok"] is True
        assert daemon.wait(PATIENCE) == 0
    assert target.runs_on()


def test_migrate(spawn: Spawn, tmp_path: Path) -> None:
    """One command on each side: the process is moved from this pid namespace to another one."""
    target = spawn(MEMORY)
    there = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    address = "127.0.0.1:17421"
    arriving = subprocess.Popen(
        [*there, "sh", "-c", '"$@"; echo; exec sleep 1000', "sh", *PROGRAM,
         "migrate", "in", "--listen", address, "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with arriving:
        try:
            eventually(lambda: _listens(17421), "the other side's listening")
            exited = result("migrate", "out", target.pid, "--to", address)
            target.reap()
            come = line(arriving)["result"]
            assert exited["pid"] == come["pid"] == target.pid
            assert exited["image_bytes"] > 8 * 2**20
            assert exited["downtime"] > 0
            assert target.ask("pid") == target.pid  # by its own number
            assert not is_alive(target.pid)
        finally:
            kill(arriving.pid)
    run("migrate", "out", spawn().pid, "--to", "127.0.0.1:1", code=9)


def _listens(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def test_pack_and_unpack(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """pack and unpack are connected by a pipe, and the unpacked images are restored."""
    target = spawn()
    run("dump", target.pid, "-D", images)
    target.reap()
    packing = subprocess.run(
        [*PROGRAM, "pack", images, "-"], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    unpacking = subprocess.run(
        [*PROGRAM, "unpack", "-", tmp_path / "new", "--json"],
        input=packing.stdout, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(unpacking.stdout)["result"]["bytes"] > 0
    run("restore", "-D", tmp_path / "new")
    assert target.runs_on()

"""``pycriu-native snapshot``, ``start`` and ``snapshots`` on real programs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycriu_native._calls.verbs import too_late
from pycriu_native.cli.exit_codes import Exit
from pycriu_native.plots import read_starts
from pycriu_native.snapshots import Snapshot

from .conftest import Spawn
from .support.processes import eventually
from .test_snapshots import COMMAND, ENVIRONMENT

pytest.importorskip("click")

PHASES = ["check", "memory", "namespaces", "worker", "prepare", "restore", "finish"]

CLI = [sys.executable, "-m", "pycriu_native"]


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line."""
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT, **options}
    return subprocess.run([*CLI, *map(str, words)], check=False, **options)


def result(done: subprocess.CompletedProcess[str]) -> Any:
    """The result of a command with --json."""
    return json.loads(done.stdout.splitlines()[-1])["result"]


def test_from_a_snapshot_to_its_removal(tmp_path: Path) -> None:
    """Each command works, with text and JSON output."""
    directory = tmp_path / "app.snapshot"
    done = run("snapshot", directory, "--", *COMMAND, "saved")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("saved ")

    words = ["start", directory, "--env", "SNAPSHOT_TEST=given", "--hostname", "copy-1"]
    questions = json.dumps(["identity"]) + "\n" + json.dumps(["exit", 9]) + "\n"
    done = run(*words, "--network", "--cwd", "/", "--", "--n", "3", input=questions)
    assert (done.returncode, done.stderr) == (9, "")
    seen = json.loads(done.stdout)[1]
    assert (seen["arguments"], seen["variable"]) == (["--n", "3"], "given")
    assert (seen["hostname"], seen["links"], seen["directory"]) == ("copy-1", ["lo"], "/")
    done = run("start", directory, "--json", input=json.dumps(["kill", 15]) + "\n")
    assert done.returncode == 128 + signal.SIGTERM
    running, ended = map(json.loads, done.stdout.splitlines())
    assert (running["event"], running["number"]) == ("running", 2)
    assert (ended["event"], ended["exit_code"]) == ("ended", 128 + signal.SIGTERM)

    listed = result(run("snapshots", "list", tmp_path, "--json"))
    assert [each["directory"] for each in listed["snapshots"]] == [str(directory)]
    assert "app.snapshot" in run("snapshots", "list", tmp_path).stdout
    assert "no snapshot" in run("snapshots", "list", directory).stdout
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "snapshot.json").write_text("{")
    done = run("snapshots", "list", tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (Exit.IMAGES, 2)
    assert "app.snapshot" in done.stdout.splitlines()[0]
    assert str(damaged) in done.stdout.splitlines()[1]
    inspected = result(run("snapshots", "inspect", directory, "--json"))
    assert (inspected["problems"], inspected["guest"]) == ([], True)
    assert inspected["command"] == [*COMMAND, "saved"]

    done = run("snapshots", "remove", directory)
    assert (done.returncode, directory.exists()) == (0, False)
    done = run("snapshots", "inspect", directory)
    assert done.returncode == Exit.IMAGES


def test_timings(tmp_path: Path) -> None:
    """Each start appends a line with its phases; a file that cannot be written prevents
    the start.
    """
    directory = tmp_path / "app.snapshot"
    path = tmp_path / "starts.jsonl"
    assert run("snapshot", directory, "--", *COMMAND).returncode == 0
    for _ in range(2):
        done = run("start", directory, "--timings", path, input="")
        assert (done.returncode, done.stderr) == (0, "")
    assert [each.number for each in read_starts(path)] == [1, 2]
    for each in read_starts(path):
        assert [phase.name for phase in each.phases] == PHASES
        assert each.way == "plain"
    done = run("start", directory, "--timings", tmp_path / "none" / "file", input="")
    assert (done.returncode, "can be written" in done.stderr) == (Exit.REFUSED, True)
    assert (directory / "starts").read_text() == "2"


def test_a_machine_that_does_not_fit(tmp_path: Path) -> None:
    """Inspect ends with 11 and start with 2, both with the differences; --no-check starts."""
    directory = tmp_path / "app.snapshot"
    assert run("snapshot", directory, "--", *COMMAND).returncode == 0
    path = directory / "snapshot.json"
    values = json.loads(path.read_text())
    values["host"]["kernel"] = "99.0"
    path.write_text(json.dumps(values))
    done = run("snapshots", "inspect", directory)
    assert (done.returncode, "99.0 or later" in done.stdout) == (Exit.NO, True)
    done = run("start", directory, stdin=subprocess.DEVNULL)
    assert (done.returncode, "99.0 or later" in done.stderr) == (Exit.REFUSED, True)
    assert run("start", directory, "--no-check", stdin=subprocess.DEVNULL).returncode == 0


def test_output_of_a_program_that_fails(tmp_path: Path) -> None:
    """The program's output is shown once: on standard error, and with --json in a note."""
    command = ("--", sys.executable, "-c", "raise SystemExit('why')")
    done = run("snapshot", tmp_path / "s", *command)
    assert done.returncode == Exit.FAILED
    assert done.stderr.count("why") == 1
    assert "ended with status 1 before it called guest.wait()" in done.stderr
    done = run("snapshot", tmp_path / "s", "--json", *command)
    assert json.loads(done.stdout)["error"]["notes"] == ["its last output:\nwhy"]


def test_signals_are_passed_on(tmp_path: Path) -> None:
    """SIGTERM to the command ends the copy, and the command with the copy's status."""
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    with subprocess.Popen(
        [*CLI, "start", str(snapshot.directory), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "running"
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM


def test_a_process_that_does_not_exist(tmp_path: Path) -> None:
    """The message names the command once."""
    done = run("snapshot", tmp_path / "s", "--pid", 2**22 + 1, "--without-guest")
    assert done.returncode == Exit.NO_PROCESS
    assert f"snapshot: there is no process {2**22 + 1}" in done.stderr


def test_a_relative_directory(tmp_path: Path) -> None:
    """``--cwd`` is relative to the working directory of the command."""
    Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    done = subprocess.run(
        [*CLI, "start", "snapshot", "--cwd", "."],
        input='["identity"]\n',
        capture_output=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        text=True,
    )
    assert json.loads(done.stdout)[1]["directory"] == str(tmp_path), done.stderr


def test_a_signal_at_the_end_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal that arrives when the restore is complete ends the copy; the message has no result
    of the restore.
    """
    from pycriu_native.cli.command import Interrupted  # needs click
    from pycriu_native.cli.run import run as cli

    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)

    def late(*_: object, **__: object) -> None:
        raise too_late(Interrupted(signal.SIGTERM), "restore", "RestoreResult(pid=1)")

    monkeypatch.setattr("pycriu_native.snapshots.snapshot.start_copy", late)
    assert cli(["start", str(snapshot.directory)]) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == (
        "pycriu-native: start: interrupted; the work so far is undone\n"
    )


def test_a_running_process(spawn: Spawn, tmp_path: Path) -> None:
    """A running process is accepted with the explicit option only."""
    target = spawn()
    done = run("snapshot", tmp_path / "s", "--pid", target.pid)
    assert done.returncode == Exit.REFUSED
    assert "--without-guest accepts that" in done.stderr
    done = run(
        "snapshot", tmp_path / "s", "--pid", target.pid, "--without-guest", "--leave-running"
    )
    assert done.returncode == 0, done.stderr
    eventually(target.runs_on, "progress")
    for words in ((), ("--pid", "1", "--", "true")):
        assert run("snapshot", tmp_path / "t", *words).returncode == Exit.REFUSED

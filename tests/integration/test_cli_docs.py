"""The examples of docs/cli.md, run unchanged on real processes and a real CRIU.

Numbers and paths differ between runs and are not compared; all other words are.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pycriu_native import feature_check
from pycriu_native._system.process_tree import process_tree

from .conftest import Spawn
from .support.features import needs_lazy_pages
from .support.processes import eventually, kill
from .test_cli import CONNECTED, PROGRAM

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"

COUNTER = """
import os, time
memory = bytearray(os.urandom(2**20) * 24)
for at, letter in enumerate(reversed(b"drowssap a")):  # nowhere else in memory
    memory[8192 + at] = letter
if os.fork() == 0:
    while True:
        memory[0] = (memory[0] + 1) % 256
        time.sleep(0.01)
while True:
    memory[4096] = (memory[4096] + 1) % 256
    time.sleep(0.01)
"""

BEFORE = {
    "restore": "dump 757 -D later --quiet",
    "lazy-pages": "restore -D later --quiet && pycriu-native dump 757 -D lazy --quiet",
}
"""Preparations of a section that the page does not show."""

BY_HAND = {"doctor and check", "migrate"}
"""Sections that depend on the machine or on another host: test_doctor.py and test_migration.py."""

LOOSE = {"inspect, diff, check-images, decode, encode"}
"""Sections with variable amounts: only the first words of each line are compared."""


def blocks() -> Iterator[tuple[str, str]]:
    """Each example, with the heading of its section."""
    text = DOCUMENT.read_text()
    for section in re.split(r"^### ", text[text.index("## The commands") :], flags=re.M)[1:]:
        for block in re.findall(r"```console\n(.*?)```", section, re.S):
            yield section.partition("\n")[0], block


def shapes(lines: list[str], *, loose: bool) -> set[str]:
    """Lines without the parts that change from run to run."""
    result = set()
    for line in lines:
        line = re.sub(r"/[^ ':]*/(bin|sbin)/criu", "CRIU", line)
        line = re.sub(r"/[^ ':]*/(?=(?:ckpt|later|lazy|local|pages|web|copy)\b)", "/", line)
        line = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{5,}-[0-9a-f]{5,}\b|\b[0-9a-f]{8,}\b", "#", line)
        line = re.sub(r"\d+(\.\d+)*( ?(us|ms|s|B|KiB|MiB)\b)?", "#", line)
        line = re.sub(r"#(-#)?( #(-#)?)+|#-#", "#", " ".join(line.split()))
        result.add(" ".join(line.split()[:2]) if loose else line)
    return result - {""}


class Shell:
    """Runs the examples."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pids: dict[str, int] = {}
        program = directory / "bin" / "pycriu-native"
        program.parent.mkdir()
        words = " ".join(f"'{word}'" for word in PROGRAM)
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        jq = program.with_name("jq")
        jq.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            "found = json.load(sys.stdin)['entries'][0]\n"
            "print(json.dumps(found, separators=(',', ':')))\n"
        )
        jq.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(DOCUMENT.parents[1]),
            "PYCRIU_NATIVE_WIDTH": "200",
        }

    def run(self, script: str) -> list[str]:
        """Run commands; returns the lines of their output."""
        for shown, pid in self.pids.items():
            script = re.sub(rf"\b{shown}\b", str(pid), script)
        # Servers are ready when they have said so.
        script = re.sub(
            r"^(.*) &$",
            r"\1 >server.out 2>\&1 & until grep -qs listens server.out; do sleep 0.05; done",
            script,
            flags=re.M,
        )
        message = subprocess.run(
            [
                "bash",
                "-c",
                f"{script}\nwait\n[ -e server.out ] && cat server.out; rm -f server.out",
            ],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=100,
        )
        return message.stdout.splitlines()


@contextlib.contextmanager
def counter(directory: Path) -> Iterator[tuple[int, int]]:
    """``counter.py`` and its child in a new session; restored processes are reaped here."""
    (directory / "counter.py").write_text(COUNTER)
    quiet = subprocess.DEVNULL
    python = directory / "python3"  # it is called as on the page
    python.symlink_to(sys.executable)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        ["python3", "counter.py"], executable=python, cwd=directory, start_new_session=True,
        stdin=quiet, stdout=quiet, stderr=quiet, env=environment,
    )  # fmt: skip
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.02):
            for pid in (process.pid, child):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    eventually(lambda: len(process_tree(process.pid)) == 2, "the child")
    child = process_tree(process.pid)[1]
    reaper = threading.Thread(target=reap)
    reaper.start()
    try:
        yield process.pid, child
    finally:
        for pid in (child, process.pid):
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        over.set()
        reaper.join()
        for pid in (process.pid, child):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        process.returncode = -9


@needs_lazy_pages
def test_the_examples_of_the_page_are_exact(spawn: Spawn, orphans: None, tmp_path: Path) -> None:
    """Each command prints exactly the lines of the page."""
    shell = Shell(tmp_path)
    connected = spawn(CONNECTED)
    stale: list[str] = []
    with counter(tmp_path) as (pid, child):
        shell.pids = {"757": pid, "799": child, "699": connected.pid}
        seen = set()
        for section, block in blocks():
            if section in BY_HAND or (section == "plot" and find_spec("matplotlib") is None):
                continue
            if section not in seen and section in BEFORE:
                assert shell.run(f"pycriu-native {BEFORE[section]}") == []
            seen.add(section)
            if feature_check().mem_track:
                block = block.partition("$ pycriu-native pre-dump")[0]  # it would work
            if "ckpt/5" in block:
                shell.run("mkdir ckpt/5 && cp later/*.img later/stats-dump ckpt/5")
            if "starts.jsonl" in block:
                (tmp_path / "app.py").write_text("from pycriu_native import guest\nguest.wait()\n")
                take = f"pycriu-native snapshot app --quiet -- {sys.executable} app.py"
                assert shell.run(f"{take} && pycriu-native start app --timings starts.jsonl") == []
            loose = section in LOOSE
            lines = block.splitlines()
            shown = shapes([line for line in lines if not line.startswith("$ ")], loose=loose)
            message = shell.run("\n".join(line[2:] for line in lines if line.startswith("$ ")))
            for line in sorted(shown ^ shapes(message, loose=loose)):
                stale.append(f"{section}: {'shown' if line in shown else 'told'}: {line}")
    assert not stale, "\n".join(stale)


def test_no_other_examples_are_left_out() -> None:
    """Every section that is not run is listed here."""
    assert {section for section, _ in blocks()} > BY_HAND | LOOSE | BEFORE.keys()
    lines = [line for _, block in blocks() for line in block.splitlines()]
    prompts = {line.split()[0] for line in lines if "$ " in line}
    assert prompts == {"$", "here$", "there$"}

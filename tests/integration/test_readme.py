"""The examples of the README and of pages in docs/, run unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, dump
from pycriu_native.images import inspect

from .conftest import Spawn

README = Path(__file__).parents[2] / "README.md"


def test_the_first_lines_run(tmp_path: Path) -> None:
    """The first example prints statistics and a pid, and leaves no process."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert code is not None
    script = tmp_path / "first.py"
    script.write_text(code[1])
    message = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert message.returncode == 0, message.stderr
    statistics, pid = message.stdout.splitlines()
    assert statistics.startswith("DumpStatistics(")
    assert int(pid) > 0
    assert not Path(f"/proc/{pid}/fd/0").exists()


def test_the_other_lines_are_python() -> None:
    """The blocks of README.md and of these pages compile; the options are accepted."""
    names = ("calls.md", "tasks.md", "schedulers.md")
    pages = [README, *(README.with_name("docs") / page for page in names)]
    text = "\n".join(page.read_text() for page in pages)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    made = [
        eval(block, {"CriuOpts": CriuOpts})
        for block in blocks
        if compile(block, "page", "exec") and block.startswith("CriuOpts(")
    ]
    assert [opts.veth_pairs[0].outside for opts in made] == ["veth0"]


def test_the_examples_of_the_comparisons(spawn: Spawn, tmp_path: Path) -> None:
    """The examples of this library in each comparison run unchanged, on a real process."""
    target = spawn()
    page = README.with_name("docs") / "coming-from.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    script = tmp_path / "ours.py"
    script.write_text(f"pid = {target.pid}\n" + "\n".join(blocks))
    message = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert message.returncode == 0, message.stderr
    made = sorted(path.name for path in tmp_path.glob("from-*"))
    assert made == ["from-c", "from-criu", "from-go", "from-pycriu", "from-runc"]
    assert target.runs_on()


@pytest.mark.parametrize("page", ["images.md", "preflight.md"])
def test_examples_of_a_page(page: str, spawn: Spawn, tmp_path: Path) -> None:
    """The examples run in order, with the pid and an address of a real process."""
    target = spawn()
    for directory in ("ckpt", "monday", "tuesday"):
        opts = CriuOpts(images_directory=tmp_path / directory, leave_running=True)
        dump(target.pid, opts)
    process = inspect(tmp_path / "ckpt").process(target.pid)
    address = next(each.start for each in process.mappings if each.kind == "stack" and each.stored)
    text = README.with_name("docs").joinpath(page).read_text()
    script = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S))
    script = re.sub(r"\b0x[0-9A-F]{12}\b", f"{address:#x}", script)
    script = re.sub(r"\b4242\b", str(target.pid), script)
    message = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert message.returncode == 0, message.stderr
    assert str(target.pid) in message.stdout

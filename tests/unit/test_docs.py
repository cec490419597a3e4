"""Generated pages and links of the documentation agree with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pycriu_native.jobs.directory import (
    Checkpoint,
    CheckpointProgress,
    JobStatus,
    StorageStatus,
)

ROOT = Path(__file__).parents[2]


def test_the_table_of_options() -> None:
    """docs/options.md is the output of tools/options-table."""
    subprocess.run([sys.executable, ROOT / "tools" / "options-table", "--check"], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_the_unit(tmp_path: Path) -> None:
    """systemd accepts all settings of the unit in docs/schedulers.md."""
    unit = re.search(r"```ini\n(.*?)```", (ROOT / "docs" / "schedulers.md").read_text(), re.S)
    assert unit is not None
    path = tmp_path / "job1.service"
    path.write_text(unit[1].replace("/usr/local/bin/pycriu-native", "/bin/true"))
    words = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_links() -> None:
    """Every relative link of the README, SECURITY.md and docs/ has a target."""
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tests_of_security() -> None:
    """Each row of SECURITY.md's tables names a test file and tests that exist."""
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"\]\((tests/[^)]+\.py)\)((?:,? `\w+`)*)", row)
        assert named, row
        for path, names in named:
            source = (ROOT / path).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert f"def {name}(" in source, f"{path} has no {name}"


def test_the_keys_of_jobs() -> None:
    """docs/cli.md has each key of the results of ``job``."""
    rows = {
        row.partition(" |")[0]: set(re.findall(r"`(\w+)`", row))
        for row in (ROOT / "docs" / "cli.md").read_text().splitlines()
        if row.startswith("| `job ")
    }
    status = {each.name for kind in (JobStatus, StorageStatus) for each in fields(kind)}
    status |= {each.name for each in fields(CheckpointProgress)}
    assert status <= rows["| `job status`, `job stop`"]
    assert {each.name for each in fields(Checkpoint)} - {"options"} <= rows["| `job checkpoint`"]

"""Generated pages and links of the documentation agree with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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

"""The README's first lines, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .conftest import Spawn

README = Path(__file__).parents[2] / "README.md"


def test_the_first_lines_run(tmp_path: Path) -> None:
    """A reader who types them in sees statistics and a pid, and leaves nothing running."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert code is not None
    script = tmp_path / "first.py"
    script.write_text(code[1])
    told = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    statistics, pid = told.stdout.splitlines()
    assert statistics.startswith("DumpStatistics(")
    assert int(pid) > 0
    assert not Path(f"/proc/{pid}/fd/0").exists()


def test_coming_from_elsewhere(spawn: Spawn, tmp_path: Path) -> None:
    """Our side of each comparison runs as it stands, on a real process."""
    target = spawn()
    page = README.with_name("docs") / "coming-from.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    script = tmp_path / "ours.py"
    script.write_text(f"pid = {target.pid}\n" + "\n".join(blocks))
    told = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    made = sorted(path.name for path in tmp_path.glob("from-*"))
    assert made == ["from-c", "from-go", "from-pycriu", "from-runc"]
    assert target.runs_on()

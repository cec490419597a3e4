"""The README's first lines, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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

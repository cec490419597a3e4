"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_options() -> None:
    """docs/options.md is what tools/options-table makes."""
    subprocess.run([sys.executable, ROOT / "tools" / "options-table", "--check"], check=True)


def test_links() -> None:
    """Every relative link of the README, of SECURITY.md and of docs/ leads somewhere."""
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

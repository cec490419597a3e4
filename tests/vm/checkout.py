"""A copy of the checkout, as a user would have it: what git knows, and the built extension."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy(place: Path) -> None:
    """Copy the files that git knows or would add, and the extension, to a new directory."""
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing += ["--cached", "--others", "--exclude-standard"]
    told = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    extension = sorted(ROOT.glob("pycriu_native/_native*.so"))
    if not extension:
        sys.exit("the extension is not built: make build")
    for path in (*(ROOT / name for name in told.split("\0") if name), *extension):
        if path.is_file():  # git also names what was deleted and is not committed yet
            copied = place / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)

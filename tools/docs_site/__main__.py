"""Write the pages: ``python -m tools.docs_site DIRECTORY``."""

from __future__ import annotations

import sys
from pathlib import Path

from .site import write
from .sources import SiteError


def main() -> None:
    """Write the pages, or print the errors."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.docs_site DIRECTORY")
    try:
        write(Path(sys.argv[1]))
    except SiteError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

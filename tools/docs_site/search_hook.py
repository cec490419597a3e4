"""A hook of mkdocs that removes the pages with source files from the search index.

They are more than half of its text: without them a browser needs less time until it can search, and
the results are pages of the documentation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def on_post_build(config: Any) -> None:
    """Rewrite the index, which the plugin ``search`` has written before."""
    path = Path(config.site_dir, "search", "search_index.json")
    index = json.loads(path.read_text("utf-8"))
    index["docs"] = [page for page in index["docs"] if not page["location"].startswith("source/")]
    path.write_text(json.dumps(index), "utf-8")

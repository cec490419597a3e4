"""The pages of the site, with relative links, and its table of contents.

A link of README.md, or of a page in ``docs/``, to another page becomes a link to that page of the
site; one to a file of the repository becomes a link to a page with its source. A broken link is an
error.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from . import api, failures, howto
from .sources import ROOT, SiteError

CONTENTS: dict[str, tuple[str, ...]] = {
    "Guides": (
        "calls.md",
        "migration.md",
        "snapshots.md",
        "schedulers.md",
        "preflight.md",
        "images.md",
        "coming-from.md",
    ),
    "Reference": ("cli.md", "options.md", "exceptions.md", "errors.md", "scenarios.md"),
    "Background": (
        "install.md",
        "requirements.md",
        "not_restored.md",
        "design.md",
        "kernels.md",
        "reliability.md",
        "peers.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ),
}
"""The chapters, without the start page, the tutorial, the API reference and the how-tos. A page in
``docs/`` that is not listed here is added to the last one."""

FIRST = ("index.md", "tutorial.md", "tasks.md")
"""The pages above the chapters."""

STYLE = "style.css"
SCRIPT = "file_search.js"

LINK = re.compile(r"(\]\()([^)\s#]*)((?:#[^)\s]*)?\))")


def originals() -> dict[str, str]:
    """The files of the repository that are pages, with their names in the site."""
    result = {"README.md": "index.md", "SECURITY.md": "SECURITY.md", "CHANGELOG.md": "CHANGELOG.md"}
    for path in sorted((ROOT / "docs").glob("*.md")):
        result[f"docs/{path.name}"] = path.name
    return result


def relinked(text: str, original: str, needed: set[str], broken: list[str]) -> str:
    """Change the links of a page for the site; adds to ``needed`` sources and ``broken`` links."""
    pages = originals()

    def lead(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(PurePosixPath(original).parent / target)
        if path in pages:
            return before + pages[path] + after
        if path.startswith("..") or not (ROOT / path).is_file():
            broken.append(f"{original} links to {target}, which is not a file")
            return match[0]
        needed.add(path)
        return f"{before}source/{path}.md{after}"

    fenced = False
    lines = []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        lines.append(line if fenced else LINK.sub(lead, line))
    return "\n".join(lines) + "\n"


def source(path: str) -> str:
    """A page with the source of a file of the repository."""
    kind = "python" if path.endswith(".py") else "text"
    text = (ROOT / path).read_text("utf-8")
    return f"# {path}\n\n````{kind}\n{text.rstrip()}\n````\n"


def pages() -> dict[str, str]:
    """Every page by its name. Raises ``SiteError`` with all broken links and missing pages."""
    broken: list[str] = []
    needed = {path for one in howto.scenarios() for path in one.files}
    made = {
        name: relinked((ROOT / original).read_text("utf-8"), original, needed, broken)
        for original, name in originals().items()
    }
    made["errors.md"] = failures.page()
    made["howto/index.md"] = howto.index()
    made.update(api.pages())
    made.update({f"howto/{name}.md": howto.page(name) for name in howto.subjects()})
    made.update({f"source/{path}.md": source(path) for path in sorted(needed)})
    expected = (*FIRST, *(name for chapter in CONTENTS.values() for name in chapter))
    broken += [f"there is no page {name}" for name in expected if name not in made]
    if broken:
        raise SiteError("\n".join(broken))
    return made


def configuration(made: dict[str, str]) -> dict[str, Any]:
    """The settings of mkdocs. Names are relative to the directory of the configuration."""
    named = {name for chapter in CONTENTS.values() for name in chapter}
    more = sorted({n for n in made if "/" not in n} - named - set(FIRST))
    chapters: list[dict[str, Any]] = [{title: list(names)} for title, names in CONTENTS.items()]
    chapters[-1]["Background"] += more
    fields = [f"howto/{name}.md" for name in howto.subjects()]
    return {
        "site_name": "pycriu_native",
        "docs_dir": "pages",
        "site_dir": "site",
        "use_directory_urls": False,
        "theme": {"name": "readthedocs", "navigation_depth": 2, "highlightjs": False},
        "nav": [
            {"Start": "index.md"},
            {"Tutorial": "tutorial.md"},
            {"How-tos by task": "tasks.md"},
            *chapters,
            {"API reference": ["api/index.md", *map(api.name, api.MODULES)]},
            # At the end, because it has ninety entries.
            {"How-tos by field": ["howto/index.md", *fields]},
        ],
        "extra_css": [STYLE],
        "extra_javascript": [SCRIPT],
        "not_in_nav": "/source/\n",
        "validation": {
            "nav": {"omitted_files": "warn", "not_found": "warn", "absolute_links": "warn"},
            "links": {
                "not_found": "warn",
                "anchors": "warn",
                "absolute_links": "warn",
                "unrecognized_links": "warn",
            },
        },
        "markdown_extensions": [
            {"toc": {"permalink": True}},
            "tables",
            "attr_list",
            "sane_lists",
            {"pymdownx.highlight": {"pygments_style": "default", "noclasses": True}},
            "pymdownx.superfences",
        ],
        "plugins": ["search", api.plugin()],
        "hooks": [str(Path(__file__).with_name("search_hook.py"))],
    }


def write(directory: Path) -> None:
    """Write the pages into ``directory/pages``, and ``directory/mkdocs.yml`` (JSON is YAML)."""
    made = pages()
    old = directory / "pages"
    for path in sorted(old.rglob("*.md")):
        path.unlink()
    for name, text in made.items():
        place = old / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    for name in (STYLE, SCRIPT):
        (old / name).write_text(Path(__file__).with_name(name).read_text("utf-8"), "utf-8")
    (directory / "mkdocs.yml").write_text(json.dumps(configuration(made), indent=2) + "\n")

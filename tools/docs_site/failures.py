"""The page of errors, with the causes of CRIU's messages in ``_failures/known_failures.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from .sources import ROOT, SiteError, options

PHASES = {
    "dump": "In a dump",
    "pre-dump": "In a pre-dump",
    "restore": "In a restore",
    "any": "In any call",
}

HEAD = """\
# Errors and their cures

CRIU's error messages, with their causes. An exception has the same texts as `cause`, `cure` and
`options`. The heading is the entry's `id` in `known_failures.json`; a finding of
[preflight](preflight.md) names it as `failure`. If CRIU's message matches several entries, the most
precise one is used.
"""


@cache
def known() -> tuple[dict[str, Any], ...]:
    """Every failure, without the entries for harmless messages."""
    result = json.loads((ROOT / "pycriu_native/_failures/known_failures.json").read_text("utf-8"))
    return tuple({"options": [], **one} for one in result if not one.get("benign"))


def naming(field: str) -> list[dict[str, Any]]:
    """The failures that an option helps with."""
    return [one for one in known() if field in one["options"]]


def plain(text: str) -> str:
    """Escape the characters that are special in Markdown."""
    for special in "\\`*_<{[":
        text = text.replace(special, f"&#{ord(special)};")
    return text


def entry(failure: Mapping[str, Any]) -> str:
    """One failure, with an anchor."""
    links = ", ".join(f"[`{one}`](howto/{one}.md)" for one in failure["options"])
    pattern = failure["pattern"].replace("\n", " ")
    lines = [
        f"### {failure['id']} {{#{failure['id']}}}",
        f"**{plain(failure['cause'])}.**",
        f"*Cure:* {plain(failure['cure'])}.",
        *([f"*Options:* {links}"] if links else []),
        *([f"*Raised as* `{failure['error']}`"] if "error" in failure else []),
        f"CRIU's message:\n\n````text\n{pattern}\n````",
    ]
    return "\n\n".join(lines) + "\n"


def page() -> str:
    """The whole page, by phase."""
    for one in known():
        if one["phase"] not in PHASES:
            raise SiteError(f"known_failures.json: {one['id']} has the new phase {one['phase']!r}")
        if unknown := [field for field in one["options"] if field not in options()]:
            raise SiteError(
                f"known_failures.json: {one['id']} names {unknown}, which are not options"
            )
    parts = [HEAD]
    for phase, title in PHASES.items():
        parts.append(f"## {title}\n")
        parts += [entry(one) for one in known() if one["phase"] == phase]
    return "\n".join(parts)

"""The page of errors: what CRIU's messages come down to, from
``pycriu_native/_failures/known_failures.json``.
"""

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

What CRIU says, and what it comes down to. An exception has the same words as `cause`, `cure` and
`options`. The heading is the entry's `id` in `known_failures.json`; a finding of
[preflight](preflight.md) names it as `failure`. Where CRIU's message fits several entries, the
most precise one is taken.
"""


@cache
def known() -> tuple[dict[str, Any], ...]:
    """Every failure; messages that are none are left out."""
    result = json.loads((ROOT / "pycriu_native/_failures/known_failures.json").read_text("utf-8"))
    return tuple(one for one in result if not one.get("benign"))


def naming(field: str) -> list[dict[str, Any]]:
    """The failures that an option helps with."""
    return [one for one in known() if field in one["options"]]


def plain(text: str) -> str:
    """Text in which nothing is Markdown."""
    for special in "\\`*_<{[":
        text = text.replace(special, f"&#{ord(special)};")
    return text


def entry(failure: Mapping[str, Any]) -> str:
    """One failure, under an anchor of its own."""
    links = ", ".join(f"[`{one}`](howto/{one}.md)" for one in failure["options"])
    pattern = failure["pattern"].replace("\n", " ")
    lines = [
        f"### {failure['id']} {{#{failure['id']}}}",
        f"**{plain(failure['cause'])}.**",
        f"*Cure:* {plain(failure['cure'])}.",
        *([f"*Options:* {links}"] if links else []),
        *([f"*Raised as* `{failure['error']}`"] if "error" in failure else []),
        f"CRIU's words:\n\n````text\n{pattern}\n````",
    ]
    return "\n\n".join(lines) + "\n"


def page() -> str:
    """The whole page, phase by phase."""
    for one in known():
        if one["phase"] not in PHASES:
            raise SiteError(f"known_failures.json: {one['id']} has the new phase {one['phase']!r}")
        if unknown := [field for field in one["options"] if field not in options()]:
            raise SiteError(
                f"known_failures.json: {one['id']} names {unknown}, which are no options"
            )
    parts = [HEAD]
    for phase, title in PHASES.items():
        parts.append(f"## {title}\n")
        parts += [entry(one) for one in known() if one["phase"] == phase]
    return "\n".join(parts)

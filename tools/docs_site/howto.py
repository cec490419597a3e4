"""The how-to pages: one for each field, from the tests that use it on a real process.

The table in ``docs/scenarios.md`` lists the test files of each field. A page contains the field's
docstring, its names, the docstring of the test file, and the source of the tests that use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from . import failures
from .sources import ROOT, Module, Option, SiteError, Test, exported, meanings, module, options

PAGE = "docs/scenarios.md"
MARK = "<!-- scenarios -->"

HEAD = """\
# How-tos by field

Each page describes the field, lists its names in other interfaces, and shows tests that use it on a
real process. [How-tos by task](../tasks.md) are grouped by purpose.

| field | meaning | tests |
|---|---|---|
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One row of the table."""

    title: str
    names: tuple[str, ...]
    """The options, or other public names, that it covers; can be empty."""
    files: tuple[str, ...]
    """The files of tests, from the root of the repository."""


@cache
def scenarios() -> tuple[Scenario, ...]:
    """The table in ``docs/scenarios.md``."""
    text = (ROOT / PAGE).read_text()
    if MARK not in text:
        raise SiteError(f"{PAGE} has no {MARK}")
    below = text.partition(MARK)[2].lstrip()
    rows = below.partition("\n\n")[0].splitlines()[2:]
    result = []
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        files = tuple(re.findall(r"\]\(\.\./([^)]+)\)", cells[1])) if len(cells) > 1 else ()
        if not files:
            raise SiteError(f"{PAGE}: {row!r} is not a row of scenarios")
        names = tuple(re.findall(r"`(\w+)`", cells[0]))
        for name in names:
            if name not in options() and name not in exported():
                raise SiteError(f"{PAGE}: {name!r} is neither an option nor a call")
        result.append(Scenario(title=cells[0], names=names, files=files))
    if not result:
        raise SiteError(f"{PAGE} has no table below {MARK}")
    return tuple(result)


def subjects() -> list[str]:
    """The names with a page: every option in the table's order, then other names of scenarios."""
    others = {name for scenario in scenarios() for name in scenario.names} - set(options())
    return [*options(), *sorted(others)]


def relevant(tests: Module, name: str) -> tuple[Test, ...]:
    """The tests that contain the name; all of them if only shared functions do."""
    word = re.compile(rf"\b{name}\b")
    return tuple(one for one in tests.tests if word.search(one.source)) or tests.tests


def _names(option: Option) -> str:
    cells = {
        "runc": option.runc,
        "libcriu": option.setter,
        "`rpc.proto`": option.wire,
        "`criu`": option.flag,
    }
    rows = [f"| {interface} | `{name}` |" for interface, name in cells.items() if name]
    rows += [f"| since | CRIU {option.since} |", f"| verbs | {option.verbs} |"]
    return "\n".join(["| interface | name |", "|---|---|", *rows]) + "\n"


def _shown(scenario: Scenario, path: str, name: str) -> Iterator[str]:
    tests = module(ROOT / path)
    yield f"## {scenario.title}\n"
    yield f"{tests.story}\n"
    yield f"The whole file: [{path}](../source/{path}.md).\n"
    for test in relevant(tests, name):
        heading = test.name.removeprefix("test_").replace("_", " ")
        yield f"### {heading}\n"
        if test.claim:
            yield f"{test.claim}\n"
        yield f"````python\n{test.source}\n````\n"


def page(name: str) -> str:
    """The page of one option or call."""
    parts = [f"# `{name}`\n"]
    option = options().get(name)
    if option is None:
        parts.append(f"{exported()[name]}\n")
    elif not meanings().get(name):
        raise SiteError(f"options/fields.py: {name} has no docstring")
    else:
        parts += [f"{meanings()[name]}\n", _names(option)]
    for scenario in scenarios():
        if name in scenario.names:
            for path in scenario.files:
                parts += _shown(scenario, path, name)
    if option is not None and (known := failures.naming(name)):
        parts.append("## Errors that this option cures\n")
        parts += [
            f"* [{one['id']}](../errors.md#{one['id']}): {failures.plain(one['cause'])}"
            for one in known
        ]
        parts.append("")
    return "\n".join(parts)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, up to the full stop, with parentheses whole."""
    words = " ".join(text.partition("\n\n")[0].split())
    for match in re.finditer(r"\.(?=\s+[^a-z]|$)", words):
        sentence = words[: match.end()]
        if sentence.count("(") == sentence.count(")") and sentence.count("`") % 2 == 0:
            return sentence
    return words.rstrip(":") + ("" if words.endswith(".") else ".")


def index() -> str:
    """The list of all pages, and the scenarios that cover no single field."""
    lines = []
    for name in subjects():
        meaning = meanings()[name] if name in options() else exported()[name]
        first = first_sentence(meaning).replace("|", "\\|")
        files = [path for one in scenarios() if name in one.names for path in one.files]
        shown = ", ".join(f"[{path.rpartition('/')[2]}](../source/{path}.md)" for path in files)
        lines.append(f"| [`{name}`]({name}.md) | {first} | {shown} |")
    others = [
        f"* {one.title}: [{path}](../source/{path}.md)"
        for one in scenarios()
        if not one.names
        for path in one.files
    ]
    return HEAD + "\n".join([*lines, "", *(["Also shown:", "", *others] if others else []), ""])

"""The docstrings, tests and options in the Python files, read without importing them."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class SiteError(Exception):
    """A file of the repository lacks the source of a page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """One test: its docstring and its source."""

    name: str
    claim: str
    """Its docstring; empty if it has none."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One file of tests."""

    story: str
    """Its docstring."""
    tests: tuple[Test, ...]


def markdown(docstring: str) -> str:
    """A docstring as Markdown: roles and double backquotes become code."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return text.replace("``", "`")


def _tests(tree: ast.Module, lines: list[str]) -> Iterator[Test]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test_"
        ):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            yield Test(
                name=node.name,
                claim=markdown(ast.get_docstring(node) or ""),
                source=inspect.cleandoc("\n" + "\n".join(lines[first - 1 : node.end_lineno])),
            )


@cache
def module(path: Path) -> Module:
    """A file of tests. Raises ``SiteError`` if it is missing, or has no docstring."""
    if not path.is_file():
        raise SiteError(f"there is no {path.relative_to(ROOT)}")
    text = path.read_text()
    tree = ast.parse(text)
    story = ast.get_docstring(tree)
    if story is None:
        raise SiteError(f"{path.relative_to(ROOT)} has no docstring")
    return Module(story=markdown(story), tests=tuple(_tests(tree, text.splitlines())))


@cache
def meanings() -> dict[str, str]:
    """The docstring under each field of ``CriuOpts``."""
    tree = ast.parse((ROOT / "pycriu_native/options/fields.py").read_text())
    (opts,) = (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "Fields")
    result: dict[str, str] = {}
    for node, below in zip(opts.body, opts.body[1:], strict=False):
        match node, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                result[name] = markdown(text)
    return result


@cache
def exported() -> dict[str, str]:
    """The names that ``pycriu_native`` exports, except options, with their docstrings."""
    result: dict[str, str] = {}
    for path in sorted((ROOT / "pycriu_native").rglob("[a-z]*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                result.setdefault(node.name, markdown(ast.get_docstring(node) or ""))
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """The names of one option in each interface; empty if it has none there."""

    field: str
    runc: str
    setter: str
    wire: str
    flag: str
    since: str
    verbs: str


@cache
def options() -> dict[str, Option]:
    """The rows that a user can set, by field; ``tools/options-table`` reads the table."""
    script: dict[str, Any] = runpy.run_path(str(ROOT / "tools/options-table"))
    table = script["load_table"]()
    result = {}
    for row in table.TABLE:
        if row.field is None:
            continue
        verbs = [word for flag, word in script["VERBS"].items() if row.on & getattr(table.On, flag)]
        result[row.field] = Option(
            field=row.field,
            runc=row.runc or "",
            setter=f"criu_local_{row.setter}" if row.setter else "",
            wire=row.wire or "",
            flag=row.flag or "",
            since=row.since,
            verbs="all" if len(verbs) == len(script["VERBS"]) else ", ".join(verbs),
        )
    return result

"""Imports go down only: between packages by a fixed order, between files without a cycle.

The graph is made from the source, and includes lazy and type-checking imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import pycriu_native

ROOT = Path(pycriu_native.__file__).parent

ORDER = (
    "__main__",
    "cli",
    "aio",
    "testing",
    "jobs",
    "plots",
    "snapshots",
    "migration",
    "oci",
    "diagnostics",
    "images",
    "archive",
    "_pages",
    "_calls",
    "_checks",
    "_recovery",
    "_failures",
    "_rollback",
    "_integrity",
    "_transport",
    "_wire",
    "_system",
    "lib",
    "options",
    "_native",
    "results",
    "findings",
    "errors",
    "enums",
    "modes",
    "_support",
    "guest",
)
"""Packages and files of the top level, from the top down. One may import those below it."""

EVERYWHERE = ("",)
"""The package itself: whoever imports its names needs all that it loads. Checked as a file."""


@dataclass(frozen=True)
class Import:
    """One import of one file by another, or of one name from it."""

    importer: str
    imported: str
    name: str
    line: int

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return f"{self.importer or '__init__'}:{self.line} -> {self.imported or '__init__'}{name}"


@cache
def modules() -> dict[str, Path]:
    """Every module, by its name below the package; the package itself is the empty name."""
    result = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """The imports of a file from this package, by each name."""
    full = [ROOT.name, *name.split(".")] if name else [ROOT.name]
    package = full if path.name == "__init__.py" else full[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == ROOT.name:
                    yield Import(name, rest, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            top, *parts = [*base, *(node.module.split(".") if node.module else [])]
            if top == ROOT.name:
                for alias in node.names:
                    inner = ".".join([*parts, alias.name])
                    if inner in modules():
                        yield Import(name, inner, "", node.lineno)
                    else:
                        yield Import(name, ".".join(parts), alias.name, node.lineno)


@cache
def imports() -> tuple[Import, ...]:
    """All imports, except of a file from itself and of the compiled extension."""
    return tuple(
        each
        for name, path in modules().items()
        for each in imports_of(name, path)
        if each.imported != name and each.imported in modules()
    )


def cycles() -> list[list[str]]:
    """The groups of files that import each other, by Tarjan's algorithm."""
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        graph[each.importer].add(each.imported)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return groups


def layer(module: str) -> str:
    """The package or file of the top level that a module is in."""
    return module.partition(".")[0]


def is_upward(each: Import) -> bool:
    """Whether an import is of a higher layer."""
    importer, imported = layer(each.importer), layer(each.imported)
    if importer in EVERYWHERE or imported in EVERYWHERE or importer == imported:
        return False
    return ORDER.index(imported) < ORDER.index(importer)


def private_names() -> Iterator[str]:
    """Uses of a name with a leading underscore that another file defines."""
    for each in imports():
        if each.name.startswith("_") and not each.name.startswith("__"):
            yield str(each)
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.level or node.module == ROOT.name)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in imported
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                yield f"{name}:{node.lineno} {node.value.id}.{node.attr}"


def listed(found: list[str]) -> str:
    """One import a line."""
    return "\n" + "\n".join(found)


def test_the_graph_is_drawn() -> None:
    """The parser finds ordinary, lazy and type-checking imports."""
    assert len(imports()) > 300
    lazy = {each.imported for each in imports() if not each.importer}
    assert {name for name in lazy if name.endswith(("_preflight", "preflight"))}


def test_no_cycle_between_files() -> None:
    """No file imports one that imports it, directly or through others."""
    assert not cycles(), listed([", ".join(group) for group in cycles()])


def test_no_import_against_the_order() -> None:
    """A package imports packages below it only."""
    if not (ROOT / "_calls").is_dir():
        pytest.skip("the files are in one folder")
    unknown = {layer(name) for name in modules()} - set(ORDER) - set(EVERYWHERE)
    assert not unknown, f"no place in the order: {sorted(unknown)}"
    result = sorted(str(each) for each in imports() if is_upward(each))
    assert not result, listed(result)


def test_no_private_name_of_another_file() -> None:
    """A name with a leading underscore is used by its own file only."""
    result = sorted(private_names())
    assert not result, listed(result)

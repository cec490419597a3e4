"""The docstrings of the fields of ``CriuOpts``, read from the source.

Python discards the docstrings of fields when it compiles the module.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re

from ..options import fields


@functools.cache
def field_docs() -> dict[str, str]:
    """The docstring of each field, in one line; empty for an installation without sources."""
    try:
        tree = ast.parse(inspect.getsource(fields))
    except (OSError, TypeError):
        return {}
    result: dict[str, str] = {}
    for cls in tree.body:
        if isinstance(cls, ast.ClassDef) and cls.name == "Fields":
            for field, text in zip(cls.body, cls.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(doc))),
                    ):
                        result[name] = " ".join(doc.replace("``", "").split())
    return result


def first_sentence(field: str) -> str:
    """The first sentence of a field's docstring, without its full stop."""
    text = re.sub(r":class:`(\w+)`", r"\1", field_docs().get(field, ""))
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0].rstrip(".")

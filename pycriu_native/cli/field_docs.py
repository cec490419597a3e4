"""What the fields of ``CriuOpts`` mean, from the docstrings beside them.

Python keeps no docstring of a field at run time, so the source is read; every installation has it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re

from ..options import fields


@functools.cache
def field_docs() -> dict[str, str]:
    """Each field's docstring, in one line."""
    try:
        tree = ast.parse(inspect.getsource(fields))
    except (OSError, TypeError):  # an installation without sources
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
    """What a field means, in one sentence."""
    text = re.sub(r":class:`(\w+)`", r"\1", field_docs().get(field, ""))
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0].rstrip(".")

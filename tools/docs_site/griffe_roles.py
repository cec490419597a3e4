"""An extension of griffe: docstrings of the API reference as Markdown."""

from __future__ import annotations

from typing import Any

import griffe

from tools.docs_site.sources import markdown


class Roles(griffe.Extension):
    """Replaces the roles and double backquotes of docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstring of the package itself, which ``on_object`` leaves out."""
        self.on_object(obj=pkg)

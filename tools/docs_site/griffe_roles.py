"""An extension of griffe: docstrings of the API reference as Markdown, and lazy names."""

from __future__ import annotations

from typing import Any

import griffe

from tools.docs_site.sources import markdown


class Roles(griffe.Extension):
    """Replaces the roles and double backquotes of docstrings, and lists lazy names as public."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Set the public names of a package whose ``__all__`` is computed from its lazy names.

        Type checkers alone import them. Submodules, which they import too, have their own pages.
        """
        if mod.is_init_module and not mod.exports and "__all__" in mod.members:
            mod.exports = [
                name
                for name, member in mod.members.items()
                if isinstance(member, griffe.Alias)
                and not member.runtime
                and member.target_path != f"{mod.path}.{name}"
            ]

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstring of the package itself, which ``on_object`` leaves out."""
        self.on_object(obj=pkg)

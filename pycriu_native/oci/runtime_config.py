"""The parts of a bundle's ``config.json`` that are used, and their types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import Problem

_FORM: dict[str, Any] = {
    "root!": {"path!": str, "readonly": bool},
    "process": {"terminal": bool},
    "hostname": str,
    "annotations": {},
    "mounts": [{"destination!": str, "source": str, "type": str, "options": [str]}],
    "linux": {
        "maskedPaths": [str],
        "namespaces": [{"type!": str, "path": str}],
        "devices": [{"path!": str}],
    },
}
"""The accepted types; a name with ``!`` must not be missing. Other members are not read."""

_KINDS = {str: "text without NUL", bool: "true or false", dict: "an object", list: "a list"}


def problems_of(config: object) -> list[Problem]:
    """Each value of another type, by its place in ``config.json``."""
    return list(_problems("", config, _FORM))


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether a mount of ``config.json`` is a bind mount."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def _problems(name: str, value: Any, form: Any) -> Iterator[Problem]:
    kind: Any = form if isinstance(form, type) else type(form)
    if type(value) is not kind or (kind is str and not _is_text(value)):
        yield Problem(name or "config.json", value, f"{_KINDS[kind]} is accepted")
    elif isinstance(form, list):
        for number, each in enumerate(value):
            yield from _problems(f"{name}[{number}]", each, form[0])
    elif isinstance(form, dict):
        for key, inner in form.items():
            member = value.get(key.rstrip("!"))
            if member is not None or key.endswith("!"):
                yield from _problems(f"{name}.{key}".strip(".!"), member, inner)
        if form is _FORM["mounts"][0] and value.get("source") is None:
            with_types = not list(_problems(name, {**value, "source": ""}, form))
            if with_types and is_bind(value):
                yield Problem(f"{name}.source", None, "a bind mount needs the path of its source")


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False

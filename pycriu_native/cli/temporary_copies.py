"""Errors about a temporary copy name the file from which it was made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ImagesError


@contextmanager
def named_as(name: str, copy: str) -> Iterator[None]:
    """Replace the path ``copy`` by ``name`` in the messages of ``ImagesError``."""
    try:
        yield
    except ImagesError as error:
        for attribute in ("message", "cause", "cure"):
            text = getattr(error, attribute)
            if text is not None:
                setattr(error, attribute, text.replace(copy, name))
        raise

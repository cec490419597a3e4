"""Imports of modules that need an extra of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Problem, UnsupportedError


@contextmanager
def extras() -> Iterator[None]:
    """Raise ``UnsupportedError`` for an import in the block whose error names the extra."""
    try:
        yield
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        raise UnsupportedError([Problem("installation", None, str(error))]) from None

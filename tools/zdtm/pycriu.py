"""The part of the module pycriu that zdtm.py uses: it reads the statistics of a dump."""

from __future__ import annotations

from typing import IO, Any

from pycriu_native.images import decode


class images:
    """Stands for the module ``pycriu.images``."""

    @staticmethod
    def load(file: IO[Any]) -> dict[str, Any]:
        return decode(file.name)

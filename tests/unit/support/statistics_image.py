"""Statistics images in CRIU's format, for plots of features that this kernel lacks."""

from __future__ import annotations

from pathlib import Path

from pycriu_native._integrity.statistics import DUMP_FIELDS
from pycriu_native._wire.protobuf import image_of, message

NUMBERS = {name: number for number, name in enumerate(DUMP_FIELDS.split(), 1)}


def write_dump_statistics(directory: Path, **fields: int) -> None:
    """Write ``stats-dump`` with these fields."""
    entry = message(*((NUMBERS[name], value) for name, value in fields.items()))
    (directory / "stats-dump").write_bytes(image_of("STATS", message((1, entry))))

"""Numbers of bytes as text."""

from __future__ import annotations


def size_text(size: float) -> str:
    """A number of bytes: ``4.0 KiB``, ``17 B``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"

"""Image sets as one stream: archives, codecs, and dumps into a stream."""

from __future__ import annotations

from .pack import pack, unpack

__all__ = ["pack", "unpack"]

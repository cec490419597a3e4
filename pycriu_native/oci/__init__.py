"""Checkpoints of containers of OCI runtimes, and image sets as OCI images."""

from __future__ import annotations

from .bundle import Bundle, Container
from .checkpoint_archive import ContainerCheckpoint, from_archive, to_archive

__all__ = ["Bundle", "Container", "ContainerCheckpoint", "from_archive", "to_archive"]

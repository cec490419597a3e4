"""Containers of OCI runtimes, and image sets in OCI layouts."""

from __future__ import annotations

from .bundle import Bundle, Container

__all__ = [
    "Bundle",
    "Container",
]

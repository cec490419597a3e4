"""Images of CRIU, read: what was dumped, compared, searched, and checked before a restore.

Needs the extra ``[images]`` (protobuf, and lz4 for compressed memory). It is no part of
``import pycriu_native``, and needs no CRIU.
"""

from __future__ import annotations

try:
    import google.protobuf  # noqa: F401
except ImportError as error:
    raise ImportError(
        "pycriu_native.images needs protobuf: pip install 'pycriu-native[images]'"
    ) from error

from . import _diff, _render, model
from ._build import inspect
from ._check import Finding, Severity, check_images
from ._codec import decode, encode
from ._diff import *  # noqa: F403
from ._memory import Found, Memory
from ._render import *  # noqa: F403
from .model import *  # noqa: F403

__all__ = [
    "Finding",
    "Found",
    "Memory",
    "Severity",
    "check_images",
    "decode",
    "encode",
    "inspect",
    *_diff.__all__,
    *_render.__all__,
    *model.__all__,
]

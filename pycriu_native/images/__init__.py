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

from ._build import inspect
from ._codec import decode, encode

__all__ = ["decode", "encode", "inspect"]

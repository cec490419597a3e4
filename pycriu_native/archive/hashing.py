"""A stream with the number and the SHA-256 digest of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, BinaryIO


class Hashing:
    """Counts and hashes the bytes that are read from or written to a stream."""

    def __init__(self, stream: BinaryIO, check: Callable[[], object] = lambda: None) -> None:
        """``check`` is called before each part, and may raise."""
        self._stream = stream
        self._check = check
        self._hash = hashlib.sha256()
        self.sha256 = self._hash.hexdigest
        self.size = 0
        self.failure: Exception | None = None
        """The exception of a read."""

    def write(self, data: Any) -> int:
        """Write, like ``io.RawIOBase``."""
        self._check()
        self._stream.write(data)
        self._add(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read, like ``io.RawIOBase``."""
        self._check()
        try:
            data = self._stream.read(size)
        except Exception as error:
            self.failure = error
            raise
        self._add(data)
        return data

    def flush(self) -> None:
        """The stream flushes at its end."""

    def _add(self, data: Any) -> None:
        self._hash.update(data)
        self.size += len(data)

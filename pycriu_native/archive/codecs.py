"""Compresses and encrypts streams, and detects both when it reads them.

gzip is in the standard library; zstd and age come with the extra ``pycriu-native[archive]``.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, BinaryIO, Literal, cast

from .._support.unpatched import Thread
from ..errors import ImagesError, OptionError, Problem, missing_extra

Compression = Literal["none", "gzip", "zstd"]
"""How an archive is compressed; ``zstd`` needs the extra ``pycriu-native[archive]``."""

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip"}
"""The first bytes of formats that are not read."""

_AGE = b"age-encryption.org/"


class Peek:
    """A stream with :meth:`peek`, which returns the first bytes without consuming them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The first bytes; fewer at the end of the stream."""
        while len(self._ahead) < size:
            more = self._stream.read(size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        """Read, like ``io.RawIOBase``."""
        if not self._ahead:
            return self._stream.read(size)
        if size < 0:
            taken, self._ahead = self._ahead, b""
            return taken + self._stream.read()
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


@contextlib.contextmanager
def compressed(out: BinaryIO, method: Compression) -> Iterator[BinaryIO]:
    """A stream that compresses to ``out``."""
    if method == "none":
        yield out
    elif method == "gzip":
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif method == "zstd":
        compressor = _extra("zstandard").ZstdCompressor(level=3, threads=-1)
        with compressor.stream_writer(out, closefd=False) as stream:
            yield stream
    else:
        raise bad_argument("compress", method, 'one of "none", "gzip", "zstd" is accepted')


@contextlib.contextmanager
def decompressed(stream: Peek) -> Iterator[BinaryIO]:
    """The decompressed content of a stream."""
    start = stream.peek(5)
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise ImagesError(
                f"the archive is compressed by {name}: tar archives are read, also those "
                "compressed by gzip or zstd"
            )
    method = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "none")
    if method == "none":
        yield cast(BinaryIO, stream)
    elif method == "gzip":
        with gzip.GzipFile(fileobj=cast(IO[bytes], stream), mode="rb") as plain:
            yield cast(BinaryIO, plain)
    else:
        zstd = _extra("zstandard")
        decompressor = zstd.ZstdDecompressor()
        try:
            with decompressor.stream_reader(
                stream, read_across_frames=True, closefd=False
            ) as plain:
                yield plain
        except zstd.ZstdError as error:
            raise ImagesError(f"the archive is damaged: {error}") from error


@contextlib.contextmanager
def encrypted(out: BinaryIO, recipients: Sequence[str]) -> Iterator[BinaryIO]:
    """A stream that encrypts to ``out``, for these recipients."""
    age = _extra("pyrage")
    keys = [_key("encrypt_to", text, age, "Recipient") for text in recipients]
    reading, writing = os.pipe()
    with (
        _beside(reading, "rb", lambda plain: age.encrypt_io(plain, out, keys)),
        open(writing, "wb") as stream,
    ):
        yield stream


@contextlib.contextmanager
def decrypted(stream: Peek, identities: Sequence[str]) -> Iterator[BinaryIO]:
    """The decrypted content of a stream; without keys also that of one that is not encrypted."""
    if stream.peek(len(_AGE)) != _AGE:
        if identities:
            raise ImagesError("the archive is not encrypted, and a key was given for it")
        yield cast(BinaryIO, stream)
        return
    if not identities:
        raise bad_argument("decrypt_with", [], "the archive is encrypted: its key is needed")
    age = _extra("pyrage")
    keys = [_key("decrypt_with", text, age, "Identity") for text in identities]
    reading, writing = os.pipe()

    def decrypt(plain: Any) -> None:
        try:
            age.decrypt_io(stream, plain, keys)
        except (age.DecryptError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the stream, not of its content
            raise ImagesError(f"the archive cannot be decrypted: {error}") from error

    with _beside(writing, "wb", decrypt), open(reading, "rb") as plain:
        yield plain


@contextlib.contextmanager
def _beside(fd: int, mode: str, work: Callable[[Any], object]) -> Iterator[None]:
    """Run a function on a thread, with one end of a pipe; the block uses the other end.

    If the function fails, its exception replaces that of the block, which it has caused.
    """
    failed: list[Exception] = []

    def body() -> None:
        with contextlib.suppress(BrokenPipeError), open(fd, mode) as file:
            try:
                work(file)
            except Exception as error:
                failed.append(error)  # before the end of the file is seen on the other side

    thread = Thread(target=body, name="archive")
    thread.start()
    try:
        yield
    except BaseException:
        came_first = list(failed)
        thread.join()
        if came_first:
            raise came_first[0] from None
        raise
    thread.join()
    if failed:
        raise failed[0]


def _key(field: str, text: str, age: Any, kind: str) -> Any:
    """A key of one of the two types of age."""
    try:
        if text.upper().startswith("AGE"):
            return getattr(age.x25519, kind).from_str(text)
        ssh = getattr(age.ssh, kind)
        return ssh.from_str(text) if hasattr(ssh, "from_str") else ssh.from_buffer(text.encode())
    except Exception as error:
        # The value may be a secret.
        raise bad_argument(field, "…", f"age and ssh keys are accepted ({error})") from None


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_extra("this archive", name, "archive") from None


def bad_argument(field: str, value: object, rule: str) -> OptionError:
    return OptionError([Problem(field, value, rule)])

"""Image streams of a command: files by their names, ``-`` for standard input and output."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

import click

from .command import Call
from .standard_streams import STDIN, STDOUT

STANDARD = "-"


class _Synced(io.BufferedWriter):
    """A file whose ``flush`` syncs it to the disk; the dump can be undone until then."""

    def flush(self) -> None:
        super().flush()
        os.fsync(self.fileno())


def standard(mode: Literal["rb", "wb"]) -> BinaryIO:
    """Standard input or output for images. A failed write raises, unlike one to ``sys.stdout``."""
    return open(STDIN if mode == "rb" else STDOUT, mode, closefd=False)


@contextlib.contextmanager
def written(call: Call, name: str) -> Iterator[BinaryIO]:
    """Open a new file for a stream; it is removed if the stream is not completed."""
    if name == STANDARD:
        if call.out.as_json:
            raise click.UsageError("--json and a stream on standard output: one is accepted.")
        with standard("wb") as stream:
            yield stream
        return
    # The stream has memory of processes: only the owner can read it.
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with _Synced(io.FileIO(fd, "wb")) as file:
        try:
            yield file
        except BaseException as error:
            if not hasattr(error, "result"):  # with a result, the stream is complete
                os.unlink(name)
            raise


def read(name: str) -> BinaryIO:
    if name == STANDARD:
        return standard("rb")
    from ..archive.pack import without_waiting

    return open(name, "rb", opener=without_waiting)


def option(flag: str, text: str) -> click.Option:
    """``--to`` or ``--from``."""
    return click.Option(
        [flag, "through"],
        type=click.Path(dir_okay=False, allow_dash=True),
        metavar="FILE",
        help=f"{text} instead of an images directory; '-' is standard "
        f"{'output' if flag == '--to' else 'input'}. Needs CRIU 4.3.",
    )

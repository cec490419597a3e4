"""The output of a command: results on standard output, everything else on standard error.

The output is text, or with ``--json`` JSON Lines on standard output: lines with ``event``, then one
with the result or the error. Standard error is then empty except for the output of ``--verbose``.
A failure to write is not reported here, but by ``standard_streams``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import encodable
from . import errors, json_form
from .exit_codes import Exit


@dataclass(frozen=True)
class Output:
    """The output of one command."""

    command: str
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def bar(self) -> bool:
        """Whether a progress bar is enabled and can be drawn."""
        return sys.stderr.isatty() and not (self.quiet or self.as_json)

    @property
    def width(self) -> int:
        """The columns of the terminal; unlimited if standard output is not a terminal."""
        if not sys.stdout.isatty():
            return sys.maxsize
        import shutil

        return shutil.get_terminal_size().columns

    @property
    def hints(self) -> bool:
        """Whether output other than the result is shown."""
        return not (self.quiet or self.as_json) and (sys.stdout.isatty() or self.verbose)

    def result(self, result: Any, text: str, *, code: Exit = Exit.DONE) -> Exit:
        """Print the result; the first line of ``text`` is the headline.

        ``result`` can be a function that returns the result; it is called for JSON only.
        """
        headline, newline, rest = text.partition("\n")
        with complete(headline):
            if self.as_json:
                result = result() if callable(result) else result
                self._json(
                    {"ok": code in (Exit.DONE, Exit.NO), "result": json_form.plain(result)}, code
                )
            elif not self.quiet:
                self._print(sys.stdout, click.style(headline, bold=True) + newline + rest)
        return code

    def answer(self, result: Any, text: str, *, code: Exit = Exit.DONE) -> Exit:
        """Print the answer of a command that checks or shows something.

        Styles of ``text`` are removed where none are shown. ``--quiet`` suppresses it.
        """
        if self.as_json:
            return self.result(result, "", code=code)
        if not self.quiet:
            self._print(sys.stdout, text)
        return code

    def event(self, event: str, result: Any, text: str = "") -> None:
        """Print an event before the result, such as that a server listens; for JSON if no text."""
        if self.as_json:
            self._write(
                {"schema": json_form.SCHEMA, "command": self.command, "event": event}
                | json_form.plain(result)
            )
        elif text and not self.quiet:
            self._print(sys.stdout, text)

    def hint(self, text: str) -> None:
        """Advice, if :attr:`hints`."""
        if self.hints:
            self._print(sys.stderr, click.style(text, fg="yellow"))

    def progress(self, text: str) -> None:
        """Print a line of progress if ``--verbose`` is given and no bar is shown."""
        if self.verbose and not self.bar:
            self._print(sys.stderr, text)

    def failed(self, error: BaseException, code: Exit | int) -> int:
        """Print an error on standard error, or as JSON on standard output; returns ``code``."""
        if self.as_json:
            self._json({"ok": False, "error": errors.to_dict(error)}, code)
        else:
            for label, text in errors.lines(error, self.command):
                head = "pycriu-native: " if not label else "  - " if label == "-" else ""
                head = head or f"  {label:<8}"
                self._print(sys.stderr, click.style(head, fg="red", bold=True) + text)
        return code

    def _json(self, body: dict[str, Any], code: Exit | int) -> None:
        head = {"schema": json_form.SCHEMA, "command": self.command}
        self._write(head | body | {"exit_code": int(code)})

    def _write(self, line: dict[str, Any]) -> None:
        import json  # most commands print text

        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def _print(self, stream: TextIO, text: str) -> None:
        text = encodable(text) + "\n"
        stream.write(text if _coloured(stream) else click.unstyle(text))
        stream.flush()


@contextlib.contextmanager
def complete(result: object) -> Iterator[None]:
    """Report an interruption in this context as one after the work, whose result this is."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__dict__.setdefault("result", result)
        raise


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

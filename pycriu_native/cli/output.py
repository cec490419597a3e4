"""Where things are said: results on standard output, everything else on standard error.

To people as text; with ``--json`` as JSON Lines on standard output, of which the last line is the
result or the error, and lines with ``event`` may come before it. Standard error then stays empty
but for what ``--verbose`` asks for.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from .._support.kernel_text import encodable
from . import errors, json_form
from .exit_codes import Exit


class Output:
    """What one command says."""

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        self.command = command
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.console = _console(sys.stdout)
        self.errors = _console(sys.stderr)

    @property
    def bar(self) -> bool:
        """Whether a progress bar is wanted and can be drawn."""
        return self.errors.is_terminal and not (self.quiet or self.as_json)

    @property
    def width(self) -> int:
        """Columns for a line: the terminal's, else as many as it takes."""
        return self.console.width if self.console.is_terminal else sys.maxsize

    @property
    def hints(self) -> bool:
        """Whether somebody reads what is said beside the result."""
        return not (self.quiet or self.as_json) and (self.console.is_terminal or self.verbose)

    def result(self, result: Any, text: str, *, code: Exit = Exit.DONE) -> Exit:
        """The result: ``text`` for people, whose first line is the headline."""
        if self.as_json:
            self._json(
                {"ok": code in (Exit.DONE, Exit.NO), "result": json_form.plain(result)}, code
            )
        elif not self.quiet:
            headline, newline, rest = text.partition("\n")
            self._print(self.console, Text(headline, style="bold"))
            if newline:
                self._print(self.console, Text(rest))
        return code

    def answer(self, result: Any, text: str | Text, *, code: Exit = Exit.DONE) -> Exit:
        """A result that was all that was asked for; with ``--quiet`` the exit code is it."""
        if self.as_json:
            return self.result(result, "", code=code)
        if not self.quiet:
            self._print(self.console, text if isinstance(text, Text) else Text(text))
        return code

    def event(self, event: str, result: Any, text: str) -> None:
        """Something that a user waits for, before the result."""
        if self.as_json:
            self._write(
                {"schema": json_form.SCHEMA, "command": self.command, "event": event}
                | json_form.plain(result)
            )
        elif not self.quiet:
            self._print(self.console, Text(text))

    def hint(self, text: str) -> None:
        """What may help, for people who look on."""
        if self.hints:
            self._print(self.errors, Text(text, style="yellow"))

    def progress(self, text: str) -> None:
        """A line of progress, where it was asked for and no bar shows it."""
        if self.verbose and not self.bar:
            self._print(self.errors, Text(text))

    def failed(self, error: BaseException, code: Exit | int) -> int:
        """An error: on standard error, or as JSON on standard output."""
        if self.as_json:
            self._json({"ok": False, "error": errors.to_dict(error)}, code)
        else:
            for label, text in errors.lines(error, self.command):
                line = Text()
                line.append(
                    "pycriu-native: " if not label else "  - " if label == "-" else f"  {label:<8}",
                    style="bold red",
                )
                self._print(self.errors, line.append(text))
        return code

    def _json(self, body: dict[str, Any], code: Exit | int) -> None:
        head = {"schema": json_form.SCHEMA, "command": self.command}
        self._write(head | body | {"exit_code": int(code)})

    def _write(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def _print(self, console: Console, text: Text) -> None:
        text.plain = encodable(text.plain)
        console.print(text, soft_wrap=True)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False)

"""``pycriu-native``: the library on the command line (extra ``[cli]``: click and rich).

click reads command lines, writes help and completes in three shells; rich draws progress bars, and
is loaded by the first one. Nothing of this package is imported by ``import pycriu_native``. Each
command is a module, loaded on use:

``run`` starts it and turns every ending into an exit code (``exit_codes``); ``command`` is what
all commands have in common; ``option_parameters`` makes CRIU's options from the table; ``output``
and ``errors`` report the result, as text or as JSON; ``standard_streams`` keeps output that cannot
be written from ending a command.
"""

from __future__ import annotations

import sys

from .._support import held_signals

__all__ = ["main"]

MISSING_EXTRA, OUTPUT, WORKED = 3, 13, (0, 11)
"""Of ``exit_codes``, which is loaded later: a package of the extra is missing; the output cannot
be written; the codes of commands that worked."""


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["run"] and not held_signals.are_held():
        held_signals.hold()
    from . import standard_streams

    with standard_streams.guarded() as output_error:
        code = _run(sys.argv[1:])
        error = output_error()
        if error is not None and code in WORKED:
            code = OUTPUT
            if not isinstance(error, BrokenPipeError):
                sys.stderr.write(
                    f"pycriu-native: standard output cannot be written: {error.strerror}; the "
                    "command itself worked\n"
                )
    if held_signals.are_held():
        held_signals.ignore()
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"pycriu-native: the command line needs the package {error.name}, which is not "
            "installed\n  cure    pip install 'pycriu-native[cli]'\n"
        )
        return MISSING_EXTRA
    from .run import run

    return run(words)

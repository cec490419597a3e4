"""The command line program ``pycriu-native`` (extra ``[cli]``: click and rich).

click parses command lines, prints help and completes words; rich draws progress bars and is
imported only to draw one. ``import pycriu_native`` imports no module of this package.

``run`` runs a command line and returns its exit code (``exit_codes``). ``app`` lists the commands;
their modules are in ``commands``, imported on use. ``command`` is the base class of all commands.
``option_parameters`` makes CRIU's options from the option table; ``parameters`` has the other
options of several commands. ``output`` and ``errors`` print results and failures, as text or as
JSON. ``standard_streams`` lets a command continue if its output cannot be written.
"""

from __future__ import annotations

import sys

from .._support import held_signals

__all__ = ["main"]

MISSING_EXTRA, OUTPUT, WORKED = 3, 13, (0, 11)
"""Members of ``exit_codes.Exit``, which is imported later: UNSUPPORTED, OUTPUT, and (DONE, NO)."""


def main() -> None:
    """Run the command line of the process, and exit."""
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

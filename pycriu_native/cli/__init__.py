"""``pycriu-native``: the library on the command line (extra ``[cli]``: click and rich).

click reads command lines, writes help and completes in three shells; rich draws tables and bars
and knows terminals and ``NO_COLOR``. Neither is imported before :func:`main` runs, and nothing
of this package by ``import pycriu_native``. Each command is a module, loaded when it is asked for:

``run`` starts it and turns every ending into an exit code (``exit_codes``); ``command`` is what
all commands have in common; ``option_parameters`` makes CRIU's options from the table; ``output``
and ``errors`` say what happened, to people or as JSON.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

MISSING_EXTRA = 3
"""The exit code where the packages of an extra are missing; ``exit_codes`` needs none of them, but
its names would have to be imported here."""


def main() -> None:
    """The console script."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"pycriu-native: the command line needs the package {error.name}, which is not "
            "installed\n  cure    pip install 'pycriu-native[cli]'\n"
        )
        sys.exit(MISSING_EXTRA)
    from .run import run

    sys.exit(run(sys.argv[1:]))

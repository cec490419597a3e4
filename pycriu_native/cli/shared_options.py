"""The options that all commands have, and those of all commands that call CRIU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .._transport.base import DEFAULT_SERVICE
from .errors import CONFIG
from .parameters import file_option, flag, option

HELP = ["-h", "--help"]
HELP_ALL = "--help-all"


def help_option(names: Sequence[str], help: str, *, with_all: bool = False) -> click.Option:
    """An option that prints the help and exits; ``with_all``: with all options of CRIU."""

    def show(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            if with_all:
                ctx.meta[HELP_ALL] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return click.Option(
        names, is_flag=True, is_eager=True, expose_value=False, callback=show, help=help
    )


OUTPUT = (
    flag("--json", "as_json", help="Print JSON (docs/cli.md has the shapes)."),
    flag("-q", "--quiet", help="Print errors only."),
    flag("--verbose", help="Print hints and progress even without a terminal."),
)
CONFIG_FILE = file_option(
    "--config",
    help="TOML file of options by the names of CriuOpts; options of the command line replace "
    f"them. CRIU's own configuration files: {CONFIG}.",
)
REACH = (
    file_option("--criu", metavar="PROGRAM", help="The criu to run."),
    file_option(
        "--service",
        metavar="SOCKET",
        help=f"Use a running criu service (usually {DEFAULT_SERVICE}) instead.",
    ),
    flag(
        "--allow-untrusted",
        help="Accept a program, directories and files that other users can change or replace.",
    ),
)
"""The options that set the ``criu`` of a call."""
DEADLINE = option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit of the call; then CRIU undoes its work. (--timeout limits freezing.)",
)

"""Options and arguments that all or several commands have, and the checks of their values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .._rollback.option import Files, Rollback
from .._system.process import all_pids, comm_of
from .._system.process_identity import is_pid
from .._transport.base import DEFAULT_SERVICE
from ..errors import CriuError, OptionError, Problem
from .errors import CONFIG

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def flag(*names: str, help: str) -> click.Option:
    """An option without a value."""
    return click.Option(names, is_flag=True, help=help)


def option(*names: str, help: str, **attributes: Any) -> click.Option:
    """An option with a value; the help shows its default."""
    attributes.setdefault("show_default", "default" in attributes)
    return click.Option(names, help=help, **attributes)


def file_option(*names: str, metavar: str = "FILE", **attributes: Any) -> click.Option:
    """An option whose value is the path of a file."""
    return option(*names, type=click.Path(dir_okay=False), metavar=metavar, **attributes)


def _pid(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not is_pid(int(value[:20])):
        raise click.BadParameter(f"{value!r} is not a pid: the number of a process is accepted")
    return int(value)


def _processes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The processes of this machine, with their names, for the completion of a pid."""
    from click.shell_completion import CompletionItem  # needed for completion only

    return [
        CompletionItem(str(pid), help=comm_of(pid))
        for pid in sorted(all_pids())
        if str(pid).startswith(incomplete)
    ]


PID: dict[str, Any] = {"type": _pid, "shell_complete": _processes}
"""Attributes of parameters whose value is a pid."""


def pid_params() -> list[click.Parameter]:
    """``PID``, also as ``-t PID`` as in criu; the command gets one of them as ``pid``."""
    return [
        click.Argument(["pid"], required=False, **PID),
        option("-t", "--tree", "of_tree", metavar="PID", help="The process, as in criu.", **PID),
    ]


INCLUDE_CALLER = flag(
    "--include-caller",
    help="Allow a tree that contains this command, such as that of its own shell; the command "
    "is then dumped and ends too.",
)


def files_option(what: str) -> click.Option:
    """``--files``; ``what`` it does, for the help."""
    return option("--files", type=click.Choice(["rollback"]), help=what)


ALSO = option(
    "--also",
    multiple=True,
    metavar="PATTERN",
    help="With --files: also save the files that match this absolute pattern, such as a log "
    "that the process opens for each line.",
)


def rollback(files: str | None, also: tuple[str, ...]) -> Files:
    """The argument ``files`` of a call, from ``--files`` and ``--also``."""
    if also and files is None:
        raise click.UsageError("--also is accepted with --files only.")
    return None if files is None else Rollback(also=also)


def compress_option(help: str) -> click.Option:
    """``--compress``: how an archive is compressed."""
    return option(
        "--compress", type=click.Choice(["gzip", "zstd", "none"]), default="gzip", help=help
    )


OVERWRITE = flag("--overwrite", help="Replace an existing file.")


def check_new(path: str, overwrite: bool) -> None:
    """Refuse the path of an existing file, unless ``overwrite`` is set."""
    if not overwrite and os.path.lexists(path):
        raise click.UsageError(f"{path} exists; --overwrite replaces it.")


def encrypt_to_option(what: str) -> click.Option:
    """``--encrypt-to``: the recipients that can read ``what``."""
    return option(
        "--encrypt-to",
        multiple=True,
        metavar="RECIPIENT",
        help=f"age recipient or ssh public key that can read {what}; may be repeated.",
    )


class _Directory(click.Path):
    """A directory; the error for an archive names the command that extracts it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if os.path.isfile(value):
            import shlex  # for the error only

            self.fail(
                f"{value} is a file, and a directory is accepted; an archive is extracted with: "
                f"pycriu-native unpack {shlex.quote(value)} DIRECTORY",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


def directory_argument(name: str = "directory") -> click.Argument:
    """A directory of images as an argument."""
    return click.Argument([name], type=_Directory(file_okay=False))


def identity_option(purpose: str = "") -> click.Option:
    """``--identity``: the files of private keys, for ``purpose``."""
    return file_option(
        "-i",
        "--identity",
        multiple=True,
        help=f"File of age identities, or an ssh private key{purpose}; may be repeated.",
    )


def one_pid(pid: int | None, tree: int | None) -> int:
    """The pid, which PID or ``--tree`` gives, but not both."""
    if (pid is None) == (tree is None):
        raise click.UsageError(
            "Missing argument 'PID'." if pid is None else "PID and --tree: one is accepted."
        )
    return pid or tree or 0


def pidfile_option(of: str) -> click.Option:
    """``--pidfile``, as in criu."""
    return file_option("--pidfile", help=f"Write the pid of {of} into this new file.")


def check_pidfile(path: str | None) -> None:
    """Refuse a pidfile that exists or cannot be created, before anything is started."""
    if path is not None and os.path.lexists(path):
        raise OptionError([Problem("pidfile", path, "a file that does not exist is accepted")])
    if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
        raise OptionError([Problem("pidfile", path, "a file in an existing directory is accepted")])


def write_pidfile(path: str | None, pid: int) -> None:
    """Write the pid to a new file; an existing one is an error, as with CRIU."""
    if path is not None:
        try:
            with open(path, "x") as file:
                file.write(str(pid))
        except OSError as error:
            raise CriuError(
                f"pid {pid} runs, but the pidfile {path!r} cannot be written: {error.strerror}",
                pid=pid,
            ) from None


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

"""Base of all commands: help, shared options, and the exit code of every ending.

A command's function gets a :class:`Call` and its own parameters, and returns an exit code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from .._calls.notification import Hook, Notification
from .._rollback.option import Files, Rollback
from .._support.frozen_dataclass import dataclass
from .._system.process import comm_of
from .._system.process_identity import is_pid
from .._transport.base import DEFAULT_SERVICE, Service, Via
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import CriuError, Problem, UnsupportedError
from ..options.criu_opts import CriuOpts
from ..options.table import VERB_MASK
from . import option_parameters
from .errors import CONFIG
from .exit_codes import Exit, exit_of
from .output import Output

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP_WIDTH = 100
HELP = ["-h", "--help"]
HELP_ALL = "--help-all"
NAMED = f"{__name__}.named"
"""In the meta data of a context: the parameters of its command line."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; a verb undoes its work first."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Call:
    """One command under way."""

    out: Output
    opts: CriuOpts
    """The options of CRIU; empty for commands without them."""
    given: Via | None
    """How CRIU is reached, if the command line sets it."""
    deadline: float | None
    hook: Hook | None
    """The hook that runs the action scripts."""

    @property
    def via(self) -> Via:
        """How CRIU is reached."""
        return self.given or Worker()

    @property
    def images(self) -> str:
        """The images directory, for messages."""
        return str(self.opts.images_directory or self.opts.images_dir or "")


class Group(click.Group):
    """Commands under one name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without arguments, the help."""
        return super().parse_args(ctx, args or ["--help"])


class Command(click.Command):
    """One subcommand."""

    def __init__(
        self,
        name: str,
        *,
        function: Callable[..., Exit | int],
        help: str,
        examples: Sequence[str],
        exits: Sequence[Exit],
        params: Sequence[click.Parameter] = (),
        verb: Verb | None = None,
        fields: int | None = None,
        reaches: bool = False,
        without: Collection[str] = (),
        also: Collection[str] = (),
        title: str = "",
        lenient: bool = False,
    ) -> None:
        self.title = title or name
        self.function = function
        self.examples = examples
        self.exits = sorted({Exit.DONE, Exit.REFUSED, Exit.OUTPUT, Exit.INTERRUPTED, *exits})
        self.verb = verb
        mask = fields or (VERB_MASK[verb] if verb else None)
        self.has_fields = mask is not None
        self.also = also
        self._own = params
        self._mask = mask
        self._reaches = reaches
        self._without = without
        super().__init__(
            name,
            help=help,
            context_settings={
                "help_option_names": HELP,
                "max_content_width": HELP_WIDTH,
                "ignore_unknown_options": lenient,
            },
        )
        self._show_help = _help_option(HELP, "Show this message and exit.")
        del self.params  # set by click; below, made when they are needed

    @functools.cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override]
        """Its own parameters, those that all commands share, and the options of CRIU."""
        return self._made_params()

    def _made_params(self, words: Sequence[str] | None = None) -> list[click.Parameter]:
        """The parameters; of CRIU's options only those that the words name, if all are known."""
        mask = self._mask
        made = [*self._own, *(_config() if mask else ())]
        made += reach_options() if mask or self._reaches else []
        made += [_help_all()] if mask else []
        made += _said()
        if mask:
            own = {word for param in self._own for word in param.opts}
            known = {word for param in made for word in param.opts} - {HELP_ALL}
            only = None if words is None else option_parameters.named_flags(words, known)
            fields = option_parameters.field_options(mask, self._without, self.also, only)
            made += [param for param in fields if own.isdisjoint(param.opts)]
        return made

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        if self.has_fields:
            args = option_parameters.normalized(args)
            if not ctx.resilient_parsing:
                ctx.meta[NAMED] = self._made_params(args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """``--help``. click compares its names with all options, which would have to be made."""
        return self._show_help

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters; of CRIU's options only those that the command line names.

        Making all of them takes as long as the rest of a command line.
        """
        made = ctx.meta.get(NAMED)
        return super().get_params(ctx) if made is None else [*made, self.get_help_option(ctx)]

    def invoke(self, ctx: click.Context) -> Exit | int:
        """Run the command. Every ending is reported, and has an exit code."""
        own = {p.name: ctx.params[p.name] for p in self.get_params(ctx) if p.name and _is_own(p)}
        shared = {name: own.pop(name, None) for name in SHARED}
        out = Output(
            self.title,
            as_json=bool(shared["as_json"]),
            quiet=bool(shared["quiet"]),
            verbose=bool(shared["verbose"]),
        )
        try:
            return self.function(self._call(ctx, out, shared, own), **own)
        except CriuError as error:
            return out.failed(error, exit_of(error))
        except click.ClickException as error:
            return out.failed(error, Exit.REFUSED)
        except OSError as error:
            message = CriuError(
                f"{error.filename or self.title}: {error.strerror}", verb=self.title
            )
            return out.failed(message, Exit.IMAGES)
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
            # A second Ctrl-C, which changes nothing, is a note as well.
            notes = [note for note in getattr(stop, "__notes__", ()) if "Interrupt" not in note]
            how = "; ".join(notes) or "what had begun is undone"
            response = CriuError(f"interrupted; {how}", verb=self.title)
            result = getattr(stop, "result", None)
            if result is not None:
                response = CriuError("interrupted, but all was done by then", verb=self.title)
                response.add_note(f"the result is {result}")
            return out.failed(response, 128 + number)

    def _call(
        self, ctx: click.Context, out: Output, shared: dict[str, Any], own: dict[str, Any]
    ) -> Call:
        opts = CriuOpts()
        if self.has_fields:
            command = own.get("command", ())
            verb = self.verb or Verb(own["verb"])
            opts = option_parameters.read(
                ctx, verb, config=shared["config"], command=command, also=self.also
            )
        given = ctx.find_object(Given)
        via = None if given is None else given.via
        if shared["service"]:
            via = Service(shared["service"])
        elif shared["criu"] or shared["allow_untrusted"]:
            via = Worker(program=shared["criu"], allow_untrusted=bool(shared["allow_untrusted"]))
        script = own.pop("action_script", ())
        hook = functools.partial(_run_scripts, script, opts) if script else None
        return Call(out, opts, via, shared["deadline"], hook)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Description, examples, exit codes; then the options, which are many."""
        formatter.width = (
            min(formatter.width + 20, HELP_WIDTH) if ctx.terminal_width else HELP_WIDTH
        )
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"  {line}\n" if line else "\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in self.exits])
        own = [p for p in self.get_params(ctx) if not _is_criu(p)]
        _section(ctx, formatter, "Options", own)
        fields = [p for p in self.get_params(ctx) if _is_criu(p)]
        often = [p for p in fields if getattr(p, "often", False)]
        rest = [p for p in fields if p not in often]
        _section(ctx, formatter, "Options of CRIU that are needed often", often)
        if ctx.meta.get(HELP_ALL):
            _section(ctx, formatter, "Other options of CRIU", rest)
        elif rest:
            with formatter.section("Other options of CRIU"):
                formatter.write_text(f"{len(rest)} more: {ctx.command_path} {HELP_ALL}")


def _section(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    title: str,
    params: Sequence[click.Parameter],
) -> None:
    records = [record for p in params if (record := p.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def _is_criu(param: click.Parameter) -> bool:
    return isinstance(param, option_parameters.FieldOption | option_parameters.ServerOption)


def _is_own(param: click.Parameter) -> bool:
    return not _is_criu(param) and param.expose_value


@dataclass(frozen=True)
class Given:
    """Settings of the caller of :func:`pycriu_native.cli.run.run`, for every command."""

    via: Via | None = None


# ---- shared options ----

SHARED = ("as_json", "quiet", "verbose", "config", "criu", "service", "allow_untrusted", "deadline")


def _said() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json", "as_json"], is_flag=True, help="Print JSON (docs/cli.md has the shapes)."
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print errors only."),
        click.Option(
            ["--verbose"], is_flag=True, help="Print hints and progress, terminal or not."
        ),
    ]


def _help_option(names: Sequence[str], help: str, *, with_all: bool = False) -> click.Option:
    """An option that prints the help, ``with_all`` options of CRIU or not, and exits."""

    def show(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            if with_all:
                ctx.meta[HELP_ALL] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return click.Option(
        names, is_flag=True, is_eager=True, expose_value=False, callback=show, help=help
    )


def _help_all() -> click.Option:
    text = "Show this message with all options of CRIU, and exit."
    return _help_option([HELP_ALL], text, with_all=True)


def _config() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="TOML table of options by the names of CriuOpts; the command line wins over it. "
            f"CRIU's own configuration files: {CONFIG}.",
        )
    ]


def reach_options() -> list[click.Parameter]:
    """How CRIU is reached."""
    return [
        click.Option(
            ["--criu"],
            type=click.Path(dir_okay=False),
            metavar="PROGRAM",
            help="The criu to run.",
        ),
        click.Option(
            ["--service"],
            type=click.Path(dir_okay=False),
            metavar="SOCKET",
            help=f"Use a running criu service (usually {DEFAULT_SERVICE}) instead.",
        ),
        click.Option(
            ["--allow-untrusted"],
            is_flag=True,
            help="Use a program, directories and files that other users could change or swap.",
        ),
        click.Option(
            ["--deadline"],
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Time limit, after which CRIU undoes its work. (--timeout bounds freezing only.)",
        ),
    ]


# ---- parameters that several commands have ----


class Pid(option_parameters.ParamType):
    """The number of a process; completed with those that run."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number above 0."""
        if isinstance(value, int):
            return value
        text = str(value)
        if not text.isascii() or not text.isdigit() or not is_pid(int(text[:20])):
            self.fail(f"{value!r} is no pid: the number of a process is accepted", param, ctx)
        return int(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The processes of this machine, with their names."""
        from click.shell_completion import CompletionItem  # runs do without

        return [
            CompletionItem(pid, help=comm_of(int(pid)))
            for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int)
            if pid.startswith(incomplete)
        ]


def pid_params() -> list[click.Parameter]:
    """``PID``, also as ``-t PID`` as in criu."""
    return [
        click.Argument(["pid"], type=Pid(), required=False),
        click.Option(
            ["-t", "--tree"],
            type=Pid(),
            metavar="PID",
            help="The process, as in criu.",
        ),
    ]


def include_caller_option() -> click.Option:
    """``--include-caller``."""
    return click.Option(
        ["--include-caller"],
        is_flag=True,
        help="Dump a tree that contains this command, such as that of its own shell, and end with "
        "it. Without it, such a tree is refused.",
    )


def files_option(what: str) -> click.Option:
    """``--files``; ``what`` it does, for the help."""
    return click.Option(["--files"], type=click.Choice(["rollback"]), help=what)


def also_option() -> click.Option:
    """``--also``: more files for ``--files``."""
    return click.Option(
        ["--also"],
        multiple=True,
        metavar="PATTERN",
        help="With --files: save the files that match, too, such as a log that the process opens "
        "for each line. Absolute.",
    )


def rollback(files: str | None, also: tuple[str, ...]) -> Files:
    """The values of these two options."""
    if also and files is None:
        raise click.UsageError("--also is accepted with --files only.")
    return None if files is None else Rollback(also=also)


def compress_option(help: str) -> click.Option:
    """``--compress``: how an archive is compressed."""
    return click.Option(
        ["--compress"],
        type=click.Choice(["gzip", "zstd", "none"]),
        default="gzip",
        show_default=True,
        help=help,
    )


def encrypt_to_option(what: str) -> click.Option:
    """``--encrypt-to``: the recipients that can read ``what``."""
    return click.Option(
        ["--encrypt-to"],
        multiple=True,
        metavar="RECIPIENT",
        help=f"age recipient or ssh public key that can read {what}; may be repeated.",
    )


def identity_option(purpose: str = "") -> click.Option:
    """``--identity``: the files of private keys, for ``purpose``."""
    return click.Option(
        ["-i", "--identity"],
        multiple=True,
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help=f"File of age identities, or an ssh private key{purpose}; may be repeated.",
    )


def one_pid(pid: int | None, tree: int | None) -> int:
    """The process, which must be named exactly once."""
    if (pid is None) == (tree is None):
        raise click.UsageError(
            "Missing argument 'PID'." if pid is None else "PID and --tree: one is accepted."
        )
    return pid or tree or 0


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Around an import that needs an extra: reports a missing package, with its cure."""
    try:
        yield
    except ImportError as error:
        cure = f"pip install 'pycriu-native[{name}]'"
        rule = str(error) if cure in str(error) else f"{error}: {cure}"
        raise UnsupportedError([Problem("installation", None, rule)]) from None


def script_option() -> click.Option:
    """``--action-script``, as in criu."""
    return click.Option(
        ["--action-script"],
        multiple=True,
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Program to run on each of CRIU's notifications, which CRTOOLS_SCRIPT_ACTION names; "
        "if it fails, CRIU undoes its work. May be repeated.",
    )


def _run_scripts(scripts: Sequence[str], opts: CriuOpts, notification: Notification) -> None:
    """Run the scripts as CRIU does: the action, the images and the root process in variables."""
    import shlex  # few runs have scripts
    import subprocess

    env = dict(os.environ, CRTOOLS_SCRIPT_ACTION=str(notification.action))
    env["CRTOOLS_IMAGE_DIR"] = os.path.abspath(str(opts.images_directory or opts.images_dir))
    if notification.pid is not None:
        env["CRTOOLS_INIT_PID"] = str(notification.pid)
    for script in scripts:
        try:
            code = subprocess.run([script], env=env, check=False).returncode
        except OSError as error:
            raise CriuError(
                f"the action script {script!r} cannot be run: {error.strerror}"
            ) from None
        if code:
            raise CriuError(
                f"the action script {shlex.quote(script)} ended with {code} at "
                f"{notification.action}, and CRIU has undone its work"
            )


def pidfile_option(of: str) -> click.Option:
    """``--pidfile``, as in criu."""
    return click.Option(
        ["--pidfile"],
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help=f"Write the pid of {of} into this new file.",
    )


def write_pidfile(path: str | None, pid: int) -> None:
    """Write it; an existing file is left alone, as CRIU does."""
    if path is not None:
        try:
            with open(path, "x") as file:
                file.write(str(pid))
        except OSError as error:
            raise CriuError(
                f"pid {pid} runs, but the pidfile {path!r} cannot be written: {error.strerror}",
                pid=pid,
            ) from None

"""Base class of the commands: help, shared options, and an exit code for each outcome.

The function of a command receives a :class:`Call` and its own parameters, and returns an exit code.
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
from .._support.cached_property import cached_property
from .._support.frozen_dataclass import dataclass
from .._system.process import all_pids, comm_of
from .._system.process_identity import is_pid
from .._transport.base import DEFAULT_SERVICE, Service, Via
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import CriuError, Problem, UnsupportedError
from ..options.criu_opts import CriuOpts
from ..options.table import VERB_MASK
from . import option_parameters
from .errors import CONFIG, in_flags
from .exit_codes import Exit, exit_of
from .output import Output

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP_WIDTH = 100
HELP = ["-h", "--help"]
HELP_ALL = "--help-all"
NAMED = f"{__name__}.named"
"""Key in ``Context.meta``: the parameters that the command line names."""


class Interrupted(KeyboardInterrupt):
    """Raised by a signal that ends the command; the verb in progress undoes its work first."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Call:
    """The values that the shared options of a command set."""

    out: Output
    opts: CriuOpts
    """The options of CRIU; empty for commands without them."""
    given: Via | None
    """The worker or service that the command line names."""
    deadline: float | None
    hook: Hook | None
    """The hook that runs the action scripts."""

    @property
    def via(self) -> Via:
        """The worker or service of the call."""
        return self.given or Worker()

    @property
    def images(self) -> str:
        """The images directory, for messages."""
        return str(self.opts.images_directory or self.opts.images_dir or "")


class Group(click.Group):
    """Commands under one name; without arguments it prints its help."""

    def __init__(self, name: str, **attributes: Any) -> None:
        settings = {"help_option_names": HELP, "max_content_width": HELP_WIDTH}
        super().__init__(name, context_settings=settings, **attributes)
        for command in self.commands.values():
            if isinstance(command, Command):
                command.title = f"{name} {command.name}"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
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
        lenient: bool = False,
    ) -> None:
        self.title = name
        """Its name, after that of its group if it is in one."""
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
        del self.params  # set by click; the property below makes them when they are needed

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override]
        """The command's own parameters, the shared ones, and the options of CRIU."""
        return self._made_params()

    def _made_params(self, words: Sequence[str] | None = None) -> list[click.Parameter]:
        """Make the parameters. ``words`` limits CRIU's options to those that they name."""
        mask = self._mask
        made = [*self._own, *([_config_option()] if mask else ())]
        made += reach_options() if mask or self._reaches else []
        if mask:
            text = "Show this message with all options of CRIU, and exit."
            made.append(_help_option([HELP_ALL], text, with_all=True))
        made += _output_options()
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
        """Return ``--help``. click's method would make all options to compare their names."""
        return self._show_help

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, with only those options of CRIU that the command line names.

        Making all of them would double the start-up time of a command.
        """
        made = ctx.meta.get(NAMED)
        return super().get_params(ctx) if made is None else [*made, self.get_help_option(ctx)]

    def invoke(self, ctx: click.Context) -> Exit | int:
        """Run the command, report its outcome, and return its exit code."""
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
            # A second Ctrl-C has no effect, but adds a note.
            notes = [note for note in getattr(stop, "__notes__", ()) if "Interrupt" not in note]
            how = "; ".join(notes) or "the work so far is undone"
            failure = CriuError(f"interrupted; {how}", verb=self.title)
            result = getattr(stop, "result", None)
            if result is not None:
                text = "interrupted after the work was complete"
                failure = CriuError(text, verb=self.title)
                failure.add_note(f"the result is {result}")
            return out.failed(failure, 128 + number)

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
        """Write description, examples and exit codes before the many options."""
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
    """Defaults that the caller of :func:`pycriu_native.cli.run.run` sets for every command."""

    via: Via | None = None


# ---- kinds of options ----


def flag(*names: str, help: str) -> click.Option:
    """An option without a value."""
    return click.Option(names, is_flag=True, help=help)


def option(*names: str, help: str, **attributes: Any) -> click.Option:
    """An option with a value; the help shows its default."""
    attributes.setdefault("show_default", "default" in attributes)
    return click.Option(names, help=help, **attributes)


def file_option(
    *names: str, help: str, metavar: str = "FILE", multiple: bool = False
) -> click.Option:
    """An option whose value is the path of a file."""
    path = click.Path(dir_okay=False)
    return option(*names, type=path, metavar=metavar, multiple=multiple, help=help)


# ---- shared options ----

SHARED = ("as_json", "quiet", "verbose", "config", "criu", "service", "allow_untrusted", "deadline")


def _output_options() -> list[click.Parameter]:
    return [
        flag("--json", "as_json", help="Print JSON (docs/cli.md has the shapes)."),
        flag("-q", "--quiet", help="Print errors only."),
        flag("--verbose", help="Print hints and progress even without a terminal."),
    ]


def _help_option(names: Sequence[str], help: str, *, with_all: bool = False) -> click.Option:
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


def _config_option() -> click.Option:
    return file_option(
        "--config",
        help="TOML file of options by the names of CriuOpts; options of the command line replace "
        f"them. CRIU's own configuration files: {CONFIG}.",
    )


def reach_options() -> list[click.Parameter]:
    """The options that set the ``criu`` of a call, and its deadline."""
    return [
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
        option(
            "--deadline",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Time limit of the call; then CRIU undoes its work. (--timeout limits freezing.)",
        ),
    ]


# ---- parameters that several commands have ----


class Pid(option_parameters.ParamType):
    """The number of a process; completed with the running processes."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number above 0."""
        if isinstance(value, int):
            return value
        text = str(value)
        if not text.isascii() or not text.isdigit() or not is_pid(int(text[:20])):
            self.fail(f"{value!r} is not a pid: the number of a process is accepted", param, ctx)
        return int(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The processes of this machine, with their names."""
        from click.shell_completion import CompletionItem  # needed for completion only

        return [
            CompletionItem(str(pid), help=comm_of(pid))
            for pid in sorted(all_pids())
            if str(pid).startswith(incomplete)
        ]


def pid_params() -> list[click.Parameter]:
    """``PID``, also as ``-t PID`` as in criu."""
    return [
        click.Argument(["pid"], type=Pid(), required=False),
        option("-t", "--tree", type=Pid(), metavar="PID", help="The process, as in criu."),
    ]


def include_caller_option() -> click.Option:
    """``--include-caller``."""
    return flag(
        "--include-caller",
        help="Allow a tree that contains this command, such as that of its own shell; the command "
        "is then dumped and ends too.",
    )


def files_option(what: str) -> click.Option:
    """``--files``; ``what`` it does, for the help."""
    return option("--files", type=click.Choice(["rollback"]), help=what)


def also_option() -> click.Option:
    """``--also``: more files for ``--files``."""
    return option(
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


def overwrite_option() -> click.Option:
    """``--overwrite``: replace an existing file."""
    return flag("--overwrite", help="Replace an existing file.")


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


def worker_only(call: Call, what: str) -> Worker | None:
    """The worker that the command line names; it is not a service, since ``what``."""
    if call.given is not None and not isinstance(call.given, Worker):
        raise click.UsageError(f"--service is not accepted: {what}.")
    return call.given


def one_pid(pid: int | None, tree: int | None) -> int:
    """The pid, which PID or ``--tree`` gives, but not both."""
    if (pid is None) == (tree is None):
        raise click.UsageError(
            "Missing argument 'PID'." if pid is None else "PID and --tree: one is accepted."
        )
    return pid or tree or 0


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Report an import error as the missing extra ``name``, with the command that installs it."""
    try:
        yield
    except ImportError as error:
        cure = f"pip install 'pycriu-native[{name}]'"
        rule = str(error) if cure in str(error) else f"{error}: {cure}"
        raise UnsupportedError([Problem("installation", None, rule)]) from None


def script_option() -> click.Option:
    """``--action-script``, as in criu."""
    return file_option(
        "--action-script",
        multiple=True,
        help="Program to run on each notification of CRIU; the variable CRTOOLS_SCRIPT_ACTION is "
        "the notification's name. If it fails, CRIU undoes its work. May be repeated.",
    )


def _run_scripts(scripts: Sequence[str], opts: CriuOpts, notification: Notification) -> None:
    """Run the scripts, with the environment variables that CRIU sets for action scripts."""
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
    return file_option("--pidfile", help=f"Write the pid of {of} into this new file.")


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


def hint_at_feature_cache(call: Call) -> None:
    """Advice after a dump or restore in which CRIU probed the kernel, as in each later one."""
    if call.out.hints and call.via.ours:
        from .._transport.feature_cache import feature_cache  # most runs show no hints

        cache = feature_cache()
        if cache.cure is not None:
            call.out.hint(in_flags(f"CRIU's feature cache {cache}"))

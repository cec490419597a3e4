"""Base class of the commands: help, shared options, and an exit code for each outcome.

The function of a command, which ``@Command(...).runs`` sets, receives a :class:`Call` and its own
parameters, and returns an exit code.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Any

import click

from .._calls.notification import Hook
from .._support.cached_property import cached_property
from .._support.frozen_dataclass import dataclass
from .._transport.base import Service, Via
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import CriuError
from ..options.criu_opts import CriuOpts
from ..options.table import VERB_MASK
from . import option_parameters
from .action_scripts import run_scripts
from .errors import in_flags
from .exit_codes import CALL_EXITS, Exit, exit_of
from .output import Output
from .parameters import CONFIG_FILE, DEADLINE, HELP, HELP_ALL, OUTPUT, REACH, help_option, one_pid

HELP_WIDTH = 100
SETTINGS = {"help_option_names": HELP, "max_content_width": HELP_WIDTH}
"""Settings of click's contexts."""
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
    def arguments(self) -> dict[str, Any]:
        """The arguments that dumps and restores have in common."""
        return {"via": self.via, "on_notify": self.hook, "deadline": self.deadline}

    def worker(self, what: str) -> Worker | None:
        """The worker that the command line names; it is not a service, since ``what``."""
        if self.given is not None and not isinstance(self.given, Worker):
            raise click.UsageError(f"--service is not accepted: {what}.")
        return self.given

    def hint_at_feature_cache(self) -> None:
        """Advice after a dump or restore in which CRIU probed the kernel, as in each later one."""
        if self.out.hints and self.via.ours:
            from .._transport.feature_cache import feature_cache  # most runs show no hints

            cache = feature_cache()
            if cache.cure is not None:
                self.out.hint(in_flags(f"CRIU's feature cache {cache}"))


class Group(click.Group):
    """Commands under one name; without arguments it prints its help."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name, context_settings=SETTINGS, **attributes)
        for command in self.commands.values():
            if isinstance(command, Command):
                command.title = f"{name} {command.name}"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args or ["--help"])
        except click.NoSuchOption as error:
            if command := next((word for word in args if word in self.list_commands(ctx)), None):
                hint = f"{ctx.command_path} {command} {error.option_name}"
                text = f"{error.message} The options of {command} follow its name: {hint}."
                raise click.NoSuchOption(error.option_name, text, ctx=ctx) from None
            raise


class Command(click.Command):
    """One subcommand."""

    def __init__(
        self,
        name: str,
        *,
        help: str,
        examples: Sequence[str],
        exits: Sequence[Exit] = CALL_EXITS,
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
        self.function: Callable[..., Exit | int]
        self.examples = examples
        self.exits = sorted({Exit.DONE, Exit.REFUSED, Exit.OUTPUT, Exit.INTERRUPTED, *exits})
        self.verb = verb
        self.also = also
        self._own = params
        self._mask = fields or (VERB_MASK[verb] if verb else None)
        self._reaches = reaches
        self._without = without
        super().__init__(
            name,
            help=help,
            context_settings={**SETTINGS, "ignore_unknown_options": lenient},
        )
        self._show_help = help_option(HELP, "Show this message and exit.")
        del self.params  # set by click; the property below makes them when they are needed

    def runs(self, function: Callable[..., Exit | int]) -> Command:
        """Decorator: set the function of the command."""
        self.function = function
        return self

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override]
        """The command's own parameters, the shared ones, and the options of CRIU."""
        return self._made_params()

    def _made_params(self, words: Sequence[str] | None = None) -> list[click.Parameter]:
        """Make the parameters. ``words`` limits CRIU's options to those that they name."""
        mask = self._mask
        made = [*self._own, *([CONFIG_FILE] if mask else ())]
        made += REACH if mask or self._reaches else ()
        made += (DEADLINE,) if mask else ()
        if mask:
            text = "Show this message with all options of CRIU, and exit."
            made.append(help_option([HELP_ALL], text, with_all=True))
        made += OUTPUT
        if mask:
            own = {word for param in self._own for word in param.opts}
            known = {word for param in made for word in param.opts} - {HELP_ALL}
            only = None if words is None else option_parameters.named_flags(words, known)
            fields = option_parameters.field_options(mask, self._without, self.also, only)
            made += [param for param in fields if own.isdisjoint(param.opts)]
        return made

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._mask:
            shared = (CONFIG_FILE, *REACH, DEADLINE)
            options = [each for each in (*self._own, *shared) if isinstance(each, click.Option)]
            valued = {name for each in options if not each.is_flag for name in each.opts}
            args = option_parameters.normalized(args, valued)
            if not ctx.resilient_parsing:
                ctx.meta[NAMED] = self._made_params(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            runs = not self._mask and any(param.nargs == -1 for param in self._own)
            if runs and "--" not in args:
                text = f"{error.message} Options of the program itself follow '--'."
                like = error.possibilities
                raise click.NoSuchOption(error.option_name, text, like, ctx) from None
            raise

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """Return ``--help``. click's method would make all options to compare their names."""
        return self._show_help

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters; CRIU's only if named, since all would double the start-up time."""
        made = ctx.meta.get(NAMED)
        return super().get_params(ctx) if made is None else [*made, self.get_help_option(ctx)]

    def invoke(self, ctx: click.Context) -> Exit | int:
        """Run the command, report its outcome, and return its exit code."""
        own = {
            param.name: ctx.params[param.name]
            for param in self.get_params(ctx)
            if param.name and param.expose_value and not _is_criu(param)
        }
        out = Output(self.title, **{str(each.name): own.pop(str(each.name)) for each in OUTPUT})
        names = [str(each.name) for each in (CONFIG_FILE, *REACH, DEADLINE)]
        shared = {name: own.pop(name, None) for name in names}
        try:
            return self.function(self._call(ctx, out, shared, own), **own)
        except CriuError as error:
            return out.failed(error, exit_of(error))
        except click.ClickException as error:
            if isinstance(error, click.UsageError) and error.ctx is None:
                error.ctx = ctx  # for the lines with the usage and --help
            return out.failed(error, Exit.REFUSED)
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"{error.filename}: {reason}" if error.filename else reason
            return out.failed(CriuError(text, verb=self.title), Exit.IMAGES)
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
            # A second Ctrl-C has no effect, but adds a note.
            notes = [note for note in getattr(stop, "__notes__", ()) if "Interrupt" not in note]
            text = "interrupted; " + ("; ".join(notes) or "the work so far is undone")
            if (result := getattr(stop, "result", None)) is not None:
                text = "interrupted after the work was complete"
            failure = CriuError(text, verb=self.title)
            if result is not None:
                failure.add_note(f"the result is {result}")
            return out.failed(failure, 128 + number)

    def _call(
        self, ctx: click.Context, out: Output, shared: dict[str, Any], own: dict[str, Any]
    ) -> Call:
        opts = CriuOpts()
        if self._mask:
            command = own.get("command", ())
            verb = self.verb or Verb(own["verb"])
            opts = option_parameters.read(
                ctx, verb, config=shared["config"], command=command, also=self.also
            )
        via: Via | None = ctx.obj
        if shared["service"]:
            via = Service(shared["service"])
        elif shared["criu"] or shared["allow_untrusted"]:
            via = Worker(program=shared["criu"], allow_untrusted=bool(shared["allow_untrusted"]))
        if "of_tree" in own:
            own["pid"] = one_pid(own["pid"], own.pop("of_tree"))
        script = own.pop("action_script", ())
        hook = functools.partial(run_scripts, script, opts) if script else None
        return Call(out, opts, via, shared["deadline"], hook)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write description, examples and exit codes before the many options."""
        width = formatter.width + 20 if ctx.terminal_width else HELP_WIDTH
        formatter.width = min(width, HELP_WIDTH)
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"  {line}\n" if line else "\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in self.exits])
        params = self.get_params(ctx)
        fields = [param for param in params if _is_criu(param)]
        often = [param for param in fields if getattr(param, "often", False)]
        rest = [param for param in fields if param not in often]
        with_all = HELP_ALL in ctx.meta
        for title, shown in (
            ("Options", [param for param in params if param not in fields]),
            ("Options of CRIU that are needed often", often),
            ("Other options of CRIU", rest if with_all else []),
        ):
            if records := [each for param in shown if (each := param.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records)
        if rest and not with_all:
            with formatter.section("Other options of CRIU"):
                formatter.write_text(f"{len(rest)} more: {ctx.command_path} {HELP_ALL}")


def _is_criu(param: click.Parameter) -> bool:
    return isinstance(param, option_parameters.FieldOption | option_parameters.ServerOption)

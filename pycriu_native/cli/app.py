"""The table of commands. The module of a command is imported when the command is used."""

from __future__ import annotations

import importlib

import click

from .. import __version__
from .._native.ffi import LIBCRIU_VERSION
from .command import Group
from .extras import extras

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("diagnose", "check whether this machine can checkpoint, and how to fix what fails"),
    "preflight": ("diagnose", "check whether a process can be dumped, without freezing it"),
    "check": ("machine", "check whether CRIU works on this kernel"),
    "install-criu": ("install_criu", "install a CRIU that works on this kernel"),
    "keep-cache": ("machine", "let CRIU store its feature cache"),
    "dump": ("dump", "save a process and its descendants"),
    "pre-dump": ("dump", "save the memory of a process that continues to run"),
    "restore": ("restore", "restore dumped processes"),
    "run": ("job", "run a command with checkpoints at intervals, or resume it"),
    "job": ("job", "show a job of 'run', take a checkpoint of it, or stop it"),
    "snapshot": ("snapshot", "save a program after its start-up, to start copies of it"),
    "start": ("snapshot", "start a copy of a snapshot"),
    "snapshots": ("snapshot", "list, inspect and remove snapshots"),
    "migrate": ("migrate", "move a process to another machine"),
    "page-server": ("serve_pages", "receive memory pages from a dump on another host"),
    "lazy-pages": ("serve_pages", "send memory pages to processes restored without them"),
    "dedup": ("serve_pages", "free the pages of parent images that newer images replace"),
    "cpuinfo-dump": ("machine", "write the features of this processor to a file"),
    "cpuinfo-check": ("machine", "check whether this processor has the features in the file"),
    "pack": ("archives", "write an image set as one archive"),
    "unpack": ("archives", "extract an archive into a directory"),
    "seal": ("archives", "write a manifest of an image set"),
    "verify": ("archives", "check an image set against its manifest"),
    "inspect": ("inspect", "show the contents of images"),
    "diff": ("diff", "show the differences between two image sets"),
    "check-images": ("check_images", "check whether images can be restored on this machine"),
    "decode": ("image_files", "print an image file as JSON"),
    "encode": ("image_files", "write an image file from its JSON"),
    "plot": ("plot", "draw a dump: timeline, rounds, memory"),
    "explain": ("explain", "show what a call would do, without doing it"),
    "options": ("options", "list every option of CRIU"),
    "completion": ("completion", "print the completion script for bash, zsh or fish"),
}
"""Module and one-line description of each command."""


class App(Group):
    """``pycriu-native``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in COMMANDS:
            return None
        with extras():
            module = importlib.import_module(f".commands.{COMMANDS[cmd_name][0]}", __package__)
        commands = (each for each in vars(module).values() if isinstance(each, click.Command))
        return next(each for each in commands if each.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest a similar name for a command that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            like = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {like[0]}?" if like else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


app = App(
    "pycriu-native",
    help="Checkpoint, restore and live-migrate Linux processes, over libcriu.\n\n"
    "Every command has --help with examples and exit codes, and --json for scripts.",
    epilog='Most commands need root. Completion: eval "$(pycriu-native completion bash)"',
)
click.version_option(
    __version__,
    message=f"pycriu-native %(version)s, libcriu {LIBCRIU_VERSION}",
    help="Show the releases of pycriu-native and libcriu.",
)(app)

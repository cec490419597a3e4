"""The commands; the module of a command is loaded when the command is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from .. import __version__
from .._native.ffi import LIBCRIU_VERSION
from .command import Group

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("diagnose", "what this machine can checkpoint, and what cures the rest"),
    "preflight": ("diagnose", "what a dump of a process would meet, before it is frozen"),
    "check": ("machine", "whether CRIU can work on this kernel"),
    "install-criu": ("install_criu", "install a CRIU that works on this kernel"),
    "keep-cache": ("machine", "let CRIU store its feature cache"),
    "dump": ("dump", "save a process and all below it"),
    "pre-dump": ("dump", "save the memory of a process that runs on"),
    "restore": ("restore", "restore what was dumped"),
    "run": ("job", "run a command that is checkpointed at intervals, or resume it"),
    "job": ("job", "look at a job of run, take a checkpoint of it, stop it"),
    "snapshot": ("snapshot", "save a program that has loaded, to start it many times"),
    "start": ("snapshot", "start a copy of a snapshot"),
    "snapshots": ("snapshot", "list, inspect and remove snapshots"),
    "migrate": ("migrate", "move a process to another machine"),
    "page-server": ("serve_pages", "take memory pages from a dump on another host"),
    "lazy-pages": ("serve_pages", "feed memory to processes that run already"),
    "dedup": ("serve_pages", "free the pages of parent images that newer images replace"),
    "cpuinfo-dump": ("machine", "write down what this processor can do"),
    "cpuinfo-check": ("machine", "whether this processor can take over"),
    "pack": ("archives", "write an image set as one archive"),
    "unpack": ("archives", "read an archive into a directory"),
    "seal": ("archives", "write a manifest of an image set"),
    "verify": ("archives", "hold an image set against its manifest"),
    "inspect": ("inspect", "what is in images"),
    "diff": ("inspect", "what changed from one image set to another"),
    "check-images": ("inspect", "what would stop a restore on this machine"),
    "decode": ("inspect", "one image file as JSON"),
    "encode": ("inspect", "the bytes of an image file, from its JSON"),
    "plot": ("plot", "pictures of a dump: timeline, rounds, memory"),
    "explain": ("explain", "show what a call would do, without doing it"),
    "options": ("options", "list every option of CRIU"),
    "completion": ("completion", "print the completion for bash, zsh or fish"),
}
"""Each command with its module and what it is in a line."""


class App(Group):
    """``pycriu-native``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".commands.{COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table: no module is loaded."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name what is like a command that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            like = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {like[0]}?" if like else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"pycriu-native {__version__}, libcriu {LIBCRIU_VERSION}")
        ctx.exit()


app = App(
    "pycriu-native",
    help="Checkpoint, restore and live-migrate Linux processes, over libcriu.\n\n"
    "Every command has --help with examples and exit codes, and --json for scripts.",
    epilog='Most commands need root. Completion: eval "$(pycriu-native completion bash)"',
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the releases of pycriu-native and libcriu.",
        )
    ],
)

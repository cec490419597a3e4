"""``completion``: what a shell must load to complete command lines."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from .. import app
from ..command import Call, Command
from ..exit_codes import Exit

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PYCRIU_NATIVE_COMPLETE"


def _completion(call: Call, shell: str) -> Exit:
    kind = get_completion_class(shell)
    assert kind is not None
    # Not the class's own method: for bash it would look at the bash that is installed here.
    script = ShellComplete.source(kind(app.app, {}, "pycriu-native", VARIABLE))
    return call.out.answer({"shell": shell, "script": script}, script)


COMMANDS = {
    "completion": Command(
        "completion",
        function=_completion,
        help="Print the completion for SHELL: commands, options, their values, pids and paths.",
        examples=[
            'eval "$(pycriu-native completion bash)"          # in ~/.bashrc; bash 4.4',
            'eval "$(pycriu-native completion zsh)"           # in ~/.zshrc, after compinit',
            "pycriu-native completion fish | source           # in ~/.config/fish/config.fish",
        ],
        exits=(),
        params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
    ),
}

"""``completion``: the script with which a shell completes command lines."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from .. import app
from ..command import Call, Command
from ..exit_codes import Exit

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PYCRIU_NATIVE_COMPLETE"


@Command(
    "completion",
    help="Print the completion script for SHELL: commands, options, values, pids and paths.",
    examples=[
        'eval "$(pycriu-native completion bash)"          # in ~/.bashrc; bash 4.4',
        'eval "$(pycriu-native completion zsh)"           # in ~/.zshrc, after compinit',
        "pycriu-native completion fish | source           # in ~/.config/fish/config.fish",
    ],
    exits=(),
    params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
).runs
def _completion(call: Call, shell: str) -> Exit:
    kind = get_completion_class(shell)
    assert kind is not None
    # The method of the class for bash would also run bash to check its version.
    script = ShellComplete.source(kind(app.app, {}, "pycriu-native", VARIABLE))
    return call.out.answer({"shell": shell, "script": script}, script)

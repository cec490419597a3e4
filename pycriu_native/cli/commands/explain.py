"""``explain``: what a call would do, without doing it."""

from __future__ import annotations

from dataclasses import replace

import click

from ...diagnostics.explain import explain
from ...enums import Verb
from ...options.table import VERB_MASK, On
from .. import command, json_form
from ..command import Call, Command
from ..exit_codes import Exit

VERBS = [str(verb) for verb in VERB_MASK if verb is not Verb.LAZY_PAGES]


def _explain(call: Call, verb: str, pid: int | None) -> Exit:
    opts = replace(call.opts, pre_dump=None)
    result = explain(opts, verb, pid, call.via)
    refused = bool(result.problems or result.lacking)
    return call.out.answer(
        json_form.plain(result) | {"would_be_refused": refused},
        str(result),
        code=Exit.NO if refused else Exit.DONE,
    )


COMMANDS = {
    "explain": Command(
        "explain",
        function=_explain,
        fields=On.ALL,
        help="Show what VERB would do with these options, without doing it.\n\n"
        "What goes on the wire and by which function of libcriu, the criu command line that does "
        "the same, what this libcriu and this criu lack, what is wrong, and which configuration "
        "files of this system affect it. No process is touched. It ends with 11 if the call would "
        "be refused.",
        examples=[
            "pycriu-native explain dump 4242 -D ckpt --tcp-established",
            "pycriu-native explain restore -D ckpt --json | jq -r '.result.command | join(\" \")'",
        ],
        exits=(Exit.NO,),
        params=[
            click.Argument(["verb"], type=click.Choice(VERBS)),
            click.Argument(["pid"], type=command.Pid(), required=False),
        ],
    ),
}

"""``explain``: the effects of a call, without the call."""

from __future__ import annotations

from dataclasses import replace

import click

from ...diagnostics.explain import explain
from ...enums import Verb
from ...options.table import VERB_MASK, On
from .. import json_form
from ..command import Call, Command
from ..exit_codes import Exit
from ..parameters import PID

VERBS = [str(verb) for verb in VERB_MASK if verb is not Verb.LAZY_PAGES]


@Command(
    "explain",
    fields=On.ALL,
    help="Show what VERB would do with these options, without doing it.\n\n"
    "The output lists the fields of the request, each with the function of libcriu that sets "
    "it, the equivalent criu command line, options that this libcriu or criu lacks, invalid "
    "options, and the configuration files of this system that affect the call. No process is "
    "touched. The exit status is 11 if the call would be refused.",
    examples=[
        "pycriu-native explain dump 4242 -D ckpt --tcp-established",
        "pycriu-native explain restore -D ckpt --json | jq -r '.result.command | join(\" \")'",
    ],
    exits=(Exit.NO,),
    params=[
        click.Argument(["verb"], type=click.Choice(VERBS)),
        click.Argument(["pid"], required=False, **PID),
    ],
).runs
def _explain(call: Call, verb: str, pid: int | None) -> Exit:
    opts = replace(call.opts, pre_dump=None)
    result = explain(opts, verb, pid, call.via)
    refused = bool(result.problems or result.lacking)
    return call.out.answer(
        json_form.plain(result) | {"would_be_refused": refused},
        str(result),
        code=Exit.NO if refused else Exit.DONE,
    )

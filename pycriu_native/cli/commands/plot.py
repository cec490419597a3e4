"""``plot``: pictures (extra ``[plot]``)."""

from __future__ import annotations

import click

from ... import plots
from ..command import Call, Command
from ..exit_codes import Exit
from ..parameters import OVERWRITE, check_new
from ..text import safe

KINDS = {
    "timeline": plots.timeline,
    "rounds": plots.rounds,
    "memory": plots.memory,
    "start": plots.start,
}


@Command(
    "plot",
    help="Draw the dump in the directory SOURCE into the file PICTURE (.png or .svg).\n\n"
    "timeline: its phases, and the time in which the processes were frozen; dump with "
    "--verbosity=4 for it. rounds: the pre-dumps before it. memory: its memory by kind. start: the "
    "duration of each phase of a snapshot's starts; SOURCE is the file of 'start --timings'.",
    examples=[
        "pycriu-native dump 4242 -D ckpt --verbosity=4",
        "pycriu-native plot timeline ckpt timeline.png",
        "pycriu-native plot memory ckpt memory.svg",
        "pycriu-native plot rounds ckpt/5 rounds.png",
        "pycriu-native plot start starts.jsonl starts.svg",
    ],
    exits=(Exit.IMAGES, Exit.UNSUPPORTED),
    params=[
        click.Argument(["what"], type=click.Choice(list(KINDS))),
        click.Argument(["source"], type=click.Path()),
        click.Argument(["picture"], type=click.Path(dir_okay=False)),
        OVERWRITE,
    ],
).runs
def _plot(call: Call, what: str, source: str, picture: str, overwrite: bool) -> Exit:
    check_new(picture, overwrite)
    KINDS[what](source, picture)
    body = {"what": what, "source": source, "picture": picture}
    return call.out.result(body, safe(f"drew {picture}"))

"""``doctor`` and ``preflight``: what would go wrong, asked before."""

from __future__ import annotations

import shlex

import click
from rich.text import Text

from ... import CriuOpts, Doctor, DoctorSeverity, Preflight, Verdict, doctor, preflight
from ...enums import Verb
from ...options.flags import to_flags
from .. import command, json_form
from ..command import Call, Command
from ..errors import in_flags
from ..exit_codes import Exit
from ..text import safe

_STYLES = {
    DoctorSeverity.GOOD: "green",
    DoctorSeverity.INFO: "cyan",
    DoctorSeverity.WARNING: "yellow",
    DoctorSeverity.BAD: "bold red",
}


def _doctor(call: Call, everything: bool) -> Exit:
    result = doctor(call.via)
    code = Exit.NO if result.health is DoctorSeverity.BAD else Exit.DONE
    if call.out.as_json:
        return call.out.result(result, "", code=code)
    return call.out.answer(result, _told(result, everything), code=code)


def _told(found: Doctor, everything: bool) -> Text:
    """What is not as it should be; all of it where that was asked for."""
    text = Text()
    shown = [each for each in found.remarks if everything or each.health not in _FINE]
    group = ""
    for remark in shown:
        if remark.group != group:
            group = remark.group
            text.append(f"{group}\n", style="bold")
        text.append(f"  {remark.health:<8} ", style=_STYLES[remark.health])
        text.append(f"{remark.title}: {safe(remark.value)}\n")
        if remark.costs:
            text.append(f"           costs: {in_flags(safe(remark.costs))}\n")
        if remark.cure:
            text.append(f"           cure:  {in_flags(safe(remark.cure))}\n")
    remaining = len(found.remarks) - len(shown)
    text.append(_SUMS[found.health], style=_STYLES[found.health])
    text.append(f" ({found.via})")
    if remaining:
        text.append(f"; {remaining} more things are as they should be (--all shows them)")
    return text


_FINE = (DoctorSeverity.GOOD, DoctorSeverity.INFO)
_SUMS = {
    DoctorSeverity.GOOD: "this machine can checkpoint",
    DoctorSeverity.INFO: "this machine can checkpoint",
    DoctorSeverity.WARNING: "this machine can checkpoint, but for what is said above",
    DoctorSeverity.BAD: "this machine cannot checkpoint",
}


def _preflight(call: Call, pid: int | None, tree: int | None, include_caller: bool) -> Exit:
    pid = command.one_pid(pid, tree)
    result = preflight(pid, call.opts, include_caller=include_caller, via=call.via)
    works = result.verdict is Verdict.WORKS
    lost = result.verdict is Verdict.NO_RESTORE and not result.opts.leave_running
    words = None if lost or result.verdict is Verdict.FAILS else command_line(result)
    text = in_flags(safe_lines(str(result)))
    if words is not None:
        text += f"\ntry: {shlex.join(words)}"
    body = json_form.fields(result) | {"command": words}
    return call.out.answer(body, text, code=Exit.DONE if works else Exit.NO)


def safe_lines(text: str) -> str:
    """Lines of text, each safe for a terminal."""
    return "\n".join(map(safe, text.splitlines()))


def command_line(found: Preflight) -> list[str]:
    """The command that makes the dump, as far as it can be said."""
    opts = found.opts
    if opts.images_directory is None and opts.images_dir is None:
        opts = CriuOpts.from_dict(opts.to_dict() | {"images_directory": "ckpt"})
    words = [w.flag if w.value is None else f"{w.flag}={w.value}" for w in to_flags(opts)[0]]
    return ["pycriu-native", "dump", str(found.pid), *words]


COMMANDS = {
    "doctor": Command(
        "doctor",
        function=_doctor,
        reaches=True,
        help="Look at everything that decides whether this machine can checkpoint.\n\n"
        "CRIU, libcriu and kernel, each feature of the kernel, capabilities, network locks, "
        "sysctls, configuration files, security modules. Each remark says what it costs and the "
        "command that cures it. Nothing is changed. It takes about a second, and ends with 11 if "
        "nothing can work here.",
        examples=[
            "pycriu-native doctor",
            "pycriu-native doctor --all",
            "pycriu-native doctor --json | "
            "jq -r '.result.remarks[] | select(.health==\"bad\").cure'",
        ],
        exits=(Exit.NO,),
        params=[
            click.Option(
                ["-a", "--all", "everything"],
                is_flag=True,
                help="Show also what is as it should be.",
            )
        ],
    ),
    "preflight": Command(
        "preflight",
        function=_preflight,
        verb=Verb.DUMP,
        help="Say what a dump of PID and its descendants would meet, before anything is frozen.\n\n"
        "What would stop it, which options it needs, what would be lost, and the size to expect. "
        "The processes run on. Give the options that you have chosen: what they cure is no "
        "obstacle. It ends with 11 if a dump with these options, or a restore here, would fail.",
        examples=[
            "pycriu-native preflight 4242",
            "pycriu-native preflight 4242 --tcp-established --json | jq .result.options",
        ],
        exits=(Exit.NO, Exit.NO_CRIU),
        params=[*command.pid_params(), command.include_caller_option()],
    ),
}

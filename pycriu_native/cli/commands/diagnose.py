"""``doctor`` and ``preflight``: checks before a checkpoint."""

from __future__ import annotations

import shlex
from typing import Any

import click

from ... import CriuOpts, Doctor, PageServer, Severity, Verdict, doctor, preflight
from ..._support.frozen_dataclass import replace
from ...diagnostics.doctor.values import HEADINGS
from ...enums import Verb
from ...findings import lines
from ...options.flags import to_flags
from .. import json_form, parameters
from ..command import Call, Command
from ..errors import CONFIG, in_flags
from ..exit_codes import Exit
from ..option_parameters import CLEAR_TEXT
from ..text import safe

_STYLES: dict[str, dict[str, Any]] = {
    Severity.GOOD: {"fg": "green"},
    Severity.NOTE: {"fg": "cyan"},
    Severity.WARNING: {"fg": "yellow"},
    Severity.STOPS: {"fg": "red", "bold": True},
}


@Command(
    "doctor",
    reaches=True,
    help="Check whether this machine can checkpoint.\n\n"
    "The checks cover CRIU, libcriu, the kernel and its features, capabilities, network locks, "
    "sysctls, configuration files and security modules. Each finding has its effect and its "
    "cure. Nothing is changed. The checks take about a second. The exit status is 11 if no "
    "checkpoint can work here.",
    examples=[
        "pycriu-native doctor",
        "pycriu-native doctor --all",
        "pycriu-native doctor --json | "
        "jq -r '.result.findings[] | select(.severity==\"stops\").cure'",
    ],
    exits=(Exit.NO,),
    params=[
        parameters.flag(
            "-a", "--all", "everything", help="Also show the checks that found nothing."
        )
    ],
).runs
def _doctor(call: Call, everything: bool) -> Exit:
    result = doctor(call.via)
    code = Exit.NO if result.severity is Severity.STOPS else Exit.DONE
    return call.out.answer(result, _doctor_text(result, everything), code=code)


def _doctor_text(result: Doctor, everything: bool) -> str:
    """The findings that are warnings or failures, or with ``everything`` all of them."""
    bad = (Severity.WARNING, Severity.STOPS)
    shown = [each for each in result.findings if everything or each.severity in bad]
    text = [_coloured(in_flags(safe(line))) for line in lines(shown, HEADINGS, "group")]
    text.append(click.style(in_flags(safe(result.summary)), **_STYLES[result.severity]))
    if remaining := len(result.findings) - len(shown):
        text[-1] += f"; {remaining} other checks found nothing (--all shows them)"
    return "\n".join(text)


def _coloured(line: str) -> str:
    """Style a line: a heading in bold, the severity of a finding in its colour."""
    if not line.startswith(" "):
        return click.style(line, bold=True)
    word = line.split()[0]
    style = _STYLES.get(word)
    return line.replace(word, click.style(word, **style), 1) if style else line


@Command(
    "preflight",
    verb=Verb.DUMP,
    help="Check whether a dump of PID and its descendants would succeed, without freezing them.\n\n"
    "The output lists what makes the dump fail, the options that the dump and the restore need, "
    "what a restore does not bring back, and the expected size of the images. Pass the options of "
    "the dump: the check uses them. The exit status is 11 if a dump with these options, or a "
    "restore on this machine, would fail.",
    examples=[
        "pycriu-native preflight 4242",
        "pycriu-native preflight 4242 --tcp-established --json | jq .result.options",
    ],
    exits=(Exit.NO, Exit.NO_CRIU),
    params=[
        *parameters.pid_params(),
        parameters.INCLUDE_CALLER,
        parameters.files_option(
            "rollback reports the files that 'dump --files rollback' would save, and how."
        ),
        parameters.ALSO,
    ],
).runs
def _preflight(
    call: Call, pid: int, include_caller: bool, files: str | None, also: tuple[str, ...]
) -> Exit:
    rollback = parameters.rollback(files, also)
    result = preflight(pid, call.opts, include_caller=include_caller, via=call.via, files=rollback)
    works = result.verdict is Verdict.WORKS
    lost = result.verdict is Verdict.NO_RESTORE and not result.opts.leave_running
    words = None
    if not lost and result.verdict is not Verdict.FAILS:
        words = command_line(pid, result.opts)
    if words is not None:
        words += ["--include-caller"] if include_caller else []
        words += [] if files is None else ["--files", files]
        words += [f"--also={pattern}" for pattern in also]
    text = in_flags("\n".join(map(safe, str(result).splitlines())))
    if words is not None:
        text += f"\ntry: {shlex.join(words)}"
    body = json_form.plain(result) | {"command": words}
    return call.out.answer(body, text, code=Exit.DONE if works else Exit.NO)


def command_line(pid: int, opts: CriuOpts) -> list[str] | None:
    """The command line of a dump with these options; None if it cannot express all of them."""
    if opts.images_directory is None and opts.images_dir is None:
        opts = replace(opts, images_directory="ckpt")
    flags, problems = to_flags(opts)
    words = ["pycriu-native", "dump", str(pid)]
    for flag, value, _ in flags:
        name = CONFIG if flag == "--config" else flag
        words.append(name if value is None else f"{name}={value}")
    if isinstance(opts.page_server, PageServer) and opts.page_server.clear_text:
        words.append(CLEAR_TEXT)
    return None if problems else words

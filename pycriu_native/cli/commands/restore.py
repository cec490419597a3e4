"""``restore``."""

from __future__ import annotations

import contextlib
import os
import signal
from time import monotonic
from typing import Any

import click

from ... import RestoreResult, restore, restore_child
from ..._support.unpatched import sleep
from ..._system.process import stat_of
from ...enums import Verb
from ...results import PAGE
from .. import image_summary, json_form, parameters, progress, streams
from ..action_scripts import ACTION_SCRIPT
from ..command import Call, Command, Interrupted
from ..exit_codes import CALL_EXITS, Exit
from ..output import complete
from ..text import details, micro, pids, safe, size, time

UNTIL_ASLEEP = 2.0
"""Seconds that a restored job gets to return to its system call; a busy one has none."""


@Command(
    "restore",
    verb=Verb.RESTORE,
    help="Restore the processes in the images directory, with their original pids.\n\n"
    "They continue where they were dumped, as children of init. With --wait the root process "
    "is a child of this command, which forwards Ctrl-C to it and ends with its exit code. "
    "After a failure no process of the images runs, and the images are unchanged.",
    examples=[
        "pycriu-native restore --images-dir ckpt",
        "pycriu-native restore -D ckpt --shell-job --wait      # into this terminal",
        "pycriu-native restore -D ckpt --tcp-established --pidfile job.pid",
        "pycriu-native restore -D ckpt --exec-cmd -- supervisor --of-the-restored",
    ],
    exits=(*CALL_EXITS, Exit.PID_TAKEN, Exit.IN_DOUBT),
    params=[
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        parameters.flag(
            "--wait",
            help="Wait until the root process ends, and return its exit code (128 and the "
            "signal's number, if a signal ended it).",
        ),
        parameters.flag(
            "--exec-cmd",
            help="Run the command after '--' as the parent of the restored processes, and end "
            "with its exit code.",
        ),
        parameters.flag(
            "-d",
            "--restore-detached",
            help="Accepted for compatibility with criu; it is the default here.",
        ),
        parameters.files_option(
            "With rollback, put back the files that 'dump --files rollback' saved. If the "
            "restore fails, their present contents are kept."
        ),
        streams.option("--from", "Read the images from a stream that 'dump --to' wrote,"),
        parameters.pidfile_option("the root process"),
        ACTION_SCRIPT,
    ],
).runs
def _restore(
    call: Call,
    command: tuple[str, ...],
    exec_cmd: bool,
    wait: bool,
    restore_detached: bool,
    pidfile: str | None,
    through: str | None,
    files: str | None,
) -> int:
    if command and not exec_cmd:
        words = " ".join(command)
        raise click.UsageError(
            f"Unexpected argument {words!r}: the pids are in the images of --images-dir, and a "
            "command after '--' needs --exec-cmd."
        )
    if exec_cmd and not command:
        raise click.UsageError("--exec-cmd requires a command after '--'.")
    if wait and exec_cmd:
        raise click.UsageError("--wait is not accepted with --exec-cmd.")
    parameters.check_pidfile(pidfile)
    if through is not None:
        if wait or exec_cmd or files:
            raise click.UsageError("--from is not accepted with --wait, --exec-cmd or --files.")
        return _out_of_stream(call, through, pidfile)
    verb = restore_child if wait else restore
    with progress.shown(call.out) as on_progress:
        result = verb(call.opts, on_progress=on_progress, files=files, **call.arguments)
    with complete(result):
        parameters.write_pidfile(pidfile, result.pid)
        if wait:
            is_job = bool(call.opts.shell_job)
            if call.out.as_json or not is_job:  # a job draws on this terminal
                call.out.event("running", shape(result), text(result))
            return _until_end(call, result.pid, is_job=is_job)
        if result.exec_pid is not None:
            call.out.event("running", shape(result), text(result))
            return _until_end(call, result.exec_pid)
    done = call.out.result(lambda: shape(result), text(result))
    call.hint_at_feature_cache()
    return done


def _out_of_stream(call: Call, stream: str, pidfile: str | None) -> int:
    from ...archive.streaming import restore_stream  # few restores need it

    with streams.read(stream) as source:
        result = restore_stream(call.opts, source, **call.arguments)
    parameters.write_pidfile(pidfile, result.pid)
    where = "standard input" if stream == streams.STANDARD else safe(stream)
    return call.out.result(json_form.plain(result) | {"stream": stream}, _text(result, where))


def _in_foreground(pid: int) -> None:
    """Put the job in the foreground of the terminal if this command is there, as a shell does.

    SIGCONT continues a job that has already stopped because it read from the terminal. On SIGWINCH,
    full-screen programs redraw; others ignore it. A signal before the job is back in its system
    call does not interrupt that call: many programs would then redraw at the next key only.
    """
    with contextlib.suppress(OSError):  # the job has ended, or there is no terminal
        group = os.getpgid(pid)
        if os.tcgetpgrp(0) == os.getpgrp():
            _set_foreground(group)
        os.killpg(group, signal.SIGCONT)
        until = monotonic() + UNTIL_ASLEEP
        while (stat := stat_of(pid)) and stat.state not in "SZX" and monotonic() < until:
            sleep(0.005)
        os.killpg(group, signal.SIGWINCH)


def _set_foreground(group: int) -> None:
    previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # sent if in the background
    try:
        os.tcsetpgrp(0, group)
    finally:
        signal.signal(signal.SIGTTOU, previous)


def _until_end(call: Call, pid: int, *, is_job: bool = False) -> int:
    """Wait for the restored child, forward signals to it, and return its exit code.

    If a job stops (Ctrl-Z), this command stops too, so that the shell gets the terminal.
    """
    shown = not is_job
    while True:
        try:
            if not shown:
                shown = True
                _in_foreground(pid)
            _, status = os.waitpid(pid, os.WUNTRACED if is_job else 0)
            if not os.WIFSTOPPED(status):
                break
            with contextlib.suppress(OSError):
                _set_foreground(os.getpgrp())
            os.kill(os.getpid(), signal.SIGSTOP)
            shown = False
        except Interrupted as stop:
            os.kill(pid, stop.number)
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGINT)
    if is_job:
        with contextlib.suppress(OSError):
            _set_foreground(os.getpgrp())
    code = os.waitstatus_to_exitcode(status)
    code = 128 - code if code < 0 else code
    call.out.event("ended", {"pid": pid, "exit_code": code})
    return code


def shape(result: RestoreResult) -> dict[str, Any]:
    """The result for ``--json``."""
    return {**json_form.plain(result), "pids": image_summary.pids_in(result.images)}


def text(result: RestoreResult) -> str:
    saved = image_summary.pids_in(result.images)
    return _text(result, safe(result.images), f"{len(saved)}: {pids(saved)}" if saved else None)


def _text(result: RestoreResult, where: str, processes: str | None = None) -> str:
    rows = [("processes", processes)]
    statistics = result.statistics
    if statistics is not None:
        pages, shared = statistics.pages_restored, statistics.pages_skipped_cow
        rows += [
            ("memory", f"{size(pages * PAGE)} ({pages} pages)"),
            ("forking", micro(statistics.forking_time)),
            ("restore", micro(statistics.restore_time)),
            ("shared", f"{shared} pages remain shared after fork" if shared else None),
        ]
    rows += [
        ("whole call", time(result.duration)),
        ("log", safe(result.log) if result.log else None),
    ]
    return details(f"restored pid {result.pid} from {where}", rows)

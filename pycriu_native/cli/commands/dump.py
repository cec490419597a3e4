"""``dump`` and ``pre-dump``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ... import CriuOpts, DumpResult, dump
from ..._calls.request import REAP_TIMEOUT
from ..._support.frozen_dataclass import replace
from ..._system.process import comm_of, stat_of
from ...enums import Verb
from ...errors import OptionError, Problem
from ...results import PAGE, DumpStatistics
from .. import image_summary, json_form, parameters, progress, streams
from ..action_scripts import ACTION_SCRIPT
from ..command import Call, Command
from ..exit_codes import CALL_EXITS, Exit
from ..text import columns, count, details, micro, pids, safe, size, time

if TYPE_CHECKING:
    from ... import DumpItersResult, Round

EXITS = (*CALL_EXITS, Exit.NO_PROCESS)


@Command(
    "dump",
    verb=Verb.DUMP,
    help="Save process PID and all its descendants into the images directory.\n\n"
    "The processes are frozen and saved, then killed unless --leave-running or --leave-stopped "
    "is given. With --leave-running they can change files afterwards, which a restore then "
    "refuses or uses as they are: --files rollback saves these files too. After a failure or "
    "Ctrl-C, CRIU undoes its work and the processes continue to run.",
    examples=[
        "pycriu-native dump 4242 --images-dir ckpt",
        "pycriu-native dump 4242 -D ckpt --leave-running --tcp-established",
        "pycriu-native dump 4242 -D ckpt --shell-job        # a job of a shell's terminal",
        "pycriu-native dump 4242 -D ckpt --rounds 5         # pre-dumps first: short freeze",
        "pycriu-native dump 4242 --to - | ssh HOST pycriu-native restore --from -",
        "pycriu-native dump 4242 -D ckpt --json | jq .result.statistics.frozen_time",
    ],
    exits=EXITS,
    params=[
        *parameters.pid_params(),
        parameters.option(
            "--rounds",
            type=click.IntRange(min=1),
            metavar="MOST",
            help="First pre-dump in at most MOST rounds, as long as each writes less than the "
            "one before. Rounds and dump have numbered subdirectories of the images directory; "
            "restore from the last one. Needs soft-dirty tracking.",
        ),
        streams.option("--to", "Write the images as one stream,"),
        parameters.files_option(
            "With rollback, also save the files that the processes have open for writing; "
            "'restore --files rollback' puts them back."
        ),
        parameters.ALSO,
        parameters.INCLUDE_CALLER,
        parameters.option(
            "--reap-timeout",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="Time to wait until the parent of PID has reaped it, which frees the pid. "
            f"Default: {REAP_TIMEOUT:g}.",
        ),
        ACTION_SCRIPT,
    ],
).runs
def _dump(
    call: Call,
    pid: int,
    rounds: int | None,
    through: str | None,
    include_caller: bool,
    files: str | None,
    also: tuple[str, ...],
    reap_timeout: float | None,
) -> Exit:
    name = comm_of(pid)
    rollback = parameters.rollback(files, also)
    if rounds is not None or through is not None:
        for flag, is_given in (
            ("--files", rollback is not None),
            ("--include-caller", include_caller),
            ("--reap-timeout", reap_timeout is not None),
        ):
            if is_given:
                raise click.UsageError(f"{flag} is not accepted with --rounds or --to.")
    if through is not None:
        if rounds is not None:
            raise click.UsageError("--rounds and --to: one is accepted.")
        return _into_stream(call, pid, name, through)
    if rounds is not None:
        return _in_rounds(call, pid, name, rounds)
    result = _saved(
        call,
        pid,
        call.opts,
        include_caller=include_caller,
        files=rollback,
        reap_timeout=REAP_TIMEOUT if reap_timeout is None else reap_timeout,
    )
    done = call.out.result(lambda: shape(result), text(result, name, "dumped"))
    _hint(call, result)
    return done


def _into_stream(call: Call, pid: int, name: str, stream: str) -> Exit:
    from ...archive.streaming import dump_stream  # few dumps need it

    with streams.written(call, stream) as to:
        result = dump_stream(pid, call.opts, to, **call.arguments)
    what = f"dumped pid {pid}" + (f" ({safe(name)})" if name else "")
    if stream == streams.STANDARD:
        call.out.hint(f"{what} into standard output")
        return Exit.DONE
    written = os.stat(stream).st_size
    rows = [
        ("stream", size(written)),
        *_numbers(result.statistics),
        ("whole call", time(result.duration)),
    ]
    body = json_form.plain(result) | {"stream": stream, "stream_bytes": written}
    headline = f"{what} into {safe(stream)}"
    return call.out.result(body, details(headline, rows))


@Command(
    "pre-dump",
    verb=Verb.PRE_DUMP,
    help="Save the memory of process PID and its descendants in advance of a dump.\n\n"
    "The processes are frozen for a short time and continue to run. A dump that names these "
    "images with --prev-images-dir writes only the pages that changed since. Needs soft-dirty "
    "tracking in the kernel.",
    examples=[
        "pycriu-native pre-dump 4242 -D ckpt/1 --track-mem",
        "pycriu-native dump 4242 -D ckpt/2 --track-mem --prev-images-dir ../1",
    ],
    exits=EXITS,
    params=[*parameters.pid_params(), ACTION_SCRIPT],
).runs
def _pre_dump(call: Call, pid: int) -> Exit:
    name = comm_of(pid)
    result = _saved(call, pid, replace(call.opts, pre_dump=True))
    done = call.out.result(lambda: shape(result), text(result, name, "pre-dumped"))
    _hint(call, result)
    return done


def _saved(call: Call, pid: int, opts: CriuOpts, **more: Any) -> DumpResult:
    with progress.shown(call.out) as on_progress:
        return dump(pid, opts, on_progress=on_progress, **call.arguments, **more)


def _in_rounds(call: Call, pid: int, name: str, rounds: int) -> Exit:
    from ... import ShrinkingRounds, dump_iters  # few dumps need them

    steady = ShrinkingRounds(most=rounds)

    def should_continue(round: Round) -> bool:
        call.out.progress(f"round {round.number}: {size(round.bytes_written)} written")
        return steady(round)

    if call.opts.parent_image is not None:
        rule = "not accepted with --rounds, which sets the parent of each round"
        raise OptionError([Problem("parent_image", call.opts.parent_image, rule)])
    with progress.shown(call.out) as on_progress:
        result = dump_iters(
            pid, call.opts, should_continue, on_progress=on_progress, **call.arguments
        )
    body = shape(result.final) | {
        "rounds": [shape(each.result) for each in result.rounds],
        "not_incremental": result.not_incremental,
    }
    done = call.out.result(body, f"{text(result.final, name, 'dumped')}\n{_table(result)}")
    if result.not_incremental:
        call.out.hint(f"the last dump has all memory: {result.not_incremental}")
    _hint(call, result.final)
    return done


def _table(result: DumpItersResult) -> str:
    rows = [("  round", "written", "frozen", "whole call")]
    for number, each in enumerate((*(r.result for r in result.rounds), result.final), 1):
        statistics = each.statistics or DumpStatistics()
        written = size((statistics.pages_written + statistics.shpages_written) * PAGE)
        rows.append((f"  {number}", written, micro(statistics.frozen_time), time(each.duration)))
    return "\n".join(columns(rows))


def shape(result: DumpResult) -> dict[str, Any]:
    """The result for ``--json``."""
    images = image_summary.size_of(result.images)
    return {
        **json_form.plain(result),
        "pids": image_summary.pids_in(result.images),
        "image_bytes": images.bytes,
        "image_files": images.files,
    }


def text(result: DumpResult, name: str, done: str) -> str:
    images = image_summary.size_of(result.images)
    saved = image_summary.pids_in(result.images)
    what = f"pid {result.pid}" + (f" ({safe(name)})" if name else "")
    headline = f"{done} {what} into {safe(result.images)}"
    waited = f"{time(result.reap_wait)} until the parent reaped it"
    if not result.pid_free:
        waited = f"the parent has not reaped it in {time(result.reap_wait)}; its pid is in use"
    rows = [
        ("processes", f"{len(saved)}: {pids(saved)}" if saved else None),
        ("images", f"{size(images.bytes)} in {count(images.files, 'file')}"),
        *_numbers(result.statistics),
        ("whole call", time(result.duration)),
        ("reaping", waited if result.reap_wait >= 0.01 else None),
        ("log", safe(result.log) if result.log else None),
    ]
    return details(headline, rows)


def _numbers(statistics: DumpStatistics | None) -> list[tuple[str, str]]:
    if statistics is None:
        return []
    scanned = statistics.pages_scanned + statistics.shpages_scanned
    written = statistics.pages_written + statistics.shpages_written
    skipped = statistics.pages_skipped_parent + statistics.shpages_skipped_parent
    memory = f"{size(written * PAGE)} written ({written} of {scanned} pages)"
    if skipped:
        memory += f", {size(skipped * PAGE)} left in the parent"
    if statistics.pages_lazy:
        memory += f", {size(statistics.pages_lazy * PAGE)} left for a lazy restore"
    return [
        ("memory", memory),
        ("freezing", micro(statistics.freezing_time)),
        ("frozen", micro(statistics.frozen_time)),
        ("memory dump", micro(statistics.memdump_time)),
        ("memory write", micro(statistics.memwrite_time)),
    ]


def _hint(call: Call, result: DumpResult) -> None:
    """Print advice: the pid is still in use, or CRIU probes the kernel for each call."""
    is_left = call.opts.leave_running or call.opts.leave_stopped
    seen = None if result.pid_free or is_left else stat_of(result.pid)
    if seen is not None and seen.state == "Z":
        parent = f"pid {seen.parent} ({safe(comm_of(seen.parent))})"
        call.out.hint(
            f"pid {result.pid} stays in use until its parent, {parent}, has reaped it; a restore "
            "before that fails"
        )
    call.hint_at_feature_cache()

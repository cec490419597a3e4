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
from .. import command, image_summary, json_form, progress, streams
from ..command import Call, Command
from ..errors import in_flags
from ..exit_codes import Exit
from ..text import columns, count, micro, pids, safe, size, time

if TYPE_CHECKING:
    from ... import DumpItersResult, Round

EXITS = (
    Exit.FAILED,
    Exit.UNSUPPORTED,
    Exit.NO_PROCESS,
    Exit.IMAGES,
    Exit.PERMISSION,
    Exit.NO_CRIU,
    Exit.LOST,
    Exit.DEADLINE,
)


def _dump(
    call: Call,
    pid: int | None,
    tree: int | None,
    rounds: int | None,
    through: str | None,
    include_caller: bool,
    files: str | None,
    also: tuple[str, ...],
    reap_timeout: float,
) -> Exit:
    pid = command.one_pid(pid, tree)
    name = comm_of(pid)
    rollback = command.rollback(files, also)
    if rollback is not None and (rounds is not None or through is not None):
        raise click.UsageError("--files is not accepted with --rounds or --to.")
    if include_caller and (rounds is not None or through is not None):
        raise click.UsageError("--include-caller is not accepted with --rounds or --to.")
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
        reap_timeout=reap_timeout,
    )
    done = call.out.result(lambda: shape(result), text(result, name, "dumped"))
    _hint(call, result)
    return done


def _into_stream(call: Call, pid: int, name: str, stream: str) -> Exit:
    from ...archive.streaming import dump_stream  # few dumps need it

    with streams.written(call, stream) as to:
        result = dump_stream(
            pid, call.opts, to, via=call.via, on_notify=call.hook, deadline=call.deadline
        )
    what = f"dumped pid {pid}" + (f" ({safe(name)})" if name else "")
    if stream == streams.STANDARD:
        call.out.hint(f"{what} into standard output")
        return Exit.DONE
    written = os.stat(stream).st_size
    rows = [("stream", size(written))]
    if result.statistics is not None:
        rows += _numbers(result.statistics)
    rows.append(("whole call", time(result.duration)))
    response = "\n".join([f"{what} into {safe(stream)}", *columns(rows, indent=2)])
    return call.out.result(
        json_form.fields(result) | {"stream": stream, "stream_bytes": written}, response
    )


def _pre_dump(call: Call, pid: int | None, tree: int | None) -> Exit:
    pid = command.one_pid(pid, tree)
    name = comm_of(pid)
    result = _saved(call, pid, replace(call.opts, pre_dump=True))
    done = call.out.result(lambda: shape(result), text(result, name, "pre-dumped"))
    _hint(call, result)
    return done


def _saved(call: Call, pid: int, opts: CriuOpts, **more: Any) -> DumpResult:
    with progress.shown(call.out) as on_progress:
        return dump(
            pid,
            opts,
            via=call.via,
            on_notify=call.hook,
            on_progress=on_progress,
            deadline=call.deadline,
            **more,
        )


def _in_rounds(call: Call, pid: int, name: str, rounds: int) -> Exit:
    from ... import ShrinkingRounds, dump_iters  # few dumps need them

    steady = ShrinkingRounds(most=rounds)

    def more(round: Round) -> bool:
        call.out.progress(f"round {round.number}: {size(round.bytes_written)} written")
        return steady(round)

    if call.opts.parent_image is not None:
        rule = "the rounds have parents of their own"
        raise OptionError([Problem("parent_image", call.opts.parent_image, rule)])
    with progress.shown(call.out) as on_progress:
        result = dump_iters(
            pid,
            call.opts,
            more,
            via=call.via,
            on_notify=call.hook,
            on_progress=on_progress,
            deadline=call.deadline,
        )
    body = shape(result.final) | {"rounds": [shape(each.result) for each in result.rounds]}
    done = call.out.result(body, f"{text(result.final, name, 'dumped')}\n{_table(result)}")
    _hint(call, result.final)
    return done


def _table(result: DumpItersResult) -> str:
    rows = [("  round", "written", "frozen", "whole call")]
    for number, each in enumerate((*(r.result for r in result.rounds), result.final), 1):
        message = each.statistics or DumpStatistics()
        written = size((message.pages_written + message.shpages_written) * PAGE)
        rows.append((f"  {number}", written, micro(message.frozen_time), time(each.duration)))
    return "\n".join(columns(rows))


def shape(result: DumpResult) -> dict[str, Any]:
    """The result for ``--json``."""
    results = image_summary.size_of(result.images)
    return json_form.fields(result) | {
        "pids": image_summary.pids_in(result.images),
        "image_bytes": results.bytes,
        "image_files": results.files,
    }


def text(result: DumpResult, name: str, done: str) -> str:
    """The result for people."""
    results = image_summary.size_of(result.images)
    saved = image_summary.pids_in(result.images)
    what = f"pid {result.pid}" + (f" ({safe(name)})" if name else "")
    headline = f"{done} {what} into {safe(result.images)}"
    rows = [("processes", f"{len(saved)}: {pids(saved)}")] if saved else []
    rows.append(("images", f"{size(results.bytes)} in {count(results.files, 'file')}"))
    if result.statistics is not None:
        rows += _numbers(result.statistics)
    rows.append(("whole call", time(result.duration)))
    if result.reap_wait >= 0.01:
        rows.append(("reaping", f"{time(result.reap_wait)} of waiting for its parent"))
    if result.log:
        rows.append(("log", safe(result.log)))
    return "\n".join([headline, *columns(rows, indent=2)])


def _numbers(told: DumpStatistics) -> list[tuple[str, str]]:
    scanned = told.pages_scanned + told.shpages_scanned
    written = told.pages_written + told.shpages_written
    skipped = told.pages_skipped_parent + told.shpages_skipped_parent
    memory = f"{size(written * PAGE)} written ({written} of {scanned} pages)"
    if skipped:
        memory += f", {size(skipped * PAGE)} left in the parent"
    if told.pages_lazy:
        memory += f", {size(told.pages_lazy * PAGE)} left for a lazy restore"
    return [
        ("memory", memory),
        ("freezing", micro(told.freezing_time)),
        ("frozen", micro(told.frozen_time)),
        ("memory dump", micro(told.memdump_time)),
        ("memory write", micro(told.memwrite_time)),
    ]


def _hint(call: Call, result: DumpResult) -> None:
    """Advice after a dump: its pid is not free yet, or CRIU probes the kernel at each call."""
    _hint_at_parent(call, result)
    if call.out.hints and call.via.ours:
        from ..._transport.feature_cache import feature_cache

        cache = feature_cache()
        if cache.cure is not None:
            call.out.hint(in_flags(f"CRIU's feature cache {cache}"))


def _hint_at_parent(call: Call, result: DumpResult) -> None:
    runs_on = call.opts.leave_running or call.opts.leave_stopped
    if result.pid_free or runs_on:
        return
    seen = stat_of(result.pid)
    if seen is not None and seen.state == "Z":
        parent = f"pid {seen.parent} ({safe(comm_of(seen.parent))})"
        call.out.hint(
            f"pid {result.pid} stays in use until its parent, {parent}, has reaped it; a restore "
            "before that fails"
        )


COMMANDS = {
    "dump": Command(
        "dump",
        function=_dump,
        verb=Verb.DUMP,
        help="Save process PID and all its descendants into the images directory.\n\n"
        "They are frozen, saved, and killed, unless --leave-running "
        "or --leave-stopped is given. If anything fails, or on Ctrl-C, CRIU undoes its work and "
        "they run on.",
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
            *command.pid_params(),
            click.Option(
                ["--rounds"],
                type=click.IntRange(min=1),
                metavar="MOST",
                help="Pre-dump in rounds, at most so many, while they shrink; then dump. Each has "
                "a directory of its own in the images directory; restore from the last. Needs "
                "soft-dirty tracking.",
            ),
            streams.option("--to", "Write the images as one stream,"),
            command.files_option(
                "Save the files that the processes have open for writing with the images: rollback "
                "has 'restore --files rollback' put them back."
            ),
            command.also_option(),
            command.include_caller_option(),
            click.Option(
                ["--reap-timeout"],
                type=click.FloatRange(min=0),
                default=REAP_TIMEOUT,
                show_default=True,
                metavar="SECONDS",
                help="Time that the parent of PID has to reap it, which frees its pid.",
            ),
            command.script_option(),
        ],
    ),
    "pre-dump": Command(
        "pre-dump",
        function=_pre_dump,
        verb=Verb.PRE_DUMP,
        help="Save the memory of process PID and its descendants for a later dump to build on.\n\n"
        "They are frozen shortly and run on. The dump that names these images in "
        "--prev-images-dir writes only what has changed since. Needs soft-dirty tracking in the "
        "kernel.",
        examples=[
            "pycriu-native pre-dump 4242 -D ckpt/1 --track-mem",
            "pycriu-native dump 4242 -D ckpt/2 --track-mem --prev-images-dir ../1",
        ],
        exits=EXITS,
        params=[*command.pid_params(), command.script_option()],
    ),
}

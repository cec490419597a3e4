"""``snapshot``, ``start``, ``snapshots``: save a program once and start it many times."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Any

import click

from ...errors import CriuError, OptionError, Problem
from ...snapshots import Record, Snapshot, SnapshotProcess, list_snapshots
from ...snapshots.parked import LAST_OUTPUT
from ...snapshots.processor_level import LEVELS
from .. import progress
from ..command import Call, Command, Group, Interrupted
from ..exit_codes import CALL_EXITS, Exit
from ..parameters import DEADLINE, directory_argument, flag, option
from ..text import columns, details, safe, size

EXITS = (*CALL_EXITS, Exit.NO_PROCESS)


@Command(
    "snapshot",
    reaches=True,
    help="Run a command until it calls pycriu_native.guest.wait(), and save it into DIRECTORY. "
    "'start' starts copies that continue from there.\n\n"
    "The directory contains the memory of the program, including secrets; only its owner can "
    "read it.",
    examples=[
        "pycriu-native snapshot app.snapshot -- python3 app.py",
        "pycriu-native snapshot app.snapshot --pid 4242 --without-guest",
    ],
    exits=EXITS,
    params=[
        directory_argument(),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        option("--pid", type=int, help="Save this running process instead."),
        flag(
            "--without-guest",
            help="Accept a process that is not in guest.wait(): all copies have the same "
            "environment, arguments and random numbers.",
        ),
        flag("--leave-running", help="With --pid: let the process continue."),
        option(
            "--processor",
            type=click.Choice(list(LEVELS)),
            help="Limit the command's libraries to the features of this processor level.",
        ),
        DEADLINE,
    ],
).runs
def _snapshot(
    call: Call,
    directory: str,
    command: tuple[str, ...],
    pid: int | None,
    **settings: Any,
) -> int:
    if bool(command) == (pid is not None):
        raise click.UsageError("Either a command after '--' or --pid is accepted.")
    with progress.shown(call.out) as on_progress, _output_once(call):
        snapshot = Snapshot.take(
            list(command) if pid is None else pid,
            directory,
            via=call.via,
            deadline=call.deadline,
            on_progress=on_progress,
            **settings,
        )
    return call.out.result(shape(snapshot), text(snapshot))


@contextlib.contextmanager
def _output_once(call: Call) -> Iterator[None]:
    """Remove the note with the program's output, which standard error has already."""
    try:
        yield
    except CriuError as error:
        notes = getattr(error, "__notes__", [])
        notes[:] = [each for each in notes if call.out.as_json or not each.startswith(LAST_OUTPUT)]
        raise


@Command(
    "start",
    reaches=True,
    help="Start a copy of the snapshot in DIRECTORY, wait for it, and end with its exit code "
    "(128 and the signal's number, if one ended it).\n\n"
    "The copy has separate pid and mount namespaces, and the standard streams of this command. "
    "SIGINT, SIGTERM and SIGHUP are forwarded to it. The words after '--' are its arguments.",
    examples=[
        "pycriu-native start app.snapshot -- --n 3",
        "pycriu-native start app.snapshot --env LANG=C --hostname copy-1 --network",
    ],
    exits=(*EXITS, Exit.IN_DOUBT),
    params=[
        directory_argument(),
        click.Argument(["args"], nargs=-1, type=click.UNPROCESSED),
        option(
            "--env",
            multiple=True,
            metavar="NAME=VALUE",
            help="Variable to add to the environment; may be repeated.",
        ),
        option("--cwd", metavar="DIR", help="Its working directory."),
        option("--hostname", metavar="NAME", help="Its host name."),
        flag(
            "--network",
            help="Start it in a separate network namespace, with the loopback interface up.",
        ),
        option("--cgroup", metavar="DIR", help="The cgroup to start it in."),
        option(
            "--check/--no-check",
            default=True,
            help="Refuse to start on a machine that differs from that of the snapshot.",
            show_default=False,
        ),
        option(
            "--timings",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Append a line of JSON with the duration of each phase of the start, for "
            "'plot start'.",
        ),
        DEADLINE,
    ],
).runs
def _start(
    call: Call,
    directory: str,
    args: tuple[str, ...],
    env: tuple[str, ...],
    timings: str | None,
    **settings: Any,
) -> int:
    snapshot = Snapshot(directory)
    record = None if timings is None else _opened(timings)
    process = snapshot.start(
        args or None,
        extra_env=_variables(env),
        via=call.via,
        deadline=call.deadline,
        **settings,
    )
    if record is not None:
        try:
            with record:
                record.write(json.dumps(process.timings.to_dict()) + "\n")
        except OSError as error:  # the copy continues to run
            message = f"{timings} cannot be written: {error.strerror}"
            click.echo(f"pycriu-native: start: {message}", err=True)
    call.out.event("running", {"pid": process.pid, "number": process.number})
    code = _until_end(process)
    call.out.event("ended", {"pid": process.pid, "exit_code": code})
    return code


def _opened(path: str) -> IO[str]:
    try:
        return open(path, "a")
    except OSError as error:
        rule = f"a file that can be written is accepted: {error.strerror}"
        raise OptionError([Problem("timings", path, rule)], verb="start") from None


def _variables(given: tuple[str, ...]) -> dict[str, str] | None:
    result = {}
    for each in given:
        name, found, value = each.partition("=")
        if not found or not name:
            raise OptionError([Problem("env", each, "NAME=VALUE is accepted")], verb="start")
        result[name] = value
    return result or None


def _until_end(process: SnapshotProcess[bytes]) -> int:
    """Wait for a copy, forward signals to it, and return its exit code."""
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except Interrupted as stop:
            process.send_signal(stop.number)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


@Command(
    "list",
    help="List the snapshots whose directories are in DIRECTORY. Damaged ones are listed last.",
    examples=["pycriu-native snapshots list", "pycriu-native snapshots list /srv/warm"],
    exits=(Exit.IMAGES,),
    params=[
        click.Argument(["directory"], type=click.Path(file_okay=False), default="."),
    ],
).runs
def _list(call: Call, directory: str) -> int:
    damaged: list[str] = []
    found = list_snapshots(directory, on_damaged=lambda error: damaged.append(str(error)))
    body = {
        "directory": directory,
        "snapshots": [shape(each) for each in found],
        "damaged": damaged,
    }
    rows = [
        (
            safe(os.path.basename(each.directory)),
            f"{size(each.size(parents=False))}  {safe(_command(each.record))}",
        )
        for each in found
    ]
    lines = [*columns(rows), *map(safe, damaged)] or [f"no snapshot in {safe(directory)}"]
    return call.out.result(body, "\n".join(lines), code=Exit.IMAGES if damaged else Exit.DONE)


@Command(
    "inspect",
    reaches=True,
    help="Show the contents of a snapshot, and why it cannot start on this machine.",
    examples=["pycriu-native snapshots inspect app.snapshot"],
    exits=(Exit.IMAGES, Exit.NO, Exit.NO_CRIU),
    params=[directory_argument()],
).runs
def _inspect(call: Call, directory: str) -> int:
    snapshot = Snapshot(directory)
    found = snapshot.problems(via=call.via)
    record = snapshot.record
    rows = [
        ("taken", f"{record.created} by CRIU {record.criu}"),
        ("processes", f"{record.processes}; the first has pid {record.pid} in each copy"),
        ("size", _sizes(snapshot)),
        ("guest", "arguments and environment can be given" if record.guest_key else "none"),
        ("machine", f"{record.host.architecture}, Linux {safe(record.host.kernel)}"),
        ("processor", safe(record.processor or "all features of the one of the snapshot")),
        ("files", f"{len(record.files)} mapped"),
        *(("problem", safe(str(problem))) for problem in found),
    ]
    body = shape(snapshot) | {
        "host": asdict(record.host),
        "files": [asdict(file) for file in record.files],
        "problems": [{"field": p.field, "value": p.value, "rule": p.rule} for p in found],
    }
    head = safe(f"{directory}: {_command(record)}")
    code = Exit.NO if found else Exit.DONE
    return call.out.result(body, details(head, rows), code=code)


@Command(
    "remove",
    help="Remove a snapshot and its directory. Running copies continue, and snapshots of "
    "copies keep the memory that they share with it.",
    examples=["pycriu-native snapshots remove app.snapshot"],
    exits=(Exit.FAILED, Exit.IMAGES, Exit.PERMISSION),
    params=[directory_argument()],
).runs
def _remove(call: Call, directory: str) -> int:
    snapshot = Snapshot(directory)
    freed = snapshot.removable_size()
    snapshot.remove()
    body = {"directory": str(snapshot.directory), "bytes": freed}
    return call.out.result(body, safe(f"removed {directory}: {size(freed)}"))


def shape(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot for ``--json``."""
    record = snapshot.record
    return {
        "directory": str(snapshot.directory),
        "bytes": snapshot.size(),
        "own_bytes": snapshot.size(parents=False),
        "created": record.created,
        "command": list(record.command),
        "pid": record.pid,
        "processes": record.processes,
        "processor": record.processor or None,
        "guest": record.guest_key is not None,
        "criu": record.criu,
    }


def text(snapshot: Snapshot) -> str:
    record = snapshot.record
    rows = [
        ("processes", str(record.processes)),
        ("size", _sizes(snapshot)),
        ("start", safe(shlex.join(["pycriu-native", "start", str(snapshot.directory)]))),
    ]
    head = safe(f"saved {_command(record)} in {snapshot.directory}")
    return details(head, rows)


def _sizes(snapshot: Snapshot) -> str:
    total, own = snapshot.size(), snapshot.size(parents=False)
    return size(total) + (f"; {size(own)} without what its parents store" if own < total else "")


def _command(record: Record) -> str:
    return " ".join(record.command)


SNAPSHOTS = Group(
    "snapshots",
    help="List, inspect and remove snapshots.",
    commands=[_list, _inspect, _remove],
)

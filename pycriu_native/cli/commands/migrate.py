"""``migrate out`` and ``migrate in``: the source and the destination of a migration."""

from __future__ import annotations

from typing import Any

import click

from ... import MigrationMode, MigrationResult, migrate_in, migrate_out
from ...enums import Verb
from ...migration.common import SET_BY_US
from ...migration.endpoint import TLS_FIELDS
from .. import json_form, parameters, progress
from ..action_scripts import ACTION_SCRIPT
from ..command import Call, Command, Group
from ..exit_codes import CALL_EXITS, Exit
from ..text import details, micro, safe, size, time

EXITS = (*CALL_EXITS, Exit.NO_PROCESS, Exit.IN_DOUBT)


SHARED = [
    parameters.flag(
        "--insecure",
        help="Accept a network address without --tls: anyone on the network path can read and "
        "change the memory.",
    ),
    parameters.option(
        "--peer-timeout",
        type=click.FloatRange(min=0.1),
        metavar="SECONDS",
        help="Treat the peer as lost if it sends nothing for this time. Default: 10.",
    ),
    ACTION_SCRIPT,
]


@Command(
    "out",
    verb=Verb.DUMP,
    without=SET_BY_US,
    also=TLS_FIELDS,
    help="Move process PID and all its descendants to the host of 'migrate in'.\n\n"
    "After a failure or Ctrl-C they continue to run here.",
    examples=[
        "pycriu-native migrate out 4242 --to there:7000 --tls --tls-cacert ca.pem "
        "--tls-cert me.pem --tls-key me.key",
        "pycriu-native migrate out 4242 --to there:7000 --mode post-copy --insecure",
    ],
    exits=EXITS,
    params=[
        *parameters.pid_params(),
        parameters.option(
            "--to", required=True, metavar="HOST:PORT", help="Address of 'migrate in'."
        ),
        parameters.option(
            "--mode",
            type=click.Choice([str(mode) for mode in MigrationMode]),
            default=str(MigrationMode.STOP_AND_COPY),
            help="When the memory is sent: while the process is frozen, in rounds before "
            "that (needs soft-dirty tracking), or after the restore (needs userfaultfd on "
            "the destination).",
        ),
        *SHARED,
    ],
).runs
def _out(call: Call, pid: int, to: str, mode: str, **shared: Any) -> Exit:
    with progress.shown(call.out) as on_progress:
        arguments = _arguments(call, on_progress=on_progress, **shared)
        result = migrate_out(pid, call.opts, to=to, mode=mode, **arguments)
    return call.out.result(_shape(result), _text(result, f"moved pid {pid} to {to}"))


@Command(
    "in",
    verb=Verb.RESTORE,
    without=SET_BY_US,
    also=TLS_FIELDS,
    help="Wait for one process tree that 'migrate out' sends, and run it here.\n\n"
    "After a failure it does not run here, and everything received is removed.",
    examples=[
        "pycriu-native migrate in --listen 0.0.0.0:7000 --tls --tls-cacert ca.pem "
        "--tls-cert me.pem --tls-key me.key"
    ],
    exits=(*EXITS, Exit.PID_TAKEN),
    params=[
        parameters.option(
            "--listen", required=True, metavar="HOST:PORT", help="Address to listen on."
        ),
        *SHARED,
    ],
).runs
def _in(call: Call, listen: str, **shared: Any) -> Exit:
    call.out.hint(f"waiting for a process on {listen}")
    with progress.shown(call.out) as on_progress:
        arguments = _arguments(call, on_progress=on_progress, **shared)
        result = migrate_in(call.opts, listen=listen, **arguments)
    return call.out.result(_shape(result), _text(result, f"pid {result.pid} runs here now"))


def _arguments(call: Call, peer_timeout: float | None, **more: Any) -> dict[str, Any]:
    """The arguments of both sides; an option that is not given has the default of the library."""
    via = call.worker("a migration starts criu itself")
    if peer_timeout is not None:
        more["peer_timeout"] = peer_timeout
    return {**call.arguments, "via": via, **more}


def _shape(result: MigrationResult) -> dict[str, Any]:
    return {**json_form.plain(result), "bytes": result.bytes}


def _text(result: MigrationResult, headline: str) -> str:
    reason = result.not_incremental
    rows = [
        ("mode", str(result.mode)),
        ("downtime", time(result.downtime)),
        ("whole call", time(result.duration)),
        ("images", size(result.image_bytes)),
        ("pages after", size(result.page_bytes) if result.page_bytes else None),
        ("frozen", None if result.dump is None else micro(result.dump.frozen_time)),
        ("all memory", f"in the final dump: {reason}" if reason else None),
        *((f"  {phase}", time(seconds)) for phase, seconds in result.phases.items()),
    ]
    return details(safe(headline), rows)


MIGRATE = Group(
    "migrate",
    help="Move a process to another machine: 'migrate in' there, then 'migrate out' here.\n\n"
    "The process continues here after a failure on either side, until the destination has "
    "confirmed that it runs there. Two copies never run at the same time.",
    commands=[_out, _in],
)

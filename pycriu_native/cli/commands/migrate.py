"""``migrate out`` and ``migrate in``: one command on each side."""

from __future__ import annotations

from typing import Any

import click

from ... import MigrationMode, MigrationResult, migrate_in, migrate_out
from ..._transport.worker import Worker
from ...enums import Verb
from ...migration.common import SET_BY_US
from ...migration.endpoint import TLS_FIELDS
from .. import command, json_form, progress
from ..command import Call, Command, Group
from ..exit_codes import Exit
from ..text import columns, micro, safe, size, time

EXITS = (
    Exit.FAILED,
    Exit.UNSUPPORTED,
    Exit.NO_PROCESS,
    Exit.IMAGES,
    Exit.PERMISSION,
    Exit.NO_CRIU,
    Exit.LOST,
    Exit.DEADLINE,
    Exit.IN_DOUBT,
)


def _out(
    call: Call, pid: int | None, tree: int | None, to: str, mode: str, insecure: bool,
    peer_timeout: float | None,
) -> Exit:  # fmt: skip
    pid = command.one_pid(pid, tree)
    with progress.shown(call.out) as on_progress:
        result = migrate_out(
            pid,
            call.opts,
            to=to,
            mode=mode,
            on_progress=on_progress,
            **_shared(call, insecure, peer_timeout),
        )
    return call.out.result(_shape(result), _text(result, f"moved pid {pid} to {to}"))


def _in(call: Call, listen: str, insecure: bool, peer_timeout: float | None) -> Exit:
    call.out.hint(f"waiting for a process on {listen}")
    with progress.shown(call.out) as on_progress:
        result = migrate_in(
            call.opts,
            listen=listen,
            on_progress=on_progress,
            **_shared(call, insecure, peer_timeout),
        )
    return call.out.result(_shape(result), _text(result, f"pid {result.pid} has come, and runs"))


def _shared(call: Call, insecure: bool, peer_timeout: float | None) -> dict[str, Any]:
    if call.given is not None and not isinstance(call.given, Worker):
        raise click.UsageError("--service is not accepted: a migration starts its workers itself.")
    more = {} if peer_timeout is None else {"peer_timeout": peer_timeout}
    return {
        "insecure": insecure,
        "via": call.given,
        "on_notify": call.hook,
        "deadline": call.deadline,
        **more,
    }


def _shape(result: MigrationResult) -> dict[str, Any]:
    return json_form.fields(result) | {"bytes": result.bytes}


def _text(result: MigrationResult, headline: str) -> str:
    rows = [
        ("mode", str(result.mode)),
        ("downtime", time(result.downtime)),
        ("whole call", time(result.duration)),
        ("images", size(result.image_bytes)),
    ]
    if result.page_bytes:
        rows.append(("pages after", size(result.page_bytes)))
    if result.dump is not None:
        rows.append(("frozen", micro(result.dump.frozen_time)))
    rows += [(f"  {phase}", time(seconds)) for phase, seconds in result.phases.items()]
    return "\n".join([safe(headline), *columns(rows, indent=2)])


def _both() -> list[click.Parameter]:
    return [
        click.Option(
            ["--insecure"],
            is_flag=True,
            help="Accept a network address without --tls: everybody on the way can read and "
            "change the memory.",
        ),
        click.Option(
            ["--peer-timeout"],
            type=click.FloatRange(min=0.1),
            metavar="SECONDS",
            help="Without a sign of life for so long the other side counts as lost. Default: 10.",
        ),
        command.script_option(),
    ]


MIGRATE = Group(
    "migrate",
    help="Move a process to another machine: 'migrate in' there, then 'migrate out' here.\n\n"
    "Never two of the process run, and none is lost: until the other side has said that it "
    "runs there, a failure on either side lets it run on here.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[
        Command(
            "out",
            title="migrate out",
            function=_out,
            verb=Verb.DUMP,
            without=SET_BY_US,
            also=TLS_FIELDS,
            help="Move process PID and all its descendants to where 'migrate in' waits.\n\n"
            "They stop here and run there. If anything fails, or on Ctrl-C, they run on here.",
            examples=[
                "pycriu-native migrate out 4242 --to there:7000 --tls --tls-cacert ca.pem "
                "--tls-cert me.pem --tls-key me.key",
                "pycriu-native migrate out 4242 --to there:7000 --mode post-copy --insecure",
            ],
            exits=EXITS,
            params=[
                *command.pid_params(),
                click.Option(["--to"], required=True, metavar="HOST:PORT", help="The other side."),
                click.Option(
                    ["--mode"],
                    type=click.Choice([str(mode) for mode in MigrationMode]),
                    default=str(MigrationMode.STOP_AND_COPY),
                    show_default=True,
                    help="When the memory goes: while it stands still, in rounds before "
                    "(soft-dirty tracking), or after (userfaultfd there).",
                ),
                *_both(),
            ],
        ),
        Command(
            "in",
            title="migrate in",
            function=_in,
            verb=Verb.RESTORE,
            without=SET_BY_US,
            also=TLS_FIELDS,
            help="Wait for one process that 'migrate out' sends, and run it here.\n\n"
            "After a failure nothing of it is left here.",
            examples=["pycriu-native migrate in --listen 0.0.0.0:7000 --tls --tls-cacert ca.pem "
                      "--tls-cert me.pem --tls-key me.key"],
            exits=EXITS,
            params=[
                click.Option(
                    ["--listen"], required=True, metavar="HOST:PORT", help="Where to wait."
                ),
                *_both(),
            ],
        ),
    ],
)  # fmt: skip

COMMANDS = {"migrate": MIGRATE}

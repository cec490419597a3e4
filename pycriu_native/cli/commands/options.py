"""``options``: the table of CRIU's options."""

from __future__ import annotations

from typing import Any

import click

from ...options.flag_values import spelling
from ...options.table import TABLE, VERB_MASK, Row
from ..command import Call, Command
from ..exit_codes import Exit
from ..field_docs import field_docs
from ..parameters import option
from ..text import columns

VERBS = {str(verb): mask for verb, mask in VERB_MASK.items()}


@Command(
    "options",
    lenient=True,
    help="List every option of CRIU by each of its names, or show one of them.\n\n"
    "NAME is any of its names: --tcp-established, tcp_established, TcpEstablished.",
    examples=[
        "pycriu-native options",
        "pycriu-native options --verb restore",
        "pycriu-native options TcpEstablished",
        "pycriu-native options --json | jq -r '.result[].flag'",
    ],
    exits=(),
    params=[
        click.Argument(["name"], required=False, type=click.UNPROCESSED),
        option("--verb", type=click.Choice(list(VERBS)), help="List the options of one verb."),
    ],
).runs
def _options(call: Call, name: str | None, verb: str | None) -> Exit:
    rows = [row for row in TABLE if row.field and (verb is None or row.on & VERBS[verb])]
    if name is not None:
        expected = name.lstrip("-").replace("-", "_")
        rows = [row for row in rows if expected in _names(row)]
        if not rows:
            raise click.UsageError(f"No option is called {name!r}.")
        text = "\n\n".join(_details(row) for row in rows)
    else:
        listed = [("option", "field", "default", "since", "runc")]
        listed += [
            (
                _flag(row),
                row.name,
                "" if row.default is None else str(row.default),
                row.since,
                row.runc or "",
            )
            for row in rows
        ]
        text = "\n".join(columns(listed))
    return call.out.answer([_shape(row) for row in rows], text)


def _names(row: Row) -> set[str]:
    names = {row.name, row.wire, row.runc, row.flag and row.flag[2:].replace("-", "_"), row.short}
    return {name for name in names if name}


def _flag(row: Row) -> str:
    return f"{row.flag or ''}{f', -{row.short}' if row.short else ''}"


def _verbs(row: Row) -> list[str]:
    return [name for name, mask in VERBS.items() if row.on & mask]


def _shape(row: Row) -> dict[str, Any]:
    return {
        "field": row.name,
        "flag": row.flag,
        "short": row.short,
        "negates": row.negates,
        "takes_value": bool(row.flag) and spelling(row).takes.name.lower(),
        "wire": row.wire,
        "setter": row.setter,
        "runc": row.runc,
        "since": row.since,
        "default": row.default,
        "verbs": _verbs(row),
        "doc": field_docs().get(row.name, ""),
    }


def _details(row: Row) -> str:
    rows = [
        ("field", row.name),
        ("criu", _flag(row) + (f", --no-{row.flag[2:]}" if row.negates and row.flag else "")),
        ("rpc.proto", row.wire or ""),
        ("runc", row.runc or ""),
        ("libcriu", f"criu_local_{row.setter}" if row.setter else ""),
        ("since", f"CRIU {row.since}"),
        ("default", "" if row.default is None else str(row.default)),
        ("verbs", ", ".join(_verbs(row))),
    ]
    shown = columns([pair for pair in rows if pair[1]])
    return "\n".join([*shown, "", field_docs().get(row.name, "")])

"""Network namespaces that CRIU saves: their devices, and the programs for that (``criu/net.c``)."""

from __future__ import annotations

from ..._system.process_snapshot import Process
from ..._system.sock_diag import links
from ..._transport.helper_programs import HelperPrograms
from .context import Context, Findings

KNOWN_LINKS = frozenset(("veth", "tun", "bridge", "macvlan", "venet"))
LOOPBACK = 772
FALLBACK_LINKS = frozenset(("gre0", "gretap0", "sit0"))
"""Devices that the kernel makes in each namespace: not checked."""


def look(context: Context) -> Findings:
    """Programs with which CRIU saves the namespaces, and devices that it cannot restore."""
    saved = _saved_namespaces(context)
    if saved:
        helpers = HelperPrograms(context.via)
        programs = [helpers.ip, *(["sh"] if helpers.saves_rules() else [])]
        yield from context.needs_programs("a network namespace", *programs)
    for process in saved:
        for device in links(process):
            if (
                device.type == LOOPBACK
                or device.kind in KNOWN_LINKS
                or device.name in FALLBACK_LINKS
                or context.external(f"macvlan[{device.name}]")
            ):
                continue
            yield context.needs(
                "network-device",
                f"its network namespace has a device of a kind that CRIU cannot rebuild "
                f"({device.kind or 'hardware'})",
                sets={"empty_ns": 0x40000000},
                failure="link-type",
                pid=process.pid,
                path=device.name,
            )


def _saved_namespaces(context: Context) -> list[Process]:
    """A process of each network namespace that CRIU saves."""
    if context.in_force("empty_ns"):
        return []
    return [
        process
        for which, process in context.tree.in_namespaces("net").items()
        if which != context.tree.ours.namespaces["net"]
        and not context.external(which.replace(":", ""))
    ]

"""Live migration: one call at the source, one at the destination.

At the destination::

    migrate_in(CriuOpts(), listen="10.0.0.2:7000", ...)

then at the source::

    migrate_out(4242, CriuOpts(), to="10.0.0.2:7000", mode=MigrationMode.POST_COPY, ...)

One TCP connection transfers images, pages, messages and keepalives. CRIU does not listen on the
network. With ``tls`` in the options both sides need certificates (``tls_cacert``, ``tls_cert``,
``tls_key``, and ``tls_cacrl``, ``tls_no_cn_verify`` with the same meaning as in CRIU). Without it
only loopback addresses and unix sockets are accepted, unless the caller sets ``insecure=True``.

Exactly one copy of the process survives, as ``handover.py`` and ``destination.py`` describe;
docs/migration.md describes failures of hosts and networks.
"""

from __future__ import annotations

from .._calls.iterative_dump import More
from .._calls.notification import Hook
from .._calls.progress_state import OnProgress
from .._support.lazy import socket
from .._system.process_identity import Target
from .._transport.worker import Worker
from ..options.criu_opts import CriuOpts
from .result import MigrationMode, MigrationResult

__all__ = ["MigrationMode", "MigrationResult", "migrate_in", "migrate_out"]

PEER_TIMEOUT = 10.0
"""Seconds without a received message after which the peer is treated as lost."""


def migrate_out(
    pid: Target,
    opts: CriuOpts,
    *,
    to: str | tuple[str, int] | socket.socket,
    mode: MigrationMode | str = MigrationMode.STOP_AND_COPY,
    should_continue: More | None = None,
    insecure: bool = False,
    via: Worker | None = None,
    on_notify: Hook | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    peer_timeout: float = PEER_TIMEOUT,
) -> MigrationResult:
    """Move a process and its descendants to a host on which :func:`migrate_in` was called.

    ``opts`` are those of a dump; options that a migration sets itself are refused. Without an
    ``images_directory`` a temporary one is used. ``to`` is ``"host:port"``, ``(host, port)`` or a
    connected socket, which the caller still owns. ``should_continue`` decides after each round of
    pre-copy whether there is another (:class:`~pycriu_native.ShrinkingRounds` by default).
    ``deadline`` is in seconds, for the whole migration. ``peer_timeout`` is the time in seconds
    without a received message after which the destination is treated as lost. ``on_progress`` is
    called in each phase, on a separate thread.

    If this raises, the process continues to run here. If the copy at the destination may already
    run when the connection is lost, this takes the destination's ``peer_timeout`` and two seconds
    more, the time in which the destination ends its copy. Raises ``OptionError`` and
    ``UnsupportedError`` before anything is touched, ``MigrationError`` (``PeerLostError`` if the
    connection failed), and the exceptions of a dump. Needs CRIU 3.17; post-copy also needs
    userfaultfd at the destination.
    """
    from .sides import Arguments, run_source  # loaded at the first call

    given = Arguments(opts, insecure, via, on_notify, on_progress, deadline, peer_timeout)
    return run_source(pid, given, to=to, mode=mode, should_continue=should_continue)


def migrate_in(
    opts: CriuOpts,
    *,
    listen: str | tuple[str, int] | socket.socket,
    insecure: bool = False,
    via: Worker | None = None,
    on_notify: Hook | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    peer_timeout: float = PEER_TIMEOUT,
) -> MigrationResult:
    """Wait for one process tree that :func:`migrate_out` sends, and run it on this host.

    ``opts`` are those of a restore; options that a migration sets itself are refused. Without an
    ``images_directory`` a temporary one is used; a named one is kept after success. ``listen`` is
    ``"host:port"``, ``(host, port)``, a listening socket or a connected one; sockets are not
    closed. The other arguments are as in :func:`migrate_out`. Returns when the source has ended its
    process; for post-copy, when all memory has arrived.

    If this raises, no process, daemon or image remains here, except after
    ``MigrationInDoubtError``, whose message has the cure. A watchdog process ensures the same if
    this process is killed. Raises ``OptionError`` before anything is touched, ``MigrationError``,
    and the exceptions of a restore. Needs CRIU 3.17.
    """
    from .sides import Arguments, run_destination  # loaded at the first call

    given = Arguments(opts, insecure, via, on_notify, on_progress, deadline, peer_timeout)
    return run_destination(given, listen=listen)

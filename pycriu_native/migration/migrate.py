"""Live migration: one call at the source, one at the destination.

At the destination::

    migrate_in(CriuOpts(), listen="10.0.0.2:7000", ...)

then at the source::

    migrate_out(4242, CriuOpts(), to="10.0.0.2:7000", mode=MigrationMode.POST_COPY, ...)

One TCP connection carries everything: images, pages, messages, keepalives. CRIU does not listen on
the network. With ``tls`` in the options both sides show certificates
(``tls_cacert``, ``tls_cert``, ``tls_key``, and ``tls_cacrl``, ``tls_no_cn_verify`` as CRIU
understands them); without it only loopback and unix sockets are accepted, unless the caller
sets ``insecure=True``.

Exactly one copy of the process survives, because **the destination's final message decides**: "it
runs" for stop-and-copy and pre-copy, "all memory has arrived" for post-copy. The source gives the
process up when it receives that message, and resumes it when the message can no longer come.
docs/migration.md describes failures of hosts and networks.
"""

from __future__ import annotations

import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from .._calls import verbs
from .._calls.call import KEEPER
from .._calls.exchange import Hook
from .._calls.iterative_dump import More
from .._calls.progress import OnProgress, telling
from .._system.process_identity import Target, identified, number_of
from .._transport.worker import Worker
from ..errors import MigrationError, MigrationInDoubtError, OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from . import common, endpoint
from .common import LONGEST_SILENCE, MigrationMode, MigrationResult, Phases, Workspace, for_criu
from .control_channel import Channel
from .deadline import MigrationDeadline
from .destination import Destination
from .endpoint import Place
from .page_relay import PageRelay
from .source import Source
from .watchdog import Watchdog

__all__ = ["MigrationMode", "MigrationResult", "migrate_in", "migrate_out"]

SILENCE = 10.0
"""Seconds without a keepalive after which the other side counts as lost."""


def migrate_out(
    pid: Target,
    opts: CriuOpts,
    *,
    to: Place,
    mode: MigrationMode | str = MigrationMode.STOP_AND_COPY,
    should_continue: More | None = None,
    insecure: bool = False,
    via: Worker | None = None,
    on_notify: Hook | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    peer_timeout: float = SILENCE,
) -> MigrationResult:
    """Move a process and its descendants to the host where :func:`migrate_in` waits.

    ``opts`` are those of a dump; options that a migration sets itself are refused. Without an
    ``images_directory`` a temporary one is used. ``to`` is ``"host:port"``, ``(host, port)`` or a
    connected socket, which the caller still owns. ``should_continue`` decides after each round of
    pre-copy whether there is another (:class:`~pycriu_native.ShrinkingRounds` by default).
    ``deadline`` is in seconds, for the whole migration. ``peer_timeout`` is the time in seconds
    without a message after which the destination counts as lost. ``on_progress`` is called for each
    phase, on a separate thread.

    If this raises, the process runs on here. If the destination had been sent the final message and
    does not respond any more, that takes the destination's ``peer_timeout`` and two seconds more:
    the time in which it ends its copy. Raises ``OptionError`` and ``UnsupportedError`` before
    anything is touched, ``MigrationError`` (``PeerLostError`` where the connection failed), and
    what a dump raises. Needs CRIU 3.17; post-copy userfaultfd at the destination.
    """
    mode = _mode(mode)
    via = via or Worker()
    target = identified(pid, "migrate_out")
    number = number_of(target)
    problems = [
        *common.problems_with(opts),
        *endpoint.problems_with(to, "to", opts, insecure),
        *_numbers(deadline, peer_timeout),
    ]
    if problems:
        raise OptionError(problems, verb="migrate_out", pid=number)
    until, on_notify = _until(deadline, on_notify)
    with ExitStack() as owned:
        relay = owned.enter_context(PageRelay(serves=True)) if mode.lazy else None
        _checked_dump(target, opts, mode, via, relay)
        phases = Phases()
        phases.enter("connect")
        sock = endpoint.connect(to, opts, until, insecure)
        channel = Channel(
            sock,
            peer_timeout=peer_timeout,
            until=until,
            on_pages=(lambda data: None) if relay is None else relay.put,
        )
        owned.callback(channel.close)
        watchdog = owned.enter_context(Watchdog())
        workspace = Workspace(opts)
        owned.callback(_remove_temporary, workspace)
        source = Source(
            target,
            opts,
            mode=mode,
            workspace=workspace,
            channel=channel,
            relay=relay,
            watchdog=watchdog,
            phases=phases,
            via=via,
            on_notify=on_notify,
            should_continue=should_continue,
        )
        try:
            with telling(on_progress, source.measure):
                return source.run()
        except BaseException as error:
            channel.part("failed", str(error))
            workspace.remove()
            _say_where(error, phases, f"migration of pid {number} failed", "the source runs on")
            raise


def migrate_in(
    opts: CriuOpts,
    *,
    listen: Place,
    insecure: bool = False,
    via: Worker | None = None,
    on_notify: Hook | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    peer_timeout: float = SILENCE,
) -> MigrationResult:
    """Wait for one process that :func:`migrate_out` sends, and run it on this host.

    ``opts`` are those of a restore; options that a migration sets itself are refused. Without an
    ``images_directory`` a temporary one is used; one that is named is kept when all went well.
    ``listen`` is ``"host:port"``, ``(host, port)``, a listening socket or a connected one; sockets
    are not closed. The rest is as in :func:`migrate_out`. Returns when the source has released
    the process; for post-copy, when all memory is here.

    If this raises, nothing remains here: no process, no daemon, no images; except with
    ``MigrationInDoubtError``, whose message has the next step. This also holds if this process is
    killed: a watchdog process cleans up. Raises ``OptionError`` before anything is touched,
    ``MigrationError``, and what a restore raises. Needs CRIU 3.17.
    """
    via = via or Worker()
    problems = [
        *common.problems_with(opts),
        *endpoint.problems_with(listen, "listen", opts, insecure),
        *_numbers(deadline, peer_timeout),
    ]
    if problems:
        raise OptionError(problems, verb="migrate_in")
    until, on_notify = _until(deadline, on_notify)
    with ExitStack() as owned:
        watchdog = owned.enter_context(Watchdog())
        workspace = Workspace(opts)
        owned.callback(_remove_temporary, workspace)
        watchdog.set_cleanup(remove=[workspace.path])
        phases = Phases()
        destination = Destination(
            opts,
            workspace=workspace,
            watchdog=watchdog,
            phases=phases,
            peer_timeout=peer_timeout,
            via=via,
            on_notify=on_notify,
        )
        owned.callback(destination.close)
        try:
            _checked_restore(opts, workspace, via)
            phases.enter("listen")
            sock = endpoint.accept(listen, opts, until, insecure)
            channel = destination.channel = Channel(
                sock,
                peer_timeout=peer_timeout,
                until=until,
                on_pages=destination.put_pages,
                on_end=destination.fail,
            )
        except BaseException:
            workspace.remove()
            raise
        owned.callback(channel.close)
        try:
            with telling(on_progress, destination.measure):
                result = destination.run()
        except MigrationInDoubtError:
            raise
        except BaseException as error:
            destination.close()
            workspace.remove()
            channel.part("failed", str(error) or type(error).__name__)
            _say_where(error, phases, "taking a process in failed", "nothing is left here")
            raise
        channel.part()
        return result


def _mode(mode: MigrationMode | str) -> MigrationMode:
    try:
        return MigrationMode(mode)
    except ValueError:
        rule = f"{', '.join(repr(str(one)) for one in MigrationMode)} is accepted"
        raise OptionError([Problem("mode", mode, rule)], verb="migrate_out") from None


def _until(deadline: float | None, on_notify: Hook | None) -> tuple[MigrationDeadline, Hook | None]:
    """The deadline, and the hook: under asyncio the waiting task runs it."""
    until, keeper = MigrationDeadline(deadline), KEEPER.get()
    return until, on_notify if keeper is None else keeper.take_over(until.cancel, on_notify)


def _numbers(deadline: float | None, peer_timeout: float) -> Iterator[Problem]:
    bounds = (
        ("deadline", deadline, 0.0, math.inf),
        ("peer_timeout", peer_timeout, 0.1, LONGEST_SILENCE),
    )
    for name, value, least, most in bounds:
        if value is None and name == "deadline":
            continue
        good = isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most
        if not good or isinstance(value, bool):
            yield Problem(name, value, f"seconds are accepted, {_range(least, most)}")


def _range(least: float, most: float) -> str:
    return f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"


def _checked_dump(
    target: Target, opts: CriuOpts, mode: MigrationMode, via: Worker, relay: PageRelay | None
) -> None:
    """Raise now what the final dump would raise for its options."""
    nowhere = os.path.join(tempfile.gettempdir(), f"pycriu-native-{uuid.uuid4()}")
    opts = for_criu(opts, images_directory=nowhere)
    if mode.rounds:
        verbs.dump_request(target, replace(opts, pre_dump=True), via, None, None)
    if relay is not None:
        server = PageServer(fd=relay.theirs.fileno())
        opts = replace(opts, lazy_pages=True, page_server=server)
    verbs.dump_request(target, opts, via, None, None)


def _checked_restore(opts: CriuOpts, workspace: Workspace, via: Worker) -> None:
    """Raise now what the restore would raise for its options."""
    opts = for_criu(opts, images_directory=workspace.path)
    verbs.restore_request(opts, via, lambda notification: None, None)


def _remove_temporary(workspace: Workspace) -> None:
    if workspace.temporary:
        workspace.remove()


def _say_where(error: BaseException, phases: Phases, what: str, tail: str) -> None:
    """Add the phase, and the state of the process, to an error."""
    if isinstance(error, MigrationError):
        whose = "the other side gave up: " if error.by_peer else ""
        error.phase = error.phase or phases.name
        error.message = f"{what} ({error.phase}): {whose}{error.message}; {tail}"
        error.args = (error.message,)
    else:
        error.add_note(f"{what} ({phases.name}); {tail}")

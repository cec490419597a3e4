"""The source and the destination of a migration, from their arguments to the result."""

from __future__ import annotations

import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .._calls import verbs
from .._calls.call import CALL_RUNNER
from .._calls.iterative_dump import More, ShrinkingRounds
from .._calls.notification import Hook
from .._calls.progress import reporting
from .._calls.progress_state import OnProgress
from .._checks.arguments import check_types
from .._system.process_identity import Target, identified, number_of
from .._transport.worker import Worker
from ..errors import MigrationError, MigrationInDoubtError, OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from . import common, endpoint
from .common import LONGEST_PEER_TIMEOUT, Phases, Workspace, for_criu
from .control_channel import Channel
from .deadline import MigrationDeadline
from .destination import Destination
from .endpoint import Place
from .page_relay import PageRelay
from .result import MigrationMode, MigrationResult
from .source import Source
from .watchdog import Watchdog


@dataclass(frozen=True)
class Arguments:
    """The arguments that both sides have, as of :func:`~pycriu_native.migrate_out`."""

    opts: CriuOpts
    insecure: bool
    via: Worker | None
    on_notify: Hook | None
    on_progress: OnProgress | None
    deadline: float | None
    peer_timeout: float

    def check(
        self, verb: str, name: str, place: Place, pid: int | None = None, **functions: object
    ) -> None:
        """Raise ``OptionError`` for values that cannot be used; ``place`` is the address."""
        functions |= {"on_notify": self.on_notify, "on_progress": self.on_progress}
        check_types(self.opts, self.via, verb, **functions)
        problems = [
            *common.problems_with(self.opts),
            *endpoint.problems_with(place, name, self.opts, self.insecure),
            *_values(self.insecure, self.deadline, self.peer_timeout),
        ]
        if problems:
            raise OptionError(problems, verb=verb, pid=pid)

    def begin(self) -> tuple[MigrationDeadline, Hook | None]:
        """The deadline, and the hook: under asyncio the waiting task runs it."""
        until, runner = MigrationDeadline(self.deadline), CALL_RUNNER.get()
        hook = self.on_notify
        return until, hook if runner is None else runner.take_over(until.cancel, hook)


def run_source(
    pid: Target,
    arguments: Arguments,
    *,
    to: Place,
    mode: MigrationMode | str,
    should_continue: More | None,
) -> MigrationResult:
    """:func:`~pycriu_native.migrate_out`, whose arguments these are."""
    mode = _mode(mode)
    target = identified(pid, "migrate_out")
    number = number_of(target)
    arguments.check("migrate_out", "to", to, number, should_continue=should_continue)
    opts, via = arguments.opts, arguments.via or Worker()
    until, on_notify = arguments.begin()
    with ExitStack() as owned:
        relay = owned.enter_context(PageRelay(serves=True)) if mode.lazy else None
        _checked_dump(target, opts, mode, via, relay)
        phases = Phases()
        phases.enter("connect")
        sock = endpoint.connect(to, opts, until, arguments.insecure)
        channel = Channel(
            sock,
            peer_timeout=arguments.peer_timeout,
            until=until,
            on_pages=(lambda data: None) if relay is None else relay.put,
        )
        owned.callback(channel.close)
        watchdog = owned.enter_context(Watchdog())
        workspace = Workspace(opts)
        owned.callback(workspace.remove_temporary)
        if workspace.temporary:
            watchdog.set_cleanup(remove=[workspace.path])
        source = Source(
            target=target,
            opts=opts,
            mode=mode,
            workspace=workspace,
            channel=channel,
            relay=relay,
            watchdog=watchdog,
            phases=phases,
            via=via,
            on_notify=on_notify,
            should_continue=ShrinkingRounds() if should_continue is None else should_continue,
        )
        try:
            with reporting(arguments.on_progress, source.measure):
                return source.run()
        except BaseException as error:
            what = f"migration of pid {number}"
            if source.has_moved:
                channel.part()
                _add_state(error, phases, f"{what} was complete", "it runs at the destination")
                raise
            channel.part(str(error))
            workspace.remove()
            _add_state(error, phases, f"{what} failed", "the process continues at the source")
            raise


def run_destination(arguments: Arguments, *, listen: Place) -> MigrationResult:
    """:func:`~pycriu_native.migrate_in`, whose arguments these are."""
    arguments.check("migrate_in", "listen", listen)
    opts, via = arguments.opts, arguments.via or Worker()
    until, on_notify = arguments.begin()
    with ExitStack() as owned:
        watchdog = owned.enter_context(Watchdog())
        workspace = Workspace(opts)
        owned.callback(workspace.remove_temporary)
        watchdog.set_cleanup(remove=[workspace.path])
        phases = Phases()
        destination = Destination(
            opts=opts,
            workspace=workspace,
            watchdog=watchdog,
            phases=phases,
            peer_timeout=arguments.peer_timeout,
            via=via,
            on_notify=on_notify,
        )
        owned.callback(destination.close)
        try:
            # Raises now what the restore would raise for its options.
            restored = for_criu(opts, images_directory=workspace.path)
            verbs.restore_request(restored, via, lambda notification: None, None)
            phases.enter("listen")
            sock = endpoint.accept(listen, opts, until, arguments.insecure)
            channel = destination.channel = Channel(
                sock,
                peer_timeout=arguments.peer_timeout,
                until=until,
                on_pages=destination.put_pages,
                on_end=destination.fail,
            )
        except BaseException:
            workspace.remove()
            raise
        owned.callback(channel.close)
        try:
            with reporting(arguments.on_progress, destination.measure):
                result = destination.run()
        except MigrationInDoubtError:
            raise
        except BaseException as error:
            destination.close()
            workspace.remove()
            channel.part(str(error) or type(error).__name__)
            _add_state(error, phases, "receiving a process failed", "nothing remains here")
            raise
        channel.part()
        return result


def _mode(mode: MigrationMode | str) -> MigrationMode:
    try:
        return MigrationMode(mode)
    except ValueError:
        rule = f"{', '.join(repr(str(one)) for one in MigrationMode)} is accepted"
        raise OptionError([Problem("mode", mode, rule)], verb="migrate_out") from None


def _values(insecure: object, deadline: object, peer_timeout: object) -> Iterator[Problem]:
    if not isinstance(insecure, bool):
        yield Problem("insecure", insecure, "True or False is accepted")
    bounds = (
        ("deadline", deadline, 0.0, math.inf),
        ("peer_timeout", peer_timeout, 0.1, LONGEST_PEER_TIMEOUT),
    )
    for name, value, least, most in bounds:
        if value is None and name == "deadline":
            continue
        good = isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most
        if not good or isinstance(value, bool):
            accepted = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            yield Problem(name, value, f"seconds are accepted, {accepted}")


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


def _add_state(error: BaseException, phases: Phases, what: str, tail: str) -> None:
    """Add the phase, and the state of the process, to an error."""
    if isinstance(error, MigrationError):
        whose = "the peer cancelled: " if error.by_peer else ""
        error.phase = error.phase or phases.name
        error.message = f"{what} ({error.phase}): {whose}{error.message}; {tail}"
        error.args = (error.message,)
    else:
        error.add_note(f"{what} ({phases.name}); {tail}")

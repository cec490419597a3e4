"""Undo of a failed call: markers, files, links, connections.

CRIU undoes most of its own work. This module undoes the rest, and all of it if CRIU was killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from .._checks.option_rules import parents
from .._integrity import dump_marker
from .._integrity.dump_marker import DumpMarker
from .._support.lazy import signal, socket
from .._support.light_typing import TYPE_CHECKING, cast
from .._support.no_fork import no_fork
from .._system.descriptors import where
from .._system.process_identity import check_start
from ..enums import Verb
from ..errors import CriuError
from ..options.criu_opts import CriuOpts
from .prepare import Directories
from .request import Request

if TYPE_CHECKING:
    from .._integrity.image_access import ImageAccess
    from .._integrity.moved_memory import MemoryCheck
    from .._integrity.unchanged import SetState
    from .._recovery.failed_restore import RestoreUndo
    from .._recovery.link_remaps import KeptLink
    from .._recovery.recovery import Recovery, RecoveryResult
    from .._recovery.state_before import StateBefore
    from .._rollback.put_back import RollBack


class Safeguards:
    """The safeguards of one call. Each part is None in a call that does not need it.

    A call runs the methods in the order in which they stand here: ``mark``, ``start``, ``begin``,
    then, while CRIU works on a dump, ``requested``, ``frozen`` and ``written``. After CRIU's
    response it runs ``pre_dumped``, ``finish`` and ``succeeded``, or ``failed``.
    """

    def __init__(
        self,
        request: Request,
        directories: Directories,
        owned: ExitStack,
        check: Callable[[], object],
    ) -> None:
        """``check`` raises if the call is cancelled or late."""
        self._request = request
        self._images = directories.images
        self._work = directories.log
        self._owned = owned
        self._check = check
        self._marker: DumpMarker | None = None
        self._state: SetState | None = None
        self._memory: MemoryCheck | None = None
        self._before: StateBefore | None = None
        self._recovery: Recovery | None = None
        self._restore: RestoreUndo | None = None
        self._files: RollBack | None = None
        self._links: Sequence[KeptLink] = ()
        self._access: ImageAccess | None = None

    def mark(self) -> None:
        """Mark the images of a dump as incomplete, and refuse to restore incomplete images.

        A dump of a tree that the caller is in has no marker: no process is left to remove it.
        """
        request = self._request
        if self._images is None or request.opts.stream:
            return
        if request.verb is Verb.RESTORE:
            with no_fork:
                from .._integrity.set_check import check  # only restores need it
                from .._integrity.unchanged import SetState

            self._state = SetState(self._images)
            check(self._state, request.opts)
        if request.verb in (Verb.DUMP, Verb.PRE_DUMP) and not request.inside:
            try:
                self._marker = DumpMarker(self._images)
            except CriuError:
                raise
            except OSError:
                return  # the directory is not writable: CRIU reports why
            self._owned.callback(self._marker.close)

    def start(self) -> None:
        """Read the state that the call will change, and put saved files back. The worker waits."""
        request = self._request
        if request.verb in (Verb.DUMP, Verb.PRE_DUMP) and request.pid is not None:
            with no_fork:
                from .._recovery.state_before import StateBefore  # only dumps need it

            self._before = StateBefore(request.pid, request.opts.freeze_cgroup)
            opts = request.opts
            # The images in a stream cannot be a parent, and have none.
            tracks = (request.verb is Verb.PRE_DUMP or opts.track_mem) and not opts.stream
            if tracks and self._images is not None and not request.inside:
                with no_fork:
                    from .._integrity.moved_memory import MemoryCheck  # few dumps need it

                self._memory = MemoryCheck(
                    self._images,
                    cast("str | None", opts.parent_image),
                    verb=request.verb,
                    pid=request.pid,
                    runs_on=bool(opts.pre_dump or opts.leave_running or opts.leave_stopped),
                    check=self._check,
                )
        if request.verb is not Verb.RESTORE or self._images is None:
            return
        if request.rollback is not None:
            with no_fork:
                from .._rollback.put_back import RollBack  # few restores need it

            self._files = RollBack(self._images, self._work)
            self._owned.callback(self._files.close)
            self._files.put_back(self._check)
        with no_fork:  # only restores need them
            from .._checks import replaced_files
            from .._integrity.unchanged import SetState
            from .._recovery.file_entries import FileEntries

        state, entries = self._state or SetState(self._images), FileEntries(self._images)
        if request.via.ours and not request.opts.stream:  # a service may have another file system
            replaced_files.check(state, entries, request.opts)
        self._access = _access_to(self._images, request.opts)
        if self._access is not None:
            self._owned.callback(self._access.close)
        if images := request.with_pids_here(where(self._images)):
            with no_fork:
                from .._recovery.half_restored import pids_in  # only restores need it
                from .._system.pid_numbers import wait_until_freed
            wait_until_freed(pids_in(images))
        if self._work is not None:
            with contextlib.suppress(ImportError, OSError):  # as above
                with no_fork:
                    from .._recovery.created_names import names_of_restore
                    from .._recovery.failed_restore import RestoreUndo  # only restores need it

                names = names_of_restore(state, entries, request.opts)
                self._restore = RestoreUndo(self._images, self._work, request.opts, names)
                self._owned.callback(self._restore.close)

    def _check_identity(self) -> None:
        """Raise ``ProcessMismatchError`` if the pid is another process's since the call began."""
        request = self._request
        if request.pid is not None and request.start_time is not None:
            check_start(request.pid, request.start_time, str(request.verb))

    def begin(self) -> None:
        """Read the memory's record of the parent, and check a pre-dump, which begins now."""
        self._check_identity()
        if self._memory is not None:
            self._memory.begin()

    @property
    def awaits_stop(self) -> Callable[[], bool] | None:
        """Called repeatedly while CRIU begins a pre-dump, until it returns True."""
        if self._memory is None or self._request.verb is not Verb.PRE_DUMP:
            return None
        return self._memory.read_stopped

    @property
    def can_recover(self) -> bool:
        """Whether this is a dump, which is recovered if CRIU is killed."""
        return self._before is not None

    def requested(self) -> Recovery | None:
        """Import the modules that a dump needs from now on, while CRIU begins.

        Returns the recovery of the dump.
        """
        pid = self._request.pid
        assert self._before is not None
        assert pid is not None
        try:
            with no_fork:
                from .._integrity import (  # noqa: F401
                    droppable_memory,
                    due_timers,
                    dump_record,
                    vdso,
                )
                from .._recovery.recovery import Recovery

                if self._request.on_notify is not None:
                    _ = socket.socket, signal.SIGKILL  # loaded now: a hook may change the root
        except (ImportError, OSError):
            return None  # the caller has changed its root or its user since: see preload()
        self._recovery = Recovery(pid, self._request.opts, self._before)
        self._owned.callback(self._recovery.close)
        return self._recovery

    def frozen(self, tree: Sequence[int]) -> None:
        """Check a dump whose processes are frozen, before CRIU reads their memory (CRIU 3.19)."""
        if self._memory is not None:
            self._memory.frozen(tree)

    def written(self, tree: Sequence[int]) -> None:
        """Complete the images of a dump, while its processes are frozen and CRIU can undo it."""
        self._check_identity()  # the tree is frozen: no other process can get the pid now
        request, images = self._request, self._images
        if request.verb is Verb.DUMP and not request.opts.stream and images is not None:
            from .._integrity.droppable_memory import drop  # loaded since ``requested``
            from .._integrity.due_timers import rearm
            from .._integrity.dump_record import write_record
            from .._integrity.image_files import ImageFiles
            from .._integrity.vdso import leave_out_lone_vvar

            dump_marker.check_written(images, request.pid)
            rearm(images)
            files = ImageFiles(images)
            leave_out_lone_vvar(files)
            drop(files, tree)
            if request.rollback is not None:
                with no_fork:
                    from .._rollback.saved_files import save  # few dumps need it

                save(images, tree, request.rollback, self._check)
            if request.opts.link_remap and request.opts.leave_running:
                # CRIU removes its links from a process that runs on; its images need them.
                with no_fork:
                    from .._recovery.link_remaps import keep_links  # few dumps need it

                self._links = keep_links(images, f"/proc/{request.pid}/root")
            if self._memory is not None:
                self._memory.written(tree)
            if self._marker is not None:
                write_record(images)
        self.finish()

    def pre_dumped(self) -> None:
        """Complete the images of a pre-dump; they are removed if that fails."""
        self._check_identity()  # its notifications come before the tree is frozen
        if self._memory is None or self._images is None or self._request.pid is None:
            return
        from .._integrity.droppable_memory import drop_of_pre_dump  # loaded since ``requested``
        from .._integrity.image_files import ImageFiles
        from .._system.process_tree import process_tree

        try:
            with contextlib.suppress(OSError):  # the next dump leaves the pages out
                drop_of_pre_dump(ImageFiles(self._images), process_tree(self._request.pid))
            self._memory.after_pre_dump()
        except BaseException:
            if self._marker is not None:
                self._marker.undo()
            raise

    def finish(self) -> None:
        """Remove the marker: the images are complete. May be called again."""
        if self._marker is not None:
            self._marker.finish()

    def succeeded(self) -> None:
        """Keep what the call has changed."""
        for part in (self._restore, self._files, self._access):
            if part is not None:
                part.succeeded()

    def failed(self, failure: BaseException, *, killed: bool) -> None:
        """Undo what CRIU did not, and add the remains to the error. ``killed``: CRIU was."""
        request = self._request
        for link in self._links:
            link.forget()
        # CRIU unlocks the network before it serves pages: it does not restore the lock and the
        # connections of a lazy dump that is undone after that (measured with 4.2.1). A pre-dump is
        # made by a child of the worker, and the response does not depend on how the child ended.
        unsure = request.opts.lazy_pages or request.verb is Verb.PRE_DUMP
        if self._recovery is not None and (killed or unsure):
            _add_recovery(failure, self._recovery.after())
        remaining = () if self._restore is None else self._restore.undo(killed=killed)
        if self._files is not None:
            remaining += self._files.give_back()
        if remaining and isinstance(failure, CriuError):
            failure.left_behind = remaining
        for thing in remaining:
            failure.add_note(f"left behind: {thing}")
        if self._marker is not None and not killed:
            self._marker.undo()


def _access_to(images: int, opts: CriuOpts) -> ImageAccess | None:
    """Let root of the user namespace in the images read them; None if they have none."""
    if not any(name.startswith("userns-") for name in os.listdir(images)):
        return None
    with no_fork:
        from .._integrity.image_access import ImageAccess  # few trees have a user namespace
    return ImageAccess(images, parents(opts))


def _add_recovery(failure: BaseException, result: RecoveryResult) -> None:
    """Add the result of a recovery to an error."""
    if isinstance(failure, CriuError):
        failure.lost_connections = result.lost_connections
        failure.left_behind = result.left_behind
    if text := str(result):
        failure.add_note(text)

"""A snapshot: a program that is saved once and started many times."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import secrets
import shutil
import stat
import subprocess
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import guest
from .._calls.progress_state import OnProgress
from .._calls.request import remaining
from .._calls.requirements import caller_inside, program_version
from .._calls.verbs import remove_result
from .._checks.arguments import check_types
from .._checks.linked_pages import in_file
from .._support.closing import Closing
from .._support.unpatched import popen_needs_its_thread
from .._system.file_lock import unlock_and_close
from .._system.process_tree import is_above
from .._system.processor import cpu_flags
from .._system.regular_file import identity_of, open_regular
from .._transport.base import Via
from .._transport.worker import Worker
from ..enums import CgroupMode, Verb
from ..errors import CriuError, ImagesError, PermissionDeniedError, Problem
from ..options.criu_opts import CriuOpts
from . import host_check
from .arguments import (
    Environment,
    Text,
    absolute,
    are_texts,
    check_call,
    decoded,
    descriptor_numbers,
    directory_problems,
    environment_problems,
    for_caller,
    is_path,
    text_mode,
)
from .copy_request import CopyRequest, is_open
from .locks import one_at_a_time, wait_for_lock
from .parent_pages import PARENT
from .parked import default_output
from .place import Place
from .process import SnapshotProcess, end, reap_unowned
from .processor_level import level_problems
from .record import NAME, Record
from .restore import RestoreRequest, start_copy
from .saving import NEW, Saving, StrPath, copy_problems
from .shared_template import SharedTemplate, worker_problems
from .sharing import SHARED, Sharing, prepared
from .streams import Stream, refuse
from .timings import Stopwatch
from .uninterrupted import uninterrupted
from .work_directories import WorkDirectories
from .zygote import Zygote, zygote_problems

if TYPE_CHECKING:
    from .aio_process import Starting

Program = Sequence[Text] | int | subprocess.Popen[Any]

COUNTER = "starts"
"""The file in a snapshot's directory with the number of the last start."""

COUNTER_CURE = "remove it: the next start creates it"

REOPEN = "open it again with Snapshot(directory)"

UNWRITABLE = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a counter for which a start has a random number."""


class Snapshot(Closing):
    """A snapshot in a directory with mode 0700, since its images contain the program's secrets.

    From the second start on, it owns a process that workers of CRIU are forked from, with the
    memory that copies share, until it is closed, collected as garbage, or the interpreter ends.

    Synchronization: may be used on any number of threads, and by any number of processes, at the
    same time.
    """

    def __init__(self, directory: StrPath) -> None:
        """Open a snapshot. ``ImagesError`` if the directory has no complete one."""
        self.directory = Path(directory).absolute()
        self._opened = identity_of(self.directory / NAME)
        self.record = Record.read(self.directory)
        self._sharing = Sharing(self.directory)
        self._work_directories = WorkDirectories()
        weakref.finalize(self, _close, self._sharing, self._work_directories)

    def close(self) -> None:
        """End the processes that it owns; copies run on, and more can be started."""
        _close(self._sharing, self._work_directories)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.directory)!r})"

    @classmethod
    def take(
        cls,
        program: Program,
        directory: StrPath,
        *,
        env: Environment | None = None,
        cwd: Text | None = None,
        output: int | None = None,
        without_guest: bool = False,
        leave_running: bool = False,
        incremental: bool = True,
        processor: str | None = None,
        opts: CriuOpts | None = None,
        via: Via | None = None,
        deadline: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Snapshot:
        """Save a program into a new directory.

        Args:
            program: a command, which is started, and saved in its call of
                :func:`pycriu_native.guest.wait`; a copy that was started with ``savable``, which is
                saved in its next such call; or a running process, by its pid or ``Popen``. The
                caller must not be in its tree.
            directory: a new or empty directory. It is removed, or emptied if it existed before,
                after a failure or an interruption, unless the process has ended and its snapshot
                is complete: a note of the exception says so.
            env: the command's environment; None: that of this process.
            cwd: the command's working directory.
            output: the descriptor for the output of the command before it is saved; None: the
                standard error of this process.
            without_guest: accept a running process that does not use the guest's protocol: each
                copy continues where the process was, with its environment, arguments, working
                directory and the same random numbers.
            leave_running: a running process or copy continues to run after the snapshot (it is
                killed otherwise, as a command always is).
            incremental: of a copy, store only the pages that differ from the snapshot that it was
                started from, and hard links to the others. False: store all of its memory, and
                nothing of that snapshot, such as secrets that the copy has replaced.
            processor: "x86-64-v2" or "x86-64-v3": the command gets variables that restrict its
                libraries to what each processor of that level has, and starts on all of them. None:
                starts need all features of this processor.
            opts: more options for the dump, such as ``file_locks``.
            via: how CRIU is reached; None: a worker.
            deadline: seconds for the whole call. If it passes while the memory of a copy is
                compared with that of its snapshot, all of it is stored.
            on_progress: a function that gets a ``Progress`` while the memory is saved, as that of
                :func:`pycriu_native.dump`.

        Raises:
            OptionError: an argument is not accepted; nothing was touched.
            CriuError: the program ended before it called ``guest.wait()``, or CRIU could not save
                it. A running process continues.
            DeadlineError: the deadline passed.
        """
        check_call(
            "take",
            opts=opts,
            via=via,
            deadline=deadline,
            on_progress=on_progress,
            without_guest=without_guest,
            leave_running=leave_running,
            incremental=incremental,
        )
        base = for_caller(opts)
        wrong = list(
            _take_problems(program, directory, env, cwd, output, without_guest, processor, base)
        )
        is_own = not isinstance(program, int | subprocess.Popen)
        if is_own and leave_running:
            rule = "accepted with a running process or copy only: start the command, and pass that"
            wrong.append(Problem("leave_running", leave_running, rule))
        refuse(wrong, "take")
        saving = Saving(
            directory=Path(directory).absolute(),
            is_own=is_own,
            opts=base,
            via=Worker() if via is None else via,
            deadline=deadline,
            leave_running=leave_running,
            incremental=incremental,
            on_progress=on_progress,
        )
        if isinstance(program, int):
            _check_access(program)
            save = functools.partial(saving.save_process, program)
        elif isinstance(program, SnapshotProcess):
            save = functools.partial(saving.save_copy, program)
        elif isinstance(program, subprocess.Popen):
            save = functools.partial(saving.save_process, program.pid)
        else:
            save = functools.partial(
                saving.save_command,
                [os.fsdecode(word) for word in program],
                decoded(env),
                None if cwd is None else absolute(cwd),
                default_output() if output is None else output,
                processor or "",
            )

        def taken() -> Snapshot:
            save()
            return cls(directory)

        try:
            if saving.is_own and popen_needs_its_thread():
                result = taken()
            else:
                result = uninterrupted("take", taken, lambda _: saving.undo())
            if isinstance(program, subprocess.Popen) and not leave_running:
                program.poll()  # here: this thread can hold its locks, and gevent's needs its hub
        except BaseException as stop:
            remove_result(stop)
            if saving.is_kept:
                stop.add_note(f"the process has ended, and its snapshot {directory} is complete")
            raise
        return result

    def start(
        self,
        args: Sequence[Text] | None = None,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Environment | None = None,
        extra_env: Environment | None = None,
        cwd: Text | None = None,
        pass_fds: Iterable[int] = (),
        hostname: str | None = None,
        network: bool | StrPath | None = None,
        cgroup: StrPath | None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        check: bool = True,
        share_memory: bool | None = None,
        savable: bool = False,
        opts: CriuOpts | None = None,
        via: Via | None = None,
        deadline: float | None = None,
    ) -> SnapshotProcess[Any]:
        """Start one copy, in new pid and mount namespaces, as a child of this process.

        Args:
            args: the arguments after the program's name; None: those of the snapshot.
            stdin, stdout, stderr: as for ``subprocess.Popen``. A stream that was not a pipe when
                the program was saved cannot be replaced.
            env: the environment; None: that of the snapshot.
            extra_env: variables to add to it.
            cwd: the working directory; None: that of the snapshot.
            pass_fds: descriptors that the copy gets with the same numbers, as for
                ``subprocess.Popen``. The program has to call ``guest.wait()``, and must not have
                saved a descriptor with such a number.
            hostname: the copy's host name, in a new UTS namespace; None: the host's.
            network: True: a new network namespace with the loopback interface up; a path
                (``/run/netns/blue``): an existing one; None or False: that of this process.
            cgroup: the directory of the copy's cgroup; None: that of this process.
            text, encoding, errors, bufsize: as for ``subprocess.Popen``.
            check: refuse a machine on which the snapshot may not work, by :meth:`problems`.
            share_memory: True: share the memory of the snapshot with other copies, copy-on-write;
                False: restore all of it. None: share it from the second start of this object on,
                which reads the memory once, if ``via`` is a worker, CRIU can be preloaded, and
                twice the required memory is available; else
                ``SnapshotProcess.unshared_reason`` has the reason. :class:`SharedTemplate`
                describes the effect on memory limits.
            savable: the copy can call ``guest.wait()`` again, in which :meth:`take` can save it.
                (Otherwise that call raises ``SystemExit`` in the copy.)
            opts: further options for the restore, such as ``tcp_close``.
            via: a worker, a pool of workers (which cannot share memory), or the result of
                :meth:`share`; None: a worker.
            deadline: seconds until the copy runs.

        Raises:
            OptionError: an argument is not accepted, or the snapshot does not fit the machine.
            ImagesError: the snapshot was removed or replaced; the memory to share was changed; or,
                with ``share_memory=True``, no memory can be shared.
            ProgramError: with ``share_memory=True``, CRIU cannot be preloaded.
            CriuError: CRIU could not start it. Nothing remains of the copy.
        """
        check_call("start", opts=opts, via=via, deadline=deadline, check=check, savable=savable)
        streams, mode = (stdin, stdout, stderr), text_mode(text, encoding, errors, bufsize)
        descriptors = descriptor_numbers(pass_fds)
        given = CopyRequest(args, streams, mode, env, extra_env, cwd, descriptors)
        chosen = Worker() if via is None else via
        place = Place(hostname=hostname, network=network, cgroup=cgroup)
        watch = Stopwatch()

        def start() -> SnapshotProcess[Any]:
            reap_unowned()
            wrong = [*given.problems(self.record), *place.problems()]
            wrong += self._sharing.problems(share_memory, chosen)
            if savable and self.record.guest_key is None:
                wrong.append(Problem("savable", savable, "the program was saved without_guest"))
            until = self._check(wrong, chosen, opts, deadline, "start")
            with ExitStack() as undo:
                # First, because their creation takes as long as the next steps.
                namespaces = undo.enter_context(place.new_namespaces())
                if check:
                    refuse(self.problems(via=chosen), "start")
                watch.ends("check")
                with self._in_use(), _without_result(), ExitStack() as turn:
                    workers = self._sharing.chosen(share_memory, chosen, until)
                    reason = workers.unshared_reason
                    images = self.directory if reason else self.directory / SHARED
                    turn.enter_context(one_at_a_time(self.directory, until))
                    watch.ends("memory")
                    where = RestoreRequest(
                        snapshot=self.directory,
                        images=str(images),
                        place=place,
                        namespaces=namespaces,
                        opts=opts,
                        via=workers.via,
                        fork_server=workers.fork_server,
                        work_directories=self._work_directories,
                        deadline=remaining(until, deadline),
                    )
                    process = start_copy(
                        self.record,
                        self._next_number(until),
                        given,
                        where,
                        unshared_reason=reason,
                        savable=savable,
                        watch=watch,
                    )
                undo.pop_all()
            return process

        return uninterrupted("start", start, end)

    def zygote(
        self,
        *,
        hostname: str | None = None,
        network: bool | StrPath | None = None,
        cgroup: StrPath | None = None,
        check: bool = True,
        opts: CriuOpts | None = None,
        via: Via | None = None,
        deadline: float | None = None,
    ) -> Zygote:
        """Start one copy that forks a copy of itself for each call of :meth:`Zygote.start`.

        Such a call takes a few milliseconds, without CRIU. The program has to be a Python program
        that calls :func:`pycriu_native.guest.wait` and has one process with one thread. The
        arguments are those of :meth:`start`; ``deadline`` is in seconds until the zygote is ready.

        Raises:
            OptionError: as :meth:`start`; or the program does not fit.
            CriuError: as :meth:`start`; or the program cannot fork copies.
            DeadlineError: the deadline passed.
        """
        reap_unowned()
        check_call("zygote", opts=opts, via=via, deadline=deadline, check=check)
        place = Place(hostname=hostname, network=network, cgroup=cgroup)
        chosen = Worker() if via is None else via
        wrong = [*zygote_problems(self.record), *place.problems()]
        wrong += self._sharing.problems(None, chosen)
        until = self._check(wrong, chosen, opts, deadline, "zygote")
        if check:
            refuse(self.problems(via=chosen), "zygote")
        shared = isinstance(chosen, SharedTemplate)

        def zygote() -> Zygote:
            with (
                self._in_use(),
                _without_result(),
                WorkDirectories() as work_directories,
                one_at_a_time(self.directory, until),
            ):
                where = RestoreRequest(
                    snapshot=self.directory,
                    images=str(self.directory / SHARED if shared else self.directory),
                    place=place,
                    namespaces=place.new_namespaces(),
                    opts=opts,
                    via=chosen,
                    work_directories=work_directories,
                    deadline=remaining(until, deadline),
                )
                return Zygote(self.record, where, self._next_number, until)

        return uninterrupted("zygote", zygote, Zygote.close)

    def _check(
        self,
        wrong: list[Problem],
        via: Via,
        opts: CriuOpts | None,
        deadline: float | None,
        verb: str,
    ) -> float | None:
        """Check the arguments. Returns the time of the deadline."""
        wrong += [*via.refuses(inherits=True, sibling=True)][:1]
        wrong += _problems_of_start(opts)
        refuse(wrong, verb)
        return None if deadline is None else time.monotonic() + deadline

    def share(self, *, worker: Worker | None = None) -> SharedTemplate:
        """Load the memory that copies share into a process, which the caller ends with ``close``.

        :meth:`start` does the same automatically from the second copy on.

        ::

            with snapshot.share() as template:
                process = snapshot.start(via=template)

        The first call writes prepared images into a subdirectory. Each call starts a process with
        the memory, which runs until the result is closed. See :class:`SharedTemplate` for memory
        limits and exceptions.
        """
        refuse([*worker_problems(worker)], "share")
        chosen = Worker() if worker is None else worker

        def share() -> SharedTemplate:
            with self._in_use():
                directory = prepared(self.directory, allow_untrusted=chosen.allow_untrusted)
                return SharedTemplate(directory, worker=chosen)

        return uninterrupted("share", share, SharedTemplate.close)

    def start_async(
        self, args: Sequence[Text] | None = None, *, limit: int = 2**16, **options: Any
    ) -> Starting:
        """:meth:`start` for asyncio, with the same arguments except those of text mode.

        ``async with snapshot.start_async(...) as process``, or ``await``, returns an
        :class:`~pycriu_native.snapshots.AsyncProcess`. A cancellation of the task during the start
        ends the copy, and so does an exception in the block, such as that of a timeout. ``limit``
        is the limit of the readers of its output, as for ``asyncio.create_subprocess_exec``.
        """
        from .aio_process import Starting  # asyncio takes long to load

        return Starting(self.start, args, limit, options)

    def problems(self, *, via: Via | None = None) -> list[Problem]:
        """The reasons why the snapshot cannot start on this machine.

        They are determined from the architecture, the processor's features, the releases of kernel
        and CRIU, and the files that the program has mapped (size, and on the machine of the
        snapshot also the time of the last change).
        """
        check_types(CriuOpts(), via, "problems")
        criu = program_version(Worker() if via is None else via)
        return list(host_check.problems(self.record, criu))

    def remove(self) -> None:
        """Remove the snapshot with its directory; running copies continue.

        ``CriuError`` while a copy is being started; ``ImagesError`` if another snapshot has taken
        its place.
        """
        with self._in_use(exclusively=True):
            self.close()
            directory = self.directory.resolve()  # rmtree removes nothing through a link
            os.unlink(directory / NAME)
            shutil.rmtree(directory)

    def size(self, *, parents: bool = True) -> int:
        """Bytes of the files in its directory; hard links to one file count once.

        ``parents``: include the memory that is shared with its parent (the snapshot whose copy was
        saved) and with further parents.
        """
        return sum(size for size, _, ours in self._files() if ours or parents)

    def removable_size(self) -> int:
        """Bytes that :meth:`remove` frees: those of files that no other snapshot shares."""
        return sum(size for size, others, _ in self._files() if not others)

    def _files(self) -> Iterator[tuple[int, bool, bool]]:
        """For each file: its bytes, whether it has other names, and whether it is in no parent."""
        found: dict[tuple[int, int], tuple[os.stat_result, list[bool]]] = {}
        for folder, _, names in os.walk(self.directory):
            parts = os.path.relpath(folder, self.directory).split(os.sep)
            for name in names:
                status = os.lstat(os.path.join(folder, name))
                seen = found.setdefault((status.st_dev, status.st_ino), (status, []))[1]
                seen.append(parts[0] != PARENT)
        for status, ours in found.values():
            yield status.st_size, status.st_nlink > len(ours), all(ours)

    @contextmanager
    def _in_use(self, *, exclusively: bool = False) -> Iterator[None]:
        """Hold a lock in this context: shared for starts, exclusive for a removal."""
        try:
            fd = open_regular(self.directory / NAME)
        except OSError as error:
            why = f"{self.directory} no longer has a snapshot: {error.strerror}"
            raise ImagesError(why) from None
        try:
            kind = fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "a copy is being started" if exclusively else "it is being removed"
                raise CriuError(f"the snapshot {self.directory} is in use: {what}") from None
            if not self._is_same():
                if identity_of(self.directory / NAME) is None:
                    raise ImagesError(f"{self.directory} no longer has a snapshot")
                why = f"{self.directory} has another snapshot than when it was opened; {REOPEN}"
                raise ImagesError(why, cure=REOPEN)
            yield
        finally:
            unlock_and_close(fd)

    def _is_same(self) -> bool:
        """Whether the directory still has the snapshot that was opened."""
        present = identity_of(self.directory / NAME)
        if present != self._opened:  # it can be a copy, or its owner was changed
            try:
                if Record.read(self.directory) != self.record:
                    return False
            except ImagesError:
                return False
            self._opened = present
        return True

    def _next_number(self, until: float | None) -> int:
        """The number for the next start, different for each start of this snapshot.

        A random number of 2**52 or more if no counter can be written, or if the directory does not
        have this snapshot any more, of which a zygote still starts copies.
        """
        drawn = 2**52 + secrets.randbits(52)
        if not self._is_same():
            return drawn
        path = self.directory / COUNTER
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno in UNWRITABLE:
                return drawn
            raise ImagesError(
                f"{path} cannot be opened: {error.strerror}; {COUNTER_CURE}",
                errno=error.errno,
                cure=COUNTER_CURE,
            ) from None
        try:
            wait_for_lock(fd, until)
            found = os.pread(fd, 32, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b"none"
            if found and not found.isdigit():
                why = f"{path} has no number of a start; {COUNTER_CURE}"
                raise ImagesError(why, cure=COUNTER_CURE)
            number = int(found or b"0") + 1
            try:
                os.pwrite(fd, b"%d" % number, 0)
            except OSError as error:
                if error.errno in UNWRITABLE:
                    return drawn
                raise
            return number
        finally:
            unlock_and_close(fd)


def _close(*owned: Closing) -> None:
    for each in owned:
        each.close()


def list_snapshots(
    directory: StrPath = ".", *, on_damaged: Callable[[ImagesError], object] | None = None
) -> list[Snapshot]:
    """The snapshots in the subdirectories of a directory, sorted by name.

    Raises ``ImagesError`` for a damaged one, or calls ``on_damaged`` and continues.
    """
    result = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.is_dir() and os.path.exists(os.path.join(entry.path, NAME)):
            try:
                result.append(Snapshot(entry.path))
            except ImagesError as error:
                if on_damaged is None:
                    raise
                on_damaged(error)
    return result


def _take_problems(
    program: object,
    directory: StrPath,
    env: object,
    cwd: object,
    output: object,
    without_guest: bool,
    processor: str | None,
    opts: CriuOpts,
) -> Iterator[Problem]:
    if not is_path(directory):
        yield Problem("directory", directory, "the path of a new or empty directory is accepted")
        return
    if output is not None and not is_open(output):
        yield Problem("output", output, "the number of an open descriptor is accepted")
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        yield Problem("directory", str(path), NEW)
    elif not path.absolute().parent.is_dir():
        yield Problem("directory", str(path), "its parent directory does not exist")
    for name in ("images_directory", "images_dir", "leave_running", "pre_dump"):
        if getattr(opts, name) is not None:
            yield Problem("opts", {name: getattr(opts, name)}, "take sets this option itself")
    if isinstance(program, bool) or not isinstance(program, int | subprocess.Popen | Sequence):
        yield Problem("program", program, "a command, a pid or a Popen is accepted")
    elif isinstance(program, Sequence):
        yield from _command_problems(program, env, cwd, without_guest, processor)
    else:
        yield from _process_problems(program, without_guest)
        for name, value in (("env", env), ("cwd", cwd), ("processor", processor)):
            if value is not None:
                yield Problem(name, value, "accepted with a command only")


def _check_access(pid: int) -> None:
    """Raise ``PermissionDeniedError`` if this process may not read a process's namespaces."""
    path = f"/proc/{pid}/ns/pid"
    try:
        os.stat(path)
    except PermissionError as error:
        why = f"process {pid} cannot be saved: {path}: {error.strerror}; it belongs to"
        why += " another user, or to another user namespace than this process"
        raise PermissionDeniedError(why, verb="take", pid=pid, errno=error.errno) from None
    except OSError:
        return  # it has ended


def _process_problems(
    program: int | subprocess.Popen[Any], without_guest: bool
) -> Iterator[Problem]:
    pid = program if isinstance(program, int) else program.pid
    if is_above(pid, os.getpid()) and (why := caller_inside(pid, Verb.DUMP, None)):
        yield Problem("program", pid, why)
    if isinstance(program, SnapshotProcess):
        yield from copy_problems(program, without_guest)
    elif not without_guest:
        rule = (
            "all copies of a running process have the same environment, arguments and random "
            "numbers; without_guest=True accepts that"
        )
        yield Problem("program", program, rule)


def _command_problems(
    command: Sequence[object], env: object, cwd: object, without_guest: bool, processor: str | None
) -> Iterator[Problem]:
    if not are_texts(command) or not command:
        rule = "a command is accepted as a sequence of str, bytes or paths that is not empty"
        yield Problem("program", command, rule)
    if without_guest:
        rule = f"a command is saved in its call of {guest.__name__}.wait(); start it, and "
        yield Problem("without_guest", without_guest, rule + "pass its pid")
    if env is not None:
        yield from environment_problems("env", env)
    if processor is not None:
        yield from level_problems(processor, cpu_flags())
    if cwd is not None:
        yield from directory_problems(cwd)


def _problems_of_start(opts: CriuOpts | None) -> Iterator[Problem]:
    """Options that remove the pages of the snapshot, or move copies to other cgroups."""
    rule = "auto_dedup would remove the pages of the snapshot, and of those that share them"
    if opts is not None and opts.auto_dedup:
        yield Problem("opts", {"auto_dedup": True}, rule)
    if opts is not None and opts.config_file is not None and in_file(opts.config_file):
        yield Problem("opts", {"config_file": os.fspath(opts.config_file)}, rule)
    rule = "a copy is in the cgroup of this process, or in that of the argument cgroup"
    for name, accepted in (
        ("manage_cgroups", (None, False)),
        ("manage_cgroups_mode", (None, CgroupMode.IGNORE)),
        ("cg_roots", (None, ())),
    ):
        if opts is not None and (value := getattr(opts, name)) not in accepted:
            yield Problem("opts", {name: value}, rule)


@contextmanager
def _without_result() -> Iterator[None]:
    """Remove the result of the restore from an interruption: the copy was ended since."""
    try:
        yield
    except BaseException as stop:
        remove_result(stop)
        raise

"""The work of ``Snapshot.take``: wait for the program, and save it with its streams."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import guest
from .._calls.notification import Notification
from .._calls.progress_state import OnProgress
from .._calls.request import remaining
from .._calls.requirements import program_version
from .._calls.verbs import dump
from .._integrity.dump_marker import UNFINISHED
from .._integrity.dump_record import record_again
from .._support.frozen_dataclass import replace
from .._support.unpatched import close, closing, readable, sleep
from .._system.capabilities import is_root_of_host
from .._system.descriptors import link, opened_directory
from .._system.file_lock import lock, unlock_and_close
from .._system.process import is_running, leader_of
from .._system.process_snapshot import Process as SeenProcess
from .._system.process_snapshot import Tree
from .._system.regular_file import replace_file
from .._transport.base import Via
from ..enums import Notify
from ..errors import CriuError, NoSuchProcessError, OptionError, Problem, images_error
from ..images import decode, encode
from ..options.criu_opts import CriuOpts
from . import host_check, processor_level
from .copy_mounts import in_mounts_of
from .copy_request import LAST_STREAM
from .guest_socket import GuestSocket
from .java_counters import unlink_counters
from .parent_pages import share_with_parent
from .parked import ParkedProgram
from .process import SnapshotProcess
from .record import UNPUBLISHED, Record, publish
from .restore import PID_NAMESPACE
from .streams import refuse
from .uninterrupted import check_interrupted

NEW = "a new or empty directory is accepted"
"""The rule of the argument ``directory``."""

NO_POSITION = 2**64 - 1
"""The value of ``pos`` for which CRIU sets no position (``criu/files-reg.c``)."""

StrPath = str | os.PathLike[str]


UNTIL_OTHERS_ARE_SAVED = 10.0
"""Seconds in which a copy is saved again while another one that is saved is in its way."""

DIRECTORY_EXISTS = "Can't create a directory (-17)"
"""Of CRIU, about proc.crtools in the working directory."""


@dataclass(frozen=True)
class Ends:
    """CRIU's keys for a program's streams and the guest's socket."""

    keys: Sequence[str | None]
    """The keys of standard input, output, error and the guest's socket; None: not replaceable."""
    external: Sequence[str] = ()
    """The keys of resources that CRIU does not save."""
    guest_fd: int | None = None
    forks: bool = False


def _ends_of_process(pid: int) -> Ends:
    pipes = {each.number: each.link for each in SeenProcess(pid).descriptors if each.is_pipe}
    return Ends([*(pipes.get(number) for number in (0, 1, 2)), None])


def _ends_of_copy(pid: int, socket: GuestSocket, *, forks: bool) -> Ends:
    """The streams of a copy can be files of the caller's mounts, which its own do not contain."""
    keys: list[str | None] = [None, None, None, f"socket:[{socket.inode}]"]
    external = [f"unix[{socket.inode}]"]
    for each in SeenProcess(pid).descriptors:
        if each.number > 2:
            continue
        if each.is_pipe:
            keys[each.number] = each.link
        elif each.is_socket:
            keys[each.number] = f"socket:[{each.stat.st_ino}]"
            external.append(f"unix[{each.stat.st_ino}]")
        else:
            file = f"file[{each.mount:x}:{each.stat.st_ino:x}]"
            keys[each.number] = file
            external.append(file)
    return Ends(keys, external, guest_fd=socket.number, forks=forks)


def copy_problems(copy: SnapshotProcess[Any], without_guest: bool) -> Iterator[Problem]:
    if copy.poll() is not None:
        yield Problem("program", copy, "it has ended")
        return
    if copy.guest is None:
        yield Problem("program", copy, "a copy that was started with savable=True is accepted")
    elif without_guest:
        rule = "a copy is saved in its next call of guest.wait()"
        yield Problem("without_guest", without_guest, rule)
    if not is_root_of_host():
        # CRIU 4.2.1 makes a directory from the copy's parasite, to mount /proc.
        rule = "only root can save copies, not another user or root of a user namespace"
        yield Problem("program", copy, rule)
    for kind in ("uts", "net"):
        ours, theirs = (f"/proc/{pid}/ns/{kind}" for pid in ("self", copy.pid))
        if copy.poll() is None and not os.path.samefile(ours, theirs):
            rule = "a copy with a separate host name or network is not accepted"
            yield Problem("program", copy, rule)


def _namespace_problems(process: SeenProcess) -> Iterator[Problem]:
    """Why CRIU could not restore a process in the namespaces of a copy."""
    if process.inner("NSpid") == 1:
        rule = "the first process of a pid namespace cannot be started as a copy, which is not that"
        yield Problem("program", process.pid, rule)
    if process.namespace("user") not in ("", link("/proc/self/ns/user")):
        rule = "a process of another user namespace than that of this process cannot be started"
        yield Problem("program", process.pid, rule)


@dataclass(kw_only=True)
class Saving:
    """The arguments of one ``Snapshot.take``, and its steps."""

    directory: Path
    is_own: bool
    """Whether the program is started for the snapshot, and so killed in any case."""
    opts: CriuOpts
    via: Via
    deadline: float | None
    leave_running: bool
    incremental: bool
    on_progress: OnProgress | None
    is_kept: bool = False
    """Whether the snapshot is complete, and the process has ended."""

    def __post_init__(self) -> None:
        self.directory = self.directory.resolve()  # rmtree removes nothing through a link
        self._created = True
        self.until = None if self.deadline is None else time.monotonic() + self.deadline

    def save_command(
        self,
        argv: Sequence[StrPath],
        env: Mapping[str, str] | None,
        cwd: StrPath | None,
        output: int,
        processor: str,
    ) -> None:
        if processor:
            env = processor_level.environment(processor, env)
        with ParkedProgram(argv, env=env, cwd=cwd, output=output) as program:
            program.wait_until_parked(self.until)
            keys = [f"socket:[{inode}]" for inode in program.inodes]
            external = [f"unix[{inode}]" for inode in program.inodes]
            ends = Ends(keys, external, guest_fd=program.guest_fd, forks=program.forks)
            self._save(program.process.pid, ends, processor=processor)

    def save_copy(self, copy: SnapshotProcess[Any]) -> None:
        assert copy.guest is not None
        forks = copy.guest.wait_until_parked(self.until) == guest.READY_TO_FORK
        ends = _ends_of_copy(copy.pid, copy.guest, forks=forks)
        self._save(copy.pid, ends, copy=copy, processor=copy.record.processor)
        if self.leave_running:
            copy.guest.resume()

    def save_process(self, pid: int) -> None:
        self._save(pid, _ends_of_process(pid))

    def _save(
        self, pid: int, ends: Ends, *, copy: SnapshotProcess[Any] | None = None, processor: str = ""
    ) -> None:
        with closing(_opened(pid)) as pidfd:
            refuse(list(_namespace_problems(SeenProcess(pid))), "take")
            if not self.leave_running:
                unlink_counters(Tree(pid))
            record = self._record(pid, ends, processor)
            claim = self._claimed()
            try:
                self._write(pid, record, ends, copy, claim)
                self.is_kept = not self.is_own and not self.leave_running
                if self.is_kept:
                    readable(pidfd, seconds=None)
                if copy is not None and self.incremental:
                    share_with_parent(self.directory, copy.snapshot, self.until)
                publish(self.directory)
            except BaseException:
                saved = not self.is_own and not self.leave_running and readable(pidfd)
                self.is_kept = saved and self._is_complete()
                if self.is_kept:
                    publish(self.directory)
                self.undo()
                raise
            finally:
                unlock_and_close(claim)

    def _record(self, pid: int, ends: Ends, processor: str) -> Record:
        seen, tree = SeenProcess(pid), Tree(pid)
        stdin, stdout, stderr, guest_key = ends.keys
        return Record(
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            command=_command_of(pid),
            pid=seen.inner("NSpid"),
            processes=len(tree.alive),
            guest_key=guest_key,
            guest_fd=ends.guest_fd,
            stream_keys=(stdin, stdout, stderr),
            criu=str(program_version(self.via)),
            host=host_check.needed_host(processor),
            files=host_check.mapped_files(tree),
            threads=len(seen.threads),
            forks=ends.forks,
            descriptors=tuple(sorted(each.number for each in seen.descriptors)),
            processor=processor,
        )

    def _write(
        self, pid: int, record: Record, ends: Ends, copy: SnapshotProcess[Any] | None, claim: int
    ) -> None:
        self.directory.chmod(0o700)
        # Among the mounts of a copy, its path can lead to another directory.
        place = self.directory if copy is None else Path(f"/proc/self/fd/{claim}")
        namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
        external = [f"pid[{namespace}]:{PID_NAMESPACE}", *ends.external]

        def complete(notification: Notification) -> None:
            # While the process is frozen: it continues if something fails here.
            if notification.action is Notify.POST_DUMP:
                try:
                    keys = _accept_any_file(place, record.pid, ends)
                    changed = dataclasses.replace(record, stream_keys=(keys[0], keys[1], keys[2]))
                    changed.write(place)
                except CriuError:  # some are an OSError too
                    raise
                except OSError as error:
                    raise images_error(f"{self.directory} cannot be written", error) from error

        opts = replace(
            self.opts,
            images_directory=str(self.directory) if copy is None else claim,
            external=[*(self.opts.external or ()), *external],
            leave_running=self.leave_running or None,
        )
        save = functools.partial(
            dump, pid, opts, via=self.via, on_notify=complete, on_progress=self.on_progress
        )
        if copy is None:
            save(deadline=remaining(self.until, self.deadline))
        else:
            self._save_copy(pid, save)

    def _save_copy(self, pid: int, save: Callable[..., object]) -> None:
        """Save a copy. Another one may be saved at that moment.

        CRIU creates a directory in the working directory, which copies can share.
        """
        attempts_end = time.monotonic() + UNTIL_OTHERS_ARE_SAVED
        while True:
            try:
                in_mounts_of(
                    pid, functools.partial(save, deadline=remaining(self.until, self.deadline))
                )
                return
            except CriuError as error:
                if DIRECTORY_EXISTS not in str(error) or time.monotonic() > attempts_end:
                    raise
            check_interrupted()
            sleep(random.uniform(0.005, 0.05))

    def _claimed(self) -> int:
        """Create and lock the directory. ``OptionError`` if another call uses it since the check.

        The program may have needed long until it could be saved.
        """
        self._created = not self.directory.exists()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._created:
            self.directory.chmod(0o700)  # the umask can remove the owner's permissions
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # It can have been removed since it was opened.
        if not lock(fd) or not os.fstat(fd).st_nlink or os.listdir(fd):
            close(fd)
            raise OptionError([Problem("directory", str(self.directory), NEW)], verb="take")
        return fd

    def _is_complete(self) -> bool:
        names = (UNPUBLISHED, "inventory.img", UNFINISHED)
        return [(self.directory / each).exists() for each in names] == [True, True, False]

    def undo(self) -> None:
        """Remove the images, unless they have what remains of the process."""
        if not self.is_kept:
            shutil.rmtree(self.directory, ignore_errors=True)
            if not self._created:
                self.directory.mkdir(mode=0o700)


def _opened(pid: int) -> int:
    """A pidfd of a process. ``NoSuchProcessError``, also for a zombie and for a thread."""
    why = f"there is no process {pid}"
    if (leader := leader_of(pid)) not in (None, pid):
        why = f"{pid} is the number of a thread of process {leader}"
    elif is_running(pid):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            return os.pidfd_open(pid)
    raise NoSuchProcessError(why, verb="take", pid=pid)


def _command_of(pid: int) -> tuple[str, ...]:
    data = Path(f"/proc/{pid}/cmdline").read_bytes()
    return tuple(os.fsdecode(word) for word in data.split(b"\0")[:-1])


def _accept_any_file(directory: Path, pid: int, ends: Ends) -> list[str | None]:
    """Disable position, mode and size checks for files that are replaced at a start.

    Returns the keys of the streams, different for each open file: CRIU's key is that of the inode,
    and streams can have it open several times, such as /dev/null.
    """
    keys = list(ends.keys)
    path = directory / "files.img"
    image = decode(path)
    files = [entry["reg"] for entry in image["entries"] if "reg" in entry]
    replaced = {file["id"]: file for file in files if file.get("ext") and file["name"] in keys}
    if not replaced:
        return keys
    (ids,) = decode(directory / f"ids-{pid}.img")["entries"]
    opened = decode(directory / f"fdinfo-{ids['files_id']}.img")["entries"]
    streams: dict[int, list[int]] = {}
    for entry in opened:
        if entry["fd"] <= LAST_STREAM and entry["id"] in replaced:
            streams.setdefault(entry["id"], []).append(entry["fd"])
    first: dict[str, str] = {}
    for number, fds in streams.items():
        file = replaced[number]
        key = f"{file['name']}:{number}"
        first.setdefault(file["name"], key)
        file["name"] = key
        file["flags"] = file["flags"] & ~os.O_ACCMODE | _access(fds)
        for fd in fds:
            keys[fd] = key
    for file in replaced.values():
        file["name"] = first.get(file["name"], file["name"])  # opened by another descriptor
        file["pos"] = NO_POSITION
        for name in ("mode", "size"):
            file.pop(name, None)
    with opened_directory(directory) as at:
        replace_file(at, path.name, encode(image))
        record_again(at, path.name)
    return keys


def _access(streams: Sequence[int]) -> int:
    """The access mode of the file of these streams.

    CRIU opens the replacement with it: with O_RDWR, a copy would have both ends of a pipe open, and
    never read its end.
    """
    if 0 not in streams:
        return os.O_WRONLY
    return os.O_RDONLY if len(streams) == 1 else os.O_RDWR

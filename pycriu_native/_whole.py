"""Whether a directory holds a whole set of images, or half of one.

CRIU does not say so itself: ``inventory.img`` is among the last files that it writes, but the
images of files are flushed after it, and ``stats-dump``, the last of all, is in the work
directory and comes only once the dumped are gone (``criu/cr-dump.c``, 4.2). So while a dump is
under way, a mark of ours lies among its images. It goes when CRIU says ``post-dump``, which is
when all is written and nothing killed yet; else with CRIU's answer. Of a dump that CRIU has
undone the images go, and the mark with them. A dump that ends in any other way, be it that both
CRIU and we are killed, leaves the mark. Sets that others have made carry none, and are judged by
what they hold.

CRIU syncs nothing to disk. What a power failure takes from a set only a manifest can tell
(``manifest.py``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from ._ffi import ffi, memory, native
from ._line import above_stdio
from ._stats import message_fields
from ._typing import TYPE_CHECKING
from .enums import Verb
from .errors import ImagesError
from .opts import CriuOpts

if TYPE_CHECKING:
    from typing import NoReturn

UNFINISHED = "pycriu-native.unfinished"
"""The name of the mark. A dump under way holds a lock on it."""

EARLIER = "pycriu-native.earlier"
"""Where the images of an earlier dump to the same directory are while a new one is under way."""

MOVING = "pycriu-native.moving"
"""Its name until they are all there."""

LARGEST = 16 * 2**20
"""Bytes of one image that are read to judge it."""

SMALL, FEW = 2**16, 256
"""Bytes and number of the files of a set that are read in one go."""

FRAMED = frozenset(
    [
        "files",
        "seccomp",
        "cgroup",
        "filelocks",
        "remap-fpath",
        "tty-info",
        "timerfd",
        "inetsk",
        "unixsk",
        "eventfd",
    ]
)
FRAMED_EACH = frozenset(
    ["ids", "fdinfo", "creds", "mountpoints", "utsns", "userns", "pidns", "timens", "netns"]
)
"""Images that are nothing but messages, of all and of one process or namespace, whose number is
behind a dash; others have data behind or between them."""

DEEPEST = 200
"""Parents of parents: more are a loop."""

COMMON_MAGIC = (0x54564319).to_bytes(4, "little")
INVENTORY_MAGIC = (0x58313116).to_bytes(4, "little")
"""What images begin with; all but the inventory have a second number after it
(``criu/include/magic.h``)."""

VERSION, VERSION_1_1 = 1, 2
"""Of ``inventory.proto``: the field, and the form that images have by now."""
PID, THREADS = 1, 5
"""Fields of ``pstree.proto``."""
TASK_CORE, TASK_STATE, DEAD = 3, 1, 2
"""Of ``core.proto``: the field with the task, its field with the state, and that of a zombie."""
PAGES_ID = 1
"""Of ``pagemap.proto``: the number in the name of the file with the pages."""


_MARKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Unfinished:
    """The mark in a directory that a dump is being written to; owned while that goes on.

    Images of an earlier dump are set aside first, for CRIU would overwrite some and leave
    others. They come back if this dump fails, and go when it is done.
    """

    def __init__(self, directory: int) -> None:
        """``ImagesError`` where another dump to the directory is under way; ``OSError``."""
        self._directory = directory
        self._finished = False
        self._fd, anew = self._mark()
        try:
            if anew or _is_there(directory, MOVING):
                self._earlier = _set_aside(directory)
            else:
                self._earlier = True
                _clear(directory)  # what is there, a dump that did not end has left
            self._before = _made_by_dump(directory)
        except BaseException:
            os.close(self._fd)
            raise

    def _mark(self) -> tuple[int, bool]:
        """The mark, open and locked, and whether it was not there before."""
        # The directory is nobody else's: no other user's file can be behind the name.
        while True:
            anew = True
            try:
                fd = os.open(UNFINISHED, _MARKING | os.O_EXCL, 0o600, dir_fd=self._directory)
            except FileExistsError:
                anew = False
                fd = os.open(UNFINISHED, _MARKING, 0o600, dir_fd=self._directory)
            fd = above_stdio(fd)
            if not _lock(fd):
                os.close(fd)
                raise ImagesError(f"another dump to {where(self._directory)} is under way")
            if os.fstat(fd).st_nlink:
                return fd, anew
            os.close(fd)  # the other dump has just ended

    def finish(self) -> None:
        """The images are whole. A second time does nothing."""
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(UNFINISHED, dir_fd=self._directory)

    def undo(self) -> None:
        """Have the directory as it was before: CRIU has undone the dump, finished or not.

        Images that cannot be removed stay marked.
        """
        with contextlib.suppress(OSError):
            if self._finished:
                os.close(os.open(UNFINISHED, _MARKING, 0o600, dir_fd=self._directory))
                self._finished = False
            for name in _made_by_dump(self._directory) - self._before:
                os.unlink(name, dir_fd=self._directory)

    def close(self) -> None:
        """Let go of it. Unless it was finished, all is as before, or the mark stays."""
        try:
            # What nothing can be changed in any more stays marked: why, the call says.
            with contextlib.suppress(OSError):
                if not self._finished:
                    self._undo()
                elif self._earlier:
                    _remove(self._directory, EARLIER)
        finally:
            # Not by closing alone: a child that somebody has forked holds a copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)

    def _undo(self) -> None:
        names = os.listdir(self._directory)
        if EARLIER in names:
            _clear(self._directory)
            _put_back(self._directory)
            _remove(self._directory, EARLIER)
            self.finish()
        elif not any(map(_of_dump, names)):
            self.finish()


def holds_dump(directory: int | str) -> bool:
    """Whether there are images of a dump that ended, more than those of a page server."""
    names = set(os.listdir(directory))
    return "inventory.img" in names and UNFINISHED not in names


def unfinished(path: str) -> str | None:
    """The first directory, of these images and their parents, whose dump did not finish."""
    for _ in range(DEEPEST):
        if os.path.lexists(f"{path}/{UNFINISHED}"):
            return path
        path += "/parent"
        if not os.path.lexists(path):
            break
    return None


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has no locks
    return True


def _of_dump(name: str) -> bool:
    """Whether a file is an image of a dump; ``cpuinfo.img`` is that of another verb."""
    if name.startswith("tmpfs-") and name.endswith(".tar.gz"):
        return True
    return name.endswith(".img") and name != "cpuinfo.img"


def _made_by_dump(directory: int) -> set[str]:
    """The files of a dump that are there, with CRIU's link to the images that it builds on."""
    return {name for name in os.listdir(directory) if _of_dump(name) or name == "parent"}


def _clear(directory: int) -> None:
    """Remove the images of a dump that did not end."""
    for name in filter(_of_dump, os.listdir(directory)):
        os.unlink(name, dir_fd=directory)


def _set_aside(directory: int) -> bool:
    """Move the images of an earlier dump away; goes on with what was cut off half way.

    Whether there may be such images now.
    """
    if not _is_there(directory, "inventory.img") and not _is_there(directory, MOVING):
        # Perhaps the pages that a page server has put there for this very dump.
        return _is_there(directory, EARLIER)
    _remove(directory, EARLIER)  # a dump that was done had no time to
    with contextlib.suppress(FileExistsError):
        os.mkdir(MOVING, 0o700, dir_fd=directory)
    _move(directory, ".", MOVING)
    os.rename(MOVING, EARLIER, src_dir_fd=directory, dst_dir_fd=directory)
    return True


def _is_there(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _put_back(directory: int) -> None:
    _move(directory, EARLIER, ".")


def _move(directory: int, source: str, target: str) -> None:
    there = _open(directory, source)
    try:
        for name in filter(_of_dump, os.listdir(there)):
            before, after = f"{source}/{name}", f"{target}/{name}"
            os.rename(before, after, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(there)


def _remove(directory: int, name: str) -> None:
    """Remove a directory of ours with the images in it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        inner = _open(directory, name)
        try:
            _clear(inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=directory)


def _open(directory: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


# ---- before the dumped are let go ----


def check_written(directory: int, pid: int | None) -> None:
    """Raise ``ImagesError`` if a dump's images are not where they can be found again."""
    if _is_there(directory, "inventory.img"):
        return  # nor was the directory removed, which would have been empty
    path = where(directory)
    if os.fstat(directory).st_nlink == 0:
        what = f"the images directory {path.removesuffix(' (deleted)')} was removed meanwhile"
    else:
        what = f"inventory.img, which every dump has, is not in {path}"
    cure = "keep the directory until the dump has ended"
    raise ImagesError(
        f"dump of pid {pid} was called off: {what}; {cure}",
        verb=str(Verb.DUMP),
        pid=pid,
        errno=errno.ENOENT,
        cause=what,
        cure=cure,
        options=["images_directory"],
    )


# ---- before a restore ----


class _IncompleteError(Exception):
    """What is missing, what helps, and the options that do."""

    def __init__(self, cause: str, cure: str, *options: str) -> None:
        super().__init__(cause)
        self.cause, self.cure, self.options = cause, cure, options


def check(directory: int, opts: CriuOpts) -> None:
    """Raise ``ImagesError`` if these images cannot be all of a dump's; cheap, no page is read."""
    try:
        _check(directory, lazy=bool(opts.lazy_pages))
    except _IncompleteError as found:
        raise ImagesError(
            f"restore from {where(directory)} failed: {found.cause}; {found.cure}",
            verb=str(Verb.RESTORE),
            cause=found.cause,
            cure=found.cure,
            options=found.options,
        ) from None


def _check(directory: int, *, lazy: bool) -> None:
    images = _Images(directory)
    _check_mark(directory, images.names)
    inventory = images.read("inventory.img", start=4, magic=INVENTORY_MAGIC)[0]
    if _number(inventory, VERSION) != VERSION_1_1:
        return  # of a CRIU so old that its images have another form, or of one to come
    for process in map(_numbers, images.read("pstree.img")):
        pid = process.get(PID, [0])[0]
        core = images.read(f"core-{pid}.img")[0]
        if _is_dead(core):
            continue  # there is no more of a zombie, and the numbers of its threads are none
        for name in (*(f"core-{task}.img" for task in process.get(THREADS, ())), f"fs-{pid}.img"):
            images.need(name)
        images.read(f"mm-{pid}.img")
        if not lazy:
            _check_pages(images, pid)
    for name in filter(_is_framed, sorted(images.names)):
        images.walk(name)  # CRIU writes buffers: the last may be missing, or a file be empty
    _check_parents(directory)


def _check_mark(directory: int, names: set[str]) -> None:
    if UNFINISHED not in names:
        return
    with contextlib.suppress(OSError):
        fd = os.open(UNFINISHED, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            under_way = not _lock(fd)
        finally:
            os.close(fd)
        if under_way:
            cause = f"a dump to {where(directory)} is under way"
            raise _IncompleteError(cause, "wait for its end", "images_directory")
    cure = "dump again; a set that was copied while its dump went on is to be copied again"
    if EARLIER in names:
        cure += f"; the images of the dump before it are whole, in {where(directory)}/{EARLIER}"
    cause = f"the dump to {where(directory)} did not finish ({UNFINISHED} is there)"
    raise _IncompleteError(cause, cure, "images_directory")


def _check_pages(images: _Images, pid: int) -> None:
    name = f"pagemap-{pid}.img"
    if name not in images.names:
        raise _IncompleteError(
            f"the images have no memory pages: they went to a page_server (there is no {name})",
            "put the images of both directories into one and give that as images_directory",
            "page_server",
            "images_directory",
        )
    head, entries = images.head(name)
    from ._runs import Runs  # restores alone need it

    runs = Runs()
    taken, problem = runs.take(entries)
    if taken < len(entries) < LARGEST and problem is None:
        images.is_short(name)
    _, _, elsewhere = runs.total
    if elsewhere:
        # CRIU would wait for them for ever (seen with 4.2.1).
        raise _IncompleteError(
            f"the images lack memory, which the lazy dump that made them kept to serve ({name})",
            "set lazy_pages, with a LazyPages daemon that is connected to the dump while it "
            "serves; if that has ended, dump again",
            "lazy_pages",
        )
    for number in _numbers(head).get(PAGES_ID, ()):
        if f"pages-{number}.img" not in images.names:
            raise _IncompleteError(
                f"there is no pages-{number}.img, which holds contents of memory",
                "give an images_directory that is whole; pages that went to a page_server are in "
                "its directory",
                "images_directory",
                "page_server",
            )


def _check_parents(directory: int) -> None:
    """The parents hold pages that these images only name."""
    with contextlib.ExitStack() as opened:
        at = directory
        for _ in range(DEEPEST):
            link = f"/proc/self/fd/{at}/parent"
            if not os.path.lexists(link):
                return
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                below = os.open("parent", flags, dir_fd=at)
            except OSError as error:
                parent = os.readlink(link) if os.path.islink(link) else "parent"
                raise _IncompleteError(
                    f"{where(at)} builds on the images in {parent!r}: {error.strerror}",
                    "bring the images of the pre-dumps along, in the same places",
                    "parent_image",
                ) from None
            opened.callback(os.close, below)
            _check_mark(below, set(os.listdir(below)))
            at = below
        raise _IncompleteError(
            f"{where(directory)} has more than {DEEPEST} parents",
            "look at the links named 'parent'",
            "parent_image",
        )


def _small_files(directory: int) -> dict[str, bytes | None] | None:
    """The names in a directory, and what is in the small images; None: there are too many."""
    buffer, images = memory("char[]", SMALL), memory("struct pn_image[]", FEW)
    count = native.pn_read_images(directory, buffer, SMALL, images, FEW)
    if count < 0:
        return None
    end = images[count - 1].data + max(images[count - 1].length, 0) if count else 0
    data = ffi.unpack(buffer, end)
    return {
        os.fsdecode(data[image.name : image.data]): None
        if image.length < 0
        else data[image.data : image.data + image.length]
        for image in images[0:count]
    }


class _Images:
    """The files of a directory: magic numbers, then messages, each after its length."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._small = _small_files(directory)
        """What is in those that were read ahead."""
        self.names = set(os.listdir(directory) if self._small is None else self._small)

    def need(self, name: str) -> None:
        """It must be there."""
        if name not in self.names:
            raise _IncompleteError(
                f"the images directory holds no images, or not all of them: there is no {name}",
                "give the images_directory of a dump that was complete",
                "images_directory",
            )

    def read(self, name: str, *, start: int = 8, magic: bytes = COMMON_MAGIC) -> list[bytes]:
        """Its messages, at least one."""
        self.need(name)
        return self.walk(name, start, magic) or self.is_short(name)

    def head(self, name: str) -> tuple[bytes, bytes]:
        """Its first message, and what is behind that."""
        self.need(name)
        data = self._data(name, COMMON_MAGIC)
        end = 12 + int.from_bytes(data[8:12], "little")
        if end > len(data):
            self.is_short(name)
        return data[12:end], data[end:]

    def walk(self, name: str, start: int = 8, magic: bytes = COMMON_MAGIC) -> list[bytes]:
        """Its messages."""
        data = self._data(name, magic)
        found = []
        at = start
        while at < len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            found.append(data[at + 4 : end])
            at = end
        if len(data) < start or (at > len(data) and len(data) < LARGEST):
            self.is_short(name)
        return found

    def _data(self, name: str, magic: bytes) -> bytes:
        data = None if self._small is None else self._small[name]
        if data is None:
            data = self._read(name)
        if data[:4] != magic[: len(data)]:
            raise _IncompleteError(
                f"{name} is damaged: it does not begin as an image of CRIU's",
                "give the images_directory as it was made",
                "images_directory",
            )
        return data

    def _read(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # it may be a pipe
        fd = os.open(name, flags, dir_fd=self._directory)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _IncompleteError(
                    f"{name} is damaged: it is no file",
                    "give the images_directory as it was made",
                    "images_directory",
                )
            return file.read(min(found.st_size + 1, LARGEST))  # a buffer of that size is made

    def is_short(self, name: str) -> NoReturn:
        """The error for a file that was cut off."""
        raise _IncompleteError(
            f"{name} is shorter than it was made",
            "copy the images again from where they were made, or give the images_directory of "
            "another dump",
            "images_directory",
        )


def _numbers(message: bytes) -> dict[int, list[int]]:
    """The fields of a message that are numbers."""
    found: dict[int, list[int]] = {}
    with contextlib.suppress(ValueError):
        for field, value in message_fields(message):
            if isinstance(value, int):
                found.setdefault(field, []).append(value)
    return found


def _number(message: bytes, wanted: int) -> int | None:
    """One field that is a number; what is behind it is not read."""
    with contextlib.suppress(ValueError):
        for field, value in message_fields(message):
            if field == wanted and isinstance(value, int):
                return value
    return None


def _is_framed(name: str) -> bool:
    stem, _, ending = name.partition(".")
    kind, _, number = stem.rpartition("-")
    return ending == "img" and (stem in FRAMED or (kind in FRAMED_EACH and number.isdigit()))


def _is_dead(core: bytes) -> bool:
    """Whether a core is that of a zombie."""
    with contextlib.suppress(ValueError):
        for field, task in message_fields(core):
            if field == TASK_CORE and isinstance(task, bytes):
                return _number(task, TASK_STATE) == DEAD
    return False


def where(directory: int) -> str:
    """Where an open directory is, for people to read."""
    return os.readlink(f"/proc/self/fd/{directory}")

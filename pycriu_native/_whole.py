"""Whether a directory holds a whole set of images, or half of one.

CRIU does not say so itself: ``inventory.img`` is among the last files that it writes, but the
images of files are flushed after it, and ``stats-dump``, the last of all, is in the work
directory and comes only once the dumped are gone (``criu/cr-dump.c``, 4.2). So while a dump is
under way, a mark of ours lies among its images. It goes when CRIU says ``post-dump``, which is
when all is written and nothing killed yet; else with CRIU's answer. A dump that ends in any
other way, be it that both CRIU and we are killed, leaves the mark. Sets that others have made
carry none, and are judged by what they hold.

CRIU syncs nothing to disk. What a power failure takes from a set only a manifest can tell
(``manifest.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from ._stats import message_fields
from .enums import Verb
from .errors import ImagesError
from .opts import CriuOpts

UNFINISHED = "pycriu-native.unfinished"
"""The name of the mark. A dump under way holds a lock on it."""

EARLIER = "pycriu-native.earlier"
"""Where the images of an earlier dump to the same directory are while a new one is under way."""

MOVING = "pycriu-native.moving"
"""Its name until they are all there."""

LARGEST = 16 * 2**20
"""Bytes of one image that are read to judge it."""

DEEPEST = 1000
"""Parents of parents: more are a loop."""

COMMON_MAGIC = (0x54564319).to_bytes(4, "little")
"""What images begin with, but for the inventory (``criu/include/magic.h``)."""

TASK_CORE, TASK_STATE, DEAD = 3, 1, 2
"""Of ``core.proto``: the field with the task, its field with the state, and that of a zombie."""

ANEW = "dump again"


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
            if anew or MOVING in os.listdir(directory):
                _set_aside(directory)
            else:
                _clear(directory)  # what is there, a dump that did not end has left
        except BaseException:
            os.close(self._fd)
            raise

    def _mark(self) -> tuple[int, bool]:
        """The mark, open and locked, and whether it was not there before."""
        # The directory is nobody else's: no other user's file can be behind the name.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            anew = UNFINISHED not in os.listdir(self._directory)
            fd = os.open(UNFINISHED, flags, 0o600, dir_fd=self._directory)
            if not _lock(fd):
                os.close(fd)
                raise ImagesError(f"another dump to {where(self._directory)} is under way")
            if os.fstat(fd).st_nlink:
                return fd, anew
            os.close(fd)  # the other dump has just ended

    def finish(self) -> None:
        """The images are whole. A second time does nothing."""
        self._finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(UNFINISHED, dir_fd=self._directory)
        _remove(self._directory, EARLIER)

    def close(self) -> None:
        """Let go of it. Unless it was finished, all is as before, or the mark stays."""
        try:
            if not self._finished:
                names = os.listdir(self._directory)
                if EARLIER in names:
                    _clear(self._directory)
                    _put_back(self._directory)
                    self.finish()
                elif not any(map(_of_dump, names)):
                    self.finish()
        finally:
            # Not by closing alone: a child that somebody has forked holds a copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)


def holds_dump(directory: int | str) -> bool:
    """Whether there are images of a dump that ended, more than those of a page server."""
    names = set(os.listdir(directory))
    return "inventory.img" in names and UNFINISHED not in names


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


def _clear(directory: int) -> None:
    """Remove the images of a dump that did not end."""
    for name in filter(_of_dump, os.listdir(directory)):
        os.unlink(name, dir_fd=directory)


def _set_aside(directory: int) -> None:
    """Move the images of an earlier dump away; goes on with what was cut off half way."""
    names = os.listdir(directory)
    if "inventory.img" not in names and MOVING not in names:
        return  # perhaps the pages that a page server has put there for this very dump
    _remove(directory, EARLIER)  # a dump that was done had no time to
    with contextlib.suppress(FileExistsError):
        os.mkdir(MOVING, 0o700, dir_fd=directory)
    _move(directory, ".", MOVING)
    os.rename(MOVING, EARLIER, src_dir_fd=directory, dst_dir_fd=directory)


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


# ---- before a restore ----


def check(directory: int, opts: CriuOpts) -> None:
    """Raise ``ImagesError`` if these images cannot be all of a dump's; cheap, no page is read."""
    shown = where(directory)
    reason = next(_missing(directory, lazy=bool(opts.lazy_pages)), None)
    if reason is not None:
        cause, cure, options = reason
        raise ImagesError(
            f"restore from {shown} failed: {cause}; {cure}",
            verb=str(Verb.RESTORE),
            cause=cause,
            cure=cure,
            options=options,
        )


Reason = tuple[str, str, tuple[str, ...]]
"""Cause, cure, options that help."""


def _missing(directory: int, *, lazy: bool) -> Iterator[Reason]:
    names = set(os.listdir(directory))
    yield from _by_mark(directory, names)
    for name, why, cure in _NEEDED:
        if name not in names:
            yield f"there is no {name}: {why}", cure, ()
    for name in sorted(_WALKED & names):
        if _read(directory, name) is None:
            yield f"{name} is cut off", ANEW, ()
    for process in map(_numbers, _read(directory, "pstree.img") or ()):
        pid, threads = process.get(1, [0])[0], process.get(5, [])
        yield from _missing_of_process(directory, names, pid, threads, lazy=lazy)
    if "parent" in names:
        yield from _missing_of_parents(directory)


_NEEDED = (
    (
        "inventory.img",
        "no images, or those of a dump that did not finish",
        "images_directory is to name the directory of a whole dump",
    ),
    (
        "pstree.img",
        "these are the images of a pre-dump, or not all",
        "restore from those of the dump that followed",
    ),
)
_WALKED = frozenset(("inventory.img", "pstree.img", "files.img"))


def _by_mark(directory: int, names: set[str]) -> Iterator[Reason]:
    if UNFINISHED not in names:
        return
    with contextlib.suppress(OSError):
        fd = os.open(UNFINISHED, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            under_way = not _lock(fd)
        finally:
            os.close(fd)
        if under_way:
            yield f"a dump to {where(directory)} is under way", "wait for its end", ()
    cure = f"{ANEW}; a set that was copied while its dump went on is to be copied again"
    if EARLIER in names:
        cure += f"; the images of the dump before it are whole, in {where(directory)}/{EARLIER}"
    yield f"the dump to {where(directory)} did not finish ({UNFINISHED} is there)", cure, ()


def _missing_of_process(
    directory: int, names: set[str], pid: int, threads: list[int], *, lazy: bool
) -> Iterator[Reason]:
    core = _read(directory, f"core-{pid}.img") if f"core-{pid}.img" in names else [b""]
    if core is None:
        yield f"core-{pid}.img is cut off", ANEW, ()
        return
    if _is_dead(core[0]):
        return  # the numbers of its threads are none (seen)
    for task in (pid, *threads):
        if f"core-{task}.img" not in names:
            yield f"there is no core-{task}.img", ANEW, ()
            return
    yield from _missing_of_living(directory, names, pid, lazy=lazy)


def _missing_of_living(
    directory: int, names: set[str], pid: int, *, lazy: bool
) -> Iterator[Reason]:
    for name in (f"mm-{pid}.img", f"fs-{pid}.img"):
        if name not in names:
            yield f"there is no {name}", ANEW, ()
        elif _read(directory, name) is None:
            yield f"{name} is cut off", ANEW, ()
    if lazy:
        return
    pagemap = f"pagemap-{pid}.img"
    head = _read(directory, pagemap) if pagemap in names else [b""]
    if head is None:
        yield f"{pagemap} is cut off", ANEW, ()
        return
    for name in (pagemap, *(f"pages-{number}.img" for number in _numbers(head[0]).get(1, ()))):
        if name not in names:
            yield (
                f"the images have no memory pages: there is no {name}",
                "bring them together with the pages, which are where page_server put them",
                ("page_server",),
            )


def _missing_of_parents(directory: int) -> Iterator[Reason]:
    """The parents hold pages that these images only name."""
    with contextlib.ExitStack() as opened:
        at = directory
        for _ in range(DEEPEST):
            try:
                link = os.readlink("parent", dir_fd=at)
            except FileNotFoundError:
                return
            except OSError:
                link = "parent"
            try:
                below = os.open("parent", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            except OSError as error:
                yield (
                    f"{where(at)} builds on the images in {link!r}: {error.strerror}",
                    "bring the images of the pre-dumps along, in the same places",
                    ("parent_image",),
                )
                return
            opened.callback(os.close, below)
            yield from _by_mark(below, set(os.listdir(below)))
            at = below
        yield f"{where(directory)} has more than {DEEPEST} parents", "look at their links", ()


# ---- reading images: the magic numbers, then messages, each after its length ----


def _read(directory: int, name: str) -> list[bytes] | None:
    """The messages of an image; None where it ends in the middle of one, or holds none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as file:
            data = file.read(LARGEST)
    except OSError:
        return None
    found: list[bytes] = []
    at = 8 if data[:4] == COMMON_MAGIC else 4
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            return found if len(data) == LARGEST else None
        found.append(data[at + 4 : end])
        at = end
    return found or None


def _numbers(message: bytes) -> dict[int, list[int]]:
    """The fields of a message that are numbers."""
    found: dict[int, list[int]] = {}
    with contextlib.suppress(ValueError):
        for field, value in message_fields(message):
            if isinstance(value, int):
                found.setdefault(field, []).append(value)
    return found


def _is_dead(core: bytes) -> bool:
    """Whether a core is that of a zombie, of which there is nothing else."""
    with contextlib.suppress(ValueError):
        for field, task in message_fields(core):
            if field == TASK_CORE and isinstance(task, bytes):
                return _numbers(task).get(TASK_STATE) == [DEAD]
    return False


def where(directory: int) -> str:
    """Where an open directory is, for people to read."""
    return os.readlink(f"/proc/self/fd/{directory}")

"""What a restore that failed leaves in the file system, removed; what it consumed, put back.

CRIU removes the names that it makes (``_made_names.py``) when it comes to the end of a restore, or
fails by itself. One that was killed leaves them, and then the next restore finds them in its way;
one that fails while it opens a deleted file leaves that file's name. :class:`RestoreUndo` looks
before CRIU starts, and when the restore has failed, and its processes have ended, it removes what
came in between. Nothing that was there before is removed, and nothing while another restore of
the same images is under way.

A restore that succeeds removes the links that a dump with ``link_remap`` has made, and the images
could not be restored again. They are kept as hard links beside the images, where that is the same
file system, and put back for the next restore.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from ._dataclass import dataclass
from ._later import socket
from ._made_cgroups import missing_cgroups, remove_cgroups
from ._made_names import (
    LINKS,
    BoundSocket,
    Ghost,
    LinkRemap,
    MadeNames,
    identity,
    made_names,
    taken_names,
)
from .opts import CriuOpts

KEPT = ".kept"
"""Behind the name of such a link: another one to the same file, while a restore is under way."""

RESTORING = "another restore of the same images may be using it"


class _Name:
    """A name below an open directory that may not exist yet, and what was there before."""

    def __init__(self, at: int, parts: tuple[str, ...], path: str, kind: int | None) -> None:
        self.at, self.parts, self.path = at, parts, path
        self.kind = kind
        """The file's type; None: any."""
        self.before = self.look()

    def look(self) -> os.stat_result | None:
        with contextlib.suppress(OSError), self.directory() as at:
            return os.stat(self.parts[-1], dir_fd=at, follow_symlinks=False)
        return None

    @contextlib.contextmanager
    def directory(self) -> Iterator[int]:
        """The directory that it is in; directories made since are entered, links are not."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.ExitStack() as opened:
            at = self.at
            for part in self.parts[:-1]:
                at = os.open(part, flags, dir_fd=at)
                opened.callback(os.close, at)
            yield at

    def made(self) -> os.stat_result | None:
        """What is there and was not before, if it has the type that CRIU would make."""
        found = None if self.before is not None else self.look()
        if found is not None and self.kind not in (None, stat.S_IFMT(found.st_mode)):
            return None
        return found

    def remove(self) -> None:
        with self.directory() as at:
            if self.kind == stat.S_IFDIR:
                os.rmdir(self.parts[-1], dir_fd=at)
            else:
                os.unlink(self.parts[-1], dir_fd=at)

    def rename_to(self, other: _Name) -> None:
        with self.directory() as here, other.directory() as there:
            os.rename(self.parts[-1], other.parts[-1], src_dir_fd=here, dst_dir_fd=there)

    def link_from(self, source: str, at: int | None = None) -> None:
        with self.directory() as here:
            os.link(source, self.parts[-1], src_dir_fd=at, dst_dir_fd=here, follow_symlinks=False)

    def link_to(self, target: str, at: int) -> None:
        with self.directory() as here:
            os.link(self.parts[-1], target, src_dir_fd=here, dst_dir_fd=at, follow_symlinks=False)


class _Tree:
    """Names below a root, each looked at by a descriptor of the nearest directory that exists."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: dict[str, int | None] = {}

    def close(self) -> None:
        for fd in self._open.values():
            if fd is not None:
                os.close(fd)
        self._open.clear()

    def names(self, path: str, kind: int | None) -> Iterator[_Name]:
        """This name; if its directory does not exist also the one in the nearest that does."""
        at, base, parts = self._nearest(path)
        if at is None:
            return
        yield _Name(at, parts, path, kind)
        if len(parts) > 1:
            yield _Name(at, parts[-1:], f"{base.rstrip('/')}/{parts[-1]}", kind)

    def directories(self, path: str) -> Iterator[_Name]:
        """The directories above a name that do not exist."""
        at, base, parts = self._nearest(path)
        for count in range(1, len(parts)):
            if at is not None:
                above = "/".join((base.rstrip("/"), *parts[:count]))
                yield _Name(at, parts[:count], above, stat.S_IFDIR)

    def _nearest(self, path: str) -> tuple[int | None, str, tuple[str, ...]]:
        directory, name = os.path.split(path)
        parts: tuple[str, ...] = (name,)
        while True:
            fd = self._directory(directory)
            if fd is not None or directory in ("/", ""):
                return fd, directory, parts
            directory, name = os.path.split(directory)
            parts = (name, *parts)

    def _directory(self, path: str) -> int | None:
        if path not in self._open:
            try:
                self._open[path] = os.open(
                    self._followed(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                )
            except OSError:
                self._open[path] = None
        return self._open[path]

    def _followed(self, path: str) -> str:
        root = self._root.rstrip("/")
        if not root or not path.startswith(root + "/"):
            return path
        from ._mounts import inside  # restores of containers alone need it

        return root + inside(root, path.removeprefix(root))


class _KeptLink:
    """A link of ``link_remap`` that is to be there before a restore and after it."""

    def __init__(self, name: _Name, link: LinkRemap, images: int) -> None:
        self.path = link.link
        self._name = name
        self._beside = _Name(name.at, (*name.parts[:-1], name.parts[-1] + KEPT), "", None)
        self._images = images
        self._link = link
        self._made: str | None = None
        self.file = name.before or self._put()
        """What the link leads to; None: it is not there and was not kept."""
        if self.file is not None:
            self._keep(self.file)

    def _put(self) -> os.stat_result | None:
        kept = _kept(self._images, self._link)
        with contextlib.suppress(OSError):
            if kept is not None:
                self._name.link_from(kept, self._images)
            else:
                self._beside.rename_to(self._name)
        return self._name.look()

    def _keep(self, file: os.stat_result) -> None:
        if _kept(self._images, self._link) is not None:
            return
        name = f"{LINKS}/{_kept_name(self._images, self._link, file.st_ino)}"
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(LINKS, 0o700, dir_fd=self._images)
            self._name.link_to(name, self._images)
            self._made = name
        except OSError:  # another file system, or one that is read-only
            with contextlib.suppress(OSError):
                os.rmdir(LINKS, dir_fd=self._images)
            with contextlib.suppress(OSError), self._beside.directory() as at:
                self._name.link_to(self._beside.parts[-1], at)

    def put_back(self) -> bool:
        """After a restore that failed; False if it could not be done."""
        done = self.file is None or self._name.look() is not None or self._put() is not None
        self.let_go()
        if done and self._made is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._made, dir_fd=self._images)
                os.rmdir(LINKS, dir_fd=self._images)
        return done

    def let_go(self) -> None:
        """After a restore that succeeded: what is kept among the images stays."""
        with contextlib.suppress(OSError):
            self._beside.remove()


def has_link(images: int, link: LinkRemap) -> bool:
    """Whether a restore finds the link, or this library can put it back."""
    beside = f"{link.link}{KEPT}"
    found = os.path.lexists(link.link) or os.path.lexists(beside)
    return found or _kept(images, link) is not None


def _kept(images: int, link: LinkRemap) -> str | None:
    """The hard link that is kept for it, below the images directory.

    Its name ends in its inode's number, so that a copy, which is another file, is not taken for it.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/self/fd/{images}/{LINKS}"):
            path = f"{LINKS}/{name}"
            inode = os.stat(path, dir_fd=images, follow_symlinks=False).st_ino
            if name == _kept_name(images, link, inode):
                return path
    return None


def _kept_name(images: int, link: LinkRemap, inode: int) -> str:
    return f"{link.number}-{identity(images)}-{inode}"


@dataclass(frozen=True, slots=True)
class _Made:
    """A name that CRIU may make, and how it is known that it did."""

    name: _Name
    ghost: Ghost | None = None
    link: LinkRemap | None = None


class RestoreUndo:
    """What is known of one restore before it begins, and its undoing."""

    def __init__(self, images: int, work: int, opts: CriuOpts) -> None:
        """``work`` is where CRIU runs; both stay the caller's, open until :meth:`close`."""
        self._images = images
        self._work = work
        self._opts = opts
        self._since = time.time() - 0.1  # the kernel's clock for files lags behind
        self._lock: int | None = None
        self._alone = True
        self._in_the_way: tuple[str, ...] = ()
        self._cgroups = missing_cgroups(images, opts)
        names = made_names(images, opts)
        self._tree = _Tree(names.root)
        self._made: list[_Made] = []
        self._links: list[_KeptLink] = []
        self._sockets: list[tuple[_Name, _Name]] = []
        try:
            if names:
                self._alone = self._claim()
                self._look(names)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back what it owns."""
        self._tree.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child of the caller may have a copy
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> bool:
        """Whether no other call restores these images; others see this one from here on."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._lock = os.open(f"/proc/self/fd/{self._images}", flags)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        return True

    def _look(self, names: MadeNames) -> None:
        for link in names.links:
            for name in self._tree.names(link.link, None):
                self._links.append(_KeptLink(name, link, self._images))
                break
        for ghost in names.ghosts:
            kind = stat.S_IFMT(ghost.mode)
            self._add(ghost.ghost_path, kind)
            if not ghost.is_directory:
                self._add(ghost.path, kind, ghost=ghost)
                self._add(f"{ghost.path}.cr_link", kind, ghost=ghost)
        for link in names.links:
            self._add(link.path, None, link=link)
            self._add(f"{link.path}.cr_link", None, link=link)
        self._in_the_way = taken_names(names)
        for each in names.sockets:
            self._add_socket(each)

    def _add(
        self,
        path: str,
        kind: int | None,
        *,
        ghost: Ghost | None = None,
        link: LinkRemap | None = None,
    ) -> None:
        self._made += [_Made(name, ghost, link) for name in self._tree.names(path, kind)]
        self._made += [_Made(name) for name in self._tree.directories(path)]

    def _add_socket(self, each: BoundSocket) -> None:
        name = next(self._tree.names(each.path, stat.S_IFSOCK), None)
        if name is not None:
            parked = next(self._tree.names(f"{each.path}.criu-sk-ghost", None))
            self._sockets.append((name, parked))
            self._made.append(_Made(name))
            self._made += [_Made(above) for above in self._tree.directories(each.path)]

    # ---- afterwards ----

    def succeeded(self) -> None:
        """The restore is done: keep what the next one needs."""
        for link in self._links:
            link.let_go()

    def undo(self, *, killed: bool) -> tuple[str, ...]:
        """Undo what a failed restore did, once its processes have ended; what is left of it.

        ``killed``: CRIU had no chance to undo it.
        """
        from ._dump_lock import lock_of_dump  # a restore that succeeds has no need of these
        from ._temporary import remove_temporary

        left = [f"{path}, in the way" for path in self._in_the_way if os.path.lexists(path)]
        for name, parked in self._sockets:
            _unpark(name, parked)
        for made in sorted(self._made, key=_order):
            left += self._remove(made)
        for name, _ in self._sockets:
            if name.before is not None and stat.S_ISSOCK(name.before.st_mode):
                _bind_again(name, name.before)
        for link in self._links:
            if not link.put_back():
                left.append(f"{link.path} is gone, which a dump made with link_remap")
        left += remove_cgroups(self._cgroups)
        places = [os.fsdecode(self._opts.root)] if self._opts.root else []
        left += remove_temporary(self._since, (*places, f"/proc/self/fd/{self._work}"), killed)
        if self._opts.tcp_established:
            left += lock_of_dump(self._images)
        return tuple(dict.fromkeys(left))

    def _remove(self, made: _Made) -> Iterator[str]:
        found = made.name.made()
        if found is None or not self._is_ours(made, found):
            return
        if not self._alone:
            yield f"{made.name.path} ({RESTORING})"
            return
        try:
            made.name.remove()
        except OSError as error:
            yield f"{made.name.path} ({error.strerror})"

    def _is_ours(self, made: _Made, found: os.stat_result) -> bool:
        if made.ghost is not None:
            return made.ghost.is_like(found)
        if made.link is not None:
            files = [each.file for each in self._links if each.path == made.link.link]
            return any(file is not None and os.path.samestat(file, found) for file in files)
        return True


def _order(made: _Made) -> tuple[bool, int]:
    """Files first, and each directory before the one that it is in."""
    return made.name.kind == stat.S_IFDIR, -made.name.path.count("/")


def _unpark(name: _Name, parked: _Name) -> None:
    """Bring back the file that CRIU has moved out of the way of a deleted socket's name."""
    moved = parked.made()
    if moved is not None and name.before is not None and os.path.samestat(moved, name.before):
        with contextlib.suppress(OSError):
            parked.rename_to(name)


def _bind_again(name: _Name, before: os.stat_result) -> None:
    """CRIU unlinks the socket at a name that it is about to bind: nobody listened on it."""
    if name.look() is not None:
        return
    with contextlib.suppress(OSError), name.directory() as at:
        path = f"/proc/self/fd/{at}/{name.parts[-1]}"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
        os.chown(path, before.st_uid, before.st_gid, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(before.st_mode))

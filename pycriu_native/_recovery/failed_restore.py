"""Undoes the changes of a failed restore to the file system.

CRIU removes the names that it makes (``created_names.py``) when a restore ends or fails. A CRIU
that is killed leaves them, and the next restore fails because they exist; one that fails
while it opens a deleted file leaves the name of that file. :class:`RestoreUndo` reads the state
before CRIU starts. When the restore has failed and its processes have ended, it removes the names
that are new. It removes nothing while another restore of the same images runs.

The links of ``link_remap`` that CRIU removes are made again (``link_remaps.py``).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from .._support.lazy import socket
from .._support.no_fork import no_fork
from .._system.file_lock import lock, unlock_and_close
from .._system.paths_below import Name, Tree
from ..options.criu_opts import CriuOpts
from .created_cgroups import missing_cgroups, remove_cgroups
from .created_names import Ghost, LinkRemap, MadeNames, taken_names
from .link_remaps import KeptLink
from .temporary_files import remove_temporary


class RestoreUndo:
    """The state of the file system before a restore, and the undo of its changes."""

    def __init__(self, images: int, work: int, opts: CriuOpts, names: MadeNames) -> None:
        """``images`` and ``work`` (CRIU's directory) are the caller's, open until :meth:`close`.

        ``names`` are those of the images.
        """
        self._images = images
        self._work = work
        self._opts = opts
        self._since = time.time()
        self._lock: int | None = None
        self._alone = True
        self._in_the_way: tuple[str, ...] = ()
        self._cgroups = missing_cgroups(images, opts)
        self._tree = Tree(names.root)
        self._made: list[tuple[Name, Ghost | LinkRemap | None]] = []
        """The names that CRIU may make, and what the images say of their files."""
        self._links: list[KeptLink] = []
        self._sockets: list[tuple[Name, Name]] = []
        try:
            if names:
                self._alone = self._claim()
                self._look(names)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its descriptors."""
        self._tree.close()
        if self._lock is not None:
            unlock_and_close(self._lock)
            self._lock = None

    def _claim(self) -> bool:
        """Lock the images; False if another call restores them."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._lock = os.open(f"/proc/self/fd/{self._images}", flags)
        except OSError:
            return True
        return lock(self._lock)

    def _look(self, names: MadeNames) -> None:
        for link in names.links:
            if name := next(self._tree.names(link.link, None), None):
                self._links.append(KeptLink(name, link, self._images))
        for ghost in names.ghosts:
            kind = stat.S_IFMT(ghost.mode)
            self._add(ghost.ghost_path, kind)
            if not ghost.is_directory:
                self._add(ghost.path, kind, ghost)
                self._add(f"{ghost.path}.cr_link", kind, ghost)
        for link in names.links:
            self._add(link.path, None, link)
            self._add(f"{link.path}.cr_link", None, link)
        self._in_the_way = taken_names(names)
        for path in names.sockets:
            self._add_socket(path)

    def _add(self, path: str, kind: int | None, file: Ghost | LinkRemap | None = None) -> None:
        self._made += [(name, file) for name in self._tree.names(path, kind)]
        self._made += [(name, None) for name in self._tree.directories(path)]

    def _add_socket(self, path: str) -> None:
        name = next(self._tree.names(path, stat.S_IFSOCK), None)
        if name is not None:
            parked = next(self._tree.names(f"{path}.criu-sk-ghost", None))
            self._sockets.append((name, parked))
            self._made.append((name, None))
            self._made += [(above, None) for above in self._tree.directories(path)]

    def succeeded(self) -> None:
        """Keep the links that the next restore needs, after a success."""
        for link in self._links:
            link.detach()

    def undo(self, *, killed: bool) -> tuple[str, ...]:
        """Undo a failed restore whose processes have ended; returns messages about what remains.

        ``killed``: CRIU was killed, so that it has undone nothing.
        """
        remaining = [
            f"{path}, which the restore must create"
            for path in self._in_the_way
            if os.path.lexists(path)
        ]
        for name, parked in self._sockets:
            _unpark(name, parked)
        # Files first, and each directory before the one that it is in.
        deepest_first = sorted(self._made, key=lambda made: -made[0].path.count("/"))
        for name, file in sorted(deepest_first, key=lambda made: made[0].kind == stat.S_IFDIR):
            remaining += self._remove(name, file)
        for name, _ in self._sockets:
            if name.before is not None and stat.S_ISSOCK(name.before.st_mode):
                _bind_again(name, name.before)
        for link in self._links:
            if not link.put_back():
                remaining.append(f"{link.path}, which a dump made with link_remap, is gone")
        remaining += remove_cgroups(self._cgroups)
        places = [os.fsdecode(self._opts.root)] if self._opts.root else []
        remaining += remove_temporary(
            self._since, (*places, f"/proc/self/fd/{self._work}"), killed=killed
        )
        if self._opts.tcp_established:
            with no_fork:
                from .dump_lock import lock_of_dump  # needed after a failure only

            remaining += lock_of_dump(self._images)
        return tuple(dict.fromkeys(remaining))

    def _remove(self, name: Name, file: Ghost | LinkRemap | None) -> Iterator[str]:
        result = name.made()
        if result is None or not self._is_ours(file, result):
            return
        if not self._alone:
            yield f"{name.path} (another restore of the same images may be using it)"
            return
        try:
            name.remove()
        except OSError as error:
            yield f"{name.path} ({error.strerror})"

    def _is_ours(self, file: Ghost | LinkRemap | None, status: os.stat_result) -> bool:
        if file is None:
            return True
        if isinstance(file, Ghost):
            return file.is_like(status)
        linked = [each.file for each in self._links if each.path == file.link]
        return any(each is not None and os.path.samestat(each, status) for each in linked)


def _unpark(name: Name, parked: Name) -> None:
    """Move a file back that CRIU has renamed to bind the name of a deleted socket."""
    moved = parked.made()
    if moved is not None and name.before is not None and os.path.samestat(moved, name.before):
        with contextlib.suppress(OSError):
            parked.rename_to(name)


def _bind_again(name: Name, before: os.stat_result) -> None:
    """Make a socket again that CRIU has unlinked to bind its name: no process listened on it."""
    if name.look() is not None:
        return
    with contextlib.suppress(OSError), name.directory() as at:
        path = f"/proc/self/fd/{at}/{name.parts[-1]}"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
        os.chown(path, before.st_uid, before.st_gid, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(before.st_mode))

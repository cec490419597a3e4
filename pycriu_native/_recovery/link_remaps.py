"""The links that a dump with ``link_remap`` creates for files whose opened name was removed.

``link_remap.<id>`` is a hard link in the directory of the former name. A successful restore removes
it, and so does a dump that leaves the process running; the images could then not be restored
(again). So another hard link is kept in the images directory, if that is on the same file system,
and the link is created again for a restore. A killed dump leaves it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator

from .._integrity.dump_marker import LINKS
from .._system.descriptors import files_of
from .._system.paths_below import Name, Tree
from .created_names import LinkRemap, identity, made_names
from .file_entries import FileEntries

KEPT = ".kept"
"""Suffix of a second link to the same file, which exists during a restore."""

LINK_REMAP = re.compile(r"link_remap\.\d+")


class KeptLink:
    """A link of ``link_remap`` that must exist before and after a restore."""

    def __init__(self, name: Name, link: LinkRemap, images: int) -> None:
        self.path = link.link
        self._name = name
        self._beside = Name(name.at, (*name.parts[:-1], name.parts[-1] + KEPT), "", None)
        self._images = images
        self._link = link
        self._made: str | None = None
        self.file = name.before or self._put()
        """The file of the link; None: it does not exist and was not kept."""
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
        self.detach()
        if done:
            self.forget()
        return done

    def forget(self) -> None:
        """Remove the link that this call has created in the images directory."""
        if self._made is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._made, dir_fd=self._images)
                os.rmdir(LINKS, dir_fd=self._images)

    def detach(self) -> None:
        """After a successful restore: the link in the images directory stays."""
        with contextlib.suppress(OSError):
            self._beside.remove()


def has_link(images: int, link: LinkRemap) -> bool:
    """Whether a restore finds the link, or this library can put it back."""
    beside = f"{link.link}{KEPT}"
    result = os.path.lexists(link.link) or os.path.lexists(beside)
    return result or _kept(images, link) is not None


def _kept(images: int, link: LinkRemap) -> str | None:
    """The hard link that is kept for it, below the images directory.

    Its name ends with its inode number, by which a copy (another file) is recognized.
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


def keep_links(images: int, root: str) -> list[KeptLink]:
    """Keep the links of a dump that leaves its process running; ``root``: a path of its root."""
    with contextlib.closing(Tree(root)) as tree:
        kept = []
        for link in made_names(FileEntries(images), root).links:
            if name := next(tree.names(link.link, None), None):
                kept.append(KeptLink(name, link, images))
                kept[-1].detach()
        return kept


class DumpLinks:
    """The links that one dump makes, removed if CRIU is killed in it."""

    def __init__(self) -> None:
        self._trees: list[Tree] = []
        self._links: dict[int, tuple[str, set[str], set[tuple[int, int]]]] = {}
        """By directory: its path, its links before, and device and inode of files that get one."""

    def close(self) -> None:
        """Close the descriptors."""
        for tree in self._trees:
            tree.close()

    def look(self, pids: Iterable[int]) -> None:
        """Find the files of processes whose opened name was removed and that have another one."""
        for pid in pids:
            tree = Tree(f"/proc/{pid}/root")
            self._trees.append(tree)
            for file, path in _nameless(pid):
                directory, base, _ = tree.nearest(f"/proc/{pid}/root{path}")
                if directory is not None:
                    at = base.removeprefix(f"/proc/{pid}/root")
                    new = at, set(self._links_in(directory)), set[tuple[int, int]]()
                    self._links.setdefault(directory, new)[2].add((file.st_dev, file.st_ino))

    def remove(self, *, needed: bool) -> Iterator[str]:
        """Remove the new links unless the images need them; yields those that stay."""
        for directory, (place, before, files) in self._links.items():
            for name in self._links_in(directory):
                path = f"{place}/{name}"
                try:
                    result = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    if name in before or (result.st_dev, result.st_ino) not in files:
                        continue
                    if needed:
                        yield f"{path}, which a restore of the images needs"
                    else:
                        os.unlink(name, dir_fd=directory)
                except OSError as error:
                    yield f"{path} ({error.strerror})"

    def _links_in(self, directory: int) -> list[str]:
        with contextlib.suppress(OSError):
            return list(filter(LINK_REMAP.fullmatch, os.listdir(f"/proc/self/fd/{directory}")))
        return []


def _nameless(pid: int) -> Iterator[tuple[os.stat_result, str]]:
    """Files that a process has open or mapped, and their former paths in its root."""
    for link, path in files_of(pid):
        with contextlib.suppress(OSError):
            file = os.stat(link)
            if file.st_nlink and not _is_at(file, f"/proc/{pid}/root{path}"):
                yield file, path


def _is_at(file: os.stat_result, path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(file.st_mode) or os.path.samestat(file, os.lstat(path))
    return False

"""Names below open directories, for files that may not exist yet.

If a directory of the path is replaced by a link meanwhile, no file elsewhere is removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from .._support.no_fork import no_fork
from .._support.unpatched import close


class Name:
    """A name below an open directory, and the state of the file when the object was made."""

    def __init__(self, at: int, parts: tuple[str, ...], path: str, kind: int | None) -> None:
        self.at, self.parts, self.path = at, parts, path
        self.kind = kind
        """The expected type of the file; None for any."""
        self.before = self.look()

    def look(self) -> os.stat_result | None:
        """The state of the file now; None if there is none."""
        with contextlib.suppress(OSError), self.directory() as at:
            return os.stat(self.parts[-1], dir_fd=at, follow_symlinks=False)
        return None

    @contextlib.contextmanager
    def directory(self) -> Iterator[int]:
        """The open directory of the file. Links are not followed."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.ExitStack() as opened:
            at = self.at
            for part in self.parts[:-1]:
                at = os.open(part, flags, dir_fd=at)
                opened.callback(close, at)
            yield at

    def made(self) -> os.stat_result | None:
        """The file if it is new and has the expected type."""
        result = None if self.before is not None else self.look()
        if result is not None and self.kind not in (None, stat.S_IFMT(result.st_mode)):
            return None
        return result

    def remove(self) -> None:
        with self.directory() as at:
            if self.kind == stat.S_IFDIR:
                os.rmdir(self.parts[-1], dir_fd=at)
            else:
                os.unlink(self.parts[-1], dir_fd=at)

    def rename_to(self, other: Name) -> None:
        with self.directory() as here, other.directory() as there:
            os.rename(self.parts[-1], other.parts[-1], src_dir_fd=here, dst_dir_fd=there)

    def link_from(self, source: str, at: int | None = None) -> None:
        with self.directory() as here:
            os.link(source, self.parts[-1], src_dir_fd=at, dst_dir_fd=here, follow_symlinks=False)

    def link_to(self, target: str, at: int) -> None:
        with self.directory() as here:
            os.link(self.parts[-1], target, src_dir_fd=here, dst_dir_fd=at, follow_symlinks=False)


class Tree:
    """Names below a root, each relative to a descriptor of its nearest existing directory."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: dict[str, int | None] = {}

    def close(self) -> None:
        for fd in self._open.values():
            if fd is not None:
                close(fd)
        self._open.clear()

    def names(self, path: str, kind: int | None) -> Iterator[Name]:
        """The name; if its directory does not exist, also its last part in the nearest one."""
        at, base, parts = self.nearest(path)
        if at is None:
            return
        yield Name(at, parts, path, kind)
        if len(parts) > 1:
            yield Name(at, parts[-1:], f"{base.rstrip('/')}/{parts[-1]}", kind)

    def directories(self, path: str) -> Iterator[Name]:
        """The missing directories above a name."""
        at, base, parts = self.nearest(path)
        for count in range(1, len(parts)):
            if at is not None:
                above = "/".join((base.rstrip("/"), *parts[:count]))
                yield Name(at, parts[:count], above, stat.S_IFDIR)

    def nearest(self, path: str) -> tuple[int | None, str, tuple[str, ...]]:
        """The nearest existing directory: descriptor, path, and the parts below it."""
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
        with no_fork:
            from .mounts import inside  # needed for containers only

        return root + inside(root, path.removeprefix(root))

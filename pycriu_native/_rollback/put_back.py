"""Returns the files of a set to their state at the dump, and undoes that if the restore fails.

A file is changed in place: its other names, and the processes that have it open, keep it. What
differs of its content before is saved beside it under another name, or in another directory if
there is not enough space, until the restore has ended. All files are checked and saved before the
first one is changed.

A restore that is killed leaves the files in the state of the dump, or partly changed; the next
restore of the set repairs that.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable

from .._support.unpatched import close
from .._system.descriptors import where
from .._system.file_lock import lock, unlock_and_close
from .._system.regular_file import open_regular
from ..errors import CriuError, ImagesError
from .directories import MissingDirectories
from .index import INDEX, SavedFile, read
from .patterns import matches, real_paths
from .restored_file import BEFORE, RestoredFile, before_of, failed, is_before, remove
from .restored_name import RestoredName
from .written_files import COMPANIONS


class RollBack:
    """The files of one restore. ``succeeded`` or ``give_back`` ends it."""

    def __init__(self, images: int, spare: int | None = None) -> None:
        """``images`` and ``spare`` stay the caller's. Raises ``ImagesError``; nothing is touched.

        ``spare`` is a directory for previous contents for which there is no space beside the
        files. Default: ``images``.
        """
        self._images = images
        self._spare = images if spare is None else spare
        self._index = read(images)
        self._directories = MissingDirectories(self._index.directories)
        self._files: list[RestoredFile | RestoredName] = []
        self._lock = open_regular(INDEX, dir_fd=images)
        if not lock(self._lock):
            close(self._lock)
            raise ImagesError(
                f"restore from {where(images)} failed: another restore of these images is under "
                "way, which changes the same files",
                verb="restore",
            )

    def put_back(self, check: Callable[[], object]) -> None:
        """Put all files back; if that fails for one, all are changed back."""
        try:
            self._remove_leftovers()
            names = [RestoredName(each) for each in self._index.names]
            self._files = [*self._all_files(), *names]
            self._each(lambda file: file.keep(check))
            try:
                self._directories.create()
            except OSError as error:
                raise failed(str(error.filename), error) from None
            self._each(lambda file: file.change(check))
        except BaseException as error:
            for text in self.give_back():
                error.add_note(f"left behind: {text}")
            raise

    def _each(self, step: Callable[[RestoredFile | RestoredName], object]) -> None:
        for file in self._files:
            try:
                step(file)
            except CriuError:
                raise
            except OSError as error:
                raise failed(file.path, error) from None

    def _all_files(self) -> list[RestoredFile]:
        index = self._index
        found: dict[str, SavedFile | None] = {each.path: each for each in index.files}
        real_path = real_paths()  # on another host, a directory can be a link
        known = {
            real_path(each.path)
            for saved in (index.files, index.names, index.directories)
            for each in saved
        }
        for path in matches(index.patterns, index.ignore):
            if os.path.basename(path).startswith(BEFORE):
                remove(path)  # of a restore that was killed
            elif path not in known and not is_before(path):
                found.setdefault(path, None)
        _unite_directories(found)
        names = Counter(each.same_as for each in index.names)
        return [
            RestoredFile(path, entry, self._images, self._spare, names[path])
            for path, entry in found.items()
        ]

    def _remove_leftovers(self) -> None:
        """Remove what a restore that was killed has saved of journals that no longer exist."""
        for each in self._index.files:
            for ending in COMPANIONS:
                with contextlib.suppress(OSError):
                    os.unlink(before_of(each.path + ending))

    def give_back(self) -> tuple[str, ...]:
        """Undo the changes of all files; returns a message for each where that failed."""
        remaining = []
        for file in self._files:
            try:
                file.give_back()
            except OSError as error:
                remaining.append(f"{file.path}, in the state of the dump ({error.strerror})")
        self._files = []
        self._directories.remove()
        return tuple(remaining)

    def succeeded(self) -> None:
        """Keep the changes: the restored processes run."""
        for file in self._files:
            file.forget()
        self._files = []
        self._directories.keep()

    def close(self) -> None:
        """Unlock and close; undo the changes unless :meth:`succeeded` was called."""
        self.give_back()
        unlock_and_close(self._lock)


def _unite_directories(found: dict[str, SavedFile | None]) -> None:
    """Of new directories, keep those of which all contents are new, and drop the contents."""
    for path in sorted(found):
        if path not in found or not os.path.isdir(path) or os.path.islink(path):
            continue
        contents = [
            os.path.join(place, name)
            for place, folders, files in os.walk(path)
            for name in (*folders, *files)
        ]
        new = all(each in found and found[each] is None for each in contents)
        if new and not any(map(os.path.ismount, (path, *contents))):
            for each in contents:
                del found[each]
        elif found[path] is None:
            del found[path]

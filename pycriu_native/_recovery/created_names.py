"""Names in the file system that CRIU makes while it restores a set, derived from its images.

A restore makes these (``criu/files-reg.c``, ``criu/sk-unix.c`` of 4.2), and removes them itself
when it comes to its end:

* for a file that was deleted, ``NAME.cr.<id>.ghost``; for a deleted directory, ``NAME`` itself
* while such a file is opened, ``NAME``, or ``NAME.cr_link`` where ``NAME`` is taken
* directories above a name that do not exist
* a socket at each bound name; what was at the name of a deleted one is ``NAME.criu-sk-ghost``
  meanwhile

``link_remap.<id>`` is made by a dump, and a restore that succeeds removes it.
"""

from __future__ import annotations

import os
import stat

from .._integrity.unchanged import SetState, Unchanged
from .._support.frozen_dataclass import dataclass
from .._wire.fields import HEAD
from ..options.criu_opts import CriuOpts
from .file_entries import Fields, FileEntries, fields_of, messages, number_in, read_image

LINKED, GHOST = 0, 1
"""``remap_type`` of ``remap-file-path.proto``."""
OLD_GHOST = 1 << 31
"""The bit of the id that marks a ghost in old images without a type."""
NO_MOUNT = 1
"""-1, as protobuf writes a sint32."""
EXTERNAL = 1
"""Of a unix socket's ``uflags``: USK_EXTERN."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """A deleted file, whose contents are in the images."""

    path: str
    number: int
    mode: int
    uid: int
    gid: int
    mtime: int | None
    """Seconds; None in images of CRIU before 1.8."""

    @property
    def is_directory(self) -> bool:
        """Whether it is made under its own name."""
        return stat.S_ISDIR(self.mode)

    @property
    def ghost_path(self) -> str:
        """The name under which CRIU creates it."""
        return self.path if self.is_directory else f"{self.path}.cr.{self.number:x}.ghost"

    def is_like(self, status: os.stat_result) -> bool:
        """Whether a file may be this one: CRIU sets its attributes before it renames it."""
        same = (self.mode, self.uid, self.gid) == (status.st_mode, status.st_uid, status.st_gid)
        return same and self.mtime in (None, int(status.st_mtime))


@dataclass(frozen=True, slots=True)
class LinkRemap:
    """A file that was opened under a deleted name, and the link that the dump made to it."""

    path: str
    link: str
    """``link_remap.<id>``, in the same directory or above it."""
    number: int


@dataclass(frozen=True, slots=True)
class MadeNames:
    """All names that CRIU makes; paths are those of this host."""

    ghosts: tuple[Ghost, ...] = ()
    links: tuple[LinkRemap, ...] = ()
    sockets: tuple[str, ...] = ()
    """The paths to which unix sockets are bound."""
    root: str = "/"
    """Below which symbolic links are followed."""

    def __bool__(self) -> bool:
        return bool(self.ghosts or self.links or self.sockets)


_names = Unchanged[MadeNames]()


def made_names(entries: FileEntries, where: CriuOpts | str) -> MadeNames:
    """The names for a restore of images with these options, or below the root of a process.

    Images that cannot be read are left out: CRIU, or a check, reports them.
    """
    if not entries.remaps and not entries.sockets:
        return MadeNames()
    places = Places(entries.images, where)
    ghosts, links = [], []
    for remap in entries.remaps:
        number = number_in(remap, 2)
        kind = number_in(remap, 3, GHOST if number & OLD_GHOST else LINKED)
        number &= ~OLD_GHOST
        file = entries.regular.get(number_in(remap, 1), {})
        mount = number_in(file, 7, NO_MOUNT)
        path = places.of_file(file, mount)
        if path is None:
            continue
        if kind == GHOST:
            image = messages(entries.images, f"ghost-file-{number:x}.img")
            head = fields_of(image[0]) if image else {}
            if 3 in head:
                mtime = head.get(8)
                seconds = number_in(fields_of(mtime), 1) if isinstance(mtime, bytes) else None
                mode, uid, gid = (number_in(head, field) for field in (3, 1, 2))
                ghosts.append(Ghost(path, number, mode, uid, gid, seconds))
        elif kind == LINKED:
            link = places.of_file(entries.regular.get(number, {}), mount)  # its mount is not saved
            if link is not None:
                links.append(LinkRemap(path, link, number))
    bound = filter(None, map(places.of_socket, entries.sockets))
    return MadeNames(tuple(ghosts), tuple(links), tuple(bound), places.root)


def names_of_restore(state: SetState, entries: FileEntries, opts: CriuOpts) -> MadeNames:
    """As :func:`made_names`; images that have not changed are not read again."""
    key = (str(opts.root), str(opts.external))
    return _names.result(state, key, lambda: made_names(entries, opts))


def taken_names(names: MadeNames) -> tuple[str, ...]:
    """The names that CRIU cannot make, since an earlier restore has left them."""
    files = [ghost for ghost in names.ghosts if not ghost.is_directory]
    taken = [ghost.ghost_path for ghost in files]
    former = [ghost.path for ghost in files] + [link.path for link in names.links]
    taken += [f"{path}.cr_link" for path in former if os.path.lexists(path)]
    return tuple(path for path in taken if os.path.lexists(path))


def run_of_dump(images: int) -> str | None:
    """The run id of the CRIU that made them, which is in the name of its lock; None before 4.1."""
    run = _inventory(images).get(13)
    return run.decode("ascii", "replace") if isinstance(run, bytes) else None


def identity(images: int) -> str:
    """A value that differs between two dumps to the same directory."""
    return run_of_dump(images) or str(_inventory(images).get(8, 0))


def _inventory(images: int) -> Fields:
    data = read_image(images, "inventory.img")
    return fields_of(data[HEAD : HEAD + int.from_bytes(data[4:8], "little")])


class Places:
    """Converts names in the images to names on this host.

    ``where`` is the options of a restore, or the path of a process's root.
    """

    def __init__(self, images: int, where: CriuOpts | str) -> None:
        self._mounts: dict[int, tuple[str, str]] | None = None
        if isinstance(where, str):
            self.root = where
            return
        self.root = os.fsdecode(where.root) if where.root else "/"
        self._mounts = self._mount_places(images, where)
        if self._mounts is None:
            self.root = "/"

    def of_file(self, fields: Fields, mount: int) -> str | None:
        name = fields.get(6)
        return self._place(os.fsdecode(name), _signed(mount)) if isinstance(name, bytes) else None

    def of_socket(self, fields: Fields) -> str | None:
        name, directory = fields.get(11), fields.get(14)
        if not isinstance(name, bytes) or not name.strip(b"\0") or name.startswith(b"\0"):
            return None
        if number_in(fields, 6) & EXTERNAL:
            return None
        text = os.fsdecode(name.rstrip(b"\0"))
        if isinstance(directory, bytes):
            text = os.path.join(os.fsdecode(directory), text)
        elif not text.startswith("/"):
            return None
        return self._place(text, _signed(number_in(fields, 17, NO_MOUNT)))

    def _place(self, name: str, mount: int) -> str | None:
        """None if it is on a file system that exists only in the mount namespace."""
        path = "/" + os.path.normpath("./" + name.lstrip("/"))
        if self._mounts is None or mount == -1:
            return os.path.normpath(self.root.rstrip("/") + path)
        result = self._mounts.get(mount)
        if result is None:
            return None
        point, place = result
        inside = path.removeprefix(point.rstrip("/")) if point != "/" else path
        return os.path.normpath(f"{place.rstrip('/')}/{inside.lstrip('/')}")

    def _mount_places(self, images: int, opts: CriuOpts) -> dict[int, tuple[str, str]] | None:
        """Mount point and place on this host of each mount; None without a mount namespace."""
        names = [name for name in os.listdir(images) if name.startswith("mountpoints-")]
        if not names:
            return None
        entries = [fields_of(entry) for name in names for entry in messages(images, name)]
        places: dict[int, tuple[str, str]] = {}
        given = dict(each.partition(":")[::2] for each in map(str, opts.external or ()))
        base = next((entry for entry in entries if _text(entry, 7) in ("/", "./")), None)
        for entry in entries:
            point = os.path.normpath("/" + _text(entry, 7).removeprefix(".").lstrip("/"))
            key, within = _text(entry, 18), _text(entry, 6)
            if key:
                place = given.get(f"mnt[{key}]")
            elif entry is base:
                place = self.root
            elif base is not None and entry.get(3) == base.get(3):
                # The same file system, mounted once more.
                part = os.path.relpath(within, _text(base, 6) or "/")
                place = None if part.startswith("..") else os.path.join(self.root, part)
            else:
                place = None
            if place is not None:
                places[number_in(entry, 2)] = (point, place)
        return places


def _text(fields: Fields, field: int) -> str:
    value = fields.get(field, b"")
    return os.fsdecode(value) if isinstance(value, bytes) else ""


def _signed(number: int) -> int:
    """A sint32 (zigzag)."""
    return number >> 1 ^ -(number & 1)

"""A manifest of an image set: the size and checksum of each file, to verify the set later.

A restore detects missing and truncated files (``completeness.py``), but not pages that a disk, a
copy or another user has changed. So seal a set that is stored or moved, and verify it before it is
restored::

    dump(pid, opts)
    digest = seal("ckpt")
    ...
    verify("ckpt", digest)
    restore(opts)

The manifest is one JSON object. A user who can write to the directory can write a new one too: keep
the digest that ``seal`` returns elsewhere. Both functions read all files once. The set must not be
in use: changes meanwhile are not detected.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping

from .._support.light_typing import Any
from .._support.unpatched import closing
from .._system.descriptors import opened_directory, where
from .._system.regular_file import open_regular, read_regular, replace_file
from .._system.writing import writing
from ..errors import ImagesError, images_error
from ..options.values import Descriptor
from .dump_marker import BEFORE_RESTORE, CLAIM, DEEPEST, EARLIER, FRAMES, LINKS, UNFINISHED

MANIFEST = "pycriu-native.manifest"
"""The manifest's name in the images directory."""

FORMAT = 1
LARGEST = 64 * 2**20
"""Bytes of a manifest that are read: some 100 for each file."""

StrPath = str | os.PathLike[str]


def seal(directory: StrPath | Descriptor) -> str:
    """Write the manifest of a complete image set, and return its SHA-256 in hexadecimal digits.

    The files are synced to disk before the manifest is written: a set with a manifest was complete
    on disk, which CRIU does not ensure. Of parent images the link is listed; seal each set of a
    chain. Subdirectories are listed with their contents. Files that a restore writes (``*.log``,
    ``stats-*``) are left out.

    Raises ``ImagesError`` if there is no such directory, or if a dump is running or did not finish;
    ``OSError`` if a file cannot be read or the manifest cannot be written. Needs no CRIU.
    """
    return seal_with(directory, {})


def seal_with(directory: StrPath | Descriptor, known: Mapping[str, dict[str, Any]]) -> str:
    """Seal a set, of which some files are not read: ``known`` has their entries.

    These are links to files of another sealed set, from ``entries_of``. Raises as ``seal``.
    """
    import hashlib  # slow to import
    import json

    with _opened(directory) as at:
        if UNFINISHED in os.listdir(at):
            raise ImagesError(f"{where(at)} holds a dump that is under way or did not finish")
        entries = {name: known.get(name) or _entry(at, name, sync=True) for name in _names(at)}
        text = json.dumps({"format": FORMAT, "files": entries}, indent=1, sort_keys=True) + "\n"
        with writing(f"{where(at)}/{MANIFEST}"):
            replace_file(at, MANIFEST, text.encode(), sync=True)
            os.fsync(at)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(directory: StrPath | Descriptor, digest: str | None = None) -> None:
    """Compare an image set with its manifest, and the manifest with ``seal``'s digest.

    Raises ``ImagesError`` that names every added, missing, truncated, longer or changed file; also
    if there is no directory or manifest, or if its digest differs. Without a digest, accidental
    changes are found, but not those of a user who changes the manifest as well.
    """
    with _opened(directory) as at:
        expected = _manifest(at, digest)
        result = set(_names(at))
        flaws = [f"{name} was added" for name in result - expected.keys()]
        for name, entry in expected.items():
            flaws += [f"{name} {flaw}" for flaw in _flaws(at, name, entry, name in result)]
        if flaws:
            raise ImagesError(
                f"{where(at)} is not as it was sealed: {', '.join(sorted(flaws))}",
                cause="the images are not as they were sealed",
                cure="copy the whole directory again from where it was sealed",
            )


def entries_of(directory: StrPath | Descriptor) -> dict[str, dict[str, Any]]:
    """The entry of each file in the manifest, by name. ``ImagesError``; ``OSError``."""
    with _opened(directory) as at:
        return _manifest(at, None)


def linked_entries(directory: StrPath, sealed: StrPath) -> dict[str, dict[str, Any]]:
    """The entries of the files that are hard links to files of a sealed set, under any name.

    Empty if that has no manifest. Raises ``OSError``.
    """
    try:
        entries = entries_of(sealed)
    except ImagesError:
        return {}
    known = {}
    for name, entry in entries.items():
        with contextlib.suppress(FileNotFoundError):
            known[os.lstat(f"{os.fspath(sealed)}/{name}").st_ino] = entry
    result = {}
    for name in os.listdir(directory):
        seen = os.lstat(f"{os.fspath(directory)}/{name}")
        if stat.S_ISREG(seen.st_mode) and seen.st_nlink > 1 and seen.st_ino in known:
            result[name] = known[seen.st_ino]
    return result


def _opened(directory: StrPath | Descriptor) -> closing:
    try:
        return opened_directory(directory)
    except OSError as error:
        raise images_error(f"{directory} cannot be opened", error) from None


def _names(at: int) -> Iterator[str]:
    """The files that belong to the set, with those of its subdirectories, by path.

    Not what this package or a restore adds.
    """
    for name in os.listdir(at):
        if name.startswith((MANIFEST, CLAIM, BEFORE_RESTORE, "stats-")) or name.endswith(".log"):
            continue
        if name not in (EARLIER, FRAMES, LINKS):
            yield name
            yield from _below(at, name)


def _below(at: int, directory: str, depth: int = 0) -> Iterator[str]:
    """What is in a subdirectory, if it is one; a link is not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        inner = os.open(directory, flags, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return
        raise
    with closing(inner):
        if depth == DEEPEST:
            raise ImagesError(f"{where(at)} has more than {DEEPEST} directories in each other")
        names = os.listdir(inner)
    for name in names:
        path = f"{directory}/{name}"
        if name not in (MANIFEST, MANIFEST + ".partial", FRAMES):  # of a set in a subdirectory
            yield path
            yield from _below(at, path, depth + 1)


def _entry(at: int, name: str, *, sync: bool = False) -> dict[str, Any]:
    """The entry of a file: size and checksum; of a link its target; else only the file type."""
    import hashlib  # slow to import

    result = os.stat(name, dir_fd=at, follow_symlinks=False)
    if stat.S_ISLNK(result.st_mode):
        return {"link": os.readlink(name, dir_fd=at)}
    if not stat.S_ISREG(result.st_mode):
        if sync and name.endswith(".img") and not stat.S_ISDIR(result.st_mode):
            raise ImagesError(f"{where(at)}/{name} is not a regular file: the set is incomplete")
        return {"kind": stat.S_IFMT(result.st_mode)}
    fd = open_regular(name, dir_fd=at)
    with open(fd, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(fd)
        return {"size": os.fstat(fd).st_size, "sha256": checksum}


def _manifest(at: int, digest: str | None) -> dict[str, dict[str, Any]]:
    import hashlib  # slow to import
    import json

    try:
        text = read_regular(MANIFEST, LARGEST, dir_fd=at)
    except OSError as error:
        raise ImagesError(
            f"{where(at)} has no manifest that can be read ({MANIFEST}: {error.strerror}); seal() "
            "writes one",
            errno=error.errno,
        ) from None
    result = hashlib.sha256(text).hexdigest()
    if digest is not None and result != digest.lower():
        raise ImagesError(
            f"the manifest of {where(at)} has another digest than expected: its SHA-256 is "
            f"{result}, not {digest}"
        )
    try:
        manifest = json.loads(text)
        files = manifest["files"]
        good = manifest["format"] == FORMAT and all(isinstance(e, dict) for e in files.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ImagesError(f"{where(at)}/{MANIFEST} is no manifest that this release can read")
    known: dict[str, dict[str, Any]] = files
    return known


def _flaws(at: int, name: str, expected: dict[str, Any], exists: bool) -> Iterator[str]:
    """How a file differs from its entry in the manifest."""
    if not exists:
        yield "is missing"
        return
    size = os.stat(name, dir_fd=at, follow_symlinks=False).st_size
    if "size" in expected and size != expected["size"]:
        yield f"has {size} bytes, not {expected['size']}"
    elif _entry(at, name) != expected:
        yield "was changed"

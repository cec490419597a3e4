"""The checkpoints of a job in its storage: upload, list, fetch and removal."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import filterfalse
from pathlib import Path
from typing import BinaryIO, cast

from .._integrity.manifest import verify
from .._support.json_values import from_json
from ..archive.codecs import Compression, Peek, compressed, decrypted, encrypted
from ..archive.hashing import Hashing
from ..archive.pack import add_members, members_of, new_archive, unpack
from ..errors import ImagesError, OptionError, Problem
from .directory import Checkpoint, JobDirectory, retained, sync, without_former
from .increments import PARENT, is_memory, layers
from .lease import Lease, token_of, valid_commits
from .storage import Storage, UnreadableError

NONE = (-1, -1)

DAMAGE = (None, 0, errno.EIO, errno.ENOENT, errno.EINVAL, errno.ELOOP)
"""Errors of a damaged checkpoint: other contents, a bad disk, and missing or other files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """An archive in the storage: a checkpoint, or one of its parents."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record of a complete checkpoint."""

    name: str
    objects: tuple[Object, ...]
    """The checkpoint without its parents, then each parent, the nearest first."""
    checkpoint: Checkpoint
    uploaded: int = 0
    """Bytes of the objects that the upload has written; not in the record."""


def identity(checkpoint: Checkpoint) -> tuple[int, int]:
    """Token and number of a checkpoint, which order checkpoints by time."""
    return checkpoint.token, checkpoint.number


def commits(storage: Storage) -> list[Commit]:
    """The complete checkpoints, the newest first; unreadable records are skipped."""
    return _Records(storage).known


class _Records:
    """The records of checkpoints in a storage, by whether they can be read."""

    def __init__(self, storage: Storage) -> None:
        self.known: list[Commit] = []
        """The newest first."""
        self.other_form = NONE
        """Token and number of the newest that another release has made."""
        self.is_late = False
        """Whether one is not listed yet."""
        for name in reversed(valid_commits(storage)):
            data = storage.read(f"commits/{name}")
            self.is_late |= data is None
            try:
                self.known.append(_commit(name, data or b""))
            except ValueError:
                pass  # a part of a record is none
            except (TypeError, KeyError):
                token, _, number = name.removesuffix(".json").partition("-")
                self.other_form = max(self.other_form, (int(token), int(number)))


def _commit(name: str, data: bytes) -> Commit:
    """A record. ``ValueError`` for an incomplete one, ``TypeError``, ``KeyError`` for another."""
    body = json.loads(data)
    checkpoint = from_json(Checkpoint, without_former(body["checkpoint"]))
    objects = tuple(from_json(Object, each) for each in body["objects"])
    return Commit(name=name, objects=objects, checkpoint=checkpoint)


def check_codecs(
    compress: Compression, encrypt_to: Sequence[str], decrypt_with: Sequence[str]
) -> None:
    """Raise the ``OptionError`` or ``CriuError`` that an upload, or fetching it, would raise."""
    with compressed(io.BytesIO(), compress):
        pass
    if not encrypt_to:
        return
    upload = io.BytesIO()
    with encrypted(upload, encrypt_to):
        pass
    if not decrypt_with:
        return
    upload.seek(0)
    try:
        with decrypted(Peek(upload), decrypt_with) as content:
            content.read()
    except ImagesError:
        rule = "none of these keys can decrypt uploads that are encrypted with encrypt_to"
        raise OptionError([Problem("decrypt_with", "…", rule)], verb="run") from None


def upload(
    storage: Storage,
    lease: Lease,
    checkpoint: Checkpoint,
    *,
    compress: Compression,
    encrypt_to: Sequence[str],
    check: Callable[[], object],
) -> Commit:
    """Upload a checkpoint and commit it. ``check`` is called between parts, and may raise.

    Parents that the storage has are not uploaded again. Raises ``LeaseLost`` if another holder has
    taken over; the commit is then invalid. Can raise any ``Exception``, without a commit.
    """
    number, token = checkpoint.number, lease.token
    record = f"{token:08}-{number:08}.json"
    there = commits(storage) if checkpoint.parents else []
    known = {_key(each.name): each for commit in there for each in commit.objects}
    objects: list[Object] = []
    new: list[str] = []
    try:
        for depth, layer in enumerate(layers(checkpoint.path)):
            key = f"{number - depth:08}-{token:08}"
            if depth and key in known:
                objects.append(known[key])
                continue
            new.append(f"checkpoints/{key}-{uuid.uuid4().hex}.tar")
            members = [
                path for path in members_of(layer) if path.relative_to(layer).parts[0] != PARENT
            ]
            with storage.opened(new[-1], "wb") as file:
                out = Hashing(file, check)
                with new_archive(cast(BinaryIO, out), compress, encrypt_to) as tar:
                    add_members(tar, members, layer)
            objects.append(Object(name=new[-1], size=out.size, sha256=out.sha256()))
        lease.check()
    except BaseException:
        # Some file systems have created a file with a part of the data.
        for name in new:
            with contextlib.suppress(Exception):
                storage.remove(name)
        raise
    made = Commit(
        name=record,
        objects=tuple(objects),
        checkpoint=replace(checkpoint, path=""),
        uploaded=sum(each.size for each in objects if each.name in new),
    )
    body = {key: asdict(made)[key] for key in ("objects", "checkpoint")}
    # After an error the record may nevertheless exist, so the objects are not removed.
    storage.write(f"commits/{record}", json.dumps(body).encode())
    lease.committed(record)
    return made


def _key(name: str) -> str:
    """Number and token of an object."""
    return name.rpartition("/")[2].rpartition("-")[0]


def prune(storage: Storage, lease: Lease, made: Commit, keep: int) -> None:
    """Remove all checkpoints that are not ``retained``, and objects without a commit."""
    known = commits(storage)
    needed = retained([each.checkpoint for each in known], keep)
    kept = [each for each in known if each.checkpoint in needed]
    names = {each.name for each in kept}
    if made.name not in names:
        return  # the file system does not yet list new files
    # The record is removed first: objects without one are ignored. Files of a later holder remain,
    # since this process may no longer have the lease.
    for name in storage.names("commits"):
        if name not in names and token_of(name) <= lease.token:
            storage.remove(f"commits/{name}")
    objects = {each.name for commit in kept for each in commit.objects}
    for name in storage.names("checkpoints"):
        if f"checkpoints/{name}" not in objects and int(name.split("-")[1]) <= lease.token:
            storage.remove(f"checkpoints/{name}")


def newest_intact(
    directory: JobDirectory, skip: Callable[[Checkpoint], bool] = lambda _: False
) -> tuple[int, int]:
    """Token and number of the newest checkpoint here that is not damaged; ``NONE``.

    Those for which ``skip`` returns True do not count. One that cannot be read for a reason such as
    missing rights counts: it may be whole, and the supervisor reports the error.
    """
    for each in sorted(directory.all_checkpoints(), key=identity, reverse=True):
        if skip(each):
            continue
        try:
            verify(each.path)
        except OSError as error:  # also ImagesError
            if error.errno in DAMAGE:
                continue
        return identity(each)
    return NONE


def fetch(
    storage: Storage,
    directory: JobDirectory,
    local: tuple[int, int],
    *,
    skip: Callable[[Checkpoint], bool] = lambda _: False,
    decrypt_with: Sequence[str],
    check: Callable[[], object],
    damaged: Callable[[Commit, ImagesError], object],
) -> Commit | None:
    """Fetch the newest complete checkpoint, unless the directory already has it.

    ``local`` is the result of ``newest_intact``: a damaged one here does not hide those there.
    Checkpoints for which ``skip`` returns True do not count. ``damaged`` is called for each one
    that differs from its record. Checkpoints of the directory that do not precede the fetched one
    are removed. Raises ``ImagesError`` if there are checkpoints and all are damaged,
    ``UnreadableError`` for one that is not damaged, and any ``Exception``.
    """
    records = _Records(storage)
    known = [each for each in records.known if not skip(each.checkpoint)]
    newest = ""
    for each in known:
        _check_form(storage, records.other_form, max(identity(each.checkpoint), local))
        if identity(each.checkpoint) <= local:
            return None
        try:
            place = _fetched(storage, directory, each, decrypt_with, check)
        except UnreadableError as error:
            # An earlier one would lose what was done since.
            number = each.checkpoint.number
            message = f"checkpoint {number} on {storage.url} is complete, but {error}"
            raise UnreadableError(message) from None
        except ImagesError as error:
            newest = newest or f"; the newest: {error}"
            damaged(each, error)
            continue
        earlier = {identity(other.checkpoint) for other in known}
        for old in directory.all_checkpoints():
            if identity(old) not in earlier or old.number >= each.checkpoint.number:
                directory.remove(old)
        os.rename(place, directory.checkpoints / str(each.checkpoint.number))
        sync(directory.checkpoints)
        return each
    _check_form(storage, records.other_form, local)
    if local == NONE and (known or records.is_late):
        raise ImagesError(f"none of the checkpoints on {storage.url} can be fetched{newest}")
    return None


def _check_form(storage: Storage, other: tuple[int, int], newest: tuple[int, int]) -> None:
    """Raise ``UnreadableError`` if a record of another form is newer than what can be resumed."""
    if other > newest:
        raise UnreadableError(
            f"{storage.url} has a checkpoint of another release of this package, which this one "
            "cannot read; run the job with that release"
        )


def _fetched(
    storage: Storage,
    directory: JobDirectory,
    commit: Commit,
    decrypt_with: Sequence[str],
    check: Callable[[], object],
) -> str:
    """Fetch a checkpoint into a new directory, and verify it. ``ImagesError`` if it is damaged."""
    directory.checkpoints.mkdir(mode=0o700, exist_ok=True)
    place = directory.checkpoints / "fetched"
    shutil.rmtree(place, ignore_errors=True)
    layer = place
    for depth, each in enumerate(commit.objects):
        _unpack(storage, each, layer, decrypt_with, check)
        if depth:  # it can be the archive of a checkpoint
            for name in filterfalse(is_memory, os.listdir(layer)):
                other = layer / name
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        layer /= PARENT
    verify(place)
    for path in (*place.rglob("*"), place):  # checkpoints of this host are removed for it
        sync(path)
    return str(place)


def _unpack(
    storage: Storage,
    source: Object,
    place: Path,
    decrypt_with: Sequence[str],
    check: Callable[[], object],
) -> None:
    failure: ImagesError | OptionError | None = None
    try:
        with storage.opened(source.name, "rb") as file:
            read = Hashing(file, check)
            try:
                unpack(cast(BinaryIO, read), place, decrypt_with=decrypt_with)
            except (ImagesError, OptionError) as error:
                if read.failure is not None:
                    raise read.failure from None  # of the storage, not of the archive
                failure = error
            # All of it is read, since a wrong key and a damaged archive fail in the same way.
            while read.read(2**20):
                pass
    except FileNotFoundError:
        raise ImagesError(f"{source.name} does not exist") from None
    if (read.size, read.sha256()) != (source.size, source.sha256):
        why = "" if failure is None else f": {failure}"
        raise ImagesError(f"{source.name} was changed after its upload{why}")
    if failure is not None and failure.errno == errno.ENOSPC:
        raise OSError(failure.errno, str(failure))
    if failure is not None:
        raise UnreadableError(str(failure))

"""Checkpoints of a job on its storage: committed, listed, fetched and removed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, cast

from .._integrity.manifest import verify
from ..archive.codecs import Compression, compressed, encrypted
from ..archive.pack import pack, unpack
from ..errors import ImagesError
from .directory import Checkpoint, JobDirectory, sync
from .lease import Lease, token_of, valid_commits
from .storage import Storage

NONE = (-1, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record of a checkpoint that is complete."""

    name: str
    object: str
    size: int
    sha256: str
    checkpoint: Checkpoint

    @property
    def identity(self) -> tuple[int, int]:
        """Token and number under which it was taken; a later one is greater."""
        return identity(self.checkpoint)


def identity(checkpoint: Checkpoint) -> tuple[int, int]:
    """Token and number of a checkpoint."""
    return checkpoint.token, checkpoint.number


def commits(storage: Storage) -> list[Commit]:
    """The complete checkpoints, the newest first; those whose record cannot be read are skipped."""
    result = []
    for name in reversed(valid_commits(storage)):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            body = json.loads(storage.read(f"commits/{name}") or b"")
            checkpoint = Checkpoint(**body.pop("checkpoint"))
            result.append(Commit(**body, name=name, checkpoint=checkpoint))
    return result


class _Hashing:
    """A stream of bytes that are counted and hashed on their way."""

    def __init__(self, stream: BinaryIO, check: Callable[[], object]) -> None:
        self._stream = stream
        self._check = check
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._check()
        self._stream.write(data)
        self._saw(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        self._check()
        data = self._stream.read(size)
        self._saw(data)
        return data

    def flush(self) -> None:
        """The stream flushes at its end."""

    def _saw(self, data: Any) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def check_codecs(compress: Compression, encrypt_to: Sequence[str]) -> None:
    """Raises ``OptionError`` and ``CriuError`` where uploads would."""
    with compressed(io.BytesIO(), compress):
        pass
    if encrypt_to:
        with encrypted(io.BytesIO(), encrypt_to):
            pass


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

    Raises ``LeaseLost`` if another holder has taken over: it does not count then. Any
    ``Exception``: it is not committed.
    """
    number, token = checkpoint.number, lease.token
    name = f"checkpoints/{number:08}-{token:08}-{uuid.uuid4().hex}.tar"
    record = f"{token:08}-{number:08}.json"
    try:
        with storage.opened(name, "wb") as file:
            out = _Hashing(file, check)
            pack(
                checkpoint.path,
                cast(BinaryIO, out),
                compress=compress,
                encrypt_to=encrypt_to,
            )
        lease.check()
    except BaseException:
        # What was written so far has been made a file by some file systems.
        with contextlib.suppress(Exception):
            storage.remove(name)
        raise
    made = Commit(
        name=record,
        object=name,
        size=out.size,
        sha256=out.sha256,
        checkpoint=replace(checkpoint, path=""),
    )
    body = {key: value for key, value in asdict(made).items() if key != "name"}
    # If this fails it may be there all the same, and the object stays.
    storage.write(f"commits/{record}", json.dumps(body).encode())
    lease.check()
    return made


def prune(storage: Storage, lease: Lease, made: Commit, keep: int) -> None:
    """Remove all but the newest ones, and what no commit refers to, after ``upload``."""
    kept = commits(storage)[:keep]
    if made.name not in {each.name for each in kept}:
        return  # the file system does not list what was written
    # The record goes first: without it, the object does not count. What a later holder has made
    # stays, since this one may be late.
    names = {each.name for each in kept}
    for name in storage.names("commits"):
        if name not in names and token_of(name) <= lease.token:
            storage.remove(f"commits/{name}")
    objects = {each.object for each in kept}
    for name in storage.names("checkpoints"):
        if f"checkpoints/{name}" not in objects and int(name.split("-")[1]) <= lease.token:
            storage.remove(f"checkpoints/{name}")


def fetch(
    storage: Storage,
    directory: JobDirectory,
    *,
    decrypt_with: Sequence[str],
    check: Callable[[], object],
    damaged: Callable[[Commit, ImagesError], object],
) -> Commit | None:
    """Bring the newest complete checkpoint, if the directory has none that is as new.

    ``damaged`` is called with each that is not as it was committed. What the directory has besides
    is removed where it does not lead to that checkpoint. Raises ``ImagesError`` if there are
    checkpoints and all are damaged, and any ``Exception``.
    """
    known = commits(storage)
    local = max(map(identity, directory.all_checkpoints()), default=NONE)
    for each in known:
        if each.identity <= local:
            return None
        try:
            place = _fetched(storage, directory, each, decrypt_with, check)
        except ImagesError as error:
            damaged(each, error)
            continue
        earlier = {other.identity for other in known}
        for old in directory.all_checkpoints():
            if identity(old) not in earlier or old.number >= each.checkpoint.number:
                directory.remove(old)
        os.rename(place, directory.checkpoints / str(each.checkpoint.number))
        sync(directory.checkpoints)
        return each
    if known and local == NONE:
        raise ImagesError(f"none of {len(known)} checkpoints on {storage.url} is whole")
    return None


def _fetched(
    storage: Storage,
    directory: JobDirectory,
    commit: Commit,
    decrypt_with: Sequence[str],
    check: Callable[[], object],
) -> str:
    """A checkpoint in a directory of its own, whole. ``ImagesError``: it is damaged."""
    directory.checkpoints.mkdir(mode=0o700, exist_ok=True)
    place = directory.checkpoints / "fetched"
    shutil.rmtree(place, ignore_errors=True)
    try:
        with storage.opened(commit.object, "rb") as file:
            read = _Hashing(file, check)
            unpack(cast(BinaryIO, read), place, decrypt_with=decrypt_with)
            while read.read(2**20):
                pass
    except FileNotFoundError:
        raise ImagesError(f"{commit.object} is not there") from None
    if (read.size, read.sha256) != (commit.size, commit.sha256):
        raise ImagesError(f"{commit.object} is not as it was uploaded")
    verify(place, commit.checkpoint.digest)
    return str(place)

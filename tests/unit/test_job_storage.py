"""The storage of jobs: complete checkpoints and one holder, with faults at each step."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pytest

from pycriu_native import ImagesError, OptionError, UnsupportedError, seal
from pycriu_native._integrity.dump_marker import FRAMES
from pycriu_native._integrity.manifest import seal_with
from pycriu_native.jobs import Job, State, remote_checkpoints, uploads
from pycriu_native.jobs import job as job_module
from pycriu_native.jobs import lease as leases
from pycriu_native.jobs.directory import BUSY, META, Checkpoint, JobDirectory
from pycriu_native.jobs.increments import PARENT, link
from pycriu_native.jobs.lease import Lease, LeaseLost, acquire, last_lease
from pycriu_native.jobs.remote_checkpoints import commits, fetch, newest_intact, prune, upload
from pycriu_native.jobs.storage import Storage, UnreadableError, check_url
from pycriu_native.jobs.uploads import Uploads

from ..gcs_server import gcs_server
from ..s3_server import s3_server
from ..ssh_server import ssh_server

pytest.importorskip("fsspec", reason="the storage of jobs needs fsspec")

LENGTH = 60.0
numbers = itertools.count()


class Fault(Exception):
    """The exception of a faulty file system."""


@dataclass
class Faulty(Storage):
    """A storage that fails at a selected step."""

    url: str
    fails: Callable[[str, int], bool] = lambda name, written: False
    """Whether it fails for a file, of which so many bytes were written."""
    exclusive: bool = True

    def __post_init__(self) -> None:
        super().__init__(self.url)
        self._has_conditional_put = False

    @contextmanager
    def opened(self, name: str, mode: Literal["rb", "wb", "xb"]) -> Iterator[BinaryIO]:
        real = "wb" if mode == "xb" and not self.exclusive else mode
        with super().opened(name, real) as file:
            yield file if mode == "rb" else cast(BinaryIO, _Stream(self, name, file))


@dataclass
class _Stream:
    storage: Faulty
    name: str
    file: BinaryIO
    written: int = field(default=0)

    def write(self, data: bytes) -> int:
        for at in range(0, len(data), 1000):
            self._check()
            self.written += self.file.write(data[at : at + 1000])
        self._check()
        return len(data)

    def _check(self) -> None:
        if self.storage.fails(self.name, self.written):
            raise Fault(f"{self.name} at {self.written}")

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


class Clock:
    """A clock that waiting advances."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += max(seconds, LENGTH / 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "now", made.now)
    return made


@pytest.fixture(params=["memory", "local", "s3", "gcs", "ssh"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that is empty."""
    if request.param == "memory":
        return f"memory://job-{next(numbers)}"
    if request.param == "local":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue(request.param)}/job-{next(numbers)}"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of moto's server."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    """A bucket of a server of GCS."""
    with gcs_server() as url:
        yield url


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A directory of a server of SFTP."""
    with ssh_server(tmp_path_factory.mktemp("home")) as url:
        yield url


def _directory(path: Path) -> JobDirectory:
    path.mkdir()
    return JobDirectory(path)


def _taken(directory: JobDirectory, number: int, token: int = 1) -> Checkpoint:
    """A sealed image set, as a checkpoint."""
    place = directory.checkpoints / str(number)
    place.mkdir(parents=True)
    (place / "inventory.img").write_bytes(b"inventory")
    (place / "pages-1.img").write_bytes(os.urandom(20_000) + bytes([number]))
    body = {"time": 1.0, "duration": 1.0, "frozen": 0.1, "bytes": 1, "token": token}
    (place / META).write_text(json.dumps({**body, "number": number, "path": ""}))
    seal(place)
    return directory.all_checkpoints()[0]


def _taken_incremental(directory: JobDirectory, parent: Checkpoint) -> Checkpoint:
    """A sealed image set with a parent."""
    number = parent.number + 1
    place = directory.checkpoints / str(number)
    place.mkdir()
    (place / "inventory.img").write_bytes(b"inventory of %d" % number)
    (place / "pages-1.img").write_bytes(os.urandom(2000))
    Path(parent.path, FRAMES).touch()
    entries = link(parent, place / PARENT)
    (place / PARENT / FRAMES).unlink()  # as a dump does
    body = {"time": 1.0, "duration": 1.0, "frozen": 0.1, "bytes": 1, "token": parent.token}
    more = {"number": number, "path": "", "parents": parent.parents + 1}
    (place / META).write_text(json.dumps({**body, **more}))
    seal_with(place, entries)
    return directory.all_checkpoints()[0]


def _acquired(storage: Storage, clock: Clock, holder: str) -> Lease | None:
    about = {"holder": holder, "host": holder, "command": ["true"], "path": "/job"}
    return acquire(storage, LENGTH, about, clock.wait, held=LENGTH * 0.8)


def _held(storage: Storage, clock: Clock, holder: str) -> Lease:
    lease = _acquired(storage, clock, holder)
    assert lease is not None
    lease.begin()
    return lease


def _upload(storage: Storage, lease: Lease, checkpoint: Checkpoint, **more: Any) -> None:
    options = {"compress": "none", "encrypt_to": (), "check": lambda: None, **more}
    made = upload(storage, lease, checkpoint, **options)
    prune(storage, lease, made, 2)


def _fetched(storage: Storage, directory: JobDirectory, **more: Any) -> int | None:
    """The number of the fetched checkpoint."""
    options = {
        "decrypt_with": (),
        "check": lambda: None,
        "damaged": lambda commit, error: None,
        **more,
    }
    made = fetch(storage, directory, newest_intact(directory), **options)
    return None if made is None else made.checkpoint.number


def test_uploaded_and_fetched(url: str, clock: Clock, tmp_path: Path) -> None:
    """The newest one is fetched unchanged; older ones are removed; an upload is not repeated."""
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    for number in (1, 2, 3):
        _upload(storage, lease, _taken(here, number))
    assert [each.checkpoint.number for each in commits(storage)] == [3, 2]
    assert len(storage.names("checkpoints")) == len(storage.names("commits")) == 2
    lease.give_back()
    _held(storage, clock, "there")
    assert _fetched(storage, there) == 3
    for path in (here.checkpoints / "3").iterdir():
        assert (there.checkpoints / "3" / path.name).read_bytes() == path.read_bytes()
    assert _fetched(storage, there) is None


def _contents(place: Path) -> dict[str, bytes]:
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


@pytest.mark.parametrize("skipped", [(), (1,), (2,), (1, 2)])
def test_incremental(url: str, clock: Clock, tmp_path: Path, skipped: tuple[int, ...]) -> None:
    """Each parent is uploaded once, also if its own upload was skipped, and stays as long as a
    checkpoint needs it; the fetched checkpoint is complete, and equal.
    """
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    checkpoint = _taken(here, 1)
    for number in (1, 2, 3, 4):
        if number > 1:
            checkpoint = _taken_incremental(here, checkpoint)
            here.prune(1)
        if number not in skipped:
            made = upload(
                storage, lease, checkpoint, compress="none", encrypt_to=(), check=lambda: None
            )
            prune(storage, lease, made, 1)
            assert len(storage.names("checkpoints")) == number
    assert made.uploaded == made.objects[0].size
    assert len(made.objects) == 4
    assert [each.checkpoint.number for each in commits(storage)] == [4]
    lease.give_back()
    _held(storage, clock, "there")
    assert _fetched(storage, there) == 4
    assert _contents(there.checkpoints / "4") == _contents(here.checkpoints / "4")
    assert (there.checkpoints / "4/parent/parent/parent/pages-1.img").exists()


def test_a_parent_that_was_changed_there(url: str, clock: Clock, tmp_path: Path) -> None:
    """The checkpoints that contain it are not fetched; the one before them is."""
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1))
    full = _taken(here, 2)
    _upload(storage, lease, full)
    made = upload(
        storage,
        lease,
        _taken_incremental(here, full),
        compress="none",
        encrypt_to=(),
        check=lambda: None,
    )
    storage.remove(made.objects[1].name)
    assert _fetched(storage, there) == 1


def test_compressed_and_encrypted(url: str, clock: Clock, tmp_path: Path) -> None:
    """Checkpoints are encrypted and compressed like archives; without the key none is fetched."""
    x25519 = pytest.importorskip("pyrage", reason="encryption needs pyrage").x25519
    key, other = x25519.Identity.generate(), x25519.Identity.generate()
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1), compress="zstd", encrypt_to=[str(key.to_public())])
    (name,) = storage.names("checkpoints")
    assert b"inventory" not in (storage.read(f"checkpoints/{name}") or b"")
    with pytest.raises(UnreadableError, match=r"decrypt_with.*its key is needed"):
        _fetched(storage, there)
    with pytest.raises(UnreadableError, match=r"checkpoint 1 on .* is complete, but .* decrypted"):
        _fetched(storage, there, decrypt_with=[str(other)])
    assert not there.all_checkpoints()
    assert _fetched(storage, there, decrypt_with=[str(key)]) == 1


def test_a_wrong_key_is_no_damage(clock: Clock, tmp_path: Path) -> None:
    """With a wrong key no earlier checkpoint is used, neither of the storage nor a local one. Only
    checkpoints whose archives differ from their records are damaged.
    """
    x25519 = pytest.importorskip("pyrage", reason="encryption needs pyrage").x25519
    recipient = str(x25519.Identity.generate().to_public())
    other = [str(x25519.Identity.generate())]
    storage = Storage(str(tmp_path / "storage"))
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    _taken(there, 1)
    damaged: list[int] = []

    def fetched(error: type[Exception], keys: list[str]) -> str:
        with pytest.raises(error) as caught:
            _fetched(
                storage,
                there,
                decrypt_with=keys,
                damaged=lambda each, _: damaged.append(each.checkpoint.number),
            )
        assert type(caught.value) is error
        return str(caught.value)

    for number in (1, 2, 3):
        _upload(storage, lease, _taken(here, number), encrypt_to=[recipient])
    assert "checkpoint 3" in fetched(UnreadableError, other)
    assert "its key is needed" in fetched(UnreadableError, [])
    assert [each.number for each in there.all_checkpoints()] == [1]
    names = [each.objects[0].name for each in commits(storage)]
    storage.write(names[0], (storage.read(names[0]) or b"")[:-1])
    assert "checkpoint 2" in fetched(UnreadableError, other)
    assert damaged == [3]
    storage.write(names[1], b"")
    there.remove(there.all_checkpoints()[0])
    assert "was changed after its upload" in fetched(ImagesError, other)
    _upload(storage, lease, _taken(here, 4))
    assert "is not encrypted" in fetched(UnreadableError, other)


def test_no_space_for_what_is_fetched(
    url: str, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no damage: the next run can fetch the checkpoint."""
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    _upload(storage, _held(storage, clock, "here"), _taken(here, 1))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"free space of .*, 1000 bytes") as caught:
            _fetched(storage, there)
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, ImagesError)
    assert _fetched(storage, there) == 1


@pytest.mark.parametrize("keys", ["wrong", "no recipient", "nonsense"])
def test_keys_that_are_refused(tmp_path: Path, keys: str) -> None:
    """Keys that could not decrypt the uploads are refused before anything is made."""
    x25519 = pytest.importorskip("pyrage", reason="encryption needs pyrage").x25519
    key, other = x25519.Identity.generate(), x25519.Identity.generate()
    recipients, identities = {
        "wrong": ([key.to_public()], [other]),
        "no recipient": ([], [key]),
        "nonsense": ([key.to_public()], ["AGE-SECRET-KEY-1NONSENSE"]),
    }[keys]
    with pytest.raises(OptionError, match="decrypt_with") as caught:
        Job(
            tmp_path / "job",
            ["true"],
            storage=tmp_path / "storage",
            encrypt_to=map(str, recipients),
            decrypt_with=map(str, identities),
        ).run()
    assert "SECRET" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["start", "middle", "record", "record written"])
def test_a_fault_in_an_upload(url: str, clock: Clock, tmp_path: Path, part: str) -> None:
    """A failed upload is not fetched; the previous one stays, and the next attempt succeeds."""
    storage = Faulty(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1))
    second = _taken(here, 2)
    storage.fails = {
        "start": lambda name, written: name.startswith("checkpoints"),
        "middle": lambda name, written: name.startswith("checkpoints") and written > 10_000,
        "record": lambda name, written: name.startswith("commits") and not written,
        "record written": lambda name, written: name.startswith("commits") and written > 0,
    }[part]
    with pytest.raises(Fault):
        _upload(storage, lease, second)
    storage.fails = lambda name, written: False
    # A record that was written before the failure commits the checkpoint, which is complete then.
    assert _fetched(storage, there) == (2 if part == "record written" else 1)
    assert second in here.all_checkpoints()
    _upload(storage, lease, second)
    assert [each.checkpoint.number for each in commits(storage)] == [2, 1]
    assert len(storage.names("checkpoints")) == 2
    assert _fetched(storage, there) == (None if part == "record written" else 2)


def test_what_was_changed_there(url: str, clock: Clock, tmp_path: Path) -> None:
    """A truncated, changed or missing checkpoint is reported, and the previous one is fetched."""
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    for number in (1, 2):
        _upload(storage, lease, _taken(here, number))
    name = commits(storage)[0].objects[0].name
    whole = storage.read(name)
    assert whole is not None
    for number, spoilt in enumerate(
        (whole[:-2000], whole[:15000] + bytes([whole[15000] ^ 1]) + whole[15001:], None)
    ):
        there = _directory(tmp_path / f"there-{number}")
        storage.remove(name)
        if spoilt is not None:
            storage.write(name, spoilt)
        damaged: list[int] = []
        assert (
            _fetched(
                storage,
                there,
                damaged=lambda each, _, damaged=damaged: damaged.append(each.checkpoint.number),
            )
            == 1
        )
        assert damaged == [2]
        assert [each.number for each in there.all_checkpoints()] == [1]


def test_an_older_one_here(url: str, clock: Clock, tmp_path: Path) -> None:
    """A checkpoint of a later holder replaces local ones that were not uploaded."""
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    first = _held(storage, clock, "here")
    _upload(storage, first, _taken(here, 1))
    _taken(here, 2)
    _taken(here, 3)
    assert _fetched(storage, here) is None
    clock.wait(LENGTH)
    second = _held(storage, clock, "there")
    assert _fetched(storage, there) == 1
    _upload(storage, second, _taken(there, 2, token=2))
    second.give_back()
    _held(storage, clock, "here")
    assert _fetched(storage, here) == 2
    assert [(each.token, each.number) for each in here.all_checkpoints()] == [(2, 2), (1, 1)]


def test_a_damaged_one_here(url: str, clock: Clock, tmp_path: Path) -> None:
    """A checkpoint that is damaged here, but not in the storage, is fetched again. One that the
    storage does not have is replaced by the newest one there.
    """
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    for number in (1, 2):
        _upload(storage, lease, _taken(here, number))
    (here.checkpoints / "2" / "pages-1.img").unlink()
    assert _fetched(storage, here) == 2
    (here.checkpoints / "2" / META).unlink()
    assert _fetched(storage, here) == 2
    Path(_taken(here, 3).path, "pages-1.img").write_bytes(b"another")
    assert _fetched(storage, here) is None  # 2 is intact
    (here.checkpoints / "2" / "pages-1.img").write_bytes(b"another")
    assert _fetched(storage, here) == 2
    assert [each.number for each in here.all_checkpoints()] == [2, 1]
    assert newest_intact(here) == (1, 2)


@pytest.mark.parametrize("kind", [OSError, ImagesError])
@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EIO, 1), (errno.EACCES, 2), (errno.EMFILE, 2)]
)
def test_one_here_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, number: int, expected: int
) -> None:
    """After an error of the disk it counts as damaged; after another one it may be whole."""
    here = _directory(tmp_path / "here")
    _taken(here, 1)
    _taken(here, 2)
    error = ImagesError("", errno=number) if kind is ImagesError else OSError(number, "")

    def verified(path: str) -> None:
        if path.endswith("/2"):
            raise error

    monkeypatch.setattr(remote_checkpoints, "verify", verified)
    assert newest_intact(here) == (1, expected)


def test_a_fetched_one_is_synced(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are on disk before those of this host that it replaces are removed."""
    storage = Storage(str(tmp_path / "storage"))
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    _taken(here, 1)
    lease = _held(storage, clock, "there")
    first = _taken(there, 1, token=2)
    _upload(storage, lease, _taken_incremental(there, first))
    synced: list[str] = []

    def sync(path: Path) -> None:
        if path != here.checkpoints:
            assert (here.checkpoints / "1").exists()
            synced.append(str(path.relative_to(here.checkpoints)))

    monkeypatch.setattr(remote_checkpoints, "sync", sync)
    assert _fetched(storage, here) == 2
    files = {
        str(Path("fetched", each.relative_to(there.checkpoints / "2")))
        for each in (there.checkpoints / "2").rglob("*")
    }
    assert set(synced) == files | {"fetched"}


def test_one_holder(url: str, clock: Clock) -> None:
    """A lease that is renewed is not taken over; one that is not renewed, released or of the same
    holder is, with the next token. The former holder detects that.
    """
    storage = Storage(url)
    first = _held(storage, clock, "here")
    assert first.exclusive
    renewing = Clock()

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        first.renew(LENGTH * 0.8)

    renewing.wait = wait  # type: ignore[method-assign]
    assert _acquired(storage, renewing, "there") is None
    before = clock.time
    second = _held(storage, clock, "there")
    assert clock.time - before >= LENGTH
    assert clock.time > first.until
    assert second.token == first.token + 1
    with pytest.raises(LeaseLost, match=r"the lease 1 .* was lost to 2"):
        first.renew(LENGTH)
    second.renew(LENGTH)
    second.give_back()
    third = _held(storage, clock, "here")
    assert third.token == 3
    assert clock.time - before < LENGTH * 1.5
    assert _held(storage, clock, "here").token == 4
    assert last_lease(storage).token == 4


def test_a_host_that_was_suspended(clock: Clock, tmp_path: Path) -> None:
    """A host that was suspended after it has read the lease does not take over one that was renewed
    meanwhile.
    """
    storage = Storage(str(tmp_path / "storage"))
    first = _held(storage, clock, "here")

    class Suspended(Storage):
        readings = 0

        def read(self, name: str) -> bytes | None:
            result = super().read(name)
            self.readings += name.endswith(".end")
            if name.endswith(".end") and self.readings == 2:  # the first one while it waits
                for _ in range(10):
                    clock.wait(LENGTH / 4)
                    first.renew(LENGTH * 0.8)
            return result

    assert _acquired(Suspended(storage.url), clock, "there") is None
    first.check()


def test_a_stale_holder_cannot_commit(url: str, clock: Clock, tmp_path: Path) -> None:
    """A commit after a takeover does not count, also for later holders; the former holder does not
    remove checkpoints that count.
    """
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    first = _held(storage, clock, "here")
    _upload(storage, first, _taken(here, 1))
    clock.wait(LENGTH)
    second = _held(storage, clock, "there")
    with pytest.raises(LeaseLost):
        _upload(storage, first, _taken(here, 2))
    assert [each.checkpoint.number for each in commits(storage)] == [1]
    # It was stopped between its check and its record, and goes on.
    late = Lease(storage, first.token, b"", 0.0, exclusive=True)
    late.check = lambda: None  # type: ignore[method-assign]
    made = upload(
        storage, late, _taken(here, 3), compress="none", encrypt_to=(), check=lambda: None
    )
    assert made.name in storage.names("commits")
    assert [each.checkpoint.number for each in commits(storage)] == [1]
    prune(storage, late, made, 1)
    assert storage.read(made.objects[0].name)
    clock.wait(LENGTH)
    _held(storage, clock, "elsewhere")
    assert [each.checkpoint.number for each in commits(storage)] == [1]
    assert _fetched(storage, _directory(tmp_path / "new")) == 1
    with pytest.raises(LeaseLost):
        second.check()


def test_a_late_removal(url: str, clock: Clock, tmp_path: Path) -> None:
    """A holder that was stopped during a removal does not remove checkpoints of the next one."""
    storage = Storage(url)
    here, there = _directory(tmp_path / "here"), _directory(tmp_path / "there")
    first = _held(storage, clock, "here")
    _upload(storage, first, _taken(here, 1))
    checkpoint = _taken(here, 2)

    class Late(Storage):
        def remove(self, name: str) -> None:
            if name.startswith("commits"):
                clock.wait(LENGTH)
                second = _held(storage, clock, "there")
                assert _fetched(storage, there) == 2
                _upload(storage, second, _taken(there, 3, token=2))
            super().remove(name)

    made = upload(storage, first, checkpoint, compress="none", encrypt_to=(), check=lambda: None)
    prune(Late(url), first, made, 1)
    assert [each.checkpoint.number for each in commits(storage)] == [3, 2]
    assert _fetched(storage, _directory(tmp_path / "new")) == 3


def test_an_outdated_listing(clock: Clock, tmp_path: Path) -> None:
    """If a file system does not list a record yet, nothing is removed."""
    storage = Storage(f"memory://job-{next(numbers)}")
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1))

    class Stale(Storage):
        def names(self, folder: str) -> list[str]:
            return super().names(folder)[:1] if folder == "commits" else super().names(folder)

    made = upload(
        storage, lease, _taken(here, 2), compress="none", encrypt_to=(), check=lambda: None
    )
    prune(Stale(storage.url), lease, made, 1)
    assert _fetched(storage, _directory(tmp_path / "there")) == 2


class LateListings(Storage):
    """A storage that lists what was there at a former time; files are read as they are."""

    listed: dict[str, list[str]]

    def stop(self) -> None:
        folders = ("leases", "commits", "checkpoints")
        self.listed = {folder: super(LateListings, self).names(folder) for folder in folders}

    def names(self, folder: str) -> list[str]:
        return self.listed[folder]


def test_outdated_listings(url: str, clock: Clock, tmp_path: Path) -> None:
    """The newest commit and the newest lease are found by their names: nothing is lost, and no
    token is used twice.
    """
    storage, late = Storage(url), LateListings(url)
    here = _directory(tmp_path / "here")
    first = _held(storage, clock, "here")
    for number in (1, 2):
        _upload(storage, first, _taken(here, number))
    late.stop()
    for number in (3, 4):
        _upload(storage, first, _taken(here, number))
    assert _fetched(late, _directory(tmp_path / "there")) == 4
    clock.wait(LENGTH)
    second = _held(late, clock, "there")
    assert _fetched(storage, _directory(tmp_path / "new")) == 4
    stale = Lease(late, first.token, b"", 0.0, exclusive=True)
    with pytest.raises(LeaseLost, match="was lost to 2"):
        stale.check()
    second.give_back()
    _held(storage, clock, "elsewhere").give_back()
    assert last_lease(late).token == 3
    assert _held(late, clock, "there").token == 4


def test_commits_that_cannot_be_read(url: str, clock: Clock, tmp_path: Path) -> None:
    """A job of which no commit can be read, or only those of another release, is not started from
    the beginning; one whose first commit was cut off is.
    """
    storage, late = Storage(url), LateListings(url)
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1))
    late.stop()
    _upload(storage, lease, _taken(here, 2))
    for name in storage.names("commits"):
        storage.remove(f"commits/{name}")
    with pytest.raises(ImagesError, match="none of the checkpoints on"):
        _fetched(late, _directory(tmp_path / "there"))
    storage.write(f"commits/{lease.token:08}-00000001.json", b'{"obj')
    storage.write(f"commits/{lease.token:08}-00000002.json", b"")
    assert _fetched(late, _directory(tmp_path / "new")) is None
    storage.write(f"commits/{lease.token:08}-00000002.json", b'{"objects": [], "later": 1}')
    with pytest.raises(UnreadableError, match="another release of this package"):
        _fetched(late, _directory(tmp_path / "later"))


def test_a_later_commit_of_another_release(url: str, clock: Clock, tmp_path: Path) -> None:
    """An earlier one, which can be read, is not resumed in its place; a later one is."""
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    for number in (1, 3):
        _upload(storage, lease, _taken(here, number))
    storage.write(f"commits/{lease.token:08}-00000002.json", b'{"objects": [], "later": 1}')
    assert _fetched(storage, _directory(tmp_path / "there")) == 3
    storage.remove(f"commits/{lease.token:08}-00000003.json")
    with pytest.raises(UnreadableError, match="another release of this package"):
        _fetched(storage, _directory(tmp_path / "elsewhere"))
    assert _fetched(storage, here) is None


def test_a_checkpoint_with_a_former_field(url: str, clock: Clock, tmp_path: Path) -> None:
    """Checkpoints had a field ``digest``, which was always null."""
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(here, 1))
    (name,) = storage.names("commits")
    body = json.loads(storage.read(f"commits/{name}") or b"")
    body["checkpoint"]["digest"] = None
    storage.write(f"commits/{name}", json.dumps(body).encode())
    assert _fetched(storage, _directory(tmp_path / "there")) == 1
    meta = here.checkpoints / "1" / META
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "digest": None}))
    assert here.all_checkpoints()[0].bytes == 1


def test_a_connection_that_was_lost(ssh: str) -> None:
    """One use fails, and the next one connects again, also if the file system does not do it."""
    storage = Storage(f"{ssh}/job-{next(numbers)}")
    storage.make("leases")
    storage.write("leases/1", b"kept")
    fs = storage._fs
    fs.loop.call_soon_threadsafe(fs.client.abort)
    failed = False
    with contextlib.suppress(Exception):
        for _ in range(1000):  # until the connection is closed
            failed = True
            storage.read("leases/1")
            failed = False
    assert failed
    assert storage.read("leases/1") == b"kept"


def test_the_key_of_an_ssh_host(ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose key is not known is refused: it could send any checkpoint. fsspec's
    configuration can name another file.
    """
    untrusted = import_module("asyncssh").HostKeyNotVerifiable
    known = str(Path.home() / ".ssh" / "known_hosts")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(untrusted, match="not trusted"):
        Storage(ssh)
    conf = import_module("fsspec.config").conf
    monkeypatch.setitem(conf, "ssh", {"known_hosts": known})
    assert Storage(ssh).names("leases") == []
    (tmp_path / "none").touch()
    monkeypatch.setitem(conf, "sftp", {"known_hosts": str(tmp_path / "none")})
    with pytest.raises(untrusted, match="not trusted"):
        Storage(ssh.replace("ssh://", "sftp://"))


@pytest.mark.parametrize("protocol", ["s3", "ssh", "memory", "no host"])
def test_a_url_that_names_no_place(
    request: pytest.FixtureRequest, protocol: str, tmp_path: Path
) -> None:
    """It is refused by name: the files of the job would be in the root of the file system, or in
    buckets of their own.
    """
    url = f"{protocol}://"
    if protocol in ("s3", "ssh"):
        server: str = request.getfixturevalue(protocol)
        url = url if protocol == "s3" else server[: server.index("/", len(url))]
    elif protocol == "no host":
        url = f"ssh://{tmp_path}"
    for each in (url, f"{url}/", "file:///"):
        with pytest.raises(OptionError, match="storage="):
            Storage(each)


@pytest.mark.parametrize("url", ["file://", "local://", "simplecache::file://", "s3://"])
def test_a_storage_without_a_path(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is created: fsspec reads it as the working directory.

    That does not depend on the packages that are installed.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pycriu_native.jobs.storage.find_spec", lambda _: None)
    with pytest.raises(OptionError, match=f"storage='{url}': it names no directory or bucket"):
        Job(tmp_path / "job", ["true"], storage=url).run()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_relative_storage(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is relative to the caller's directory, like that of the job."""
    monkeypatch.chdir(tmp_path)
    job = Job("job", ["true"], storage=f"{scheme}storage")
    assert job.storage == f"{scheme}{tmp_path}/storage"


@pytest.mark.parametrize("protocol", ["ssh", "sftp"])
def test_ssh_needs_sshfs(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's own class for SSH, with another package, accepts the key of any host."""
    registry = import_module("fsspec.registry")
    own = {"class": "fsspec.implementations.sftp.SFTPFileSystem"}
    monkeypatch.setattr(registry, "known_implementations", {protocol: own})
    with pytest.raises(UnsupportedError, match=f"{protocol} needs the package sshfs"):
        check_url(f"{protocol}://host/job")


def test_leases_that_were_removed(url: str, clock: Clock, tmp_path: Path) -> None:
    """Checkpoints without their leases are neither ignored nor removed."""
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    _upload(storage, _held(storage, clock, "here"), _taken(here, 1))
    for name in storage.names("leases"):
        storage.remove(f"leases/{name}")
    lease = _acquired(storage, clock, "there")
    assert lease is not None
    with pytest.raises(UnreadableError, match="none of their leases"):
        lease.begin()
    assert len(storage.names("commits")) == len(storage.names("checkpoints")) == 1


def test_a_takeover_that_was_not_completed(url: str, clock: Clock, tmp_path: Path) -> None:
    """A holder that ended before or during its first write changes nothing."""
    storage = Storage(url)
    here = _directory(tmp_path / "here")
    _upload(storage, _held(storage, clock, "here"), _taken(here, 1))
    clock.wait(LENGTH)
    assert _acquired(storage, clock, "died") is not None
    storage.write("leases/00000002.begun", b'{"comm')
    storage.write("leases/00000003.json", b'{"hol')
    assert [each.checkpoint.number for each in commits(storage)] == [1]
    assert _held(storage, clock, "there").token == 4
    assert [each.checkpoint.number for each in commits(storage)] == [1]


@pytest.mark.parametrize(
    ("begun", "beat"),
    [("{}", "{}"), ('{"commits": 5}', "{}"), ('{"commits": []}', '{"commit": [1]}')],
)
def test_a_lease_of_another_form(clock: Clock, tmp_path: Path, begun: str, beat: str) -> None:
    """Its commits cannot be read, and none is removed."""
    storage = Storage(f"memory://job-{next(numbers)}")
    here = _directory(tmp_path / "here")
    _upload(storage, _held(storage, clock, "here"), _taken(here, 1))
    storage.write("leases/00000002.begun", begun.encode())
    storage.write("leases/00000002.beat", beat.encode())
    storage.write("leases/00000002.json", b'{"format": 1}')
    with pytest.raises(UnreadableError, match=r"has a lease whose commits? "):
        commits(storage)
    assert len(storage.names("commits")) == 1


def test_the_lease_before_is_looked_at(clock: Clock) -> None:
    """An exception of ``check``, which receives the last lease, leaves the leases unchanged."""
    storage = Storage(f"memory://job-{next(numbers)}")
    _held(storage, clock, "here").give_back(exit_code=0)

    def check(last: leases.Last) -> None:
        assert last.end is not None
        raise Fault(str(last.end["exit_code"]))

    with pytest.raises(Fault, match="0"):
        acquire(storage, LENGTH, {"holder": "there"}, clock.wait, held=LENGTH, check=check)
    assert last_lease(storage).token == 1


def test_two_at_the_same_time(url: str, clock: Clock) -> None:
    """If two acquire a free lease at the same time, one gets the token."""
    storage = Storage(url)
    other: list[Lease | None] = []

    class Late(Storage):
        def create(self, name: str, data: bytes) -> bool:
            if not other:
                other.append(None)
                other[0] = _acquired(storage, clock, "there")
            return super().create(name, data)

    assert _acquired(Late(url), clock, "here") is None
    assert other[0] is not None
    other[0].renew(LENGTH)


def test_without_exclusive_creation(url: str, clock: Clock) -> None:
    """Without exclusive creation, one of two with the same token loses the lease after a pause."""
    storage = Faulty(url, exclusive=False)
    other: list[Lease | None] = []

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if not other:
            storage.remove("leases/00000001.json")
            other.append(None)
            other[0] = _acquired(storage, clock, "there")

    first = Clock()
    first.wait = wait  # type: ignore[method-assign]
    assert _acquired(storage, first, "here") is None
    assert other[0] is not None
    assert not other[0].exclusive
    other[0].renew(LENGTH)
    storage.write("leases/00000001.json", b"{}")
    with pytest.raises(LeaseLost):
        other[0].renew(LENGTH)


def test_a_token_is_used_once(clock: Clock) -> None:
    """A holder that has read an outdated lease does not get the token after it."""
    storage = Storage(f"memory://job-{next(numbers)}")
    _held(storage, clock, "a").give_back()

    class Late(Storage):
        def create(self, name: str, data: bytes) -> bool:
            if last_lease(storage).token == 1:
                _held(storage, clock, "b").give_back()
                _held(storage, clock, "c")
            return super().create(name, data)

    assert _acquired(Late(storage.url), clock, "late") is None
    assert last_lease(storage).token == 3


def test_other_files_in_a_storage(url: str, clock: Clock, tmp_path: Path) -> None:
    """Files that NFS and object stores create in a directory are ignored."""
    storage = Storage(url)
    lease = _held(storage, clock, "here")
    _upload(storage, lease, _taken(_directory(tmp_path / "here"), 1))
    for folder in ("leases", "commits", "checkpoints"):
        storage.write(f"{folder}/.nfs0001", b"")
    lease.renew(LENGTH)
    assert _fetched(storage, _directory(tmp_path / "there")) == 1


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pycriu-native\[storage\]'"):
        Storage("memory://x")


@pytest.mark.parametrize(
    ("url", "error", "what"),
    [
        ("nothing://x", OptionError, "no file system nothing"),
        ("simplecache::nothing://x", OptionError, "no file system nothing"),
        ("simplecache::file:///x::nothing://y", OptionError, "no file system nothing"),
        ("memory://x", OptionError, "end with the process"),
        ("simplecache::memory://x", OptionError, "end with the process"),
        ("dropbox://x", UnsupportedError, "needs the package dropboxdrivefs"),
    ],
)
def test_a_file_system_that_is_not_there(
    tmp_path: Path, url: str, error: type[OptionError], what: str
) -> None:
    """The run is refused before it makes the directory."""
    job = Job(tmp_path / "job", ["true"], storage=url)
    with pytest.raises(error, match=what):
        job.run()
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("url", ["{}/job", "{}/job/storage", "file://{}/job/storage", "{}/link/x"])
def test_a_storage_in_the_directory_of_the_job(tmp_path: Path, url: str) -> None:
    """It is refused: a lost host has neither."""
    (tmp_path / "link").symlink_to(tmp_path / "job")
    with pytest.raises(OptionError, match="outside of the job's directory"):
        Job(tmp_path / "job", ["true"], storage=url.format(tmp_path)).run()
    assert not (tmp_path / "job").exists()


def test_keys_are_not_shown() -> None:
    """The text of a job does not contain its keys; keys without a storage are refused."""
    secret = "AGE-SECRET-KEY-1"
    job = Job("/job", ["true"], storage="x", encrypt_to=["age1"], decrypt_with=[secret])
    assert secret not in repr(job)
    with pytest.raises(OptionError) as caught:
        Job("/job", ["true"], decrypt_with=secret)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("lease", 0), ("lease", "60"), ("compress", "xz"), ("encrypt_to", "age1")]
)
def test_values_that_are_refused(field: str, value: Any) -> None:
    """Invalid arguments are named."""
    with pytest.raises(OptionError, match=field):
        Job("/job", ["true"], **{field: value})


def test_a_parent_that_is_missing(tmp_path: Path) -> None:
    """No directory is made below a mount point of what is not mounted."""
    storage = Storage(str(tmp_path / "mount" / "job"))
    with pytest.raises(FileNotFoundError, match="mount does not exist: is its"):
        storage.make("leases")
    assert not (tmp_path / "mount").exists()


def test_urls_that_are_refused() -> None:
    """A URL of an unknown file system is refused."""
    with pytest.raises(OptionError, match=r"storage.*nothing://x"):
        Storage("nothing://x")


def test_uploads_are_repeated(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads are repeated, with pauses that grow to a limit; the newest checkpoint is uploaded."""
    monkeypatch.setattr(uploads, "LOOK", 0.001)
    monkeypatch.setattr(uploads, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(uploads, "LONGEST_PAUSE", 0.004)
    storage = Faulty(f"memory://job-{next(numbers)}")
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    events: list[str] = []
    spec = {"compress": "gzip", "encrypt_to": [], "keep": 2}
    running = Uploads(
        storage,
        lease,
        here,
        spec,
        report=lambda event, message, **more: events.append(event),
        lost=events.append,
    )
    storage.fails = lambda name, written: name.startswith("checkpoints") and len(events) < 7
    _taken(here, 1)
    running.start()
    assert running.finish(float("inf"))
    assert events == ["upload failed"] * 7 + ["uploaded"]
    assert [each.checkpoint.number for each in commits(storage)] == [1]


def test_uploads_that_never_succeed(clock: Clock, tmp_path: Path) -> None:
    """The end of a job does not wait forever, and the local checkpoint stays."""
    storage = Faulty(f"memory://job-{next(numbers)}")
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")
    storage.fails = lambda name, written: name.startswith("checkpoints")
    events: list[str] = []
    running = Uploads(
        storage,
        lease,
        here,
        {"compress": "gzip", "encrypt_to": [], "keep": 2},
        report=lambda event, message, **more: events.append(event),
        lost=events.append,
    )
    _taken(here, 1)
    running.start()
    assert not running.finish(0.0)
    assert events
    assert set(events) == {"upload failed"}
    assert [each.number for each in here.all_checkpoints()] == [1]
    assert not commits(storage)


def _waiting_upload(
    storage: Faulty, clock: Clock, tmp_path: Path, begun: threading.Event, over: threading.Event
) -> Uploads:
    """The upload of a checkpoint, not started; the storage does not respond until ``over``."""
    here = _directory(tmp_path / "here")
    lease = _held(storage, clock, "here")

    def wait(name: str, written: int) -> bool:
        begun.set()
        return over.wait(60)

    storage.fails = wait
    _taken(here, 1)
    return Uploads(
        storage,
        lease,
        here,
        {"compress": "none", "encrypt_to": [], "keep": 2},
        report=lambda event, message, **more: None,
        lost=lambda message: None,
    )


def test_an_upload_without_a_response(clock: Clock, tmp_path: Path) -> None:
    """The end of a job does not wait for an upload to a storage that does not respond."""
    storage = Faulty(f"memory://job-{next(numbers)}")
    begun, over = threading.Event(), threading.Event()
    running = _waiting_upload(storage, clock, tmp_path, begun, over)
    running.start()
    assert begun.wait(60)
    assert not running.finish(float("inf"), is_silent=lambda: True)
    assert not over.is_set()
    over.set()
    running.cancel()


def test_a_cancelled_upload(clock: Clock, tmp_path: Path) -> None:
    """An upload that fails after the end of the job is not repeated; its thread ends normally."""
    storage = Faulty(f"memory://job-{next(numbers)}")
    begun, cancelled = threading.Event(), threading.Event()
    running = _waiting_upload(storage, clock, tmp_path, begun, cancelled)
    raised: list[BaseException | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
        running.start()
        assert begun.wait(60)
        ending = threading.Thread(target=running.cancel)
        ending.start()
        while not running._cancelled:
            time.sleep(0.01)
        cancelled.set()
        ending.join()
    assert not raised
    assert not commits(storage)


def test_a_checkpoint_that_is_uploaded_is_not_pruned(tmp_path: Path) -> None:
    """A checkpoint that is being uploaded is removed by the next pruning only."""
    here = _directory(tmp_path / "here")
    first = _taken(here, 1)
    _taken(here, 2)
    with here.pinned(first):
        here.prune(1)
        assert len(here.all_checkpoints()) == 2
    here.prune(1)
    assert [each.number for each in here.all_checkpoints()] == [2]
    with pytest.raises(FileNotFoundError), here.pinned(first):
        pass


def test_a_lease_that_another_host_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Job.run(wait=...)`` repeats until the time is over."""
    codes = [BUSY] * 3
    tried: list[int] = []

    def supervised(self: Job, lock: int, *_: object) -> int:
        tried.append(lock)
        return codes[min(len(tried), len(codes)) - 1]

    monkeypatch.setattr(Job, "_supervised", supervised)
    monkeypatch.setattr(job_module, "UNTIL_FREE", 0.01)
    job = Job(tmp_path / "job", ["true"], storage=str(tmp_path / "storage"))
    assert job.run(wait=0.0).state is State.RUNNING
    assert len(tried) == 1
    codes = [BUSY, BUSY, 2]
    tried.clear()
    assert job.run(wait=None).state is State.INTERRUPTED
    assert len(tried) == 3


@pytest.mark.parametrize("url", ["simplecache::/tmp/x", "/tmp/a::B2", "c://x", "file:///tmp/x"])
def test_a_storage_that_fsspec_accepts(url: str) -> None:
    """A chain can end in a path."""
    check_url(url)

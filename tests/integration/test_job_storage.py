"""Jobs on several hosts: hosts are lost or stopped, the storage is unavailable, and the job never
runs twice.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycriu_native.jobs import BUSY, CANNOT_RESTORE, INTERRUPTED, State
from pycriu_native.jobs.remote_checkpoints import commits
from pycriu_native.jobs.storage import Storage

from ..hostile_s3 import hostile_s3
from ..s3_server import s3_server
from .support.job_hosts import HostedJob, commands, never_two, stopped
from .support.jobs import check_exact, nothing_runs
from .support.processes import is_alive

pytest.importorskip("fsspec", reason="the storage of jobs needs fsspec")

KILLS = int(os.environ.get("PYCRIU_NATIVE_HOST_KILLS", "4"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., HostedJob]]:
    """Create the hosts of one job by name."""
    made: list[HostedJob] = []

    def make(name: str, storage: str = "") -> HostedJob:
        made.append(HostedJob(tmp_path / "place", host=name, storage=storage))
        return made[-1]

    yield make
    for job in made:
        job.end()
    for job in made:
        assert nothing_runs(job)


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the storage; empty for a directory."""
    if request.param == "directory":
        yield ""
        return
    with s3_server() as bucket:
        yield f"{bucket}/job1"


def test_a_lost_host(hosts: Callable[..., HostedJob], storage: str, tmp_path: Path) -> None:
    """Another host resumes from the storage after the lease has expired; its output is exact, and
    the first host reports the end.
    """
    here, there = hosts("a", storage), hosts("b", storage)
    with never_two(here.place):
        here.start()
        here.until(lambda: here.has_uploads(3), "three uploads")
        here.lose()
        there.start()
        there.until(lambda: there.directory.status().resumed == 1, "its resumption")
        there.until(lambda: there.has_uploads(1), "an upload")
        assert there.finish() == 0, there.messages()
    assert "fetched" in there.events()
    assert check_exact(there, tmp_path / "reference") > 0
    here.start()
    assert here.wait() == 0
    status = here.directory.status()
    assert status.state is State.ENDED
    assert "(on " in status.message
    assert here.events().count("resumed") == 0


def test_interrupted(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """The last checkpoint is uploaded before the exit, compressed and encrypted.

    The next host resumes without a wait, and during its run the first one is refused.
    """
    x25519 = pytest.importorskip("pyrage", reason="encryption needs pyrage").x25519
    key = x25519.Identity.generate()
    (tmp_path / "key").write_text(f"# a key\n{key}\n")
    here, there = hosts("a"), hosts("b")
    for job in (here, there):
        secret = ("--identity", str(tmp_path / "key"), "--encrypt-to", str(key.to_public()))
        job.options = (*job.options, "--compress", "zstd", *secret)
    process = here.start("--every", "1h")
    here.until(lambda: commands(here.place), "its start")
    here.until(lambda: (here.directory.path / "stdout").stat().st_size > 0, "some steps")
    process.send_signal(signal.SIGTERM)
    assert here.wait() == INTERRUPTED, here.messages()
    assert here.has_uploads(1)
    (commit,) = commits(_storage(here))
    data = _storage(here).read(commit.objects[0].name)
    assert data is not None
    assert data.startswith(b"age-encryption.org/")
    there.start("--every", "1h")
    there.until(lambda: there.directory.status().resumed == 1, "its resumption")
    here.start()
    assert here.wait() == BUSY
    assert f"runs on {os.uname().nodename}" in here.messages()
    assert len(commands(here.place)) == 1
    assert there.finish() == 0
    check_exact(there, tmp_path / "reference")


@pytest.mark.parametrize("which", ["all but the command", "all", "lease holder"])
def test_stopped_past_its_lease(
    hosts: Callable[..., HostedJob], tmp_path: Path, which: str
) -> None:
    """A stopped supervisor loses its job before another host takes over, and its later writes are
    ignored.
    """
    here, there = hosts("a"), hosts("b")
    with never_two(here.place):
        here.start()
        here.until(lambda: here.has_uploads(2), "two uploads")
        processes = here.processes()
        (command,) = commands(here.place)
        ours = {
            "all": processes,
            "lease holder": processes[1:2],
            "all but the command": [pid for pid in processes if pid != command],
        }[which]
        with stopped(ours):
            there.start()
            there.until(lambda: there.directory.status().resumed == 1, "its resumption")
            assert not is_alive(command)
        assert here.wait() == INTERRUPTED, here.messages()
        there.until(lambda: there.has_uploads(1), "an upload")
        tokens = {each.name.partition("-")[0] for each in commits(_storage(there))}
        assert there.finish() == 0
    assert tokens <= {"00000001", "00000002"}
    assert "00000002" in tokens
    check_exact(there, tmp_path / "reference")


def _storage(job: HostedJob) -> Storage:
    return Storage(str(job.place / "storage"))


def test_a_storage_that_never_responds(hosts: Callable[..., HostedJob]) -> None:
    """A storage that hangs is named, and a signal ends the run within the grace time."""
    job = hosts("a")
    leases = job.place / "storage" / "leases"
    leases.mkdir(parents=True)
    os.mkfifo(leases / "00000001.json")  # opening it does not return
    process = job.start("--grace", "1s")
    job.until(lambda: "storage has not responded for" in job.messages(), "the message")
    assert "storage silent" in job.events()
    process.send_signal(signal.SIGTERM)
    assert job.wait() == INTERRUPTED
    message = job.directory.status().message
    assert "SIGTERM was received before" in message
    assert "has not responded for" in message
    assert "started" not in job.events()


def test_a_storage_that_is_unavailable(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """The job is stopped before its lease expires, with a local last checkpoint, and continues when
    the storage is available.
    """
    job = hosts("a")
    job.start()
    job.until(lambda: job.has_uploads(1), "an upload")
    place, away = job.place / "storage", job.place / "away"
    place.rename(away)
    place.write_text("no directory")
    assert job.wait() == INTERRUPTED, job.messages()
    assert nothing_runs(job)
    events = job.events()
    assert events.index("lease not renewed") < events.index("lease ends")
    assert "upload failed" in events
    status = job.directory.status()
    assert status.storage is not None
    assert status.storage.failures > 0
    job.start()
    assert job.wait() == INTERRUPTED
    assert str(place) in job.messages()
    assert job.directory.status().stopped_by == "storage"
    place.unlink()
    place.mkdir()
    job.start()
    assert job.wait() == INTERRUPTED
    assert "not mounted, or was emptied" in job.messages()
    assert not list(place.iterdir())
    place.rmdir()
    away.rename(place)
    job.start()
    job.until(lambda: job.directory.status().resumed == 1, "its resumption")
    assert job.finish() == 0
    check_exact(job, tmp_path / "reference")


def test_a_storage_that_is_available_again(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """The job runs on if it does so before half of the lease is over, and uploads again."""
    job = hosts("a")
    job.start("--lease", "60")
    job.until(lambda: job.has_uploads(1), "an upload")
    place, away = job.place / "storage", job.place / "away"
    place.rename(away)
    job.until(lambda: {"upload failed", "lease not renewed"} <= {*job.events()}, "failures")
    away.rename(place)
    status = job.directory.storage_status()
    assert status is not None
    job.until(lambda: job.has_uploads(status.uploads + 1), "an upload")
    assert job.finish() == 0
    assert "lease ends" not in job.events()
    assert check_exact(job, tmp_path / "reference") > 0


def test_killed_on_alternating_hosts(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """Any process is killed at any time, also during an upload: the next host resumes from a
    complete checkpoint, and the output is exact.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    _killed([hosts("a"), hosts("b")], KILLS, random.Random(seed), tmp_path)


def test_killed_while_the_storage_fails(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """A job is killed while requests to its storage are cut, refused or not answered."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with hostile_s3(seed, 0.1) as (bucket, faults):
        both = [hosts(name, f"{bucket}/job1") for name in ("a", "b")]
        _killed(both, max(2, KILLS // 2), random.Random(seed), tmp_path)
        assert {"cut", "unanswered", "refused", "late"} == {*faults.counts}, faults.counts
    print(faults.counts)


def _killed(both: list[HostedJob], kills: int, rng: random.Random, tmp_path: Path) -> None:
    with never_two(both[0].place):
        for number in range(kills):
            job = both[number % 2]
            job.start()
            before = job.directory.storage_status()
            uploads = 0 if before is None else before.uploads
            job.until(functools.partial(job.has_uploads, uploads + 1), "an upload")
            threading.Event().wait(rng.random())
            job.kill_one(rng)
            threading.Event().wait(rng.random())
            job.lose()  # a killed helper or CRIU does not end it
        last = both[kills % 2]
        last.start()
        last.until(lambda: commands(last.place), "its start")
        assert last.finish() == 0, last.messages()
    check_exact(last, tmp_path / "reference")


def test_a_long_output(hosts: Callable[..., HostedJob]) -> None:
    """For output of which only the length is saved on one host, the checkpoint has the contents."""
    here, there = hosts("a"), hosts("b")
    script = "import sys,time,os\nprint('x' * 5000000, flush=True)\n"
    script += "while not os.path.exists(sys.argv[1] + '/finish'): time.sleep(0.01)\nprint('end')"
    for job in (here, there):
        job.words = [sys.executable, "-c", script, str(job.place)]
    here.start()
    here.until(lambda: here.has_uploads(2), "uploads")
    here.lose()
    there.start()
    there.until(lambda: there.directory.status().resumed == 1, "its resumption")
    assert there.finish() == 0
    assert (there.directory.path / "stdout").read_text() == "x" * 5000000 + "\nend\n"


def test_another_job(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """The storage of another command is refused by name."""
    job = hosts("a")
    job.steps = 3
    job.start()
    assert job.wait() == 0
    other = hosts("b")
    other.steps = 4
    other.start()
    assert other.wait() == 1
    assert "it belongs to a job with another command" in other.messages()


def test_a_wrong_key(hosts: Callable[..., HostedJob], tmp_path: Path) -> None:
    """With another key nothing is started, not even with ``--or-start-over``, and nothing is lost:
    with the right key the other host resumes the job.
    """
    x25519 = pytest.importorskip("pyrage", reason="encryption needs pyrage").x25519

    def options(name: str) -> tuple[str, ...]:
        key = x25519.Identity.generate()
        (tmp_path / name).write_text(f"# a key\n{key}\n")
        return "--encrypt-to", str(key.to_public()), "--identity", str(tmp_path / name)

    right, wrong = options("right"), options("wrong")
    here, there = hosts("a"), hosts("b")
    here.start(*right)
    here.until(lambda: here.has_uploads(2), "uploads")
    here.lose()
    there.start(*wrong, "--or-start-over")
    assert there.wait() == CANNOT_RESTORE
    assert "is complete, but the archive cannot be decrypted" in there.messages()
    assert there.directory.status().state is State.CANNOT_RESTORE
    assert not (there.directory.path / "stdout").exists()
    there.start(*right)
    there.until(lambda: there.directory.status().resumed == 1, "its resumption")
    (there.place / "finish").touch()
    assert there.wait() == 0
    check_exact(there, tmp_path / "reference")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--encrypt-to", "age1wrong"),
        ("--storage", "nothing://x"),
        ("--storage", "s3://"),
        ("--storage", "file://"),
    ],
)
def test_values_that_are_refused(hosts: Callable[..., HostedJob], option: str, value: str) -> None:
    """Invalid values are refused by name before anything is started or stored."""
    job = hosts("a")
    job.start(option, value)
    assert job.wait() == 2
    message = job.messages().splitlines()[-1]  # after the usage
    assert option[2:] in message
    assert message.count(value) <= 1  # keys are not shown
    assert not (job.place / "storage").exists()
    assert not (job.directory.path / "stdout").exists()

"""Live migration between two hosts: separate network, pid and mount namespaces."""

from __future__ import annotations

import mmap
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pycriu_native
from pycriu_native import (
    CriuOpts,
    MigrationError,
    MigrationMode,
    Notification,
    Notify,
    OptionError,
    PeerLostError,
    UnsupportedError,
    Worker,
    dump,
    migrate_in,
    migrate_out,
)
from pycriu_native._calls import requirements
from pycriu_native._transport.program import find_program
from pycriu_native.migration import endpoint
from pycriu_native.migration.deadline import MigrationDeadline

from .conftest import Spawn
from .support.certificates import Authority
from .support.features import needs_lazy_pages, needs_soft_dirty
from .support.hosts import OURS, Host, cable, host
from .support.migrations import Destination, Leaving, destination, far_pid, reaped, shaped
from .support.processes import Target, eventually
from .support.soft_dirty import MOVER

Arrive = Callable[..., Destination]

WITH_MEMORY = """
    import hashlib, os
    memory = bytearray(os.urandom(1 << 20) * {mib})
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest(), first=lambda: memory[0])
"""


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Host, str]]:
    """Another host, and its address."""
    with host() as other, cable(OURS, other) as (_, address):
        yield other, address


@pytest.fixture
def arrive(far: tuple[Host, str], tmp_path: Path) -> Iterator[Arrive]:
    """Start destinations on the other host."""
    with ExitStack() as owned:

        def start(**given: Any) -> Destination:
            given["arguments"] = {"insecure": True, **given.get("arguments", {})}
            return owned.enter_context(destination(*far, tmp_path, **given))

        yield start


@pytest.fixture
def traveller(spawn: Spawn) -> Iterator[Target]:
    """A process with some memory, whose pid is free at the destination."""
    far_pid()
    target = spawn(WITH_MEMORY.format(mib=16))
    with reaped(target):
        yield target


BOTH = pytest.mark.parametrize(
    "mode",
    [
        MigrationMode.STOP_AND_COPY,
        pytest.param(MigrationMode.POST_COPY, marks=needs_lazy_pages),
    ],
    ids=str,
)


@BOTH
def test_a_process_changes_hosts(arrive: Arrive, traveller: Target, mode: MigrationMode) -> None:
    """The process runs at the destination with all of its memory; both sides return the numbers."""
    checksum = traveller.ask("checksum")
    there = arrive()
    result = migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, insecure=True)
    message = there.until("result", "error")
    assert message.get("result") == result.pid == traveller.pid, message
    assert traveller.process.wait(10) == -9
    assert traveller.ask("checksum") == checksum
    assert traveller.runs_on()
    assert result.mode is mode
    assert result.bytes > 16 * 2**20
    assert (result.page_bytes > 16 * 2**20) is mode.lazy
    assert message["images"] == result.image_bytes
    assert 0 < result.downtime < result.duration
    assert (result.dump is None) is mode.lazy  # CRIU has no statistics of a lazy dump
    assert result.restore is not None
    assert set(there.pids()) == {there.init, there.pid, there.inside(result.pid)}
    assert not message["files"]
    assert set(message["descriptors"]) <= set(there.reports[0]["descriptors"])


def program(release: str) -> str:
    """The ``criu`` of a release, if it is installed."""
    path = f"/opt/pycriu-native-{release}/bin/criu" if release else find_program(None)
    if not os.path.exists(path):
        pytest.skip(f"there is no CRIU {release} here")
    return path


@needs_lazy_pages
@pytest.mark.parametrize(
    "release",
    [
        pytest.param("4.1", marks=pytest.mark.long),
        "",
        pytest.param("4.3", marks=pytest.mark.long),
    ],
    ids=["4.1", "installed", "4.3"],
)
def test_it_runs_before_its_memory_is_there(
    arrive: Arrive, far: tuple[Host, str], spawn: Spawn, release: str
) -> None:
    """The process responds at the destination while most of its 256 MiB are at the source.

    The zero byte on ``status_fd`` and the ``status-ready`` notification are both sent.
    """
    criu = program(release)
    far_pid()
    target = spawn(WITH_MEMORY.format(mib=256))
    seen: list[str] = []

    def hook(notification: Notification) -> None:
        seen.append(notification.action)

    reader, writer = os.pipe()
    with reaped(target), open(reader, "rb") as ready, open(writer, "wb") as status:
        checksum = target.ask("checksum")
        first = target.ask("first")
        there = arrive(program=criu)
        with shaped(far[1], "800mbit"):
            leaving = Leaving(
                target,
                there,
                opts=CriuOpts(status_fd=status),
                mode=MigrationMode.POST_COPY,
                on_notify=hook,
                via=Worker(program=criu),
                insecure=True,
            )
            while there.next().get("notification") != "post-resume":
                pass
            assert target.ask("first") == first
            assert resident(there.inside(target.pid)) < 128 * 2**20
            assert leaving.under_way
            assert leaving.join() is None
        assert ready.read(1) == b"\0"
        message = there.until("result", "error")
        assert message.get("result") == target.pid, message
        assert Notify.STATUS_READY in seen
        assert target.ask("checksum") == checksum
        assert resident(there.inside(target.pid)) >= 256 * 2**20
        assert set(there.pids()) == {there.init, there.pid, there.inside(target.pid)}
        assert leaving.result is not None
        assert leaving.result.page_bytes > 256 * 2**20


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Rss:")[1].split()[0]) * 1024


@needs_lazy_pages
def test_releases_that_cannot_exchange_pages(arrive: Arrive, traveller: Target) -> None:
    """The page protocol changed with 4.2: other pairs are refused before the process is frozen."""
    there = arrive(program=program("4.1"))
    with pytest.raises(MigrationError, match=r"cannot exchange pages.*continues at the source"):
        migrate_out(
            traveller.pid, CriuOpts(), to=there.place, mode=MigrationMode.POST_COPY, insecure=True
        )
    assert there.until("result", "error")["error"] == "MigrationError"
    assert traveller.runs_on()


@needs_lazy_pages
def test_a_pipe_that_is_too_small(
    spawn: Spawn, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_SYS_RESOURCE a lazy dump is refused, with the sysctl and the command."""
    effective = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff")
    )
    if int(effective, 16) >> 24 & 1:
        pytest.skip("with CAP_SYS_RESOURCE the sysctl has no effect")
    target = spawn()
    setting = tmp_path / "pipe-max-size"
    setting.write_text(str(2**21))
    monkeypatch.setattr(requirements, "PIPE_MAX_SIZE", str(setting))
    cure = r"fs\.pipe-max-size is at least 4194304; it is 2097152: sysctl -w"
    opts = CriuOpts(images_directory=images, lazy_pages=True, page_server="127.0.0.1:7000")
    with pytest.raises(UnsupportedError, match=cure):
        dump(target.pid, opts)
    with pytest.raises(UnsupportedError, match=cure):
        migrate_out(target.pid, CriuOpts(), to=("127.0.0.1", 7000), mode=MigrationMode.POST_COPY)
    assert not images.exists()
    assert target.runs_on()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that both sides trust."""
    return Authority.make(tmp_path_factory.mktemp("certificates") / "ca")


def tls(authority: Authority, name: str, address: str) -> dict[str, Any]:
    """Options with a new certificate of this authority."""
    certificate = authority.sign(name, address)
    return {
        "tls": True,
        "tls_cacert": str(authority.file),
        "tls_cert": str(certificate.file),
        "tls_key": str(certificate.key),
    }


@needs_lazy_pages
def test_with_tls(
    arrive: Arrive, far: tuple[Host, str], traveller: Target, authority: Authority
) -> None:
    """Images and pages are encrypted, and ``insecure`` is not needed."""
    checksum = traveller.ask("checksum")
    there = arrive(opts=tls(authority, "there", far[1]), arguments={"insecure": False})
    opts = CriuOpts(**tls(authority, "here", "198.18.0.1"))
    result = migrate_out(traveller.pid, opts, to=there.place, mode=MigrationMode.POST_COPY)
    assert there.until("result", "error").get("result") == result.pid
    assert traveller.ask("checksum") == checksum


@pytest.mark.parametrize("uses_tls", [False, True])
def test_tls_on_one_side(uses_tls: bool, authority: Authority) -> None:
    """The error has the cure: TLS on both sides."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"plain" if uses_tls else b"\x15\x03\x01")
        theirs.shutdown(socket.SHUT_WR)
        opts = CriuOpts(**tls(authority, "here", "127.0.0.1")) if uses_tls else CriuOpts()
        server = {"server_hostname": "127.0.0.1"} if uses_tls else {}
        with pytest.raises(PeerLostError) as caught:
            endpoint._ready(ours, opts, MigrationDeadline(5), check_owner=False, **server)
    assert "set tls=True" in str(caught.value.cure)


def example(number: int, authority: Authority, name: str, address: str, far: str) -> str:
    """One side of docs/migration.md, with the certificates of this authority and the addresses of
    these hosts.
    """
    text = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    script: str = re.findall(r"```python\n(.*?)```", text, flags=re.S)[number]
    certificate = authority.sign(name, address)
    for shown, file in (
        ("/etc/migrate/ca.pem", authority.file),
        (f"/etc/migrate/{name}.pem", certificate.file),
        (f"/etc/migrate/{name}.key", certificate.key),
        ("10.0.0.2", far),
    ):
        assert shown in script
        script = script.replace(shown, str(file))
    return script


@needs_lazy_pages
def test_the_examples_of_the_page(
    far: tuple[Host, str], traveller: Target, authority: Authority
) -> None:
    """docs/migration.md, both sides, with changed addresses, paths and pid."""
    checksum = traveller.ask("checksum")
    there, address = far
    incoming = example(0, authority, "there", address, address)
    outgoing = example(1, authority, "here", "198.18.0.1", address)
    outgoing = outgoing.replace("4242", str(traveller.pid))
    # The process runs in the destination's pid namespace, which must not end.
    incoming += "import sys; sys.stdout.flush(); sys.stdin.read()"
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = ["nsenter", f"--net={there.path}", *unshare, sys.executable, "-c", incoming]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as taker:
        try:
            eventually(lambda: ":7000" in there.run("ss", "-Hltn"), "a destination that listens")
            subprocess.run([sys.executable, "-c", outgoing], check=True)
            assert taker.stdout is not None
            pid, downtime = taker.stdout.readline().split()
            assert int(pid) == traveller.pid
            assert float(downtime) > 0
            assert traveller.ask("checksum") == checksum
        finally:
            taker.kill()


def test_a_foreign_certificate_is_refused(
    arrive: Arrive,
    far: tuple[Host, str],
    traveller: Target,
    authority: Authority,
    tmp_path: Path,
) -> None:
    """A peer without a certificate is refused; the next one is accepted."""
    stranger = Authority.make(tmp_path / "stranger")
    there = arrive(opts=tls(authority, "there", far[1]), arguments={"insecure": False})
    with pytest.raises(PeerLostError, match="TLS"):
        migrate_out(
            traveller.pid, CriuOpts(**tls(stranger, "stranger", "198.18.0.1")), to=there.place
        )
    foreign = tls(stranger, "other", "198.18.0.1")
    half = {**foreign, "tls_cacert": str(authority.file)}
    with pytest.raises(PeerLostError):
        migrate_out(traveller.pid, CriuOpts(**half), to=there.place)
    with pytest.raises(PeerLostError):
        migrate_out(traveller.pid, CriuOpts(), to=there.place, insecure=True)
    assert traveller.runs_on()
    migrate_out(traveller.pid, CriuOpts(**tls(authority, "here", "198.18.0.1")), to=there.place)
    assert "result" in there.until("result", "error")


def test_a_socket_of_the_callers_and_a_directory(
    arrive: Arrive, traveller: Target, tmp_path: Path
) -> None:
    """A connected socket is used and remains open; a named directory is kept."""
    kept = tmp_path / "kept"
    there = arrive(opts={"images_directory": str(kept)})
    with socket.create_connection(there.place) as ours:
        result = migrate_out(traveller.pid, CriuOpts(), to=ours, insecure=True)
        assert ours.fileno() >= 0
    assert "result" in there.until("result", "error")
    assert (kept / "1" / "inventory.img").exists()
    assert result.images == ""


def _sent_in_rounds(
    pid: int,
    there: Destination,
    mode: MigrationMode,
    should_continue: Callable[[pycriu_native.Round], bool],
) -> pycriu_native.MigrationResult:
    """Migrate a process; both sides have the same pid."""
    result = migrate_out(
        pid, CriuOpts(), to=there.place, mode=mode, should_continue=should_continue, insecure=True
    )
    message = there.until("result", "error")
    assert message.get("result") == result.pid, message
    return result


@needs_soft_dirty
@pytest.mark.parametrize(
    "mode", [MigrationMode.PRE_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY], ids=str
)
def test_memory_goes_in_rounds_first(
    arrive: Arrive, traveller: Target, mode: MigrationMode
) -> None:
    """A small part of the memory is sent while the process is frozen."""
    checksum = traveller.ask("checksum")
    there = arrive()
    rounds = []

    def should_continue(one: pycriu_native.Round) -> bool:
        rounds.append(one)
        return len(rounds) < 3

    result = _sent_in_rounds(traveller.pid, there, mode, should_continue)
    assert traveller.ask("checksum") == checksum
    assert len(rounds) == 3
    assert rounds[0].bytes_written > 16 * 2**20
    if mode.lazy:
        assert result.page_bytes < 8 * 2**20
    else:
        assert result.dump is not None
        assert result.dump.pages_written * mmap.PAGESIZE < 8 * 2**20


@needs_soft_dirty
@pytest.mark.parametrize(
    "mode", [MigrationMode.PRE_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY], ids=str
)
@pytest.mark.parametrize("more", [False, True], ids=["after the last round", "between rounds"])
def test_memory_that_was_moved(
    arrive: Arrive, spawn: Spawn, mode: MigrationMode, more: bool
) -> None:
    """The kernel has not marked it as changed: the final dump sends all memory."""
    far_pid()
    target = spawn(MOVER)
    there = arrive()

    def should_continue(one: pycriu_native.Round) -> bool:
        target.ask("swap", 0, 1)
        return more

    with reaped(target):
        result = _sent_in_rounds(target.pid, there, mode, should_continue)
        assert "was moved" in result.not_incremental
        assert [target.ask("contents", number) for number in (0, 1)] == [[2], [1]]


@pytest.mark.parametrize("field", ["tls_cacert", "tls_cert", "tls_key"])
def test_files_of_tls_that_do_not_fit(authority: Authority, tmp_path: Path, field: str) -> None:
    """A missing file, and the key of another certificate, are refused before anything is done."""
    good = tls(authority, "one", "127.0.0.1")
    other = tls(authority, "other", "127.0.0.1")["tls_key"]
    for bad in (str(tmp_path / "missing"), other):
        opts = CriuOpts(**{**good, field: bad})
        with pytest.raises(OptionError, match="PEM files are accepted") as caught:
            migrate_in(opts, listen="127.0.0.1:0", deadline=5)
        named = {each.field for each in caught.value.problems}
        assert named == {"tls_cacert" if field == "tls_cacert" else "tls_cert"}
        with pytest.raises(OptionError, match="PEM files are accepted"):
            migrate_out(os.getpid(), opts, to="127.0.0.1:9")


@pytest.mark.parametrize("whose", ["source", "destination"])
def test_a_revoked_certificate(
    authority: Authority, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    """A side with the revocation list refuses a peer with a revoked certificate."""
    stolen = authority.sign("stolen", "127.0.0.1")
    good = CriuOpts(**tls(authority, "good", "127.0.0.1"))
    revoked = authority.revocations(stolen)
    bad = replace(good, tls_cert=str(stolen.file), tls_key=str(stolen.key))
    wary = replace(good, tls_cacrl=str(revoked))
    here, there = (bad, wary) if whose == "source" else (wary, bad)

    def speak(opts: CriuOpts) -> Exception | None:
        try:
            endpoint.connect(address, opts, MigrationDeadline(5.0), False).close()
        except PeerLostError as error:
            return error
        return None

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as beside:
        address = listener.getsockname()
        message = beside.submit(speak, here)
        with pytest.raises(MigrationError, match="no source connected"):
            endpoint.accept(listener, there, MigrationDeadline(1.0), False)
        refused = message.result()
        assert refused is not None
        assert "certificate revoked" in (caplog.text if whose == "source" else str(refused))
        message = beside.submit(speak, wary)
        endpoint.accept(listener, wary, MigrationDeadline(5.0), False).close()
        assert message.result() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": ("192.0.2.1", 7000)}, "insecure=True"),
        ({"to": "nowhere"}, "to='nowhere'"),
        ({"to": ("127.0.0.1", 0)}, "a port from 1"),
        ({"opts": CriuOpts(lazy_pages=True)}, "lazy_pages=True"),
        ({"opts": CriuOpts(tls=True)}, "tls_cert=None"),
        ({"opts": CriuOpts(tls_cert="x")}, "tls_cert='x'"),
        ({"opts": CriuOpts(images_directory="/etc")}, "images_directory='/etc'"),
        ({"mode": "fast"}, "mode='fast'"),
        ({"peer_timeout": 0}, "peer_timeout=0"),
        ({"peer_timeout": 3601}, "0.1 to 3600"),
        ({"deadline": -1}, "deadline=-1"),
        ({"opts": CriuOpts(work_directory="/nowhere")}, "work_directory='/nowhere'"),
    ],
    ids=lambda given: "" if isinstance(given, str) else next(iter(given)),
)
def test_what_is_refused(spawn: Spawn, given: dict[str, Any], message: str) -> None:
    """Each invalid argument has a clear message, before anything is touched."""
    target = spawn()
    words = {"to": ("127.0.0.1", 9), **given}
    with pytest.raises(OptionError) as caught:
        migrate_out(target.pid, words.pop("opts", CriuOpts()), **words)
    assert message in str(caught.value)
    if not {"to", "mode"} & set(given):
        with pytest.raises(OptionError) as caught:
            migrate_in(given.pop("opts", CriuOpts()), listen=("127.0.0.1", 0), **given)
        assert message in str(caught.value)
    with pytest.raises(OptionError, match="insecure=True"):
        migrate_in(CriuOpts(), listen=("0.0.0.0", 0))


def test_nobody_listens(spawn: Spawn) -> None:
    """The error has a cure, and the process was not touched."""
    target = spawn()
    with pytest.raises(PeerLostError, match="no connection to the destination") as caught:
        migrate_out(target.pid, CriuOpts(), to=("127.0.0.1", 9))
    assert caught.value.phase == "connect"
    assert target.runs_on()


def test_no_source_connects(tmp_path: Path) -> None:
    """The deadline limits the wait for a source; nothing remains."""
    opts = CriuOpts(images_directory=tmp_path / "images")
    with pytest.raises(MigrationError, match="no source connected"):
        migrate_in(opts, listen=("127.0.0.1", 0), deadline=0.2)
    eventually(lambda: not (tmp_path / "images").exists(), "no directory")

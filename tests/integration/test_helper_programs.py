"""Programs that CRIU runs for containers: without them preflight and ``check_images`` refuse.

``ip`` for a network namespace, ``tar`` and ``gzip`` for a tmpfs, ``iptables-legacy-restore`` for
saved rules.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    Severity,
    Verdict,
    Worker,
    dump,
    preflight,
    restore,
)
from pycriu_native._failures.log_excerpt import known
from pycriu_native._transport.helper_programs import HelperPrograms
from pycriu_native._transport.program import SEARCH_PATH, find_program
from pycriu_native.images import check_images
from pycriu_native.results import Version

from .conftest import Spawn
from .support.containers import Container, container
from .support.failing_calls import CONNECTED
from .support.processes import reap_all

PROGRAMS = ("sh", "ip", "tar", "gzip")
FAMILIES = ("iptables", "ip6tables")
RULES = tuple(
    f"{family}{backend}-{verb}"
    for family in FAMILIES
    for backend in ("", "-legacy")
    for verb in ("save", "restore")
)

LINES = {
    "ip": 'execvp("ip"',
    "tar": 'execvp("tar"',
    "sh": 'execvp("sh"',
    "gzip": "tmpfs content",
    "iptables": "iptables dump - no legacy version",
}
"""What CRIU logs without each."""
FAILURES = {"gzip": "tmpfs-content"}
"""The failure of a dump, if it is not that of a missing program."""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container with a file in a tmpfs and an address."""
    with container(tmp_path / "box", mounts={"/mem": "tmpfs"}) as made:
        Path(f"/proc/{made.pid}/root/mem/file").write_text("in the tmpfs")
        made.run("ip", "address", "add", "10.9.9.9/24", "dev", "lo")
        yield made


def _without(directory: Path, *lacking: str) -> Worker:
    """A worker whose PATH lacks these programs."""
    directory.mkdir()
    for name in (*PROGRAMS, *RULES):
        program = shutil.which(name, path=SEARCH_PATH)
        if program is not None and name not in lacking:
            (directory / name).symlink_to(program)
    return Worker(env={"PATH": str(directory)})


@pytest.mark.cures("program-missing")
@pytest.mark.parametrize("program", ["ip", "tar", "gzip"])
def test_a_dump(box: Container, images: Path, tmp_path: Path, program: str) -> None:
    """preflight refuses the dump, which would fail for this reason."""
    via = _without(tmp_path / "bin", program)
    opts = CriuOpts(images_directory=images, external=box.given_on_dump, network_lock="nftables")
    found = preflight(box.pid, opts, via=via)
    assert found.verdict is Verdict.FAILS
    [finding] = [each for each in found.findings if each.severity is Severity.STOPS]
    assert f"with {program}, and" in finding.message
    assert str(finding.cure).startswith("apt-get install")
    with pytest.raises(CriuError) as failed:
        dump(box.pid, opts, via=via)
    assert any(LINES[program] in line for line in failed.value.lines)
    assert failed.value.cause == known(FAILURES.get(program, "program-missing")).cause
    assert preflight(box.pid, opts).verdict is Verdict.WORKS
    dump(box.pid, opts)


@pytest.mark.cures("program-missing", "sh-missing", "tmpfs-unpack")
@pytest.mark.parametrize("program", ["ip", "tar", "gzip", "sh", "iptables"])
def test_a_restore(box: Container, images: Path, tmp_path: Path, program: str) -> None:
    """The restore works when the program is installed."""
    lacking = [program]
    if program in ("sh", "iptables"):
        if shutil.which("iptables-legacy-save", path=SEARCH_PATH) is None:
            pytest.skip("no iptables-legacy-save here: CRIU saves no rules")
        box.run("iptables-legacy", "-A", "INPUT", "-s", "10.1.1.1", "-j", "DROP")
    if program == "iptables":
        lacking = ["iptables-restore", "iptables-legacy-restore"]
    opts = CriuOpts(images_directory=images, network_lock="nftables")
    box.dump(replace(opts, external=box.given_on_dump))
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    via = _without(tmp_path / "bin", *lacking)
    messages = [
        f.message for f in check_images(images, opts, via=via) if f.severity is Severity.STOPS
    ]
    assert messages
    assert all(f"with {lacking[-1]}, and" in message for message in messages)
    with pytest.raises(CriuError) as failed:
        restore(opts, via=via)
    assert any(LINES[program] in line for line in failed.value.lines)
    others = {"gzip": "tmpfs-unpack", "sh": "sh-missing"}
    assert failed.value.cause == known(others.get(program, "program-missing")).cause
    assert not [f for f in check_images(images, opts) if f.severity is Severity.STOPS]
    result = restore(opts)
    assert Path(f"/proc/{result.pid}/root/mem/file").read_text() == "in the tmpfs"
    os.kill(result.pid, signal.SIGKILL)
    reap_all()


@pytest.mark.parametrize("lock", [None, "nftables"])
def test_no_way_to_lock(spawn: Spawn, images: Path, tmp_path: Path, lock: str | None) -> None:
    """Without iptables, and by a CRIU without nftables: preflight refuses, and sets no option."""
    without = _without(tmp_path / "bin")
    script = tmp_path / "criu"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *network_lock_nftables*) exit 1 ;; esac\n'
        f'exec {find_program(None)} "$@"\n'
    )
    script.chmod(0o755)
    via = replace(without, program=script)
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock=lock)
    found = preflight(spawn(CONNECTED).pid, opts, via=via)
    assert found.verdict is Verdict.FAILS
    [finding] = [each for each in found.findings if each.severity is Severity.STOPS]
    assert finding.id == "network-lock"
    assert "with nftables" in finding.message
    assert not finding.sets


def test_an_option_has_its_name(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The text and the data of preflight name the lock, as ``CriuOpts`` and ``criu`` take it."""
    opts = CriuOpts(images_directory=images, tcp_established=True)
    found = preflight(spawn(CONNECTED).pid, opts, via=_without(tmp_path / "bin"))
    assert "    network_lock='nftables'\n" in str(found)
    assert found.to_dict()["options"] == {"network_lock": "nftables"}


@pytest.mark.parametrize("release", ["3.17", "3.17.1", "3.18", "4.2.1"])
def test_the_program_that_restores_rules(tmp_path: Path, release: str) -> None:
    """CRIU before 3.18 runs the plain program, also that of nftables; later ones the legacy one."""
    (tmp_path / "sh").symlink_to("/bin/sh")
    plain = tmp_path / "iptables-restore"
    plain.write_text("#!/bin/sh\necho 'iptables-restore v1.8.9 (nf_tables)'\n")
    plain.chmod(0o755)
    helpers = HelperPrograms(Worker(env={"PATH": str(tmp_path)}))
    old = release.startswith("3.17")
    lacking = () if old else ("iptables-legacy-restore",)
    assert helpers.missing_for_rules("iptables", Version.parse(release)) == lacking
    plain.unlink()
    lacking = ("iptables-restore",) if old else ("iptables-legacy-restore",)
    assert helpers.missing_for_rules("iptables", Version.parse(release)) == lacking

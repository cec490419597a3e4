"""doctor on this machine, with fewer rights, and with a CRIU that is missing or too old."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    Severity,
    Socket,
    Version,
    Worker,
    check,
    doctor,
    feature_check,
    libcriu_version,
    version,
)
from pycriu_native._system.mountinfo import mounts_of
from pycriu_native._transport import feature_cache
from pycriu_native.diagnostics.doctor import features, program, rights, system

from .conftest import Spawn
from .support.failing_calls import OLDER

ROOT = Path(__file__).parents[2]


def output_of(code: str, shell: str) -> str:
    """The output of Python code, which a shell script starts in a mount namespace of its own."""
    process = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def here() -> Any:
    """The findings of doctor on this machine, read once."""
    return doctor()


def test_what_is_right_here(here: Any) -> None:
    """The findings agree with other calls: releases, CRIU's check, features, capabilities."""
    assert here.of("criu").message.startswith(str(version()))
    assert here.of("libcriu").message == str(libcriu_version())
    assert here.of("check").severity in (Severity.GOOD, Severity.NOTE)
    check()
    result = feature_check()
    for field, name in features.BY_REQUEST.items():
        there = here.of(f"feature:{name}").message == "there"
        assert there == getattr(result, field), name
    assert here.severity is not Severity.STOPS
    assert here.of("proc").severity is Severity.GOOD


def test_each_feature_is_answered(here: Any) -> None:
    """CRIU 4.2 reports for every feature of the request whether the kernel has it."""
    if version() < Version(major=4, minor=2):
        pytest.skip(f"CRIU {version()} reports fewer features")
    asked = {finding.id for finding in here.findings if finding.group == "feature"}
    assert asked == {f"feature:{name}" for name in features.FEATURES}
    program = Worker().name()
    for name in ("uffd", "mem_dirty_track"):
        message = subprocess.run([program, "check", "--feature", name], capture_output=True)
        there = here.of(f"feature:{name}").message == "there"
        assert there == (message.returncode == 0)


def test_every_finding_can_be_used(here: Any) -> None:
    """Each finding has a unique id and text; one that is not good has its costs and cure."""
    ids = [finding.id for finding in here.findings]
    assert len(ids) == len(set(ids))
    for finding in here.findings:
        assert finding.subject
        assert finding.message
        if finding.severity in (Severity.WARNING, Severity.STOPS):
            assert finding.costs
            assert finding.cure


def test_as_data_and_as_text(here: Any) -> None:
    """The result can be converted to JSON; the text lists problems, not the good features."""
    message = json.loads(json.dumps(here.to_dict()))
    assert message["severity"] == str(here.severity)
    assert len(message["findings"]) == len(here.findings)
    text = str(here)
    assert text.startswith("this machine can checkpoint")
    for finding in here.findings:
        shown = f"{finding.subject}: {finding.message}" in text
        assert shown != (finding.group == "feature" and finding.severity is Severity.GOOD), finding


def test_no_criu(tmp_path: Path) -> None:
    """A missing program is a finding that stops everything, and the other checks are still made."""
    result = doctor(Worker(program=tmp_path / "criu"))
    assert result.severity is Severity.STOPS
    assert result.of("criu").severity is Severity.STOPS
    assert "install" in result.of("criu").cure
    assert result.of("capability:CAP_SYS_ADMIN")
    assert str(result).startswith("this machine cannot checkpoint")
    with pytest.raises(KeyError):
        result.of("check")


@pytest.mark.skipif(not os.path.exists(OLDER["3.17"]), reason="there is no CRIU 3.17 here")
def test_a_criu_that_is_too_old() -> None:
    """A program that cannot start on this kernel stops everything, as its check reports."""
    via = Worker(program=OLDER["3.17"])
    with pytest.raises(CriuError):
        check(via=via)
    result = doctor(via)
    assert result.severity is Severity.STOPS
    assert "too old for this kernel" in result.of("check").message


@pytest.mark.skipif(not os.path.exists(OLDER["4.1"]), reason="there is no CRIU 4.1 here")
def test_a_criu_that_does_not_fit_the_kernel() -> None:
    """CRIU before 4.2 fails with sockets on Linux 6.16 and later; libcriu is newer."""
    findings = {finding.id: finding for finding in program.look(Worker(program=OLDER["4.1"]))}
    new = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 16)
    assert findings["fit-kernel"].severity is (Severity.WARNING if new else Severity.GOOD)
    differs = str(libcriu_version()) != "4.1.1"
    assert findings["fit-library"].severity is (Severity.NOTE if differs else Severity.GOOD)
    cured = {finding.id: finding for finding in program.look(Worker())}
    if version() >= Version(major=4, minor=2):
        assert cured["fit-kernel"].severity is Severity.GOOD
    if str(version()) == str(libcriu_version()):
        assert cured["fit-library"].severity is Severity.GOOD


def test_a_socket_is_not_called() -> None:
    """A socket serves one request, which doctor does not use up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        result = doctor(Socket(ours))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    assert {finding.group for finding in result.findings} == {"rights", "network", "system"}


def test_a_configuration_file_that_interferes(tmp_path: Path) -> None:
    """The file and its options are reported."""
    (tmp_path / ".criu").mkdir()
    (tmp_path / ".criu/default.conf").write_text("tcp-close\nghost-limit 3\n")
    via = Worker(env={"HOME": str(tmp_path)})
    [finding] = [result for result in program.look(via) if result.id == "configuration"]
    assert finding.severity is Severity.WARNING
    assert str(tmp_path / ".criu/default.conf") in finding.message
    assert "tcp_close" in finding.message
    assert "ghost_limit" in finding.message


def test_a_poorer_place(tmp_path: Path) -> None:
    """Fewer capabilities, no iptables, read-only cgroups and settings are each reported."""
    code = textwrap.dedent(f"""
        import json, sys
        from pycriu_native import Worker
        from pycriu_native.diagnostics.doctor import rights, system
        via = Worker(env={{"PATH": {str(tmp_path)!r}}})
        findings = [*rights.look(), *system.look(via)]
        json.dump([finding.to_dict() for finding in findings], sys.stdout)
    """)
    shell = (
        "for m in $(awk '/ - cgroup2? /{print $5}' /proc/self/mountinfo); do "
        'mount -o remount,ro,bind "$m"; done; '
        "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; "
        'exec setpriv --bounding-set=-sys_ptrace,-net_admin,-sys_resource "$@"'
    )
    result = {finding["id"]: finding for finding in json.loads(output_of(code, shell))}
    assert result["capability:CAP_SYS_PTRACE"]["severity"] == "warning"
    assert result["capability:CAP_NET_ADMIN"]["severity"] == "warning"
    assert result["capability:CAP_SYS_ADMIN"]["severity"] == "good"
    assert result["iptables"]["severity"] == "warning"
    assert "nftables" in result["iptables"]["costs"]
    assert result["tool:tar"]["severity"] == "warning"
    assert result["ns-last-pid"]["severity"] == "warning"
    if "version" in result["cgroups"]["message"] or "hybrid" in result["cgroups"]["message"]:
        assert result["cgroups"]["severity"] == "warning"
        assert "read-only" in result["cgroups"]["message"]


def test_a_filter_of_our_system_calls() -> None:
    """A process under seccomp gets a finding with the effect."""
    code = textwrap.dedent("""
        import ctypes, struct
        from pycriu_native.diagnostics.doctor import rights
        libc = ctypes.CDLL(None)
        allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow)))
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, program, 0, 0) == 0
        print([finding.severity for finding in rights.look() if finding.id == "seccomp"][0])
    """)
    message = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert message.stdout == "warning\n"


# ---- what this machine has not: the files of others, as their kernels write them ----


def files(monkeypatch: pytest.MonkeyPatch, module: Any, **contents: str) -> None:
    """Replace the contents of some files of /proc and /sys."""
    real: Callable[[str], str] = module.read
    known = {name.replace("__", "/"): text for name, text in contents.items()}

    def read(path: str) -> str:
        ending = next((name for name in known if path.endswith(name)), None)
        return real(path) if ending is None else known[ending]

    monkeypatch.setattr(module, "read", read)


@pytest.mark.parametrize(
    ("id", "contents", "severity"),
    [
        ("yama", {"ptrace_scope": "3\n"}, Severity.STOPS),
        ("yama", {"ptrace_scope": "1\n"}, Severity.GOOD),
        ("lockdown", {"lockdown": "none integrity [confidentiality]\n"}, Severity.WARNING),
        ("lockdown", {"lockdown": "none [integrity] confidentiality\n"}, Severity.GOOD),
        (
            "selinux",
            {"enforce": "1", "current": "system_u:system_r:httpd_t:s0"},
            Severity.WARNING,
        ),
        (
            "selinux",
            {"enforce": "0", "current": "system_u:system_r:httpd_t:s0"},
            Severity.GOOD,
        ),
        (
            "apparmor",
            {"enabled": "Y\n", "current": "docker-default (enforce)\n"},
            Severity.WARNING,
        ),
        ("apparmor", {"enabled": "Y\n", "current": "unconfined\n"}, Severity.GOOD),
    ],
)
def test_security_modules(
    monkeypatch: pytest.MonkeyPatch, id: str, contents: dict[str, str], severity: Severity
) -> None:
    """Each module is detected from its files."""
    files(monkeypatch, rights, **contents)
    [result] = [finding for finding in rights.look() if finding.id == id]
    assert result.severity is severity


@pytest.mark.parametrize(
    ("id", "contents", "severity"),
    [
        ("io-uring", {"io_uring_disabled": "2\n"}, Severity.GOOD),
        ("io-uring", {"io_uring_disabled": "0\n"}, Severity.NOTE),
        ("pipe-max-size", {"pipe-max-size": "4194304\n"}, Severity.GOOD),
    ],
)
def test_settings(
    monkeypatch: pytest.MonkeyPatch, id: str, contents: dict[str, str], severity: Severity
) -> None:
    """Each setting is read from its file."""
    files(monkeypatch, system, **contents)
    [result] = [finding for finding in system.look(Worker()) if finding.id == id]
    assert result.severity is severity


def test_pipes_that_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_SYS_RESOURCE lazy pages need larger pipes, and the command is named."""
    files(monkeypatch, system, **{"pipe-max-size": "1048576\n"})
    monkeypatch.setattr(system, "has_capability", lambda number: False)
    result = system._pipe_size()
    assert result.severity is Severity.WARNING
    assert result.cure == "sysctl -w fs.pipe-max-size=4194304"


def test_the_cache_of_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache is stored, absent, blocked by a file that a CRIU has left, stale or invalid."""
    monkeypatch.setattr(feature_cache, "RUN", str(tmp_path))
    monkeypatch.setattr(feature_cache, "filesystem_of", lambda path: "tmpfs")
    path, temporary = tmp_path / "criu.kdat", tmp_path / "criu.kdat.tmp"

    def severity_and_cure(says: str = "") -> tuple[Severity, str]:
        result = program._cache()
        assert str(path) in result.message
        to_cure = result.severity is not Severity.GOOD and bool(result.cure)
        assert bool(result.costs) == to_cure, result
        assert says in str(result)
        assert ("fails" in str(result)) == ("fails" in says)
        return result.severity, result.cure

    assert severity_and_cure() == (Severity.NOTE, "")
    temporary.touch()
    os.utime(temporary, (1, 1))
    assert severity_and_cure() == (Severity.NOTE, f"remove {temporary}")
    path.write_bytes(struct.pack("=I", feature_cache.MAGIC) + bytes(400))
    assert severity_and_cure() == (Severity.GOOD, "")
    os.utime(path, (1, 1))
    assert severity_and_cure("CRIU fails") == (Severity.WARNING, f"remove {path}")
    path.write_bytes(b"something else")
    assert severity_and_cure("removes it") == (Severity.WARNING, f"remove {path}")


def test_where_the_cache_is_kept(tmp_path: Path) -> None:
    """CRIU stores it on a tmpfs, and doctor finds it."""
    code = (
        "from pycriu_native import Worker\n"
        "from pycriu_native.diagnostics.doctor import program\n"
        "found = [r.message for _ in range(2) for r in program.look(Worker()) if r.id == 'cache']\n"
        "print(found[-1])\n"
    )
    shell = 'mount -t tmpfs none /run && exec "$@"'
    assert output_of(code, shell) == "/run/criu.kdat: it is kept\n"


def test_it_is_loaded_when_it_is_asked_for() -> None:
    """``import pycriu_native`` does not import it."""
    code = (
        "import sys, pycriu_native\n"
        "assert not any('diagnostics.doctor' in name for name in sys.modules)\n"
        "pycriu_native.doctor\n"
        "assert any('diagnostics.doctor' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


READ_ONLY = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"


def doctor_in(*words: str, setup: str = "true") -> dict[str, dict[str, Any]]:
    """The findings, and with the key "" the summary, of a process with this command prefix."""
    code = "import json, pycriu_native; print(json.dumps(pycriu_native.doctor().to_dict()))"
    message = subprocess.run(
        [*words, "sh", "-ec", f'{setup}; exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in message.stderr, message.stderr
    if message.returncode:
        pytest.skip(f"{words[0]}: {message.stderr.splitlines()[-1]}")
    result = json.loads(message.stdout)
    return {"": result, **{finding["id"]: finding for finding in result["findings"]}}


@pytest.mark.parametrize(
    ("capability", "feature"), [("sys_ptrace", "uffd"), ("net_admin", "sk_ns")]
)
def test_a_cache_of_a_criu_with_fewer_rights(capability: str, feature: str) -> None:
    """Every CRIU takes its results for the kernel's, until the file is removed."""
    own = ("unshare", "--mount", "--propagation=private")
    without = f"setpriv --bounding-set=-{capability} --inh-caps=-all"
    poor = f"mount -t tmpfs none /run; {without} {Worker().name()} check >/dev/null 2>&1 || true"
    result = doctor_in(*own, setup=poor)
    finding = result["cache-content"]
    assert finding["severity"] == "warning"
    assert feature in finding["message"].partition(": ")[2].split(", ")
    assert finding["cure"] == "rm /run/criu.kdat"
    assert result[f"feature:{feature}"]["message"] == "there"
    cured = doctor_in(*own, setup=f"{poor}; {finding['cure']}")
    assert "cache-content" not in cured
    assert cured[f"feature:{feature}"]["message"] == "there"


def test_a_system_without_proc() -> None:
    """The finding does not name another pid namespace."""
    own = ("unshare", "--mount", "--propagation=private")
    finding = doctor_in(*own, setup="mount -t tmpfs none /proc")["proc"]
    assert finding["severity"] == "stops"
    assert finding["message"] == "is no proc file system"


def test_the_proc_of_another_pid_namespace() -> None:
    """Its pids are those of other processes, until the right one is mounted."""
    own = ("unshare", "--pid", "--fork", "--mount", "--propagation=private")
    finding = doctor_in(*own)["proc"]
    assert finding["severity"] == "stops"
    assert finding["cure"] == "mount -t proc proc /proc"
    cured = doctor_in(*own, setup=finding["cure"])
    assert cured["proc"]["severity"] == "good"
    assert cured[""]["severity"] != "stops"


@pytest.mark.parametrize(
    "call", ["check()", "preflight(os.getpid())", "restore(CriuOpts(images_directory='/'))"]
)
@pytest.mark.parametrize(
    ("own", "cause"),
    [
        (("--pid", "--fork"), "/proc is not that of the caller's pid namespace"),
        (
            ("--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
            "there is no proc file system on /proc",
        ),
    ],
    ids=["another", "none"],
)
def test_calls_without_the_proc_of_their_pid_namespace(
    call: str, own: tuple[str, ...], cause: str
) -> None:
    """The error has the cause, not what CRIU or the reading of another process results in."""
    code = f"""
        import os
        from pycriu_native import CriuOpts, OptionError, check, preflight, restore
        try:
            print({call})
        except OptionError as error:
            print(error)
        """
    words = ["unshare", *own, sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f": {cause}" in result.stdout


def test_a_tmp_that_is_read_only() -> None:
    """CRIU's check fails, and no rights are lacking."""
    own = ("unshare", "--mount", "--propagation=private")
    setup = "mount -t tmpfs none /run; mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp"
    result = doctor_in(*own, setup=setup)
    assert "/tmp is read-only" in result["check"]["message"]
    assert result["features"]["message"].startswith("unknown")
    cure = result["check"]["cure"].partition(": ")[2].partition(", or")[0]
    cured = doctor_in(*own, setup=f"{setup}; {cure}")
    assert cured["check"]["severity"] in ("good", "note")


def test_cgroups_that_are_not_mounted() -> None:
    """With the hierarchy that the cure mounts, they are."""
    own = ("unshare", "--mount", "--propagation=private")
    setup = "umount --recursive /sys/fs/cgroup || umount /sys/fs/cgroup"
    finding = doctor_in(*own, setup=setup)["cgroups"]
    assert (finding["severity"], finding["message"]) == ("warning", "not mounted")
    cured = doctor_in(*own, setup=f"{setup}; {finding['cure']}")
    assert cured["cgroups"]["severity"] == "good"


def test_cgroups_that_are_read_only() -> None:
    """They are writable after the commands of the cure."""
    own = ("unshare", "--mount", "--propagation=private")
    places = [each.place for each in mounts_of("self") if each.kind in ("cgroup", "cgroup2")]
    if not places:
        pytest.skip("no cgroups are mounted here")
    setup = "; ".join(f"mount -o remount,bind,ro {each}" for each in places)
    finding = doctor_in(*own, setup=setup)["cgroups"]
    assert finding["severity"] == "warning"
    cured = doctor_in(*own, setup=f"{setup}; {finding['cure']}")
    assert cured["cgroups"]["severity"] == "good"


@pytest.mark.cures("check-last-pid")
def test_sysctls_that_are_read_only(spawn: Spawn, images: Path) -> None:
    """CRIU's check fails with a read-only /proc/sys, but calls work."""
    own = ("unshare", "--mount", "--propagation=private")
    result = doctor_in(*own, setup=READ_ONLY)
    assert result[""]["severity"] == "warning"
    cure = "mount -o remount,rw /proc/sys"
    assert result["check"]["cure"] == cure == result["ns-last-pid"]["cure"]
    assert result["feature:uffd"]
    cured = doctor_in(*own, setup=f"{READ_ONLY}; {cure}")
    assert cured["ns-last-pid"]["severity"] == "good"
    assert cured["check"]["severity"] in ("good", "note")
    target = spawn("serve()")
    code = (
        "import pycriu_native as criu, sys\n"
        "opts = criu.CriuOpts(images_directory=sys.argv[2], leave_running=True,\n"
        "    skip_mnts=['/dev/shm'])  # other programs of this machine write there\n"
        "criu.dump(int(sys.argv[1]), opts)"
    )
    words = [sys.executable, "-c", code, str(target.pid), str(images)]
    subprocess.run([*own, "sh", "-ec", f'{READ_ONLY}; exec "$@"', "sh", *words], check=True)
    assert target.runs_on()


def test_without_rights() -> None:
    """One cause with its cure; features that CRIU cannot test are not reported as missing."""
    result = doctor_in("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    bad = {name: each for name, each in result.items() if each["severity"] in ("warning", "stops")}
    assert {"check", "capability:CAP_SYS_ADMIN"} <= set(bad)
    assert not [name for name in bad if name.startswith("feature")]
    assert not [name for name in bad if name.startswith("capability")][1:]
    assert "unknown" in result["features"]["message"]
    assert "not known" in result["map-files"]["message"]


def test_in_a_user_namespace() -> None:
    """Checkpoints with ``unprivileged`` are reported as possible."""
    result = doctor_in("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    assert result["check"]["options"] == ["unprivileged"]
    assert result[""]["severity"] == "warning"
    assert result["map-files"]["severity"] == "warning"
    outside = {each.id: each for each in system.look(Worker())}
    assert outside["map-files"].severity is Severity.GOOD
    assert_rights_are_no_fault_of_the_kernel(result, "user namespace")


def assert_rights_are_no_fault_of_the_kernel(result: dict[str, Any], lacking: str) -> None:
    """A test that fails for lack of rights does not advise another kernel."""
    found = {name: each for name, each in result.items() if name.startswith("feature:")}
    blamed = {name for name, each in found.items() if each["message"] == "lacking"}
    assert blamed <= {f"feature:{name}" for name in features.NEEDS_NO_RIGHTS}
    unknown = [each for each in found.values() if each["message"].startswith("not known")]
    assert unknown
    assert all(lacking in each["message"] and not each["cure"] for each in unknown)


@pytest.mark.parametrize("capability", ["sys_ptrace", "net_admin"])
def test_without_one_capability(capability: str, images: Path) -> None:
    """A missing capability is a warning: processes without it can be dumped."""
    without = ("setpriv", f"--bounding-set=-{capability}", "--inh-caps=-all")
    name = f"CAP_{capability.upper()}"
    result = doctor_in(*without)
    assert result[f"capability:{name}"]["severity"] == "warning"
    assert result[""]["severity"] == "warning"
    assert_rights_are_no_fault_of_the_kernel(result, name)
    code = (
        "import pycriu_native as criu, subprocess, sys\n"
        "target = subprocess.Popen(['sleep', '600'], close_fds=True, stdin=subprocess.DEVNULL,\n"
        "    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)\n"
        "try:\n"
        "    opts = criu.CriuOpts(images_directory=sys.argv[1], leave_running=True)\n"
        "    criu.dump(target.pid, opts)\n"
        "    assert target.poll() is None\n"
        "finally:\n"
        "    target.kill()\n"
    )
    subprocess.run([*without, sys.executable, "-c", code, str(images)], check=True)

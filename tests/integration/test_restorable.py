"""Missing rights of the caller for a restore are reported before the dump, and the named cure
works.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    PidInUseError,
    PreflightWarning,
    Severity,
    Verdict,
    dump,
    preflight,
    restore,
)
from pycriu_native.images import check_images

from .conftest import Spawn
from .support.hosts import run
from .support.predictions import enter
from .support.processes import (
    OWN_STDIO,
    Target,
    children_of,
    eventually,
    kill,
    reap_all,
    state,
    tree,
    user_namespace,
)

PROBE = """
import json, subprocess, sys, warnings
from pycriu_native import CriuError, CriuOpts, PreflightError, dump, preflight, restore
from pycriu_native.images import check_images
images, program, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
target = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **quiet)
while open(f"/proc/{target.pid}/wchan").read() == "0" or "sleep" not in open(
    f"/proc/{target.pid}/wchan").read():
    pass
opts = CriuOpts(images_directory=images)
result = {}
found = preflight(target.pid, opts)
result["verdict"] = str(found.verdict)
result["ids"] = [each.id for each in found.findings]
try:
    preflight(target.pid, opts).require()
except PreflightError as error:
    result["required"] = str(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    preflight(target.pid, CriuOpts(images_directory=images, leave_running=True)).require()
result["warned"] = len(caught)
dump(target.pid, opts)
target.wait()
result["checked"] = [str(each) for each in check_images(images, opts)]
try:
    restore(opts)
except CriuError as error:
    result["restore"] = error.cure
result["cured"] = [str(each) for each in check_images(images, CriuOpts(
    images_directory=images, **options))]
if options:
    result["pid"] = restore(CriuOpts(images_directory=images, **options)).pid
print(json.dumps(result))
"""
SLEEPS = "import time; time.sleep(1000)"
MANY = f"import os\nfor _ in range(1010): os.open('/dev/null', 0)\n{SLEEPS}"

needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")


def probe(prefix: list[str], images: Path, program: str, **options: Any) -> dict[str, Any]:
    """Preflight, dump, check and restore of a process with separate limits."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", PROBE, str(images), program, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.cures("timens-offset", "net-buffers", "chroot")
@needs_setpriv
@pytest.mark.parametrize("capability", ["sys_time", "net_admin", "sys_chroot", "of a namespace"])
def test_a_capability_that_a_restore_needs(capability: str, images: Path) -> None:
    """Preflight, the check of images and the error agree; unprivileged=True is the cure.

    CAP_NET_ADMIN of a user namespace does not suffice.
    """
    if capability == "of a namespace":
        capability = "net_admin"
        prefix = user_namespace("--map-root-user", "--mount", "--pid", "--fork")
        # Which ends all processes in it.
        result = probe([*prefix, "--kill-child", "--mount-proc"], images, SLEEPS, unprivileged=True)
    else:
        prefix = ["setpriv", "--bounding-set", f"-{capability}"]
        result = probe(prefix, images, SLEEPS, unprivileged=True)
        kill(result["pid"])
    assert "rights" in result["ids"]
    assert f"CAP_{capability.upper()}" in result["required"]
    assert result["warned"]
    assert any(f"CAP_{capability.upper()}" in each for each in result["checked"])
    assert "unprivileged=True" in result["restore"]
    assert not result["cured"]
    enter(f"restore_without_{capability}", Verdict(result["verdict"]), Verdict.NO_RESTORE)


@pytest.mark.cures("bounding-set")
@needs_setpriv
def test_the_bounding_set(images: Path) -> None:
    """Without CAP_SETPCAP, a reduced bounding set cannot be restored."""
    result = probe(["setpriv", "--bounding-set", "-setpcap"], images, SLEEPS)
    assert "bounding-set" in result["ids"]
    assert "no_new_privs" in result["restore"]
    assert any("bounding set" in each for each in result["checked"])
    enter("restore_without_setpcap", Verdict(result["verdict"]), Verdict.NO_RESTORE)


@pytest.mark.cures("service-fds")
@needs_setpriv
def test_descriptors_near_the_limit(images: Path) -> None:
    """A restore by a caller with a higher limit works, as the cure describes."""
    prefix = ["prlimit", "--nofile=1024:1024", "setpriv", "--bounding-set", "-sys_resource"]
    result = probe(prefix, images, MANY)
    assert "descriptors-near-limit" in result["ids"]
    assert any("1024" in each for each in result["checked"])
    assert "raise the hard limit" in result["restore"]
    enter("descriptors_near_the_limit", Verdict(result["verdict"]), Verdict.NO_RESTORE)
    assert not check_images(images)
    kill(restore(CriuOpts(images_directory=images)).pid)


@needs_setpriv
@pytest.mark.parametrize(("highest", "verdict"), [(993, "no restore"), (992, "works")])
def test_where_the_limit_is(highest: int, verdict: str, images: Path) -> None:
    """The rule equals CRIU's exactly: 992, 16 descriptors of CRIU and a margin of 16 are 1024."""
    prefix = ["prlimit", "--nofile=1024:1024", "setpriv", "--bounding-set", "-sys_resource"]
    program = f"import os\nos.dup2(os.open('/dev/null', 0), {highest})\n{SLEEPS}"
    result = probe(prefix, images, program)
    assert result["verdict"] == verdict
    assert ("restore" in result) == (verdict == "no restore")
    if verdict == "works":
        kill(int(next(images.glob("core-*.img")).name[5:-4]))


@pytest.mark.cures("address-space")
@pytest.mark.parametrize(("option", "limit"), [("as", "RLIMIT_AS"), ("data", "RLIMIT_DATA")])
def test_memory_above_the_limit_of_the_caller(option: str, limit: str, images: Path) -> None:
    """CRIU allocates the memory with the caller's limit; a caller without a limit can restore."""
    program = (
        f"import resource; resource.setrlimit(resource.{limit}, (-1, -1))\n"
        f"memory = bytes(range(256)) * 1_200_000\n{SLEEPS}"
    )
    result = probe(["prlimit", f"--{option}={250 << 20}:unlimited"], images, program)
    assert "memory-limit" in result["ids"]
    assert limit in result["required"]
    assert "ulimit" in result["restore"]
    enter(f"restore_under_{limit}", Verdict(result["verdict"]), Verdict.NO_RESTORE)
    kill(restore(CriuOpts(images_directory=images)).pid)


@pytest.mark.cures("capabilities")
def test_fewer_capabilities_than_the_process(spawn: Spawn, images: Path) -> None:
    """The check refuses images of a process with more capabilities than the caller."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    code = (
        "import sys; from pycriu_native.images import check_images\n"
        "print(*check_images(sys.argv[1]), sep='\\n')"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-mknod", sys.executable, "-c", code, str(images)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CAP_MKNOD" in done.stdout
    assert "CAP_MKNOD" not in "\n".join(map(str, check_images(images)))


def test_a_soft_limit_of_file_sizes(images: Path) -> None:
    """The worker raises the soft limit to the hard limit, so that larger images can be written."""
    program = f"data = b'x' * 8_000_000\n{SLEEPS}"
    result = probe(["prlimit", "--fsize=1000000:"], images, program)
    assert "images-too-large" not in result["ids"]
    assert max(path.stat().st_size for path in images.iterdir()) > 8_000_000
    kill(int(next(images.glob("core-*.img")).name[5:-4]))


def test_a_hard_limit_of_file_sizes(spawn: Spawn) -> None:
    """Preflight reports that the largest image cannot be written."""
    target = spawn("    data = b'x' * 8_000_000\n    serve()\n")
    code = (
        "import sys; from pycriu_native import preflight\n"
        "print(*[each.id for each in preflight(int(sys.argv[1])).stops])"
    )
    done = subprocess.run(
        ["prlimit", "--fsize=1000000", sys.executable, "-c", code, str(target.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["images-too-large"]


SESSION = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    serve()
"""
"""A process whose child, a zombie, led a session in which a process outside of the tree lives."""


def test_a_number_that_is_a_session(spawn: Spawn, images: Path) -> None:
    """Preflight, the check and the error name the process in the session; after its end the restore
    works.
    """
    target = spawn(SESSION)
    opts = CriuOpts(images_directory=images)

    def leader_alone() -> int | None:
        """The leader, after it has ended and its child is no longer a descendant."""
        [leader, *others] = [pid for pid in tree(target.pid) if pid != target.pid] or [0]
        return leader if not others and state(leader) == "Z" else None

    eventually(leader_alone, "the end of the leader")
    before = preflight(target.pid, opts)
    [finding] = before.no_restore
    holder = int(finding.message.partition("session of pid ")[2].partition(",")[0])
    assert finding.id == "number-held"
    dump(target.pid, opts)
    target.reap()
    reap_all_but(holder)
    assert any(f"pid {holder} " in each.message for each in check_images(images))
    with pytest.raises(PidInUseError, match=f"the session of pid {holder} ") as caught:
        restore(opts)
    enter("number_that_is_a_session", before.verdict, Verdict.NO_RESTORE)
    reap_all_but(holder)
    assert f"end pid {holder}" in (caught.value.cure or "")
    kill(holder)
    eventually(lambda: not os.path.exists(f"/proc/{holder}"), "the end of the holder")
    assert not [each for each in check_images(images) if each.severity is Severity.STOPS]
    restore(opts)
    assert target.runs_on()


STOPPED = """
    import os, signal, time
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.kill(os.getpid(), signal.SIGTTIN)
        while True: time.sleep(1)
    serve(child=lambda: child)
"""
"""A child in a background group of its parent's session, where SIGTTIN stops it."""


@pytest.mark.cures("stop-signal")
def test_a_stop_signal_that_criu_does_not_know(spawn: Spawn, images: Path) -> None:
    """Preflight warns, the error names the cure, and the cure works."""
    target = spawn(STOPPED)
    child = target.ask("child")
    eventually(lambda: state(child) == "T", "the stop")
    opts = CriuOpts(images_directory=images, leave_running=True)
    assert [result.id for result in preflight(target.pid).findings] == ["stopped"]
    with pytest.raises(CriuError, match="SIGTTIN or SIGTTOU has stopped") as caught:
        dump(target.pid, opts)
    assert caught.value.cure == "send it SIGCONT, then SIGSTOP, and dump it; or let it run"
    assert target.runs_on()
    os.kill(child, signal.SIGCONT)
    eventually(lambda: state(child) == "S", "the child's going on")
    os.kill(child, signal.SIGSTOP)
    eventually(lambda: state(child) == "T", "the stop")
    dump(target.pid, opts)
    assert target.runs_on()


def reap_all_but(pid: int) -> None:
    """Reap ended processes, except the running one."""
    while True:
        try:
            result, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if result in (0, pid):
            return


def test_a_pipe_to_the_outside(spawn: Spawn, tmp_path: Path) -> None:
    """``require`` reports a pipe to another process, which has no other end after a restore."""
    reading, writing = os.pipe()
    try:
        target = spawn(stdin=reading)
        with pytest.warns(PreflightWarning, match=r"outside of the tree; .*inherit_fds=\[\(fd"):
            preflight(target.pid, CriuOpts(images_directory=tmp_path)).require()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_user_namespace_without_a_pid_namespace_of_its_own(spawn: Spawn, images: Path) -> None:
    """A restore cannot mount /proc in it, and fails; preflight reports this."""
    target = spawn(prefix=user_namespace("--map-root-user"))
    before = preflight(target.pid)
    assert [finding.id for finding in before.no_restore] == ["proc-of-user-namespace"]
    assert "unshare -Urmpf" in before.no_restore[0].cure
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    (refused,) = (each for each in check_images(images) if each.severity is Severity.STOPS)
    with pytest.raises(CriuError, match="may not mount /proc") as caught:
        restore(CriuOpts(images_directory=images))
    assert refused.message == caught.value.cause
    assert caught.value.cure == before.no_restore[0].cure
    enter("a_user_namespace_alone", before.verdict, Verdict.NO_RESTORE)


def test_a_user_namespace_with_the_others(spawn: Spawn) -> None:
    """With the namespaces of the cure, there is no such finding."""
    target = spawn(prefix=user_namespace("-rmpf", "--kill-child"))
    [first] = children_of(target.pid)
    assert "proc-of-user-namespace" not in {finding.id for finding in preflight(first).findings}


WITH_DEVPTS = 'mount -t devpts -o "$0" devpts /dev/pts && exec "$@"'


@pytest.mark.parametrize("devpts", ["newinstance,mode=600", "newinstance,mode=620,gid=5"])
@pytest.mark.cures("user-namespace-root", "user-namespace-mount", "proc-of-user-namespace")
def test_a_user_namespace_with_a_copy_of_the_hosts_mounts(
    spawn: Spawn, images: Path, tmp_path: Path, devpts: str
) -> None:
    """With the options and mount points that preflight names the restore works, else it fails.

    Group 5 of the host is an option of devpts in most distributions, and has no mapping here.
    """
    host = ["unshare", "-m", "sh", "-c", WITH_DEVPTS, devpts]
    target = spawn(OWN_STDIO, prefix=[*host, *user_namespace("-rmpf", "--mount-proc"), "setsid"])
    [first] = children_of(target.pid)
    before = preflight(first, CriuOpts(images_directory=images))
    assert before.verdict is Verdict.NEEDS_OPTIONS
    assert "user-namespace-mount" in {finding.id for finding in before.needs}
    assert "gid=5" not in devpts or "no gid 5, an option" in str(before)
    with ExitStack() as mounted:
        given: dict[str, str] = {}
        for need in before.restore_needs:
            place = {"root": "/"}.get(need.key, need.key[4:-1])
            given[need.key] = str(tmp_path / f"mount-{len(given)}")
            assert f"mount --bind {place} PATH" in f"{need} {before}"
            Path(given[need.key]).mkdir()
            run("mount", "--bind", place, given[need.key])
            run("mount", "--make-private", given[need.key])
            mounted.callback(run, "umount", "--lazy", given[need.key])
        dump(first, before.opts)
        reap_all()
        for root in ("/", given["root"]):
            opts = before.for_restore({**given, "root": root})
            if root == "/":
                with pytest.raises(CriuError, match="other mounts below it") as caught:
                    restore(opts)
                assert "mount --bind" in str(caught.value.cure)
                reap_all()
        again = Target(restore(opts).pid, target.directory, target.process)
        assert again.runs_on()
        kill(again.pid)
        enter("a_user_namespace_with_mounts", before.verdict, Verdict.NEEDS_OPTIONS)

"""A user without root in a user namespace: dumps, restores and jobs, and the trusted
users there.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native._system.id_maps import NO_ID
from pycriu_native._system.trusted_path import unmapped_root
from pycriu_native.jobs.directory import JobDirectory, State

from .support import ordinary_user
from .support.jobs import STEPPER, RunningJob, check_exact
from .support.ordinary_user import BEGIN, USER, run
from .support.processes import eventually, user_namespace


@pytest.fixture
def readable() -> None:
    """Skips the test if root of a user namespace cannot read this package."""
    user_namespace("--map-root-user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user."""
    with ordinary_user.directory_of() as result:
        yield result


DUMP = """
    import os, subprocess, sys
    from pycriu_native import CriuOpts, dump, restore_child
    opts = CriuOpts(images_directory=sys.argv[1], unprivileged=True)
    null = subprocess.DEVNULL
    process = subprocess.Popen(["sleep", "1000"], stdin=null, stdout=null, stderr=null,
        start_new_session=True)
    while os.readlink(f"/proc/{process.pid}/exe") == os.readlink("/proc/self/exe"):
        pass
    dump(process.pid, opts)
    process.wait()
    result = restore_child(opts)
    print(os.readlink(f"/proc/{result.pid}/exe"), result.pid == process.pid)
    os.kill(result.pid, 9)
    os.waitpid(result.pid, 0)
"""


def test_dump_and_restore(place: Path) -> None:
    """Dump and restore work in a user namespace in which the host's root is not mapped."""
    done = run(DUMP, place / "ckpt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("sleep True\n")


def test_directories_that_are_not_trusted(place: Path) -> None:
    """Directories of root are accepted as parents; entries of other users in /tmp, and an images
    directory of another user, are refused.
    """
    others = place / "others"
    others.mkdir()
    os.chown(others, 1234, 1234)
    done = run(DUMP, others)
    assert f"belongs to user {USER}" in done.stderr
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chown(name, 1234, 1234)
        os.chmod(name, 0o755)
        inner = Path(name) / "ours"
        inner.mkdir()
        os.chown(inner, USER, USER)
        done = run(DUMP, inner / "ckpt")
        assert f"{name} belongs to user {USER}" in done.stderr
        assert not list(inner.iterdir())


def test_a_package_that_it_cannot_read(tmp_path: Path) -> None:
    """Root that runs a job in a user namespace cannot read a private directory of another user."""
    package = tmp_path / "private" / "pycriu_native"
    shutil.copytree(Path(pycriu_native.__file__).parent, package)
    subprocess.run(["chown", "-R", "1234:1234", package.parent], check=True)
    package.parent.chmod(0o700)
    words = [sys.executable, "-P", "-m", "pycriu_native", "run", "--unprivileged"]
    done = subprocess.run(
        [*words, "--dir", str(tmp_path / "job"), "--", "true"],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot read the files of another user in {package}" in done.stderr
    assert "Traceback" not in done.stderr


DOCTOR = """
    from pycriu_native import Severity, doctor
    result = doctor()
    print(result.severity, result.of("user-namespace").message)
    print(result.summary)
"""


def test_doctor() -> None:
    """The headline for a user without rights says what works, as far as it does."""
    done = run(DOCTOR, inside=False)
    assert done.returncode == 0, done.stderr
    first, headline = done.stdout.splitlines()
    assert first == "warning can be created, and CRIU works in it"
    assert headline.startswith("this user can checkpoint in a user namespace; pycriu-native run")


SEMAPHORE = """
    import os, subprocess, sys, time
    from pycriu_native import CriuError, CriuOpts, dump, preflight
    null = subprocess.DEVNULL
    code = "import multiprocessing, os, time; s = multiprocessing.Semaphore(); os.close(1)"
    process = subprocess.Popen([sys.executable, "-c", code + "; time.sleep(1000)"], stdin=null,
        stdout=subprocess.PIPE, stderr=null, start_new_session=True)
    process.stdout.read()
    opts = CriuOpts(images_directory=sys.argv[1], unprivileged=True)
    print(*(each.id for each in preflight(process.pid, opts).stops))
    try:
        dump(process.pid, opts)
    except CriuError as error:
        print(error)
    process.kill()
    process.wait()
"""


def test_what_cannot_be_saved(place: Path) -> None:
    """Preflight reports state that only root can save: a mapped file that was deleted."""
    done = run(SEMAPHORE, place / "ckpt")
    assert done.returncode == 0, done.stderr
    found, message = done.stdout.split("\n", 1)
    assert found == "mapped-file-without-a-name"
    assert "cannot open a file that the process has mapped" in message


TERMINAL = """
    import os, pty, subprocess, sys
    from pycriu_native import CriuError, CriuOpts, dump, preflight, restore
    null = subprocess.DEVNULL
    code = "import os, pty, time; ends = pty.openpty(); os.close(1); time.sleep(1000)"
    def saved(images):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=null,
            stdout=subprocess.PIPE, stderr=null, start_new_session=True)
        process.stdout.read()
        opts = CriuOpts(images_directory=images, unprivileged=True)
        print(*(each.id for each in preflight(process.pid, opts).no_restore))
        dump(process.pid, opts)
        process.wait()
        return opts
    opts = saved(sys.argv[1])
    try:
        restore(opts)
    except CriuError as error:
        print(error.cause)
        commands = error.cure.partition(": ")[2].partition(" (")[0]
        subprocess.run(commands, shell=True, check=True)
    os.kill(restore(saved(sys.argv[1] + "-2")).pid, 9)
"""


@pytest.mark.cures("tty-owner")
def test_terminals_of_users_that_are_not_mapped(place: Path) -> None:
    """Preflight predicts that a terminal cannot be restored whose owner or group is not mapped; one
    of a devpts in the user namespace can be restored.
    """
    done = run(TERMINAL, place / "ckpt")
    assert done.returncode == 0, done.stderr
    found, cause, afterwards = done.stdout.splitlines()
    assert found == "terminal-owner"
    assert "a terminal of the images belonged to a user or a group that is not mapped" in cause
    assert afterwards == ""


OVERLAY = """
    import os, subprocess, sys
    from pycriu_native import CriuError, CriuOpts, dump, preflight
    null = subprocess.DEVNULL
    program = sys.argv[2] + "/sleep"
    process = subprocess.Popen([program, "1000"], stdin=null, stdout=null, stderr=null,
        start_new_session=True)
    while os.readlink(f"/proc/{process.pid}/exe") == os.readlink("/proc/self/exe"):
        pass
    opts = CriuOpts(images_directory=sys.argv[1], unprivileged=True)
    print(*(each.id for each in preflight(process.pid, opts).stops))
    try:
        dump(process.pid, opts)
        print("no error")
    except CriuError as error:
        print(error)
    process.kill()
    process.wait()
"""
MOUNT_OVERLAY = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/top" && chmod -R 755 "$1" &&
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/top" && shift 2 &&
exec "$@"
"""


@pytest.mark.parametrize("layers", ["different", "same"])
def test_a_program_on_an_overlay(place: Path, layers: str) -> None:
    """Preflight predicts that it cannot be dumped if the layers are on different file systems."""
    tops = place / "tops"
    lower = tops / "lower" if layers == "same" else place / "lower"
    script = MOUNT_OVERLAY
    for path in (tops, place / "lower"):
        path.mkdir()
    if layers == "same":
        script = script.replace("&& chmod", f"&& mkdir {lower} && cp /bin/sleep {lower} && chmod")
    else:
        shutil.copy("/bin/sleep", lower)
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(tops), str(lower)]
    words += [*ordinary_user.as_user(), *ordinary_user.NAMESPACE, ordinary_user.python()]
    words += ["-c", BEGIN + textwrap.dedent(OVERLAY), str(place / "ckpt"), str(tops / "top")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    found, message = done.stdout.split("\n", 1)
    predicted = "mapped-file-without-a-name" in found
    assert (layers, predicted, "no error" in message) in (
        ("different", True, False),
        ("same", False, True),
    ), done.stdout


def test_no_other_user_is_trusted_here() -> None:
    """If root is mapped, only uid 0 stands for it."""
    assert unmapped_root() == NO_ID


JOB = """
    import sys
    from pycriu_native.jobs import Job
    where, python, stepper = sys.argv[1:]
    job = Job(where + "/job", [python, stepper, where, "1000000", "0.01"], every=0.5,
        also=[where + "/out/*"])
    sys.exit(job.run().exit_code)
"""


def _has_more(directory: JobDirectory, number: int) -> bool:
    return directory.status().checkpoints >= number


def test_a_job(place: Path) -> None:
    """A job creates its namespace, is killed and interrupted, and its output is exact."""
    directory, python = JobDirectory(place / "job"), ordinary_user.python()
    words = [
        *ordinary_user.as_user(),
        python,
        "-c",
        BEGIN + textwrap.dedent(JOB),
        str(place),
        python,
    ]
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = directory.status().checkpoints
        process = subprocess.Popen([*words, str(STEPPER)], stdin=subprocess.DEVNULL, cwd="/")
        try:
            eventually(functools.partial(_has_more, directory, before + 2), "two checkpoints")
        finally:
            process.send_signal(number)
            code = process.wait()
            eventually(lambda: not directory.is_busy(), "the end of the supervisor")
        assert code == (75 if number == signal.SIGTERM else -number)
    (place / "finish").touch()
    assert subprocess.run([*words, str(STEPPER)], check=False, cwd="/").returncode == 0
    assert directory.status().resumed == 2
    steps = (place / "out" / "appended").read_text().splitlines()
    assert [line.split()[0] for line in steps] == [str(n) for n in range(len(steps))]
    assert (place / "out" / "written").read_text().splitlines() == steps
    assert (place / "job" / "stdout").read_text().splitlines() == steps
    assert len(steps) == int((place / "steps").read_text())


def test_a_directory_of_root_above(place: Path) -> None:
    """A directory of root in /tmp is trusted outside of the user namespace, and so it is inside."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        inner = Path(name) / "ours"
        inner.mkdir()
        os.chown(inner, USER, USER)
        python = ordinary_user.python()
        words = [*ordinary_user.as_user(), python, "-c", BEGIN + textwrap.dedent(JOB)]
        words += [str(inner), python, str(STEPPER)]
        directory = JobDirectory(inner / "job")
        for number in (0, 1):
            before = directory.status().checkpoints
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd="/")
            try:
                eventually(functools.partial(_has_more, directory, before + 1), "a checkpoint")
            finally:
                process.terminate()
                assert process.wait() == 75
                eventually(lambda: not directory.is_busy(), "the end of the supervisor")
            assert directory.status().failures == 0
            assert directory.status().resumed == number


PTY = """
import os, pty, sys, time
ends = pty.openpty()
while not os.path.exists(sys.argv[1]):
    os.write(ends[0], b"x\\n")
    os.read(ends[1], 10)
    time.sleep(0.01)
"""
PTY_JOB = """
    import sys
    from pycriu_native.jobs import Job
    where, python, code = sys.argv[1:]
    job = Job(where + "/job", [python, "-c", code, where + "/finish"], every=0.5)
    sys.exit(job.run().exit_code)
"""


def test_a_job_with_a_terminal(place: Path) -> None:
    """A job can open a terminal, and is resumed with it."""
    directory, python = JobDirectory(place / "job"), ordinary_user.python()
    words = [*ordinary_user.as_user(), python, "-c", BEGIN + textwrap.dedent(PTY_JOB)]
    words += [str(place), python, PTY]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd="/")
    try:
        eventually(functools.partial(_has_more, directory, 2), "two checkpoints")
    finally:
        process.terminate()
        code = process.wait()
        eventually(lambda: not directory.is_busy(), "the end of the supervisor")
    assert code == 75
    (place / "finish").touch()
    done = subprocess.run(words, check=False, cwd="/", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, directory.status().message
    assert directory.status().resumed == 1


LOOK = """
    import sys
    from pycriu_native import CriuError
    from pycriu_native.jobs.control import request_stop
    from pycriu_native.jobs.directory import JobDirectory
    job = JobDirectory(sys.argv[1])
    print(job.status().state)
    try:
        request_stop(job, 5)
    except CriuError as error:
        print(error)
"""


@pytest.mark.usefixtures("readable")
def test_a_job_of_root(job: RunningJob) -> None:
    """``--unprivileged`` runs it in a user namespace, also for root."""
    job.words = ["readlink", "/proc/self/ns/user"]
    job.start("--unprivileged")
    assert job.finish() == 0, job.messages()
    inside = (job.directory.path / "stdout").read_text()
    assert inside.startswith("user:[")
    assert inside.strip() != os.readlink("/proc/self/ns/user")


PREFIXES = {
    "without CAP_SYS_ADMIN": (
        "setpriv",
        "--bounding-set",
        "-sys_admin",
        "--inh-caps",
        "-sys_admin",
    ),
    "of a user namespace": (
        *("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"),
        *("--kill-child", "--mount-proc"),
    ),
}


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize("root", PREFIXES)
def test_the_rights_of_root(job: RunningJob, tmp_path: Path, root: str) -> None:
    """Root without the right to checkpoint runs a job as other users do."""
    job.prefix = PREFIXES[root]
    job.start()
    job.until(lambda: job.has_checkpoints(1), "a checkpoint")
    job.end()
    assert job.finish() == 0, job.messages()
    assert job.directory.status().resumed == 1
    check_exact(job, tmp_path / "reference")


MASKED = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs t /proc/bus && exec "$@"', "sh")
"""Words that run a command where parts of /proc are masked, as in a container."""


def test_a_masked_proc(job: RunningJob) -> None:
    """A user namespace cannot mount /proc if a container masks parts of it. All options that the
    container needs are named at once.
    """
    job.prefix = MASKED
    job.start("--unprivileged")
    assert job.wait() == 1
    for option in ("seccomp=unconfined", "unmask=ALL"):
        assert f"--security-opt {option}" in job.messages()


def test_doctor_where_proc_is_masked() -> None:
    """It names what a user without rights needs there, with no list of all findings."""
    words = [*MASKED, *ordinary_user.as_user(), ordinary_user.python(), "-c"]
    code = BEGIN + "from pycriu_native_main import main; main()"
    done = subprocess.run(
        [*words, code, "doctor"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 11, done.stderr
    _, _, finding = done.stdout.partition("user namespace of the caller: cannot be used: ")
    assert finding.startswith("no /proc can be mounted"), done.stdout
    assert "--security-opt unmask=ALL" in finding
    assert done.stdout.splitlines()[-1].startswith("this machine cannot checkpoint")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_job_of_another_user(mode: int) -> None:
    """A user who can read its directory can see its state, also without its lock, but cannot stop
    it.
    """
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        made = RunningJob(Path(directory, "root"))
        made.start("--every", "1h")
        try:
            made.until(lambda: made.directory.status().state is State.RUNNING, "its start")
            made.directory.path.chmod(0o755)
            for path in made.directory.path.glob("*.json"):
                path.chmod(0o644)
            (made.directory.path / "lock").chmod(mode)
            done = run(LOOK, made.directory.path, inside=False)
            assert done.stdout.startswith("running\n"), done.stderr
            assert "belongs to user 0; root and that user can do this" in done.stdout
        finally:
            made.end()

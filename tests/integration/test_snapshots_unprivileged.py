"""Snapshots of a user without root, in a user namespace: taken, started, shared."""

from __future__ import annotations

import functools
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from pycriu_native.snapshots import Snapshot

from .support import ordinary_user
from .support.ordinary_user import BEGIN
from .support.processes import PATIENCE

ANOTHER = 12345

PROGRAM = (
    BEGIN
    + """
import json, os
data = b"".join(bytes([number % 251]) * 4096 for number in range(500))
from pycriu_native import guest
while True:
    guest.wait()
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    whole = all(data[4096 * number] == number % 251 for number in range(500))
    found = [sys.argv[1:], whole, len(pids), os.uname().nodename, os.access("/etc/shadow", os.R_OK)]
    print(json.dumps(found), flush=True)
    if "park" not in sys.argv:
        break
"""
)

TAKE = """
    import sys
    from pycriu_native.snapshots import Snapshot
    Snapshot.take([sys.executable, "-c", sys.argv[2]], sys.argv[1], deadline=60)
"""

START = """
    import json, os
    from subprocess import DEVNULL, PIPE
    from pycriu_native import CriuError, OptionError, Worker
    from pycriu_native.snapshots import Snapshot
    result = []
    snapshot = Snapshot(sys.argv[1])
    via = Worker(allow_untrusted="untrusted" in sys.argv)
    for options in json.loads(sys.argv[2]):
        try:
            streams = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
            with snapshot.start(["x"], **streams, deadline=60, via=via, **options) as process:
                out, _ = process.communicate()
            number = process.number
            result.append([json.loads(out), process.returncode, process.unshared_reason, number])
        except (CriuError, OptionError) as error:
            result.append([type(error).__name__, str(error)])
    snapshot.close()
    print(json.dumps([result, os.getuid()]))
"""

run = functools.partial(ordinary_user.run, module="pycriu_native.snapshots")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user."""
    ordinary_user.python("pycriu_native.snapshots")
    with ordinary_user.directory_of() as result:
        yield result


@pytest.fixture
def of_root() -> Iterator[Path]:
    """The directory of a snapshot that root takes."""
    ordinary_user.python("pycriu_native.snapshots")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name) / "snapshot"


def started(directory: Path, *options: dict[str, Any], **how: Any) -> Any:
    """The results of each start."""
    words = [directory, json.dumps(options), *how.pop("words", ())]
    done: CompletedProcess[str] = run(START, *words, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_snapshot_of_the_user(place: Path) -> None:
    """A user takes and starts a snapshot, with shared memory, host name, network and /proc."""
    directory = place / "snapshot"
    done = run(TAKE, directory, PROGRAM)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    result, user = started(
        directory, {}, {"share_memory": True}, {"hostname": "blue"}, {"network": True}
    )
    assert user == 0
    assert [each[0][:3] for each in result] == [[["x"], True, 2]] * 4, result
    assert [each[1] for each in result] == [0] * 4
    assert [each[2] is None for each in result] == [False, True, True, True]
    assert [each[3] for each in result] == [1, 2, 3, 4]
    assert result[2][0][3] == "blue"


TREE = """
    from subprocess import PIPE
    from pycriu_native import OptionError
    from pycriu_native.snapshots import Snapshot
    base = Snapshot(sys.argv[1])
    with base.start(["park"], stdin=PIPE, stdout=PIPE, stderr=PIPE, savable=True) as process:
        process.stdout.readline()
        try:
            Snapshot.take(process, sys.argv[1] + "-2", deadline=60)
        except OptionError as error:
            print(error)
        process.kill()
"""


def test_a_copy_cannot_be_saved(place: Path) -> None:
    """A copy cannot be saved in a user namespace: this is refused before anything is touched."""
    directory = place / "snapshot"
    assert run(TAKE, directory, PROGRAM).returncode == 0
    done = run(TREE, directory)
    assert done.returncode == 0, done.stderr
    assert "only root can save copies" in done.stdout
    assert not (place / "snapshot-2").exists()


def test_a_snapshot_of_root(of_root: Path) -> None:
    """Another user can start it if root has made it readable, and the user trusts it; memory is
    shared if root has prepared that.
    """
    command = [ordinary_user.python("pycriu_native.snapshots"), "-c", PROGRAM]
    snapshot = Snapshot.take(command, of_root, deadline=PATIENCE)
    closed = run(START, of_root, "[{}]", user=ANOTHER)
    assert "snapshot.json cannot be read: Permission denied" in closed.stderr
    allow(of_root)
    ((refused,), _) = started(of_root, {}, user=ANOTHER)
    assert refused[0] == "OptionError"
    assert "Worker(allow_untrusted=True)" in refused[1]
    shared = {"share_memory": True}
    ((plain, refused), _) = started(of_root, {}, shared, user=ANOTHER, words=["untrusted"])
    assert plain[0][:3] == [["x"], True, 2]
    assert plain[0][4] is False  # it has the rights of its user
    assert plain[3] >= 2**52
    assert refused[0] == "ImagesError"
    assert "Permission denied; its owner can create it with Snapshot.share()" in refused[1]
    snapshot.share().close()
    allow(of_root)
    ((plain, other), _) = started(of_root, shared, shared, user=ANOTHER, words=["untrusted"])
    assert [plain[0][:3], other[0][:3]] == [[["x"], True, 2]] * 2
    assert plain[2] is None
    assert plain[3] != other[3]


def allow(directory: Path) -> None:
    """Make a snapshot readable for all users."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_without_a_namespace(place: Path) -> None:
    """Without a user namespace the error has the requirements, and no file remains."""
    directory = place / "snapshot"
    assert run(TAKE, directory, PROGRAM).returncode == 0
    ((refused,), user) = started(directory, {}, inside=False)
    assert user == ordinary_user.USER
    assert refused[0] == "PermissionDeniedError"
    assert "unshare --user --map-root-user --pid --fork --mount-proc" in refused[1]

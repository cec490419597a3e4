"""The caller may start no more processes and threads: an error, and nothing is lost.

(The limit of descriptors is in ``test_embedding.py``. RLIMIT_NPROC does not apply to root;
the limit of a cgroup does, with the same error: EAGAIN of clone(2).)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Spawn
from ..support import cgroups
from ..support.cgroups import Make
from ..support.processes import PATIENCE
from . import matrix
from .faults import CheckedProcess
from .matrix import Cell

PROGRAM = """
import json, os, sys, threading
from pathlib import Path
from pycriu_native import CriuError, CriuOpts, dump

pid, images, cgroup = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
opts = CriuOpts(images_directory=images, tcp_established=True, leave_running=True)
dump(pid, opts)  # what is asked once was asked
(cgroup / "cgroup.procs").write_text(str(os.getpid()))
outcomes = []
for room in range(1, 12):
    (cgroup / "pids.max").write_text(str(room))
    try:
        dump(pid, opts)
        outcomes.append("the result")
    except (CriuError, RuntimeError) as error:
        outcomes.append(f"{type(error).__name__}: {error}")
    finally:
        (cgroup / "pids.max").write_text("max")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not children, (room, children)
    assert threading.active_count() == 1
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "RSD"
print(json.dumps(outcomes))
"""


def test_no_more_processes(make_cgroup: Make, spawn: Spawn, images: Path) -> None:
    """At each limit the call fails with an error or succeeds; the process is unchanged."""
    cgroup = make_cgroup(cgroups.find("pids") or cgroups.required(""))
    if not (cgroup / "pids.max").exists():
        pytest.skip("no cgroup here limits the number of processes")
    checked = CheckedProcess.start(spawn)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checked.pid), str(images), str(cgroup)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes[0] != "the result"
    assert outcomes[-1] == "the result"
    kinds = dict.fromkeys(outcome.partition(":")[0] for outcome in outcomes)
    assert checked.is_intact()
    gets = ", ".join(kind if " " in kind else f"`{kind}`" for kind in kinds)
    what, process = "no more processes or threads, at each limit", "runs, intact"
    matrix.cells.append(Cell("dump", what, "any time", gets, process, "complete with the result"))

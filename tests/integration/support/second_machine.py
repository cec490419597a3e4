"""A restore beside the running original, in namespaces that stand for another machine.

A process is restored under its pid. Where that pid is in use, a new pid namespace has it free;
a new mount namespace has the copy's files under the paths of the original.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import Target, children_of, kill

ROOT = Path(__file__).parents[3]

_FIRST = textwrap.dedent("""
    # The first process of the namespaces: it restores, and stays to hold them.
    import json, os, subprocess, sys, time

    place, copy, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    subprocess.run(["mount", "--bind", copy, place], check=True)

    from pycriu_native import CriuOpts, restore
    print(restore(CriuOpts.from_dict(options)).pid, flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.01)
""")


@contextlib.contextmanager
def elsewhere(original: Target, copy: Path, **options: Any) -> Iterator[Target]:
    """Restore the images in new pid and mount namespaces, which end with the context.

    It runs on ``copy``, a copy of the original's directory; ``options`` are the restore's.
    """
    words = [str(original.directory), str(copy), json.dumps(options)]
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _FIRST, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    try:
        assert process.stdout is not None
        with process.stdout as message:
            assert message.readline() == b"%d\n" % original.pid, "the restore elsewhere failed"
        yield Target(original.pid, copy, process)
    finally:
        # When its first process ends, the kernel kills all others of a pid namespace.
        for pid in children_of(process.pid):
            kill(pid)
        process.wait()

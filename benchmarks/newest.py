"""A Python process with another libcriu, for options that the installed one lacks.

The parent (``Newest``) has it dump and restore, a line of JSON each, so that both libraries are
measured in turns in one run; the seconds are those of the call, taken there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = os.environ.get("CRIU_NEWEST", "/opt/pycriu-native-4.3/bin/criu")
"""The newest CRIU that is installed beside the one in use, as ``make test-libraries`` does. Its
library is in ``lib`` next to ``bin``."""


class RefusedError(Exception):
    """An error message of that process."""


class Newest:
    """The Python process, which executes commands."""

    def __init__(self) -> None:
        library = str(Path(PROGRAM).resolve().parent.parent / "lib")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.newest", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "LD_LIBRARY_PATH": library},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def _ask(self, question: dict[str, Any]) -> float:
        print(json.dumps(question), file=self._to, flush=True)
        answer = json.loads(self._from.readline())
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return float(answer["seconds"])

    def dump(self, pid: int, opts: dict[str, Any], reap: Callable[[], object]) -> float:
        """Dump a process; the seconds that it took. ``reap`` reaps the dumped process."""
        reaper = threading.Thread(target=reap, daemon=True)
        reaper.start()
        taken = self._ask({"dump": pid, "opts": opts})
        reaper.join()
        return taken

    def restore(self, opts: dict[str, Any]) -> float:
        """Restore a process; the seconds that it took."""
        return self._ask({"opts": opts})

    def close(self) -> None:
        """End it."""
        self._to.close()
        self._process.wait()
        self._from.close()


def main() -> None:
    """Execute commands until the end of the input."""
    from pycriu_native import CriuError, CriuOpts, UnsupportedError, Worker, dump, restore

    via = Worker(program=sys.argv[1])
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any]
        try:
            opts = CriuOpts.from_dict(question["opts"])
            started = time.perf_counter()
            if "dump" in question:
                dump(question["dump"], opts, via=via)
            else:
                restore(opts, via=via)
            answer = {"seconds": time.perf_counter() - started}
        except (CriuError, UnsupportedError) as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

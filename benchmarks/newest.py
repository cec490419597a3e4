"""A Python process with another libcriu, for options that the installed one lacks.

The parent (``Newest``) sends it dumps and restores as lines of JSON, so both libraries are measured
in turns in one run. The process measures the duration of each call.
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
"""The newest CRIU that ``make test-libraries`` installs. Its library is in ``lib`` next to
``bin``."""


class RefusedError(Exception):
    """The process refused a dump or restore; its error message."""


class Newest:
    """The parent's side: starts the process, and sends it dumps and restores."""

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

    def _request(self, request: dict[str, Any]) -> float:
        print(json.dumps(request), file=self._to, flush=True)
        response = json.loads(self._from.readline())
        if "refused" in response:
            raise RefusedError(response["refused"])
        return float(response["seconds"])

    def dump(self, pid: int, opts: dict[str, Any], reap: Callable[[], object]) -> float:
        """Dump a process, which ``reap`` reaps; returns the seconds of the call."""
        reaper = threading.Thread(target=reap, daemon=True)
        reaper.start()
        taken = self._request({"dump": pid, "opts": opts})
        reaper.join()
        return taken

    def restore(self, opts: dict[str, Any]) -> float:
        """Restore a process; returns the seconds of the call."""
        return self._request({"opts": opts})

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.wait()
        self._from.close()


def main() -> None:
    """Execute commands until the end of the input."""
    from pycriu_native import CriuError, CriuOpts, UnsupportedError, Worker, dump, restore

    via = Worker(program=sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        response: dict[str, Any]
        try:
            opts = CriuOpts.from_dict(request["opts"])
            started = time.perf_counter()
            if "dump" in request:
                dump(request["dump"], opts, via=via)
            else:
                restore(opts, via=via)
            response = {"seconds": time.perf_counter() - started}
        except (CriuError, UnsupportedError) as error:
            response = {"refused": str(error)}
        print(json.dumps(response), flush=True)


if __name__ == "__main__":
    main()

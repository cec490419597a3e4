"""A process to checkpoint, which responds to requests.

Run as ``python target.py DIRECTORY``: it executes DIRECTORY/scenario.py, which calls
``serve`` with the requests that it handles. Requests and responses are files in DIRECTORY,
so that only plain files connect it with the test.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(sys.argv[1])
ticks = 0


def put(name: str, text: str) -> None:
    """Write a file atomically."""
    partial = HERE / (name + ".partial")
    partial.write_text(text)
    partial.rename(HERE / name)


def serve(**handlers: Callable[..., object]) -> None:
    """Handle requests for ever. ``ticks``, which grows, and ``pid`` are always available."""
    global ticks
    handlers["ticks"] = lambda: ticks
    handlers["pid"] = os.getpid
    put("ready", str(os.getpid()))
    while True:
        ticks += 1
        request = HERE / "request"
        if request.exists():
            number, name, *arguments = json.loads(request.read_text())
            request.unlink()
            try:
                response = [True, handlers[name](*arguments)]
            except Exception as error:
                response = [False, repr(error)]
            put(f"response-{number}", json.dumps(response))
        time.sleep(0.002)


def main() -> None:
    """Run the scenario."""
    for name in sys.argv[2:]:
        sys.path.insert(0, name)
    source = (HERE / "scenario.py").read_text()
    exec(compile(source, str(HERE / "scenario.py"), "exec"), {"serve": serve, "HERE": HERE})


if __name__ == "__main__":
    main()

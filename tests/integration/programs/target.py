"""A process to checkpoint, which answers questions about its state.

Run as ``python target.py DIRECTORY``: it executes DIRECTORY/scenario.py, which calls
``serve`` with the questions that it answers. Questions and answers are files in DIRECTORY,
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


def serve(**answers: Callable[..., object]) -> None:
    """Answer questions for ever. ``ticks``, which grows, and ``pid`` are always available."""
    global ticks
    answers["ticks"] = lambda: ticks
    answers["pid"] = os.getpid
    put("ready", str(os.getpid()))
    while True:
        ticks += 1
        question = HERE / "question"
        if question.exists():
            number, name, *arguments = json.loads(question.read_text())
            question.unlink()
            try:
                answer = [True, answers[name](*arguments)]
            except Exception as error:
                answer = [False, repr(error)]
            put(f"answer-{number}", json.dumps(answer))
        time.sleep(0.002)


def main() -> None:
    """Run the scenario."""
    for name in sys.argv[2:]:
        sys.path.insert(0, name)
    source = (HERE / "scenario.py").read_text()
    exec(compile(source, str(HERE / "scenario.py"), "exec"), {"serve": serve, "HERE": HERE})


if __name__ == "__main__":
    main()

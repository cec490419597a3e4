"""Runs all tests in two processes, each with every second file: most tests mostly wait.

    python -m tests.halves                      the whole of both halves at the same time
    python -m tests.halves --failed             the tests that failed then, one half after the other
    python -m tests.halves PYTEST ARGUMENT...   one process

Where no namespaces can be created, the halves would affect each other: one process runs, too.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile

from . import isolation

PYTEST = [sys.executable, "-m", "pytest"]
FAILED = ["--last-failed", "--last-failed-no-failures=none", "-v"]
NO_TESTS = 5
"""The exit status of pytest if nothing had failed."""


def records(number: int) -> list[str]:
    """The option for the list of the failed tests of a half."""
    return ["-o", f"cache_dir=.pytest_cache/{number}"]


def main(arguments: list[str]) -> int:
    """Run the tests; the output of the second half is printed at the end."""
    again = arguments == ["--failed"]
    if not isolation.possible():
        return subprocess.call([*PYTEST, *(FAILED if again else arguments)])
    if again:
        results = [subprocess.call([*PYTEST, *records(half), *FAILED]) for half in (1, 2)]
        return next((each for each in results if each not in (0, NO_TESTS)), 0)
    if arguments:
        return subprocess.call([*PYTEST, *arguments])
    with tempfile.TemporaryFile() as output:
        command = [*PYTEST, "--half=2", *records(2)]
        second = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        first = subprocess.Popen([*PYTEST, "--half=1", *records(1)])
        for each in (first, second):
            while each.returncode is None:
                with contextlib.suppress(KeyboardInterrupt):  # they get the signal, too
                    each.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return first.returncode or second.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

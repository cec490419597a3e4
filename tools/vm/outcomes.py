"""A pytest plugin for guests: prints each failure at once, and stores all outcomes in a file.

``-p tools.vm.outcomes`` writes ``/results/outcomes.json``, or the file that the environment
variable ``PYCRIU_NATIVE_OUTCOMES`` names; ``kernels.py`` reads it. Failures are also printed before
the end of a guest that is killed.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest

import pycriu_native
from pycriu_native._system.processor import authenticates_pointers

PLACE = Path(os.environ.get("PYCRIU_NATIVE_OUTCOMES", "/results/outcomes.json"))


class Outcomes:
    """The outcome of each test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, tuple[str, str]] = {}
        self._began = time.monotonic()
        self._facts = {
            "date": datetime.date.today().isoformat(),
            "kernel": platform.release(),
            "criu": str(pycriu_native.version()),
            "libcriu": str(pycriu_native.libcriu_version()),
            "python": platform.python_version(),
            "page_size": os.sysconf("SC_PAGE_SIZE"),
            "pointer_authentication": authenticates_pointers(),
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the outcome of the call, or that of the set-up or teardown if it is worse."""
        if report.when == "call" or not report.passed:
            why = ""
            if report.skipped and isinstance(report.longrepr, tuple):
                why = report.longrepr[2].removeprefix("Skipped: ")
            self._found[report.nodeid] = (report.outcome, why)
        if report.failed:
            terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid} ({report.when}):\n{report.longreprtext}")

    def pytest_runtest_logfinish(self) -> None:
        """Write the file after each test: the guest can end before the last one."""
        seconds = round(time.monotonic() - self._began)
        partial = PLACE.with_suffix(".partial")
        partial.write_text(json.dumps({**self._facts, "seconds": seconds, "tests": self._found}))
        partial.rename(PLACE)


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin."""
    config.pluginmanager.register(Outcomes(config))

"""What all tests share: a header that says what they ran on, and a count of what was skipped."""

from __future__ import annotations

import os
import platform
import signal
from collections import Counter

import pytest

import pycriu_native

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would everything that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _criu() -> str:
    try:
        return str(pycriu_native.version())
    except pycriu_native.CriuError as error:
        return f"none ({error})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that are marked ``long`` run when they are asked for."""
    parser.addoption("--long", action="store_true", help="run the tests that take long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip them otherwise, and say so."""
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: --long runs it"))


def pytest_report_header() -> list[str]:
    """Kernel, CRIU and libcriu, so that a log tells what was tested."""
    return [
        f"kernel {platform.release()}, CRIU {_criu()}, libcriu {pycriu_native.libcriu_version()}, "
        f"uid {os.geteuid()}"
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests each reason has skipped: a skip that nobody sees is a hole."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")

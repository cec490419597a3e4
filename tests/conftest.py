"""Set-up of all tests: namespaces, a header with the releases, and a count of skipped tests."""

from __future__ import annotations

import os
import platform
from collections import Counter

import pytest

import pycriu_native

from . import isolation

isolation.enter()
isolation.reset()


def _criu() -> str:
    try:
        return str(pycriu_native.version())
    except pycriu_native.CriuError as error:
        return f"none ({error})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``, which runs tests marked ``long``, ``--half`` and ``--in-place``."""
    parser.addoption("--long", action="store_true", help="run the tests that take long, too")
    parser.addoption("--half", type=int, choices=(1, 2), help="run every second file only")
    parser.addoption(
        isolation.IN_PLACE,
        action="store_true",
        help="run in the caller's namespaces; no other run of the tests may be active",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of a half, and skip those marked ``long`` unless ``--long`` is given."""
    if half := config.getoption("--half"):
        files = set(sorted({item.path for item in items})[half - 1 :: 2])
        config.hook.pytest_deselected(items=[each for each in items if each.path not in files])
        items[:] = [each for each in items if each.path in files]
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: --long runs it"))


def pytest_report_header() -> list[str]:
    """Kernel, CRIU and libcriu of the run."""
    return [
        f"kernel {platform.release()}, CRIU {_criu()}, libcriu {pycriu_native.libcriu_version()}, "
        f"uid {os.geteuid()}, pid {os.getpid()}"
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of tests skipped for each reason, and the values that tests measured.

    Measured values never decide a test.
    """
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured by {report.nodeid}: {value}")

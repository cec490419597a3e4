"""Messages of the library to ``logging``; it prints nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, dump

from .conftest import Spawn


def test_one_line_a_verb(spawn: Spawn, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A successful dump and a failed one log one line each, at INFO."""
    target = spawn()
    with caplog.at_level(logging.INFO, "pycriu_native"):
        dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
        with pytest.raises(CriuError):
            dump(2**22 - 1, CriuOpts(images_directory=images))
    message = [record.getMessage() for record in caplog.records if record.name == "pycriu_native"]
    assert {record.threadName for record in caplog.records} == {"criu dump"}
    done, failed = message
    assert done.startswith(f"dump of pid {target.pid} done after ")
    assert failed.startswith(f"dump of pid {2**22 - 1} failed: ")


def test_lines_of_criu(spawn: Spawn, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CRIU's lines are logged, with their levels, if a level is set on their logger; else they are
    not.
    """
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True, log_level=4, display_stats=True)
    criu = logging.getLogger("pycriu_native.criu")
    dump(target.pid, opts)
    assert not [record for record in caplog.records if record.name == criu.name]
    criu.setLevel(logging.DEBUG)
    try:
        dump(target.pid, opts)
        with pytest.raises(CriuError):
            dump(2**22 - 1, opts)
    finally:
        criu.setLevel(logging.NOTSET)
    lines = [record for record in caplog.records if record.name == criu.name]
    assert len(lines) > 100
    assert {record.threadName for record in lines} == {"criu dump"}
    assert {record.levelno for record in lines} >= {logging.DEBUG, logging.ERROR}
    assert any(record.getMessage().startswith("Memory dump time") for record in lines)


def test_nothing_is_printed(spawn: Spawn, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither this library nor libcriu prints anything."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    with pytest.raises(CriuError):
        dump(2**22 - 1, CriuOpts(images_directory=images))
    assert capfd.readouterr() == ("", "")

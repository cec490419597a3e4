"""Verdicts of preflight on configuration files of CRIU, compared with dumps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, Severity, Worker, preflight

from .conftest import Spawn
from .support.predictions import works

BOTH = [
    *("ghost-limit", "images-dir", "tcp-established=1", "root /a b c", 'root "a', "no-such-option"),
    *("stream", "page-server", "mntns-compat-mode", "restore-sibling", "help", "version", "ms"),
    *("libdir /nowhere", "track-mem"),
]
"""Lines with which no dump works, or only where the kernel has the feature."""

OWN = ["images-dir /nowhere", "images-dir {other}"]
"""Lines that prevent a dump in the file of the request only."""

HARMLESS = ["close 7", "ghost-limit abc", "restore-detached", "images-dir {images}", "file-locks"]


@pytest.mark.parametrize("where", ["config_file", "HOME", "CRIU_CONFIG_FILE"])
def test_lines_that_a_dump_cannot_have(
    spawn: Spawn, images: Path, tmp_path: Path, where: str
) -> None:
    """The verdict on each line is the result of a dump, after which the process runs on."""
    target = spawn()
    path = tmp_path / ".criu" / "default.conf"
    path.parent.mkdir()
    opts, via = CriuOpts(images_directory=images), Worker()
    if where == "config_file":
        opts = CriuOpts(images_directory=images, config_file=path)
    else:
        value = str(tmp_path if where == "HOME" else path)
        via = Worker(env={**os.environ, where: value})
    for line in (*BOTH, *OWN, *HARMLESS):
        path.write_text(line.format(images=images, other=tmp_path) + "\n")
        found = preflight(target.pid, opts, via=via).findings
        stops = [
            each for each in found if each.id == "configuration" and each.severity is Severity.STOPS
        ]
        assert works(target.pid, opts, via) is not bool(stops), line
        assert all(each.path == str(path) for each in stops)
    assert target.runs_on()


def test_lazy_pages_without_a_page_server(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The dump would wait for a connection to port 0."""
    target = spawn()
    path = tmp_path / "criu.conf"
    path.write_text("lazy-pages\n")
    opts = CriuOpts(images_directory=images, config_file=path)
    found = preflight(target.pid, opts).findings
    assert [each.severity for each in found if each.id == "configuration"] == [Severity.STOPS]
    path.write_text("lazy-pages\naddress=127.0.0.1\nport=1234\n")
    assert not [each for each in preflight(target.pid, opts).findings if each.id == "configuration"]

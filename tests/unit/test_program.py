"""The selection of the criu program: order and origin."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycriu_native import PermissionDeniedError, ProgramNotFoundError, Worker
from pycriu_native._system import trusted_path
from pycriu_native._transport import program
from pycriu_native._transport.program import Source, find_program, locate
from pycriu_native.diagnostics.doctor import program as doctor
from pycriu_native.findings import Severity

COMPANION = "pycriu_native_criu"


def make_program(path: Path) -> str:
    """Create an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def forget_companion() -> Iterator[None]:
    """Each test searches the package again."""
    sys.modules.pop(COMPANION, None)
    program.companion.cache_clear()
    yield
    sys.modules.pop(COMPANION, None)
    program.companion.cache_clear()


def hide_companion() -> None:
    """Make its import fail until the end of the test."""
    sys.modules[COMPANION] = None  # type: ignore[assignment]
    program.companion.cache_clear()


@pytest.fixture
def everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_companion: None
) -> dict[Source, str]:
    """One program in each place."""
    made = {source: make_program(tmp_path / source.name.lower() / "criu") for source in Source}
    package = tmp_path / "site" / "pycriu_native_criu.py"
    package.parent.mkdir()
    package.write_text(
        textwrap.dedent(f"""
            def program():
                return {made[Source.COMPANION]!r}

            def libraries():
                return {{"gnutls": "3.8.13", "nettle": "3.10.2"}}
            """)
    )
    monkeypatch.setenv("CRIU_PROGRAM", made[Source.VARIABLE])
    monkeypatch.setattr(program, "BUILT_PROGRAM", made[Source.BUILD])
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(program, "INSTALLED", made[Source.INSTALLED])
    monkeypatch.setattr(program, "SEARCH_PATH", os.path.dirname(made[Source.SEARCH_PATH]))
    return made


def test_the_order(everywhere: dict[Source, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, environment, build, companion package, install-criu, search path; then none."""
    remove: dict[Source, Callable[[], object]] = {
        Source.ARGUMENT: lambda: None,
        Source.VARIABLE: lambda: monkeypatch.setenv("CRIU_PROGRAM", ""),
        Source.BUILD: lambda: os.unlink(everywhere[Source.BUILD]),
        Source.COMPANION: hide_companion,
        Source.INSTALLED: lambda: os.unlink(everywhere[Source.INSTALLED]),
        Source.SEARCH_PATH: lambda: os.unlink(everywhere[Source.SEARCH_PATH]),
    }
    for source in Source:
        given = everywhere[source] if source is Source.ARGUMENT else None
        assert locate(given) == (everywhere[source], source)
        assert find_program(given) == Worker(program=given).name() == everywhere[source]
        remove[source]()
    with pytest.raises(ProgramNotFoundError, match=r"pip install 'pycriu-native\[criu\]'"):
        locate()


def test_a_variable_that_names_no_program(
    everywhere: dict[Source, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing named program is an error, no reason for a search; a plain name is searched."""
    monkeypatch.setenv("CRIU_PROGRAM", str(tmp_path / "none"))
    with pytest.raises(ProgramNotFoundError, match="none"):
        find_program()
    monkeypatch.setenv("CRIU_PROGRAM", "criu")
    assert locate() == (everywhere[Source.SEARCH_PATH], Source.VARIABLE)


@pytest.mark.parametrize("source", [Source.VARIABLE, Source.COMPANION])
def test_each_is_checked(
    everywhere: dict[Source, str], monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    """A program that others could change is refused wherever it is, with the cure."""
    if source is Source.COMPANION:
        monkeypatch.delenv("CRIU_PROGRAM")
        monkeypatch.setattr(program, "BUILT_PROGRAM", "")
    os.chmod(everywhere[source], 0o777)
    with pytest.raises(PermissionDeniedError, match="chmod go-w"):
        find_program()


def test_the_owner_of_a_program(
    everywhere: dict[Source, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a program of another user, the cure is another owner, and not to install it again."""
    if os.geteuid() == 0:
        os.chown(everywhere[Source.VARIABLE], 54321, -1)
    monkeypatch.setattr(trusted_path, "trusted_uid", lambda: 12345)
    with pytest.raises(PermissionDeniedError, match=r"belongs to user .*chown"):
        find_program()
    (stop, *_) = [each for each in doctor.look(Worker()) if each.severity is Severity.STOPS]
    assert "chown" in stop.message
    assert not stop.cure


def test_doctor_names_the_libraries_of_the_companion(
    everywhere: dict[Source, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries in the package's program, with versions; other programs have none."""
    assert list(doctor.libraries(Worker())) == []
    monkeypatch.delenv("CRIU_PROGRAM")
    monkeypatch.setattr(program, "BUILT_PROGRAM", "")
    (finding,) = doctor.libraries(Worker())
    assert finding.message.startswith("gnutls 3.8.13, nettle 3.10.2")


def test_without_the_companion(forget_companion: None) -> None:
    """The package is optional."""
    hide_companion()
    assert program.companion() is None

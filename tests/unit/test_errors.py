"""Errors as data: copies and pickles have the same attributes, and ``str`` is the message.

An exception of a job in another process or on another machine is raised unchanged here.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    ImagesError,
    MigrationError,
    MigrationInDoubtError,
    MovedMemoryError,
    NoSuchProcessError,
    OptionError,
    PeerLostError,
    PermissionDeniedError,
    PidInUseError,
    Problem,
    ProcessMismatchError,
    ProgramError,
    ProgramNotFoundError,
    ProtocolError,
    RestoreClaimedError,
    ResumedError,
    UnsupportedError,
    WorkerDiedError,
    dump,
    errors,
    restore,
)
from pycriu_native._integrity.dump_marker import DumpMarker
from pycriu_native._system.descriptors import opened_directory
from pycriu_native.testing import Failure, ScriptedCriu
from tests.unit.support.bystander import PID

BUILTINS: dict[type[CriuError], type[Exception]] = {
    CriuError: Exception,
    OptionError: ValueError,
    UnsupportedError: ValueError,
    ProgramNotFoundError: FileNotFoundError,
    ProgramError: OSError,
    PermissionDeniedError: PermissionError,
    NoSuchProcessError: ProcessLookupError,
    ProcessMismatchError: ProcessLookupError,
    PidInUseError: FileExistsError,
    RestoreClaimedError: FileExistsError,
    ResumedError: Exception,
    ImagesError: OSError,
    WorkerDiedError: ConnectionError,
    ProtocolError: ConnectionError,
    DeadlineError: TimeoutError,
    MigrationError: Exception,
    PeerLostError: ConnectionError,
    MigrationInDoubtError: Exception,
    MovedMemoryError: Exception,
}
"""Each class, and the builtin exception that it also is."""

each = pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)


def an_error(kind: type[CriuError]) -> CriuError:
    """An error whose attributes all have values."""
    if issubclass(kind, OptionError):
        problems = [Problem("root", b"/x", "no"), Problem("timeout", -1, "0 or more")]
        return kind(problems, verb="dump", pid=17)
    error = kind(
        "dump of pid 17 failed: why (dump.log: line); what helps",
        verb="dump",
        pid=17,
        code=-52,
        errno=3,
        log="/images/dump.log",
        lines=["Error (one)", "Error (two)"],
        cause="why",
        cure="what helps",
        options=["root", "external"],
    )
    if isinstance(error, WorkerDiedError):
        error.status = -9
    return error


def attributes(error: CriuError) -> dict[str, object]:
    """All attributes of an error."""
    names = ("message", "verb", "pid", "code", "errno", "log", "lines", "cause", "cure", "options")
    return {name: getattr(error, name) for name in names} | vars(error) | {"args": error.args}


def test_every_class_is_here() -> None:
    """Each class of errors is in this table."""
    result = {
        value
        for module in (errors, pycriu_native)
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, CriuError)
        and value.__module__ == errors.__name__  # others are loaded on demand
    }
    assert result == set(BUILTINS)
    assert {kind.__name__ for kind in result} <= set(pycriu_native.__all__)


@each
def test_an_error_is_the_builtin_too(kind: type[CriuError]) -> None:
    """Each error is also a builtin exception."""
    assert issubclass(kind, BUILTINS[kind])
    assert issubclass(kind, CriuError)


@each
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(kind: type[CriuError], protocol: int) -> None:
    """Class, message and all attributes are unchanged with every pickle protocol."""
    error = an_error(kind)
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert attributes(back) == attributes(error)
    assert str(back) == str(error)


@each
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copy(kind: type[CriuError], copier: object) -> None:
    """A copy is another object with the same attributes."""
    error = an_error(kind)
    other = copier(error)  # type: ignore[operator]
    assert other is not error
    assert type(other) is kind
    assert attributes(other) == attributes(error)


@each
def test_str_is_the_message(kind: type[CriuError]) -> None:
    """The text is not that of ``OSError`` (``[Errno 3] ...``)."""
    error = an_error(kind)
    assert str(error) == error.message == error.args[0]
    assert repr(error).startswith(kind.__name__)
    assert "[Errno" not in str(error)


def test_notes_are_pickled() -> None:
    """Notes are pickled with the error."""
    error = DeadlineError("the deadline passed")
    error.add_note("CRIU did not undo it in time")
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__


def test_options_of_a_refusal() -> None:
    """``OptionError`` lists all problems, by field."""
    error = an_error(OptionError)
    assert isinstance(error, OptionError)
    assert error.options == ("root", "timeout")
    assert [problem.field for problem in error.problems] == ["root", "timeout"]
    assert str(error) == "dump: root=b'/x': no; timeout=-1: 0 or more"


def fails(directory: str) -> None:
    """A job that fails; on module level, so that another process can import it."""
    restore(CriuOpts(images_directory=directory))


def test_from_another_process() -> None:
    """The exception of a job in an executor is raised where its result is read."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        job = pool.submit(fails, "/nothing/here")
        with pytest.raises(OptionError, match="an existing directory is accepted") as caught:
            job.result()
    assert caught.value.options == ("images_directory",)
    assert caught.value.problems[0].value == "/nothing/here"


@pytest.mark.parametrize(("ended", "kind"), [(0, NoSuchProcessError), (1, CriuError)])
def test_which_process_ended(ended: int, kind: type[CriuError], tmp_path: Path) -> None:
    """A thread or child that ends while CRIU reads the tree is not the process of the call."""
    log = f"Error (criu/util.c:412): Can't open {PID + ended}: No such file or directory\n"
    criu = ScriptedCriu(failures={"dump": Failure(errno=3, log=log)})
    with pytest.raises(CriuError) as caught:
        dump(PID, CriuOpts(images_directory=tmp_path), via=criu)
    assert type(caught.value) is kind
    assert ("freeze_cgroup" in caught.value.options) is bool(ended)


def test_the_call_of_an_error(tmp_path: Path) -> None:
    """Also an error of a function that does not know the call has its verb and process."""
    opts = CriuOpts(images_directory=tmp_path)
    with (
        opened_directory(tmp_path) as directory,
        contextlib.closing(DumpMarker(directory)),
        pytest.raises(ImagesError, match="another dump") as caught,
    ):
        dump(PID, opts, via=ScriptedCriu())
    assert (caught.value.verb, caught.value.pid) == ("dump", PID)


def test_the_error_of_a_call_in_a_hook(tmp_path: Path) -> None:
    """It remains that of the other call, which has no process."""

    def hook(_: object) -> None:
        restore(CriuOpts(images_directory=tmp_path / "none"))

    criu = ScriptedCriu(notify={"dump": ["pre-dump"]})
    with pytest.raises(OptionError) as caught:
        dump(PID, CriuOpts(images_directory=tmp_path), via=criu, on_notify=hook)
    assert (caught.value.verb, caught.value.pid) == ("restore", None)

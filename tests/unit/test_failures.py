"""``known_failures.json``: causes and cures of CRIU's messages, in the terms of this package.

Its options are fields of ``CriuOpts``, its classes are those of this package, and ``name=value`` in
a cure is valid Python. ``tests/integration/test_failures.py`` produces the failures.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources

import pytest

from pycriu_native import CriuError, CriuOpts, ImagesError, NoSuchProcessError, ProgramError
from pycriu_native._failures.explain import _refined
from pycriu_native._failures.log_excerpt import (
    LONGEST_LINE,
    Failure,
    diagnose,
    error_lines,
    failures,
    stderr_lines,
)
from pycriu_native.enums import Verb
from pycriu_native.options.table import BY_FIELD

ARGUMENTS = {"via", "on_notify", "deadline", "stdin", "env"}
"""Arguments of the verbs and of ``Worker`` that a cure may name as well."""

SHORTHAND = re.compile(
    r"reproduced|tested|\bRPC\b|setter|preflight|swrk|\bcr_err|_fd\b(?<!status_fd)|has_timeout|"
    r"parent_img|libcriu|--(?!bind|ipc)\w|\bTODO\b|>=|→|\bw/|\bmnt ns\b|\bdgram\b",
)
"""What belongs to CRIU's own interfaces or to notes: a user of this package knows none of it."""

known = [failure for failure in failures() if not failure.benign]
each = pytest.mark.parametrize("failure", known, ids=lambda failure: failure.id)


def test_every_entry_has_a_name_of_its_own() -> None:
    """The ids are unique."""
    names = [failure.id for failure in failures()]
    assert len(names) == len(set(names))


@each
def test_a_failure_has_a_cause_and_a_cure(failure: Failure) -> None:
    """Cause and cure are not empty, and have no period: they are parts of a message."""
    for words in (failure.cause, failure.cure):
        assert words == words.strip()
        assert words
        assert not words.endswith(".")
    assert failure.cause[0].islower() or failure.cause.split()[0].isupper()


@each
def test_options_are_fields(failure: Failure) -> None:
    """The recommended options exist."""
    assert set(failure.options) <= set(BY_FIELD)


@each
def test_what_a_cure_sets_is_a_field(failure: Failure) -> None:
    """``name=`` in a cure is an option, or an argument of a verb."""
    message = re.findall(r"(?<![\w.=])([a-z][a-z_]*)=", failure.cause + " " + failure.cure)
    assert set(message) <= set(BY_FIELD) | ARGUMENTS


@each
def test_an_option_that_helps_is_named(failure: Failure) -> None:
    """The first option is in the text of the cure."""
    if failure.options:
        assert failure.options[0] in failure.cause + failure.cure


@each
def test_values_in_a_cure_are_accepted(failure: Failure) -> None:
    """``name=True`` and ``name="text"`` are valid values."""
    for name, value in re.findall(r'(?<![\w.=])([a-z][a-z_]*)=(True|"[^"]*"|\d+)', failure.cure):
        if name in BY_FIELD:
            CriuOpts(**{name: json.loads(value.replace("True", "true"))})


@each
def test_words_are_those_of_this_package(failure: Failure) -> None:
    """The text has no option of the program, no wire field and no internal note."""
    assert not SHORTHAND.search(failure.cause)
    assert not SHORTHAND.search(failure.cure)


def test_phases() -> None:
    """The verbs of an entry exist."""
    assert {failure.phase for failure in failures()} <= {"any", "dump", "pre-dump", "restore"}


# ---- the choice ----


def test_the_first_known_line_is_the_cause() -> None:
    """The first matching line is the cause; later lines are its consequences."""
    lines = [
        "Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established",
        "Error (criu/files-reg.c:1122): Can't create link remap for /x. Use link-remap option.",
        "Error (criu/cr-dump.c:1975): Dumping FAILED.",
    ]
    result = diagnose(lines, Verb.DUMP)
    assert result.options[0] == "tcp_established"
    assert result.line == lines[0]
    assert diagnose(lines[1:], Verb.DUMP).options == ("link_remap",)


@pytest.mark.parametrize(
    "line",
    [
        "Error (compel/src/lib/infect.c:1744): Task 13002 is in unexpected state: 9",
        "Error (criu/mem.c:1567): Can't open 58/pagemap on procfs: No such process",
    ],
)
def test_a_process_that_was_killed(line: str) -> None:
    """Which line CRIU writes depends on what it does when the process ends."""
    result = diagnose([line, "Error (criu/cr-dump.c:1975): Dumping FAILED."], Verb.DUMP)
    assert result.cause == next(each.cause for each in known if each.id == "ended-in-dump")


@pytest.mark.parametrize(
    ("name", "failure"),
    [("\x10", "process-directory"), ("*V", "process-directory"), ("status", "open-file-restore")],
)
def test_a_wrong_path_in_proc(name: str, failure: str) -> None:
    """What CRIU read from its memory is no name of a file of a process."""
    line = (
        f"7: Error (criu/files-reg.c:2353): Can't open file proc/1/{name} on restore: No such file"
    )
    result = diagnose([line + " or directory"], Verb.RESTORE)
    assert result.cause == next(each.cause for each in known if each.id == failure)


@pytest.mark.parametrize(
    "text",
    [
        "(criu/pie/parasite.c:840): can't get /proc/self/cgroup fd",
        "(compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)",
        "(compel/src/lib/infect-rpc.c:68): Command 66 for daemon failed with -1",
    ],
)
def test_a_failure_in_a_process_that_has_free_descriptors(text: str) -> None:
    """Such a line has other causes, too: it is reported as it is."""
    result = diagnose([f"Error {text}"], Verb.DUMP)
    assert result.cause == next(each.cause for each in known if each.id == "descriptors-used-up")
    assert _refined(result, os.getpid(), "").cause is None


def test_a_consequence_has_the_lowest_priority() -> None:
    """An entry that can be a consequence is used only without a better one."""
    consequence = "Error (criu/proc_parse.c:738): Can't open 9's mapfile link 7f0: No such device"
    cause = "Error (criu/files-reg.c:1031): Can't dump ghost file /x of 9 size, increase limit"
    assert "mapped" in str(diagnose([consequence], Verb.DUMP).cause)
    assert diagnose([consequence, cause], Verb.DUMP).options[0] == "ghost_limit"


def test_a_failure_of_a_restore_is_none_of_a_dump() -> None:
    """An entry of another verb is not used."""
    line = "Error (criu/cr-restore.c:1237): Can't fork for 7: File exists"
    assert diagnose([line], Verb.RESTORE).kind is not CriuError
    assert diagnose([line], Verb.DUMP).cause is None


@pytest.mark.parametrize(
    "message",
    [
        "cr-restore.c:1230): Can't fork for 7",
        "kerndat.c:33): has_ptrace(): failed to fork()",
        "mount.c:1615): Can't clone helper process",
        "namespaces.c:918): Unable to fork a process",
        "namespaces.c:1141): Can't fork ns dumper",
        "pidfd.c:129): Could not fork",
        "util.c:585): fork() failed",
        "util.c:723): fork",
    ],
)
@pytest.mark.parametrize("verb", [Verb.DUMP, Verb.RESTORE])
def test_a_limit_of_processes_stops_each_fork(message: str, verb: Verb) -> None:
    """CRIU forks in many places, also to test the kernel, which is then not the cause."""
    lines = [
        f"Error (criu/{message}: Resource temporarily unavailable",
        "Error (criu/kerndat.c:1878): kerndat_has_a_feature failed when initializing kerndat.",
    ]
    assert "pids.max" in str(diagnose(lines, verb).cause)


def test_errno_is_used_without_an_entry_for_the_log() -> None:
    """CRIU's errno is used only if no line has an entry."""
    assert diagnose([], Verb.DUMP, 3).kind is NoSuchProcessError
    line = "Error (criu/page-xfer.c:263): page-xfer: Unable to spice data: No space left on device"
    assert diagnose([line], Verb.DUMP, 3).kind is ImagesError


@pytest.mark.parametrize(
    "line",
    [
        "(00.001234) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: "
        "Operation not permitted",
        "(00.001234) Can't find a better name",
        "(00.001234) Warn  (criu/x.c:1): something may be an Error later",
        "Error (criu/util.c:600): exited, status=3",
    ],
)
def test_lines_that_are_no_errors(line: str) -> None:
    """A line that successful runs print is not reported as an error."""
    assert error_lines(line) == []


def test_what_the_loader_says() -> None:
    """Before CRIU opens its log, the error is read from standard error."""
    response = "/opt/criu: error while loading shared libraries: libnl-3.so.200: cannot open\n\n"
    assert stderr_lines(response) == [response.strip()]
    assert diagnose(stderr_lines(response), Verb.DUMP).kind is ProgramError


def test_the_table_is_read_on_the_first_failure_only() -> None:
    """Importing the package and successful calls do not read the file."""
    code = (
        "import pycriu_native, sys\n"
        "from pycriu_native._failures import log_excerpt as _log\n"
        "assert _log.failures.cache_info().currsize == 0\n"
        "_log.error_lines('x')\n"
        "assert _log.failures.cache_info().currsize == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_has_a_line_for_each_key() -> None:
    """``python -m json.tool`` formats the file: each key has its own line, for diffs."""
    file = resources.files("pycriu_native._failures").joinpath("known_failures.json")
    text = file.read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_a_package_that_cannot_be_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of root or user, a failure is raised without its explanation."""
    failures.cache_clear()
    monkeypatch.setattr("pycriu_native._failures.log_excerpt.__file__", "/nowhere/_log.py")
    try:
        message = diagnose(["Error (criu/a.c:1): Can't fork for 5: File exists"], Verb.RESTORE)
    finally:
        failures.cache_clear()
    assert (message.cause, message.cure, message.options) == (None, None, ())


def test_a_line_without_an_end() -> None:
    """Long lines take bounded time: only the beginning of a line is searched.

    (Some patterns take time in proportion to the square of a line's length.)
    """
    for text in ("Error (" + "1234567890:" * 24000, "Warn  (criu/x.c:1): " + "7" * 250000):
        lines = error_lines(text, 42) or stderr_lines(text)
        assert [len(line) <= LONGEST_LINE for line in lines] == [True]
        diagnose(lines, Verb.DUMP)

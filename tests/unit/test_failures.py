"""``known_failures.json``: what CRIU's messages come down to, in words and options that users know.

The table speaks of this package: the options in it are fields of ``CriuOpts``, its classes are
ours, and a cure that says ``name=value`` can be written like that.
``tests/integration/test_failures.py`` produces the failures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources

import pytest

from pycriu_native import CriuError, CriuOpts, ImagesError, NoSuchProcessError, ProgramError
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
    """No failure is told twice."""
    names = [failure.id for failure in failures()]
    assert len(names) == len(set(names))


@each
def test_a_failure_has_a_cause_and_a_cure(failure: Failure) -> None:
    """Both are there, and neither is a sentence: the message is made of them."""
    for words in (failure.cause, failure.cure):
        assert words == words.strip()
        assert words
        assert not words.endswith(".")
    assert failure.cause[0].islower() or failure.cause.split()[0].isupper()


@each
def test_options_are_fields(failure: Failure) -> None:
    """What the table recommends can be set."""
    assert set(failure.options) <= set(BY_FIELD)


@each
def test_what_a_cure_sets_is_a_field(failure: Failure) -> None:
    """``name=`` in a cure is an option, or an argument of a verb."""
    message = re.findall(r"(?<![\w.=])([a-z][a-z_]*)=", failure.cause + " " + failure.cure)
    assert set(message) <= set(BY_FIELD) | ARGUMENTS


@each
def test_an_option_that_helps_is_named(failure: Failure) -> None:
    """The best option stands in the words, so that they tell what to do with it."""
    if failure.options:
        assert failure.options[0] in failure.cause + failure.cure


@each
def test_values_in_a_cure_are_accepted(failure: Failure) -> None:
    """``name=True`` and ``name="text"`` can be written as they stand."""
    for name, value in re.findall(r'(?<![\w.=])([a-z][a-z_]*)=(True|"[^"]*"|\d+)', failure.cure):
        if name in BY_FIELD:
            CriuOpts(**{name: json.loads(value.replace("True", "true"))})


@each
def test_words_are_those_of_this_package(failure: Failure) -> None:
    """No option of the program, no wire field, no note to ourselves."""
    assert not SHORTHAND.search(failure.cause)
    assert not SHORTHAND.search(failure.cure)


def test_phases() -> None:
    """An entry belongs to verbs that there are."""
    assert {failure.phase for failure in failures()} <= {"any", "dump", "pre-dump", "restore"}


# ---- the choice ----


def test_the_first_known_line_is_the_cause() -> None:
    """What CRIU prints after it is what comes of it."""
    lines = [
        "Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established",
        "Error (criu/files-reg.c:1122): Can't create link remap for /x. Use link-remap option.",
        "Error (criu/cr-dump.c:1975): Dumping FAILED.",
    ]
    result = diagnose(lines, Verb.DUMP)
    assert result.options[0] == "tcp_established"
    assert result.line == lines[0]
    assert diagnose(lines[1:], Verb.DUMP).options == ("link_remap",)


def test_a_consequence_comes_last() -> None:
    """It is the cause only where nothing better is known."""
    consequence = "Error (criu/proc_parse.c:738): Can't open 9's mapfile link 7f0: No such device"
    cause = "Error (criu/files-reg.c:1031): Can't dump ghost file /x of 9 size, increase limit"
    assert "mapped" in str(diagnose([consequence], Verb.DUMP).cause)
    assert diagnose([consequence, cause], Verb.DUMP).options[0] == "ghost_limit"


def test_a_failure_of_a_restore_is_none_of_a_dump() -> None:
    """The same line in the log of another verb says something else, or nothing."""
    line = "Error (criu/cr-restore.c:1237): Can't fork for 7: File exists"
    assert diagnose([line], Verb.RESTORE).kind is not CriuError
    assert diagnose([line], Verb.DUMP).cause is None


def test_errno_decides_where_the_log_is_silent() -> None:
    """CRIU's errno is a hint, and yields to a line that is known."""
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
    """What runs that succeed print is not told as an error."""
    assert error_lines(line) == []


def test_what_the_loader_says() -> None:
    """Before CRIU has a log there is standard error, in other people's words."""
    response = "/opt/criu: error while loading shared libraries: libnl-3.so.200: cannot open\n\n"
    assert stderr_lines(response) == [response.strip()]
    assert diagnose(stderr_lines(response), Verb.DUMP).kind is ProgramError


def test_the_table_is_read_on_the_first_failure_only() -> None:
    """Importing the package, and calls that succeed, cost nothing for it."""
    code = (
        "import pycriu_native, sys\n"
        "from pycriu_native._failures import log_excerpt as _log\n"
        "assert _log.failures.cache_info().currsize == 0\n"
        "_log.error_lines('x')\n"
        "assert _log.failures.cache_info().currsize == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_has_a_line_for_each_key() -> None:
    """So that a changed key is a changed line: ``python -m json.tool`` writes the file so."""
    file = resources.files("pycriu_native._failures").joinpath("known_failures.json")
    text = file.read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_a_package_that_cannot_be_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has given up its rights loses the explanation, not the failure."""
    failures.cache_clear()
    monkeypatch.setattr("pycriu_native._failures.log_excerpt.__file__", "/nowhere/_log.py")
    try:
        message = diagnose(["Error (criu/a.c:1): Can't fork for 5: File exists"], Verb.RESTORE)
    finally:
        failures.cache_clear()
    assert (message.cause, message.cure, message.options) == (None, None, ())


def test_a_line_without_an_end() -> None:
    """A log that anybody can write costs no minutes: of a line, only the beginning is looked at.

    (Some patterns take time in proportion to the square of a line's length.)
    """
    for text in ("Error (" + "1234567890:" * 24000, "Warn  (criu/x.c:1): " + "7" * 250000):
        lines = error_lines(text, 42) or stderr_lines(text)
        assert [len(line) <= LONGEST_LINE for line in lines] == [True]
        diagnose(lines, Verb.DUMP)

"""``explain`` shows the effect of a call: request, command line, unsupported options, problems and
configuration files. It makes no call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycriu_native import CriuOpts, OptionError, PageServer, Worker, lib
from pycriu_native._calls.requirements import _versions
from pycriu_native._calls.verbs import for_pre_dump
from pycriu_native._transport import spawn
from pycriu_native._transport.connection import Connection
from pycriu_native._transport.spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions
from pycriu_native.diagnostics.explain import Explanation, Setting, explain
from pycriu_native.enums import Verb
from pycriu_native.errors import Problem
from pycriu_native.options.table import BY_WIRE, VERB_MASK, release
from pycriu_native.testing import ScriptedCriu

from .support import expected
from .support.libraries import ROOT, Library
from .support.strategies import OptionObjects, criu_opts

NOBODY = 2**22 + 1
"""Above the highest pid that there can be."""


@dataclass(frozen=True)
class UnusableVia:
    """A CRIU that must not be started."""

    ours: ClassVar[bool] = True
    allow_untrusted: bool = False

    def identity(self) -> tuple[object, ...] | None:
        """The identity of the program: None, as for a socket of the caller."""
        return None

    def name(self) -> str:
        """The name in messages."""
        return "nobody"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """No option is refused."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A connection fails the test."""
        raise AssertionError("CRIU was reached")


@pytest.fixture(autouse=True)
def _no_file_of_this_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Configuration files of this machine must not affect the tests."""
    monkeypatch.setattr(spawn, "GLOBAL_CONFIGURATION", str(tmp_path / "global.conf"))


# ---- the wire ----


@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), verb=st.sampled_from([verb for verb in VERB_MASK if verb in expected.LOG]))
def test_what_is_shown_is_what_is_sent(
    objects: OptionObjects, data: st.DataObject, verb: Verb
) -> None:
    """The fields and values of the request of a call, for any options, with their setters."""
    opts = data.draw(criu_opts(objects, verb))
    shown = explain(opts, verb, NOBODY if verb is not Verb.RESTORE else None, via=UnusableVia())
    lacking = {problem.field for problem in shown.lacking}
    meant = for_pre_dump(opts) if shown.verb is Verb.PRE_DUMP else opts
    requested = {
        name: value
        for name, value in expected.message(meant, shown.verb, shown.pid).items()
        if BY_WIRE[name].field not in lacking
    }
    message = {sent.wire: sent.value for sent in shown.wire}
    if expected.adds_config(meant, shown.verb) and "config_file" in requested:
        assert str(message["config_file"]).startswith("/proc/")  # made for the call
        requested["config_file"] = message["config_file"]
    assert message == requested
    for sent in shown.wire:
        row = BY_WIRE[sent.wire]
        assert sent.field == (
            row.field if row.field and getattr(opts, row.field) is not None else None
        )
        setter, _, more = sent.by.partition(" and ")
        assert setter == "wire field" or lib.has(setter)
        assert (more == "wire field") == (row.repair and setter != "wire field")
    # What needs a hook, or a page server's images, says so; these depend on the call.
    apart = {"on_notify"}
    if verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD):
        apart.add("images_directory")
    assert [problem for problem in shown.problems if problem.field not in apart] == []
    assert str(shown).startswith(str(shown.verb))


def test_nothing_is_touched(tmp_path: Path) -> None:
    """No directory is created, no descriptor stays open, no program runs."""
    before = os.listdir("/proc/self/fd")
    images = tmp_path / "images"
    shown = explain(CriuOpts(images_directory=images), "dump", 4242, via=UnusableVia())
    assert not images.exists()
    assert os.listdir("/proc/self/fd") == before
    assert shown.wire[0].value == str(images)
    assert shown.command == ("criu", "dump", "--tree=4242", f"--images-dir={images}")


def test_the_release_is_asked_once(tmp_path: Path) -> None:
    """The release is requested only for newer options, once for each program."""
    via = ScriptedCriu(version="3.18")
    explain(CriuOpts(images_directory=tmp_path, leave_running=True), "dump", 1, via=via)
    assert via.sent == []
    young = CriuOpts(images_directory=tmp_path, network_lock="skip")
    _versions.pop(via.identity(), None)
    for _ in range(2):
        shown = explain(young, "dump", 1, via=via)
        assert any("needs CRIU 3.19; the scripted CRIU is 3.18" in str(p) for p in shown.lacking)
    assert len(via.sent) == 1


def test_what_this_libcriu_lacks(library: Library) -> None:
    """Unsupported options are listed with their release and not in the request."""
    code = (
        "from pycriu_native import CriuOpts\n"
        "from pycriu_native.diagnostics.explain import explain\n"
        "from tests.unit.test_explain import UnusableVia\n"
        "opts = CriuOpts(images_directory='x', leave_stopped=True, compress='block', timeout=5)\n"
        "print(explain(opts, 'dump', 4194305, via=UnusableVia()))\n"
    )
    message = subprocess.run(
        [sys.executable, "-c", code], env=library.environment, cwd=ROOT,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"with libcriu {library.version}" in message
    for field, since in (("leave_stopped", "3.19"), ("compress", "4.3")):
        lacks = release(library.version) < release(since)
        assert (f"needs libcriu {since}; {library.version} is loaded" in message) == lacks
        assert (f"  {field} = " in message) == (not lacks)
    assert "timeout = 5  (timeout; criu_local_set_timeout and wire field)" in message


def test_a_call_that_would_be_refused(tmp_path: Path) -> None:
    """All problems of the verb and of the command line are listed, and nothing is raised."""
    opts = CriuOpts(
        images_directory=tmp_path / "missing",
        weak_sysctls=True,
        leave_running=False,
        lazy_pages=True,
    )
    shown = explain(opts, "dump", None, via=Worker(program=tmp_path / "no-criu"))
    assert {"weak_sysctls", "page_server"} <= {problem.field for problem in shown.problems}
    assert [problem.field for problem in shown.not_expressed] == ["leave_running", "pid"]
    assert shown.wire
    nobody = explain(CriuOpts(network_lock="skip"), "dump", 1, via=Worker(program="/no/criu"))
    assert [problem.field for problem in nobody.lacking] == ["via"]
    assert "/no/criu" in str(nobody)


def test_descriptors_that_are_closed() -> None:
    """A request that cannot be encoded is a problem, not an exception."""
    opts = CriuOpts(images_directory="x", inherit_fds=[(2**31 - 1, "key")])
    shown = explain(opts, "restore", via=UnusableVia())
    assert [problem.field for problem in shown.problems][-1] == "inherit_fds"


def test_verbs_that_take_no_options() -> None:
    """A verb without options is refused, and the message has those that are accepted."""
    for verb in ("version", "dunp"):
        with pytest.raises(OptionError, match=rf"^verb='{verb}': one of dump, pre-dump, .* is"):
            explain(CriuOpts(), verb)
        with pytest.raises(OptionError, match=rf"^verb='{verb}': one of dump, pre-dump, .* is"):
            CriuOpts().only_for(verb)
    with pytest.raises(OptionError, match="is no request that has options"):
        explain(CriuOpts(), "dedup")


# ---- configuration files ----


def settings_of(shown: Explanation, path: Path) -> dict[str, Setting]:
    """The lines on one file."""
    (file,) = [file for file in shown.configuration if file.path == str(path)]
    return {setting.option: setting for setting in file.settings}


def write(path: Path, *lines: str) -> Path:
    """A configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_files_that_criu_reads_by_itself(tmp_path: Path) -> None:
    """The system's file, that in the worker's HOME and that of its environment, in this order."""
    first = write(tmp_path / "global.conf", "tcp-close")
    second = write(tmp_path / "home/.criu/default.conf", "shell-job")
    third = write(tmp_path / "named.conf", "file-locks")
    via = Worker(env={"HOME": str(tmp_path / "home"), "CRIU_CONFIG_FILE": str(third)})
    shown = explain(CriuOpts(), "dump", 1, via=via)
    assert [file.path for file in shown.configuration] == [str(first), str(second), str(third)]
    assert settings_of(shown, second)["shell_job"].applies
    alone = explain(CriuOpts(), "dump", 1, via=UnusableVia())
    assert [file.path for file in alone.configuration] == [str(first)]


@pytest.mark.parametrize(
    ("line", "fields", "option", "applies", "effect"),
    [
        ("tcp-close", {}, "tcp_close", True, "the request does not set it"),
        ("tcp-close", {"tcp_close": False}, "tcp_close", False, "the request overrides it"),
        ("ghost-limit=5", {"ghost_limit": 6}, "ghost_limit", False, "the request overrides it"),
        ("ghost-limit=6", {"ghost_limit": 6}, "ghost_limit", False, "in the request as well"),
        ("leave-running", {"leave_running": False}, "leave_running", True, "set it to False"),
        ("leave-running", {"leave_running": True}, "leave_running", False, "as well"),
        ("skip-mnt=/a", {"skip_mnts": ["/b"]}, "skip_mnts", True, "is added"),
        ("skip-mnt=/a", {"skip_mnts": []}, "skip_mnts", True, "does not set it"),
        ("verbosity=4", {}, "log_level", False, "always sets it"),
        ("log-file=x", {}, "log_file", False, "always sets it"),
        ("images-dir=x", {}, "images_directory", False, "always names"),
        ("libdir x", {}, "libdir", True, "the request does not set it"),
        ("ms", {}, "--ms", True, "no option of CriuOpts"),
        ("root /a b c", {}, "line 1", True, "CRIU refuses"),
    ],
)
def test_what_a_file_means_that_is_read_before(
    tmp_path: Path, line: str, fields: dict[str, object], option: str, applies: bool, effect: str
) -> None:
    """The request overrides a file, except for unset fields, lists, and False values."""
    path = write(tmp_path / "global.conf", line)
    shown = explain(CriuOpts(**fields), "dump", 1, via=UnusableVia())  # type: ignore[arg-type]
    setting = settings_of(shown, path)[option]
    assert setting.applies == applies
    assert effect in setting.effect


@pytest.mark.parametrize(
    ("line", "fields", "option", "applies", "effect"),
    [
        ("tcp-close", {}, "tcp_close", True, "the request does not set it"),
        ("tcp-close", {"tcp_close": False}, "tcp_close", True, "overrides the False"),
        ("tcp-close", {"tcp_close": True}, "tcp_close", False, "as well"),
        ("log-file=x", {"log_file": "y"}, "log_file", True, "overrides the 'y'"),
        ("verbosity=4", {"log_level": 1}, "log_level", False, "always sets it"),
        ("prev-images-dir=a", {"parent_image": "b"}, "parent_image", False, "request overrides it"),
        ("skip-mnt=/a", {"skip_mnts": ["/b"]}, "skip_mnts", True, "is added"),
        ("pidfile x", {"pidfile": "y"}, "pidfile", False, "the call adds its own"),
        ("address=::1", {"lazy_pages": True}, "page_server", True, "does not set it"),
    ],
)
def test_what_the_requests_own_file_means(
    tmp_path: Path, line: str, fields: dict[str, object], option: str, applies: bool, effect: str
) -> None:
    """The request's own file overrides it, except for the log level and the parent."""
    path = write(tmp_path / "own.conf", line)
    opts = CriuOpts(config_file=path, **fields)  # type: ignore[arg-type]
    setting = settings_of(explain(opts, "dump", 1, via=UnusableVia()), path)[option]
    assert setting.applies == applies
    assert effect in setting.effect


def test_a_network_lock_in_the_requests_file(tmp_path: Path) -> None:
    """A network lock in the request's own file crashes an older CRIU, which is a problem."""
    path = write(tmp_path / "global.conf", "network-lock skip")
    harmless = explain(CriuOpts(images_directory=tmp_path), "dump", 1, via=UnusableVia())
    assert harmless.problems == ()
    opts = CriuOpts(images_directory=tmp_path, config_file=path)
    problems = explain(opts, "dump", 1, via=UnusableVia()).problems
    assert [problem.field for problem in problems] == ["config_file"]
    assert "crashes CRIU before 4.2.1" in problems[0].rule


def test_a_text_to_read(tmp_path: Path) -> None:
    """The text has one section for each part."""
    write(tmp_path / "global.conf", "tcp-close")
    opts = CriuOpts(images_directory="ck pt", leave_running=True, lazy_pages=False)
    shown = str(explain(opts, "dump", 4242, via=UnusableVia()))
    assert shown.splitlines() == [
        f"dump of pid 4242, with libcriu {newest_loaded()} and nobody",
        "on the wire:",
        "  images_dir_fd = 'ck pt'  (images_directory; criu_local_set_images_dir_fd)",
        "  pid = 4242  (added by the call; criu_local_set_pid)",
        "  leave_running = True  (leave_running; criu_local_set_leave_running)",
        "  log_file = 'dump.log'  (added by the call; criu_local_set_log_file)",
        "  notify_scripts = True  (added by the call; wire field)",
        f"  lazy_pages = False  (lazy_pages; {lazy_setter()})",
        "as a command line:",
        "  criu dump --tree=4242 '--images-dir=ck pt' --leave-running",
        "not expressed there:",
        "  lazy_pages=False: only True can be expressed; leave it unset",
        f"{tmp_path}/global.conf (every CRIU on this system):",
        "  tcp_close=True: applies: the request does not set it",
    ]


def newest_loaded() -> str:
    """The release of the libcriu of this process."""
    return explain(CriuOpts(), "dump", 1, via=UnusableVia()).libcriu


def lazy_setter() -> str:
    """How this libcriu sets lazy pages."""
    name = "criu_local_set_lazy_pages"
    return name if lib.has(name) else "wire field"


def test_clear_text_is_shown(tmp_path: Path) -> None:
    """Without clear_text the address is refused; a command line cannot express clear_text."""
    via = UnusableVia()
    opts = CriuOpts(images_directory=tmp_path, page_server="10.0.0.2:27")
    shown = explain(opts, "dump", NOBODY, via=via)
    assert [problem.field for problem in shown.problems] == ["page_server"]
    assert "clear_text=True" in str(shown)
    meant = PageServer("10.0.0.2", 27, clear_text=True)
    shown = explain(replace(opts, page_server=meant), "dump", NOBODY, via=via)
    assert shown.problems == ()
    assert "--address=10.0.0.2" in shown.command
    assert "criu has no option for clear_text" in str(shown)

"""Calls that a verb refuses before it changes anything, with the field's name and the reason.

CRIU would refuse, truncate or ignore these values later, mostly without a message.
``tests/integration`` compares the verdicts with a real CRIU.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycriu_native
from pycriu_native import (
    CriuOpts,
    DeadlineError,
    NoSuchProcessError,
    OptionError,
    Problem,
    ProgramNotFoundError,
    UnsupportedError,
    Worker,
    dump,
    explain,
    restore,
)
from pycriu_native._checks import criu_files, option_rules
from pycriu_native._integrity.dump_marker import FRAMES, UNFINISHED
from pycriu_native.archive import pack, unpack
from pycriu_native.diagnostics.preflight import means, restore_needs
from pycriu_native.enums import Verb
from pycriu_native.options.fields import foreign_options
from pycriu_native.options.table import BY_FIELD, VERB_MASK
from pycriu_native.testing import ScriptedCriu

from .support.strategies import EXISTING_FILE, OptionObjects, any_opts, criu_opts, values_of

DUMP, PRE_DUMP, RESTORE, PAGES = Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE, Verb.PAGE_SERVER
HERE = os.path.dirname(__file__)

REFUSED: list[tuple[Verb, dict[str, Any], str, str]] = [
    # directories and descriptors
    (DUMP, {"images_directory": None}, "images_directory", "required"),
    (RESTORE, {"images_directory": "/nonexistent"}, "images_directory", "an existing directory"),
    (DUMP, {"images_directory": EXISTING_FILE}, "images_directory", "an existing directory"),
    (DUMP, {"images_directory": 4000}, "images_directory", "an open descriptor"),
    (DUMP, {"work_directory": "/nonexistent"}, "work_directory", "an existing directory"),
    (DUMP, {"images_dir": "/x"}, "images_dir", "images_directory, which wins"),
    (DUMP, {"pidfd_store_sk": 4000}, "pidfd_store_sk", "an open descriptor"),
    (RESTORE, {"inherit_fds": [(4000, "k")]}, "inherit_fds", "an open descriptor"),
    (DUMP, {"status_fd": 4000, "lazy_pages": True, "page_server": "127.0.0.1:1"}, "status_fd",
     "an open descriptor"),
    # runc's rules
    (DUMP, {"parent_image": "/"}, "parent_image", "runc's rule"),
    (DUMP, {"parent_image": "nonexistent"}, "parent_image", "an existing directory"),
    (PRE_DUMP, {"parent_image": ".."}, "parent_image", "a directory with images"),
    (DUMP, {"page_server": (None, 27)}, "page_server", "both required"),
    (DUMP, {"page_server": ("host", None)}, "page_server", "both required"),
    (DUMP, {"page_server": "host:0"}, "page_server", "both required"),
    (DUMP, {"status_fd": 1}, "status_fd", "needs lazy_pages"),
    # page servers
    (DUMP, {"pre_dump": True, "stream": True, "lazy_pages": True, "page_server": "127.0.0.1:1"},
     "stream", "pages go one way"),
    (DUMP, {"lazy_pages": True}, "page_server", "the address to serve pages on is required"),
    (DUMP, {"lazy_pages": True, "page_server": "host:1"}, "page_server", "a numeric address"),
    (DUMP, {"page_server": {"fd": 1, "port": 1}}, "page_server", "the descriptor only"),
    (PAGES, {}, "page_server", "the address to serve pages on is required"),
    (PAGES, {"page_server": "host:1"}, "page_server", "a numeric address"),
    (DUMP, {"page_server": "10.0.0.2:1"}, "page_server", "clear_text=True"),
    (DUMP, {"page_server": "localhost.example:1"}, "page_server", "clear_text=True"),
    (DUMP, {"lazy_pages": True, "page_server": "0.0.0.0:1"}, "page_server", "clear_text=True"),
    (PAGES, {"page_server": "10.0.0.2:1"}, "page_server", "clear_text=True"),
    (PAGES, {"page_server": "[::]:1"}, "page_server", "clear_text=True"),
    (DUMP, {"tls": True}, "tls", "needs page_server"),
    (DUMP, {"tls_cert": EXISTING_FILE}, "tls_cert", "needs tls"),
    (DUMP, {"tls_key": "/nonexistent", "tls": True, "page_server": "host:1"}, "tls_key",
     "an existing file"),
    # what belongs elsewhere
    (RESTORE, {"leave_running": True}, "leave_running", "belongs to dump"),
    (DUMP, {"mntns_compat_mode": True}, "mntns_compat_mode", "belongs to restore"),
    (DUMP, {"exec_cmd": ["x"]}, "exec_cmd", "belongs to restore"),
    (PRE_DUMP, {"leave_stopped": True}, "leave_stopped", "belongs to dump and restore"),
    (DUMP, {"pre_dump_mode": "read"}, "pre_dump_mode", "belongs to pre-dump"),
    # files
    (DUMP, {"config_file": "/nonexistent"}, "config_file", "an existing file"),
    (DUMP, {"cg_props_file": "/nonexistent"}, "cg_props_file", "an existing file"),
    (DUMP, {"irmap_paths": ["relative"]}, "irmap_paths", "an absolute path"),
    (DUMP, {"log_file": "-"}, "log_file", "a file's name"),
    (DUMP, {"log_file": ".."}, "log_file", "name or path of a file"),
    (DUMP, {"log_file": "x" * 256}, "log_file", "at most 255 bytes"),
    (DUMP, {"log_file": "pages-1.img"}, "log_file", "a name that no image"),
    (RESTORE, {"log_file": "stats-dump"}, "log_file", "a name that no image"),
    (RESTORE, {"log_file": "pycriu-native.images"}, "log_file", "a name that no image"),
    (DUMP, {"log_file": "ä" * 128}, "log_file", "at most 255 bytes"),
    (DUMP, {"log_file": "x", "log_to_stderr": True}, "log_to_stderr", "log_file"),
    # forms
    (DUMP, {"external": ["disk[x]:y"]}, "external", "is accepted"),
    (DUMP, {"external": ["mnt[]:x"]}, "external", "only ':m' or ':s'"),
    (DUMP, {"external": ["macvlan[eth0]"]}, "external", "crashes"),
    (DUMP, {"external": ["macvlan[eth0]:nonexistent"]}, "external", "an interface that exists"),
    (DUMP, {"external": ["mnt[/a]"]}, "external", "needs ':value'"),
    (DUMP, {"external": ["net[1]"]}, "external", "needs ':value'"),
    (DUMP, {"external": ["mnt[]"], "auto_ext_mnt": False}, "external", "auto_ext_mnt=False"),
    (DUMP, {"lsm_profile": "smack:x"}, "lsm_profile", "apparmor"),
    (DUMP, {"plugin_options": ["name"]}, "plugin_options", "PLUGIN.NAME"),
    (DUMP, {"plugin_options": ["-p.name"]}, "plugin_options", "PLUGIN.NAME"),
    (DUMP, {"plugin_options": ["p=a.b"]}, "plugin_options", "PLUGIN.NAME"),
    (RESTORE, {"veth_pairs": [("i" * 100, "o" * 100)]}, "veth_pairs", "at most 198 bytes"),
    (RESTORE, {"join_ns": ["pid:/proc/self/ns/pid"]}, "join_ns", "net, ipc, uts"),
    (RESTORE, {"join_ns": ["net:0"]}, "join_ns", "the pid of a running process"),
    (RESTORE, {"join_ns": ["net:65536"]}, "join_ns", "the pid of a running process"),
    (RESTORE, {"join_ns": ["net:/nonexistent"]}, "join_ns", "a file that exists"),
    (RESTORE, {"join_ns": ["net:1file"]}, "join_ns", "a file that exists"),
    (RESTORE, {"join_ns": ["net:/proc/self/ns/net,1,2"]}, "join_ns", "for user only"),
    (RESTORE, {"join_ns": ["user:/proc/self/ns/user,65536,1"]}, "join_ns", "up to 65535"),
    (RESTORE, {"join_ns": ["net:/proc/self/ns/net"], "empty_ns": "net"}, "join_ns", "empty_ns"),
    # contradictions
    (DUMP, {"leave_running": True, "leave_stopped": True}, "leave_running", "both"),
    (DUMP, {"tcp_established": True, "tcp_close": True}, "tcp_established", "kept or dropped"),
    (DUMP, {"manage_cgroups": True, "manage_cgroups_mode": "soft"}, "manage_cgroups", "mode wins"),
    (DUMP, {"manage_cgroups": False, "manage_cgroups_mode": "soft"}, "manage_cgroups", "mode wins"),
    (DUMP, {"manage_cgroups": True, "manage_cgroups_mode": "ignore"}, "manage_cgroups", "wins"),
    (DUMP, {"unix_sks": [1]}, "unix_sks", "needs external_unix_connections"),
    (DUMP, {"unix_sks": [1], "external_unix_connections": False}, "unix_sks", "needs external_"),
    (DUMP, {"ext_sharing": True}, "ext_sharing", "needs auto_ext_mnt"),
    (DUMP, {"ext_masters": True}, "ext_masters", "needs auto_ext_mnt"),
    (DUMP, {"stream": True, "auto_dedup": True}, "stream", "auto_dedup"),
    (DUMP, {"stream": True, "page_server": "localhost:1"}, "stream", "page_server"),
    (DUMP, {"compress": "off", "compress_block_size": 4096}, "compress_block_size", "compress"),
    (DUMP, {"compress": "off", "compress_acceleration": 1}, "compress_acceleration", "compress"),
    (DUMP, {"freeze_cgroup": "/x", "timeout": 4294968}, "timeout", "4294967"),
    (DUMP, {"unprivileged": True, "cg_roots": ["/x"]}, "cg_roots", "leaves it out"),
    (RESTORE, {"unprivileged": True, "lazy_pages": True}, "lazy_pages", "leaves it out"),
]  # fmt: skip


def refusal(verb: Verb, fields: dict[str, Any], pid: int | None = None) -> OptionError:
    """The error of a verb that must refuse these options."""
    with pytest.raises(OptionError) as caught:
        option_rules.check(CriuOpts(**fields), verb, pid)
    return caught.value


@pytest.mark.parametrize(
    ("verb", "fields", "culprit", "reason"),
    REFUSED,
    ids=[f"{verb}-{fields}"[:70] for verb, fields, _, _ in REFUSED],
)
def test_refused(verb: Verb, fields: dict[str, Any], culprit: str, reason: str) -> None:
    """The error names the field, shows its value and the rule."""
    error = refusal(verb, {"images_directory": HERE, **fields})
    assert culprit in error.options
    problem = next(problem for problem in error.problems if problem.field == culprit)
    assert re.search(re.escape(reason), problem.rule), problem
    assert str(error).startswith(f"{verb}: ")


@pytest.mark.parametrize(("verb", "fields", "culprit", "reason"), REFUSED)
def test_without_the_named_field_it_is_accepted(
    verb: Verb, fields: dict[str, Any], culprit: str, reason: str
) -> None:
    """Each refused case is accepted without the field that the error names."""
    rest = {name: value for name, value in fields.items() if name != culprit}
    rest.setdefault("images_directory", HERE)
    if culprit == "page_server" and (verb is PAGES or rest.get("lazy_pages")):
        rest["page_server"] = "127.0.0.1:1"
    option_rules.check(CriuOpts(**rest), verb)


WRONG_BY_ITSELF = [
    case
    for case in REFUSED
    if not case[3].startswith(("needs", "the address", "required"))  # another may bring it
]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_one_error_has_all_problems(data: st.DataObject) -> None:
    """All problems are named at once."""
    verb = data.draw(st.sampled_from([DUMP, RESTORE]))
    fields: dict[str, Any] = {}
    culprits = set()
    cases = st.lists(st.sampled_from([case for case in WRONG_BY_ITSELF if case[0] is verb]))
    for _, more, culprit, _ in data.draw(cases):
        if not set(more) & set(fields):
            fields |= more
            culprits.add(culprit)
    if culprits:
        assert culprits <= set(refusal(verb, {"images_directory": HERE, **fields}).options)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_nothing_that_the_table_allows_for_a_verb_is_foreign(
    objects: OptionObjects, data: st.DataObject
) -> None:
    """``belongs to`` is reported for exactly the fields whose row is for other verbs."""
    name = data.draw(st.sampled_from(sorted(BY_FIELD)))
    verb = data.draw(st.sampled_from(sorted(VERB_MASK, key=str)))
    value = data.draw(objects.forms.get(name, values_of(BY_FIELD[name])))
    try:
        option_rules.check(CriuOpts(**{name: value}), verb)
    except OptionError as error:
        response = {problem.field for problem in error.problems if "belongs to" in problem.rule}
    else:
        response = set()
    assert response == (set() if BY_FIELD[name].on & VERB_MASK[verb] else {name})


@settings(max_examples=400, deadline=None)
@given(opts=any_opts(), verb=st.sampled_from(sorted(VERB_MASK, key=str)))
def test_rules_that_are_skipped_find_nothing(opts: CriuOpts, verb: Verb) -> None:
    """A rule runs only if an option that it checks is set."""

    def every() -> list[Problem]:
        return [problem for rule in option_rules._RULES for problem in rule(opts, verb)]

    before, result = every(), option_rules.problems_of(option_rules._RULES, opts, verb)
    assert result == before or result == every()  # a descriptor can be closed meanwhile


def test_only_for_makes_any_options_fit(objects: OptionObjects) -> None:
    """The options that ``only_for`` leaves are accepted."""

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def fits(data: st.DataObject) -> None:
        opts = data.draw(criu_opts(objects, DUMP))
        for verb in VERB_MASK:
            assert not list(foreign_options(opts.only_for(verb), verb))

    fits()


@pytest.mark.parametrize("pid", [0, -1, True, "1", 1.0, 2**31])
def test_a_pid_that_is_none(pid: Any) -> None:
    """0 would be read as a self-dump."""
    assert "pid" in refusal(DUMP, {"images_directory": HERE}, pid).options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("deadline", each) for each in ("1", b"1", True, float("nan"), 10**400, [1])),
        *(("reap_timeout", each) for each in ("1", float("nan"), Decimal(1))),
        ("on_notify", 3),
    ],
)
def test_an_argument_of_another_kind(name: str, value: Any, tmp_path: Path) -> None:
    """Invalid arguments are refused before CRIU starts."""
    with pytest.raises(OptionError, match=f"{name}="):
        dump(os.getppid(), CriuOpts(images_directory=tmp_path), **{name: value})
    assert not list(tmp_path.iterdir())


def test_a_relative_path_where_the_working_directory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing working directory is named."""
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    with pytest.raises(OptionError, match="the working directory does not exist"):
        restore(CriuOpts(images_directory="images"))


def test_nothing_is_touched_by_a_refusal(tmp_path: Path) -> None:
    """No program is searched, no directory created, no process read."""
    images = tmp_path / "images"
    opts = CriuOpts(images_directory=images, leave_running=True, leave_stopped=True)
    via = Worker(program="/nonexistent/criu")
    with pytest.raises(OptionError, match="leave_running") as caught:
        dump(4242, opts, via=via)
    assert caught.value.pid == 4242
    assert caught.value.verb == "dump"
    assert not isinstance(caught.value, UnsupportedError | NoSuchProcessError)
    with pytest.raises(OptionError, match="an existing directory"):
        restore(CriuOpts(images_directory=images), via=via)
    assert not images.exists()
    with pytest.raises(ProgramNotFoundError):
        dump(4242, CriuOpts(images_directory=images), via=via)


def test_a_parent_without_tracking(tmp_path: Path) -> None:
    """CRIU saves only changes with ``track_mem`` alone; a pre-dump sets it itself."""
    (tmp_path / "1").mkdir()
    for name in ("inventory.img", FRAMES):
        (tmp_path / "1" / name).touch()
    opts = CriuOpts(images_directory=tmp_path / "2", parent_image="../1")
    with pytest.raises(OptionError, match=r"parent_image.*needs track_mem"):
        option_rules.check(opts, DUMP, os.getpid())
    option_rules.check(replace(opts, track_mem=True), DUMP, os.getpid())
    option_rules.check(replace(opts, pre_dump=True), PRE_DUMP, os.getpid())


def test_a_parent_without_the_record_of_frames(tmp_path: Path) -> None:
    """The dump could have former contents of memory that was moved since: images of criu, for
    example, are refused, and a directory in which the record cannot be read.
    """
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "inventory.img").touch()
    opts = CriuOpts(images_directory=tmp_path / "2", parent_image="../1", track_mem=True)
    with pytest.raises(OptionError, match=rf"parent_image='../1': .*/1 has no {FRAMES}"):
        option_rules.check(opts, DUMP, os.getpid())
    opts = replace(opts, images_directory=None, images_dir=tmp_path)
    with pytest.raises(OptionError, match=r"parent_image='../1': needs images_directory"):
        option_rules.check(opts, DUMP, os.getpid())


def test_preflight_without_a_directory() -> None:
    """Only what does not depend on the images directory is checked, if none is given."""
    means.check_options(CriuOpts(parent_image="../1", track_mem=True), os.getpid())
    with pytest.raises(OptionError) as refused:
        means.check_options(CriuOpts(parent_image="../1"), os.getpid())
    (problem,) = refused.value.problems
    assert "needs track_mem" in str(problem)


def test_plugins_of_a_relative_directory(tmp_path: Path) -> None:
    """It begins in the images directory, as for CRIU."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "one.so").touch()
    opts = CriuOpts(images_directory=tmp_path, libdir="plugins")
    assert criu_files.missing_plugins(["one", "two"], opts, None) == ["two"]


def test_a_parent_that_is_not_whole(tmp_path: Path) -> None:
    """Unfinished images are refused as parents, also further up the chain."""
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "inventory.img").touch()
        (tmp_path / number / FRAMES).touch()
    (tmp_path / "2" / "parent").symlink_to("../1")
    opts = CriuOpts(images_directory=tmp_path / "3", parent_image="../2", track_mem=True)
    for half, result in (("2", "2"), ("1", "2/parent")):
        (tmp_path / half / UNFINISHED).touch()
        with pytest.raises(OptionError, match=rf"parent_image.*/{result} did not"):
            option_rules.check(opts, DUMP, os.getpid())
        with pytest.raises(OptionError, match=rf"parent_image.*/{result} did not"):
            option_rules.check(replace(opts, pre_dump=True), PRE_DUMP, os.getpid())
        (tmp_path / half / UNFINISHED).unlink()
    option_rules.check(opts, DUMP, os.getpid())


def test_a_parent_of_another_process(tmp_path: Path) -> None:
    """Parents with memory of another process are refused, unless it went to a page server."""
    (tmp_path / "1").mkdir()
    for name in ("inventory.img", "pagemap-1.img", "pagemap-shmem-7.img", FRAMES):
        (tmp_path / "1" / name).touch()
    opts = CriuOpts(images_directory=tmp_path / "2", parent_image="../1", track_mem=True)
    with pytest.raises(OptionError, match=rf"parent_image.*pid {os.getpid()} .*\(1\)"):
        option_rules.check(opts, DUMP, os.getpid())
    option_rules.check(replace(opts, page_server="127.0.0.1:27"), DUMP, os.getpid())
    (tmp_path / "1" / f"pagemap-{os.getpid()}.img").touch()
    option_rules.check(opts, DUMP, os.getpid())


@pytest.mark.parametrize("verb", [pycriu_native.cpuinfo_dump, pycriu_native.cpuinfo_check])
def test_processors_that_criu_does_not_describe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: Callable[[CriuOpts], object]
) -> None:
    """The error names the architecture; nothing is written."""
    arm = os.uname_result(("Linux", "host", "6.12", "#1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: arm)
    with pytest.raises(UnsupportedError, match=r"aarch64.*x86_64, s390x, ppc64le"):
        verb(CriuOpts(images_directory=tmp_path))
    assert not any(tmp_path.iterdir())


WRONG: Any = "ckpt"
"""A path in place of the options, or of another argument."""
OPTS = CriuOpts()
THERE = CriuOpts(images_directory="/")
ASKING: tuple[Any, ...] = (pycriu_native.version, pycriu_native.feature_check, pycriu_native.check)
PID = 2**22 + 1
"""No process has this pid: the limit of the kernel is 2**22."""


migrate_out = functools.partial(pycriu_native.migrate_out, PID, CriuOpts(), to="localhost:1")
migrate_in = functools.partial(pycriu_native.migrate_in, CriuOpts(), listen="localhost:1")


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("opts", lambda: dump(PID, WRONG)),
        ("opts", lambda: dump(PID, None)),  # type: ignore[arg-type]
        ("opts", lambda: pycriu_native.pre_dump(PID, WRONG)),
        ("opts", lambda: pycriu_native.dump_iters(PID, WRONG)),
        ("opts", lambda: restore(WRONG)),
        ("opts", lambda: pycriu_native.restore_child(WRONG)),
        ("opts", lambda: pycriu_native.check(WRONG)),
        ("opts", lambda: pycriu_native.page_server(WRONG)),
        ("opts", lambda: pycriu_native.dedup(WRONG)),
        ("opts", lambda: pycriu_native.LazyPages(WRONG)),
        ("opts", lambda: pycriu_native.preflight(PID, WRONG)),
        ("opts", lambda: pycriu_native.images.check_images(".", WRONG)),
        ("opts", lambda: pycriu_native.explain(WRONG, "dump")),
        ("opts", lambda: pycriu_native.migrate_out(PID, WRONG, to="localhost:1")),
        ("opts", lambda: pycriu_native.migrate_in(WRONG, listen="localhost:1")),
        ("opts", lambda: asyncio.run(pycriu_native.aio.restore(WRONG))),
        ("opts", lambda: pycriu_native.DumpJob(pid=PID, opts=WRONG)()),
        ("opts", lambda: pycriu_native.snapshots.Snapshot.take(["true"], "x", opts=WRONG)),
        ("via", lambda: dump(PID, OPTS, via=WRONG)),
        ("via", lambda: restore(OPTS, via=WRONG)),
        ("via", lambda: pycriu_native.preflight(PID, OPTS, via=WRONG)),
        *(("deadline", functools.partial(ask, deadline=WRONG)) for ask in ASKING),
        *(("deadline", functools.partial(ask, deadline=Decimal(1))) for ask in ASKING),
        ("deadline", lambda: pycriu_native.dedup(THERE, deadline=WRONG)),
        ("deadline", lambda: pycriu_native.LazyPages(THERE, deadline=WRONG)),
        ("on_notify", lambda: dump(PID, OPTS, on_notify=WRONG)),
        ("should_continue", lambda: pycriu_native.dump_iters(PID, OPTS, WRONG)),
        ("should_continue", lambda: migrate_out(should_continue=WRONG)),
        ("insecure", lambda: migrate_out(insecure="no")),  # type: ignore[arg-type]
        ("insecure", lambda: migrate_in(insecure=1)),  # type: ignore[arg-type]
        ("on_progress", lambda: pycriu_native.pre_dump(PID, OPTS, on_progress=WRONG)),
        ("words", lambda: CriuOpts.from_argv("dump -t 1")),
        ("values", lambda: CriuOpts.from_dict(WRONG)),
        ("words", lambda: CriuOpts.from_argv(None)),  # type: ignore[arg-type]
        ("text", lambda: CriuOpts.from_config(b"tcp-established")),  # type: ignore[arg-type]
        ("struct", lambda: CriuOpts.from_runc(WRONG)),
        ("via", lambda: pycriu_native.doctor(WRONG)),
        ("given", lambda: restore_needs.filled(OPTS, (), WRONG)),
        ("limit", lambda: unpack("x", "y", limit="1")),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_type(field: str, call: Callable[[], object]) -> None:
    """The error names the argument and the accepted types; iterators are accepted."""
    assert CriuOpts.from_argv(iter(["dump", "-t", "5"]))[1] == 5  # type: ignore[arg-type]
    with pytest.raises(OptionError) as raised:
        call()
    assert [problem.field for problem in raised.value.problems] == [field]
    assert "is accepted" in str(raised.value)


@pytest.mark.parametrize("path", [None, True, 3, "", "a\0b", "\ud800", ["a"]])
def test_an_argument_that_is_no_path(path: Any) -> None:
    """It is refused by name."""
    calls: dict[str, list[Callable[[], object]]] = {
        "directory": [
            lambda: pycriu_native.images.inspect(path),
            lambda: pack(path, io.BytesIO()),
            lambda: unpack(io.BytesIO(), path),
        ],
        "file": [lambda: pycriu_native.images.decode(path)],
        "source": [lambda: unpack(path, "x")],
    }
    for name, each in ((name, call) for name, every in calls.items() for call in every):
        with pytest.raises(OptionError, match=rf"^{name}=.* is accepted"):
            each()


@pytest.mark.parametrize("pid", [2**31, 2**64, "a\0b", "\ud800", 0, True])
def test_an_explanation_for_no_pid(pid: Any) -> None:
    """It has the reason for which the call would be refused."""
    result = pycriu_native.explain(OPTS, "dump", pid)
    assert "pid" in [problem.field for problem in result.problems]


def test_an_odd_name_and_a_long_value() -> None:
    """Control characters of a name are escaped, and a long value is cut in the message only."""
    with pytest.raises(OptionError, match=r"^[ -~]*--a\\x1b"):
        CriuOpts.from_config("a\x1b[31m 1")
    with pytest.raises(OptionError) as raised:
        CriuOpts(leave_running="x" * 10**6)  # type: ignore[arg-type]
    assert len(str(raised.value)) < 10**4
    assert raised.value.problems[0].value == "x" * 10**6


def test_a_deadline_that_is_a_fraction(tmp_path: Path) -> None:
    """Other numbers than ``int`` and ``float`` are accepted if they can be added to a time."""
    criu = ScriptedCriu(notify={"dump": ["pre-dump"]})
    assert pycriu_native.version(via=criu, deadline=Fraction(60)) is not None  # type: ignore[arg-type]
    with pytest.raises(DeadlineError, match=r"deadline of 1e-09 s"):
        dump(PID, CriuOpts(images_directory=tmp_path), via=criu, deadline=Fraction(1, 10**9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("program", each) for each in (b"criu", "", "cr\0iu", "\ud800", 3)),
        *(("env", each) for each in (False, ["A=1"], {1: "2"}, {"A": b"1"}, {"A": "1\0"})),
        *(("env", each) for each in ({"A=B": "1"}, {"": "1"})),
    ],
)
def test_a_worker_of_other_types(field: str, value: Any) -> None:
    """They are refused when the worker is created; variables may be empty."""
    for kind in (Worker, pycriu_native.WorkerPool):
        with pytest.raises(ValueError, match=f"{field}="):
            kind(**{field: value})
    assert Worker(program=Path("criu"), env={"A": ""}).env == {"A": ""}
    with pytest.raises(ValueError, match="env="):
        Worker(env=None)  # type: ignore[arg-type]


def test_values_of_other_types() -> None:
    """The process of a job, and the text of a release."""
    with pytest.raises(ValueError, match="process=True: a ProcessIdentity"):
        pycriu_native.DumpJob(pid=PID, opts=OPTS, process=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="None is not a release"):
        pycriu_native.Version.parse(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("stdin", [-1, 4000, "x", True])
def test_an_input_that_is_not_open(stdin: Any, tmp_path: Path) -> None:
    """The standard input of a worker is checked before anything is changed."""
    worker = Worker(stdin=stdin)
    with pytest.raises(OptionError, match="stdin="):
        restore(CriuOpts(images_directory=tmp_path), via=worker)
    with pytest.raises(OptionError, match="stdin="):
        pycriu_native.version(via=worker)
    assert not list(tmp_path.iterdir())


def test_a_configuration_file_that_is_removed_while_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at once: no second look raises another error than that of the options."""
    (path := tmp_path / "criu.conf").touch()
    seen = os.stat

    def stat_then_remove(name: Any, *args: Any, **more: Any) -> os.stat_result:
        result = seen(name, *args, **more)
        if name == os.fspath(path):
            path.unlink()
        return result

    opts = CriuOpts(images_directory=tmp_path, config_file=path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat_then_remove)
        option_rules.check(opts, Verb.CHECK)
    with pytest.raises(OptionError, match="config_file"):
        option_rules.check(opts, Verb.CHECK)


def test_configuration_files_that_are_not_read(tmp_path: Path) -> None:
    """A pipe is not waited for, and a file that CRIU would read into memory is refused."""
    os.mkfifo(pipe := tmp_path / "pipe")
    (hole := tmp_path / "hole").touch()
    os.truncate(hole, 2**40)
    for path in (pipe, hole):
        opts = CriuOpts(images_directory=tmp_path / "images", config_file=path)
        explain(opts, "dump")
        with pytest.raises(OptionError, match=r"config_file=.*of at most 1 MiB"):
            dump(os.getppid(), opts)
    assert not (tmp_path / "images").exists()

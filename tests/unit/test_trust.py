"""Paths, programs and configuration files that others could change are refused before the call.

These tests cover modes and links of one user's files; files of other users are in
``tests/integration/test_security.py``.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pycriu_native import CriuOpts, OptionError, PermissionDeniedError, Service, Socket, Worker
from pycriu_native._calls.prepare import Directories
from pycriu_native._calls.request import Request
from pycriu_native._calls.requirements import check
from pycriu_native._checks import criu_files
from pycriu_native._integrity.dump_marker import FRAMES
from pycriu_native._system import trusted_path
from pycriu_native._system.trusted_path import UntrustedError
from pycriu_native._transport import spawn
from pycriu_native._transport.program import find_program
from pycriu_native.diagnostics.explain import explain
from pycriu_native.enums import Verb
from pycriu_native.errors import ImagesError
from pycriu_native.testing import ScriptedCriu

NOBODY = 2**22 + 1
"""Above the highest pid that there can be."""


@pytest.fixture(autouse=True)
def _no_file_of_this_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The setup of this machine must not affect the tests."""
    monkeypatch.setattr(spawn, "GLOBAL_CONFIGURATION", str(tmp_path / "etc" / "default.conf"))
    monkeypatch.setattr(criu_files, "PLUGINS", (str(tmp_path / "plugins"),))
    monkeypatch.setattr(criu_files, "KERNEL_CACHE", str(tmp_path / "criu.kdat"))


def _opened(path: str | Path) -> os.stat_result:
    fd = trusted_path.open_directory(str(path), make=False, allow_untrusted=False)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _request(via: ScriptedCriu, **fields: Any) -> Request:
    return Request(verb=Verb.DUMP, opts=CriuOpts(**fields), via=via, pid=NOBODY)


# ---- the walk ----


@pytest.mark.parametrize("form", ["absolute", "relative", "dots", "slashes"])
def test_a_directory_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The directory of the path is opened, in any notation, and no descriptor stays open."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = {
        "absolute": str(tmp_path / "a" / "b"),
        "relative": "a/b",
        "dots": "./a/../a/./b/.",
        "slashes": f"/{tmp_path}//a///b/",
    }[form]
    before = os.listdir("/proc/self/fd")
    assert os.path.samestat(_opened(path), os.stat("a/b"))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write(tmp_path: Path, mode: int) -> None:
    """A directory that others can write to is refused with its mode, sticky or not."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(UntrustedError, match=f"open can be written by .*{mode:04o}"):
        _opened(tmp_path / "open")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_on_the_way_that_others_can_write(tmp_path: Path, mode: int) -> None:
    """Others could replace the entries of a parent directory: it is refused by name."""
    (tmp_path / "open" / "inner" / "images").mkdir(parents=True)
    (tmp_path / "open").chmod(mode)
    with pytest.raises(UntrustedError, match="/open can be written"):
        _opened(tmp_path / "open" / "inner" / "images")


def test_a_sticky_directory_on_the_way(tmp_path: Path) -> None:
    """A sticky directory such as /tmp is accepted: only the owner of an entry can replace it."""
    (tmp_path / "sticky" / "images").mkdir(parents=True)
    (tmp_path / "sticky").chmod(0o1777)
    assert stat.S_ISDIR(_opened(tmp_path / "sticky" / "images").st_mode)


def test_links(tmp_path: Path) -> None:
    """A link at the end of a path is refused; one on the way is followed and its target checked."""
    (tmp_path / "real" / "images").mkdir(parents=True)
    (tmp_path / "open" / "images").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "last").symlink_to("real/images")
    (tmp_path / "way").symlink_to("../" + tmp_path.name + "/real")
    (tmp_path / "far").symlink_to(tmp_path / "real")
    (tmp_path / "astray").symlink_to("open")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("last", "way/../last"):
        with pytest.raises(UntrustedError, match="last is a symbolic link"):
            _opened(tmp_path / path)
    for path in ("way/images", "far/images"):
        assert os.path.samestat(_opened(tmp_path / path), os.stat(tmp_path / "real" / "images"))
    with pytest.raises(UntrustedError, match="open can be written by everybody"):
        _opened(tmp_path / "astray" / "images")
    with pytest.raises(OSError, match="Too many levels"):
        _opened(tmp_path / "loop" / "images")


def test_links_of_the_kernel(tmp_path: Path) -> None:
    """``/proc/self/fd`` links lead to the open file, not to the path in their text."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    fd = os.open(tmp_path / "open", os.O_RDONLY)
    try:
        (tmp_path / "open").rmdir()
        (tmp_path / "open (deleted)").mkdir(0o700)
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "open (deleted)")
        for path in (f"/proc/self/fd/{fd}", f"/proc/{os.getpid()}/fd/{fd}"):
            with pytest.raises(UntrustedError, match="can be written by everybody"):
                trusted_path.check(path)
        os.fchmod(fd, 0o755)
        trusted_path.check(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_a_missing_one_is_made_with_mode_0700(tmp_path: Path) -> None:
    """A missing directory is created with mode 0700, but not where others can write."""
    path = tmp_path / "images"
    os.close(trusted_path.open_directory(str(path), make=True, allow_untrusted=False))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UntrustedError, match="open can be written"):
        trusted_path.open_directory(
            str(tmp_path / "open" / "images"), make=True, allow_untrusted=False
        )
    assert not (tmp_path / "open" / "images").exists()


def test_what_was_looked_at_is_what_is_used(tmp_path: Path) -> None:
    """A directory that is replaced by a link after the check is not followed."""
    (tmp_path / "images").mkdir()
    (tmp_path / "victim").mkdir()
    expected = os.stat(tmp_path / "images")
    fd = trusted_path.open_directory(str(tmp_path / "images"), make=False, allow_untrusted=False)
    try:
        (tmp_path / "images").rename(tmp_path / "away")
        (tmp_path / "images").symlink_to("victim")
        assert os.path.samestat(os.fstat(fd), expected)
    finally:
        os.close(fd)


def test_who_is_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """SUDO_UID is used for root only."""
    monkeypatch.setenv("SUDO_UID", "7")
    for own, trusted in ((0, 7), (1000, 1000)):
        monkeypatch.setattr(os, "geteuid", lambda own=own: own)
        assert trusted_path.trusted_uid() == trusted


@pytest.mark.parametrize("by", ["", "x", "-1", "4294967295", "9" * 20, "9" * 5000, "\u0663"])
def test_a_variable_that_is_no_uid(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """It is not used, and not a defect: only the caller is trusted."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", by)
    assert trusted_path.trusted_uid() == 0


# ---- a call ----


@pytest.mark.parametrize("field", ["images_directory", "work_directory"])
@pytest.mark.parametrize("form", ["path", "descriptor", "link"])
def test_a_call_names_the_field(tmp_path: Path, field: str, form: str) -> None:
    """The error is raised before CRIU runs; ``allow_untrusted`` accepts the path."""
    place = tmp_path / "place"
    place.mkdir()
    if form != "link":
        place.chmod(0o777)
    else:
        place = tmp_path / "link"
        place.symlink_to("place")
    fd = os.open(place, os.O_RDONLY)
    try:
        fields: dict[str, Any] = {"images_directory": tmp_path / "images"}
        fields[field] = fd if form == "descriptor" else place
        via = ScriptedCriu()
        with pytest.raises(OptionError, match=r"Worker\(allow_untrusted=True\)") as caught:
            check(_request(via, **fields))
        assert caught.value.options == (field,)
        assert via.sent == []
        assert not (tmp_path / "images").exists()
        via.allow_untrusted = True
        check(_request(via, **fields))
    finally:
        os.close(fd)


@pytest.mark.parametrize("form", ["path", "descriptor"])
@pytest.mark.parametrize("verb", [Verb.DUMP, Verb.RESTORE])
@pytest.mark.parametrize("where", ["open/1", "link", "shut/1"])
def test_parents_that_others_can_write(tmp_path: Path, form: str, verb: Verb, where: str) -> None:
    """Parents contain memory as well: each of the chain is checked."""
    for name in ("open/1", "images", "shut/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "inventory.img").touch()
        (tmp_path / name / FRAMES).touch()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "shut/1/parent").symlink_to("../../open/1")
    (tmp_path / "link").symlink_to("open/1")
    fields: dict[str, Any] = {}
    if verb is Verb.DUMP:
        fields = {"parent_image": f"../{where}", "track_mem": True}
    else:
        (tmp_path / "images/parent").symlink_to(f"../{where}")
    fd = os.open(tmp_path / "images", os.O_RDONLY)
    try:
        images: Any = fd if form == "descriptor" else tmp_path / "images"
        request = Request(
            verb=verb,
            opts=CriuOpts(images_directory=images, **fields),
            via=ScriptedCriu(),
            pid=NOBODY if verb is Verb.DUMP else None,
        )
        with pytest.raises(OptionError, match="/open can be written by everybody") as caught:
            check(request)
        field = "parent_image" if verb is Verb.DUMP else "images_directory"
        assert caught.value.options == (field,)
        (tmp_path / "open").chmod(0o755)
        check(request)
    finally:
        os.close(fd)


def test_images_that_would_not_be_checked(tmp_path: Path) -> None:
    """CRIU would open that path itself, without these checks and that of completeness; it is for a
    service, which can see other files.
    """
    opts = CriuOpts(images_dir=tmp_path)
    with pytest.raises(OptionError, match="set images_directory") as caught:
        check(Request(verb=Verb.RESTORE, opts=opts, via=ScriptedCriu()))
    assert caught.value.options == ("images_dir",)
    check(Request(verb=Verb.RESTORE, opts=opts, via=Worker(allow_untrusted=True)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        check(Request(verb=Verb.RESTORE, opts=opts, via=Socket(ours)))


def test_the_call_itself_looks_again(tmp_path: Path) -> None:
    """A directory that has become a link since the check is an ImagesError."""
    (tmp_path / "images").symlink_to(".")
    opts = CriuOpts(images_directory=tmp_path / "images")
    request = Request(verb=Verb.DUMP, opts=opts, via=Worker())
    with pytest.raises(ImagesError, match="is a symbolic link"), ExitStack() as owned:
        Directories(request, owned)
    request = Request(verb=Verb.DUMP, opts=opts, via=Worker(allow_untrusted=True))
    with ExitStack() as owned:
        Directories(request, owned)


def test_explain_shows_it(tmp_path: Path) -> None:
    """``explain`` lists an unsafe directory as a reason for which the call would be refused."""
    tmp_path.chmod(0o770)
    shown = explain(CriuOpts(images_directory=tmp_path), "dump", NOBODY, via=ScriptedCriu())
    assert "can be written by group" in str(shown)


# ---- the program ----


def _program(at: Path) -> Path:
    at.mkdir()
    (at / "criu").write_text("#!/bin/sh\n")
    (at / "criu").chmod(0o755)
    return at / "criu"


SPOILT: list[tuple[str, Callable[[Path], object]]] = [
    ("criu can be written", lambda program: program.chmod(0o757)),
    ("criu can be written", lambda program: program.chmod(0o775)),
    ("bin can be written", lambda program: program.parent.chmod(0o777)),
]


@pytest.mark.parametrize(("reason", "damage"), SPOILT)
def test_a_program_that_others_can_change(
    tmp_path: Path, reason: str, damage: Callable[[Path], object]
) -> None:
    """A program that is reached by a link is refused too; the error names user and option."""
    program = _program(tmp_path / "bin")
    (tmp_path / "link").symlink_to(program)
    assert find_program(program) == str(program)
    assert find_program(tmp_path / "link") == str(tmp_path / "link")
    damage(program)
    for path in (program, tmp_path / "link"):
        with pytest.raises(PermissionDeniedError, match=f"{reason}.*allow_untrusted=True"):
            find_program(path)
        with pytest.raises(PermissionDeniedError):
            Worker(program=path).identity()
        assert Worker(program=path, allow_untrusted=True).name() == str(path)


def test_the_recorded_program_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was recorded at the build is checked as well."""
    monkeypatch.delenv("CRIU_PROGRAM", raising=False)
    program = _program(tmp_path / "bin")
    monkeypatch.setattr("pycriu_native._transport.program.BUILT_PROGRAM", str(program))
    assert find_program() == str(program)
    program.chmod(0o777)
    with pytest.raises(PermissionDeniedError):
        find_program()


# ---- files that steer CRIU ----


def _writable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("leave-running\n")
    path.chmod(0o666)
    return path


def test_a_configuration_file_of_the_call(tmp_path: Path) -> None:
    """Other users must not be able to write to it, since it overrides the options."""
    config = _writable(tmp_path / "criu.conf")
    request = _request(ScriptedCriu(), images_directory=tmp_path / "images", config_file=config)
    with pytest.raises(OptionError, match="overrides other options") as caught:
        check(request)
    assert caught.value.options == ("config_file",)
    config.chmod(0o644)
    check(request)


FILES_OF_CRIU = {
    "global": "etc/default.conf",
    "HOME": "home/.criu/default.conf",
    "CRIU_CONFIG_FILE": "env.conf",
    "plugin": "plugins/evil.so",
    "CRIU_LIBS_DIR": "libs/evil.so",
    "cache": "criu.kdat",
    "XDG_RUNTIME_DIR": "run/criu.kdat",
}


@pytest.mark.parametrize("kind", FILES_OF_CRIU)
def test_options_that_select_programs_and_files(tmp_path: Path, kind: str) -> None:
    """Every file that CRIU reads besides the request, if another user can write to it."""
    path = tmp_path / FILES_OF_CRIU[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        "HOME": tmp_path / "home",
        "CRIU_CONFIG_FILE": tmp_path / "env.conf",
        "CRIU_LIBS_DIR": tmp_path / "libs",
        "XDG_RUNTIME_DIR": tmp_path / "run",
    }
    env = {kind: str(environment[kind])} if kind in environment else {}
    opts = CriuOpts(images_directory=tmp_path, unprivileged=kind == "XDG_RUNTIME_DIR" or None)
    via = Worker(env=env)
    assert list(criu_files.problems(opts, via)) == []  # not there, and nobody else can make it
    _writable(path)
    (problem,) = criu_files.problems(opts, via)
    assert problem.field == "via"
    assert f"{path} can be written by everybody" in str(problem)
    assert list(criu_files.problems(opts, Worker(env=env, allow_untrusted=True))) == []
    path.chmod(0o600)
    assert list(criu_files.problems(opts, via)) == []
    path.unlink()
    path.parent.chmod(0o777)  # where anybody can make it
    assert path.parent == tmp_path or list(criu_files.problems(opts, via))
    path.parent.chmod(0o700)


def test_a_service_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """Files that the caller cannot read are not checked: the home of a worker."""
    (tmp_path / "etc").mkdir()
    _writable(tmp_path / "etc" / "default.conf")
    assert list(criu_files.problems(CriuOpts(images_directory=tmp_path), Service())) == []


# ---- the quick look ----

NAMES = ("a", "b", "c")


def _grow_tree(base: Path, random: Random, depth: int = 3) -> None:
    """Directories, files and links, some of which others could change."""
    for name in NAMES:
        path = base / name
        kind = random.choice(["directory", "directory", "file", "link", "missing"])
        if kind == "link":
            path.symlink_to(random.choice(["a", "b", "../a", str(base / "c"), "/", "nowhere"]))
        elif kind == "file":
            path.touch()
        elif kind == "directory":
            path.mkdir()
            if depth > 1:
                _grow_tree(path, random, depth - 1)
        if kind in ("directory", "file"):
            path.chmod(random.choice([0o755, 0o755, 0o700, 0o777, 0o1777, 0o775]))
            if random.random() < 0.1 and os.geteuid() == 0:
                os.chown(path, 65534, -1)


def _paths(base: Path, random: Random) -> str:
    parts = [random.choice((*NAMES, "", ".", "..")) for _ in range(random.randint(0, 4))]
    return "/".join([str(base), *parts]) + random.choice(["", "", "/", "//"])


def _verdict(path: str) -> bool | None:
    """The result of the walk; None: the file does not exist or cannot be opened."""
    try:
        trusted_path.check(path)
    except trusted_path.UntrustedError:
        return False
    except OSError:
        return None
    return True


@pytest.mark.parametrize("seed", range(40))
def test_the_fast_check_agrees_with_the_walk(tmp_path: Path, seed: int) -> None:
    """A positive result agrees with the walk; many paths at once have the results of each."""
    random = Random(seed)
    _grow_tree(tmp_path, random)
    paths = [_paths(tmp_path, random) for _ in range(60)]
    for path in paths:
        if trusted_path.is_plain(path):
            assert _verdict(path) is True, path
            assert not os.path.islink(path.rstrip("/")), path
    for _ in range(60):
        some = tuple(random.sample(paths, random.randint(1, 4)))
        expected = all(_verdict(path) is not False for path in some)
        assert trusted_path.are_trusted((), ".so", some) == expected, some


def test_what_is_missing_is_not_plain(tmp_path: Path) -> None:
    """A missing file is unsafe in a directory where others could create it."""
    assert not trusted_path.is_plain(str(tmp_path / "none"))
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert not trusted_path.is_plain(f"{shared}/")
    assert not trusted_path.are_trusted((), ".so", (f"{shared}/x", f"{shared}/"))
    assert trusted_path.are_trusted((), ".so", (f"{shared}/x", f"{tmp_path}/"))

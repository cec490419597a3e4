"""The other forms of options, compared with the program: ``criu`` and its configuration files.

A command line of ``to_argv`` is run unchanged. A dump by command line and one by request write the
same image files of a process. A configuration file of ``to_config`` has the same effect in a
request as the fields. And ``explain`` reports correctly how the files that CRIU reads affect a
call.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    OptionError,
    PidInUseError,
    Worker,
    WorkerDiedError,
    check,
    dedup,
    dump,
    page_server,
    restore,
)
from pycriu_native._transport.program import find_program
from pycriu_native.diagnostics.explain import Setting, explain
from tests.unit.support.libraries import found

from .conftest import Spawn
from .support import releases
from .support.processes import Target, is_alive, reap_all

LOCKED = """
    import fcntl
    file = open(HERE / "locked", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    serve()
"""
"""A process that cannot be dumped without ``file_locks``."""


def criu(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line of ``to_argv`` with the program of the calls."""
    assert words[0] == "criu"
    command = [find_program(), *words[1:]]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={"HOME": "/", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip


def image_files(directory: Path) -> set[str]:
    """The names of the image files in a directory."""
    return {path.name for path in directory.iterdir() if path.suffix == ".img"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory for logs, so that the images directory has only images."""
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


@pytest.fixture
def target(spawn: Spawn) -> Target:
    """A process with a lock."""
    return spawn(LOCKED)


# ---- the command line ----


@pytest.mark.parametrize(
    "more",
    [
        CriuOpts(),
        CriuOpts(log_level=4, log_file="x.log", ghost_limit=2**21, timeout=20, link_remap=True),
        CriuOpts(manage_cgroups_mode="full", tcp_established=True, shell_job=True, cpu_cap=1),
        CriuOpts(external=["mnt[]"], skip_mnts=["/nowhere"], external_unix_connections=True),
    ],
    ids=["plain", "numbers", "modes", "lists"],
)
def test_both_ways_leave_the_same_images(
    target: Target, tmp_path: Path, work: Path, more: CriuOpts
) -> None:
    """A dump by request and one by command line write the same image files, and the process
    continues.
    """
    opts = replace(more, work_directory=work, file_locks=True, leave_running=True)
    sets = []
    for name in ("request", "command"):
        images = tmp_path / name
        images.mkdir()
        here = replace(opts, images_directory=images)
        if name == "request":
            dump(target.pid, here)
        else:
            run = criu(here.to_argv("dump", target.pid))
            assert run.returncode == 0, run.stderr
        sets.append(image_files(images))
    assert sets[0] == sets[1]
    assert "inventory.img" in sets[0]
    assert "filelocks.img" in sets[0]
    assert target.runs_on()


def test_a_command_line_fails_as_the_request_does(target: Target, tmp_path: Path) -> None:
    """Without the option for locks both dumps fail, and the process continues."""
    images = tmp_path / "images"
    images.mkdir()
    opts = CriuOpts(images_directory=images, leave_running=True)
    assert criu(opts.to_argv("dump", target.pid)).returncode != 0
    with pytest.raises(CriuError) as caught:
        dump(target.pid, opts)
    assert "file_locks" in caught.value.options
    assert target.runs_on()


def test_requests_and_command_lines_by_turns(orphans: None, target: Target, tmp_path: Path) -> None:
    """A process is dumped by request, restored by command line, dumped by command line, restored by
    request.
    """
    images = tmp_path / "images"
    images.mkdir()
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    run = criu(opts.to_argv("restore"))
    assert run.returncode == 0, run.stderr
    assert target.runs_on()

    words = opts.to_argv("dump", target.pid)
    assert criu(words).returncode == 0
    reap_all()
    assert not is_alive(target.pid)
    _, pid, read = CriuOpts.from_argv(words)
    assert (pid, read) == (target.pid, opts)
    restore(read)
    assert target.runs_on()


def test_options_from_a_command_line(target: Target, tmp_path: Path) -> None:
    """Options that were read from a command line have the same effect as the command line."""
    images = tmp_path / "images"
    images.mkdir()
    line = f"criu dump -vvvv -D {images} -o mine.log -lRt {target.pid} --manage-cgroups"
    verb, pid, opts = CriuOpts.from_argv(line.split())
    assert str(verb) == "dump"
    assert pid == target.pid
    result = dump(pid, opts)
    assert result.log == str(images / "mine.log")
    by_request = image_files(images)
    assert criu(line.split()).returncode == 0
    assert image_files(images) == by_request
    assert target.runs_on()


@pytest.mark.parametrize("log", ["logs/mine.log", "{}/elsewhere/mine.log", "../images/./mine.log"])
def test_a_log_by_its_path(
    orphans: None, target: Target, images: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    """``-o`` with a path relative to the work directory, and no ``-D``, as with the program."""
    for directory in (images, images / "logs", images.parent / "elsewhere"):
        directory.mkdir()
    monkeypatch.chdir(images)
    path = Path(images, log.format(images.parent))
    line = f"-l -o {path if path.is_absolute() and '{' in log else log}".split()
    dumped = ["criu", "dump", "-t", str(target.pid), *line]
    run = criu([*dumped, "-R"])
    assert run.returncode == 0, run.stderr
    assert path.exists()
    path.unlink()

    _, pid, opts = CriuOpts.from_argv(dumped)
    result = dump(pid, opts)
    assert result.log is not None
    assert path.samefile(result.log)
    target.reap()
    path.unlink()
    _, _, opts = CriuOpts.from_argv(["criu", "restore", "-d", *line])
    restore(opts)
    assert path.exists()
    path.unlink()
    with pytest.raises(PidInUseError) as caught:  # the cause is in the log
        restore(opts)
    assert caught.value.log is not None
    assert path.samefile(caught.value.log)
    assert target.runs_on()


def test_a_log_in_a_directory_that_is_missing_or_of_others(target: Target, images: Path) -> None:
    """Such a log is refused before anything is touched."""
    opts = CriuOpts(images_directory=images, file_locks=True)
    with pytest.raises(OptionError, match=r"log_file='nowhere/x\.log'.*existing directory"):
        dump(target.pid, replace(opts, log_file="nowhere/x.log"))
    shared = images.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(OptionError, match=r"log_file=.*other users can change it"):
        dump(target.pid, replace(opts, log_file=f"{shared}/x.log"))
    assert target.runs_on()


# ---- options that no request has, and the other commands ----


def script_in(directory: Path) -> Path:
    """An action script that records its actions."""
    script = directory / "script"
    script.write_text(f'#!/bin/sh\necho "$CRTOOLS_SCRIPT_ACTION" >>{directory}/$1actions\n')
    script.chmod(0o700)
    return script


@pytest.mark.skipif(not releases.has("3.19"), reason="requests run no scripts before CRIU 3.19")
def test_options_without_a_field_in_requests(
    orphans: None, target: Target, tmp_path: Path, work: Path
) -> None:
    """A command line with these options, and the request with the options read from it, have the
    same effect.
    """
    images, script, actions = tmp_path / "images", script_in(tmp_path), tmp_path / "actions"
    images.mkdir()
    common = f"-D {images} -W {work} -l --action-script {script} --file-validation filesize"
    more = " --ghost-fiemap" if releases.has("4.0") else ""
    line = f"criu dump -t {target.pid} {common} --deprecated -R" + more
    assert criu(line.split()).returncode == 0
    by_command = actions.read_text()
    actions.unlink()
    _, pid, opts = CriuOpts.from_argv(line.split())
    assert pid == target.pid
    dump(pid, opts)
    assert set(actions.read_text().split()) == set(by_command.split()) == {"pre-dump", "post-dump"}

    dump(pid, replace(opts, leave_running=None))
    target.reap()
    actions.unlink()
    line = f"criu restore -d {common} --pidfile root.pid --log-pid -o r.log"
    _, _, opts = CriuOpts.from_argv(line.split())
    result = restore(opts)
    assert (work / "root.pid").read_text() == str(result.pid) == str(target.pid)
    assert (work / f"r.log.{target.pid}").exists()
    assert {"pre-restore", "post-restore", "post-resume"} <= set(actions.read_text().split())
    assert target.runs_on()
    with pytest.raises(OptionError, match=r"pidfile=.*a file that does not exist"):
        restore(opts)


@pytest.mark.skipif(not releases.has("3.19"), reason="requests run no scripts before CRIU 3.19")
def test_a_relative_script_with_images_dir(target: Target, images: Path) -> None:
    """Without a work directory, CRIU finds a relative script in the directory of the images."""
    images.mkdir()
    script_in(images)
    opts = CriuOpts(images_dir=images, leave_running=True, file_locks=True)
    trusting = Worker(allow_untrusted=True)
    dump(target.pid, replace(opts, action_scripts=["./script"]), via=trusting)
    assert (images / "actions").read_text().split() == ["pre-dump", "post-dump"]


def test_a_script_that_fails_undoes_the_dump(target: Target, images: Path, tmp_path: Path) -> None:
    """A failed script undoes the dump; a missing one is refused before anything is touched."""
    script = tmp_path / "script"
    opts = CriuOpts(images_directory=images, file_locks=True, action_scripts=[script])
    with pytest.raises(OptionError, match=r"action_scripts=.*existing executable"):
        dump(target.pid, opts)
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o700)
    if releases.has("3.19"):
        with pytest.raises(CriuError):
            dump(target.pid, opts)
    assert target.runs_on()


def test_files_that_others_could_change_are_not_run(
    target: Target, images: Path, tmp_path: Path
) -> None:
    """Neither a script nor a plugin that other users can change is run."""
    script = script_in(tmp_path)
    script.chmod(0o777)
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    plugins.chmod(0o777)
    opts = CriuOpts(images_directory=images, file_locks=True)
    for more in (replace(opts, action_scripts=[script]), replace(opts, libdir=plugins)):
        with pytest.raises(OptionError, match="and CRIU runs it"):
            dump(target.pid, more)
    assert target.runs_on()


def test_a_page_server_by_its_command_line(images: Path) -> None:
    """With ``--daemon`` a page server serves in the background, and CRIU writes the pid file."""
    line = f"criu page-server -D {images} --address 127.0.0.1 --daemon --pidfile server.pid"
    verb, _, opts = CriuOpts.from_argv(line.split())
    assert str(verb) == "page-server"
    result = page_server(opts)
    try:
        assert (images / "server.pid").read_text() == str(result.pid)
    finally:
        os.kill(result.pid, signal.SIGKILL)
        reap_all()


def allocated(directory: Path) -> int:
    """Bytes on the disk of the pages of an image set."""
    return sum(path.stat().st_blocks * 512 for path in directory.glob("pages-*.img"))


@pytest.mark.parametrize("by", ["call", "command"])
def test_dedup_frees_pages_of_parents(target: Target, tmp_path: Path, by: str) -> None:
    """``dedup`` frees the pages that the images replace, as the program does; the set remains
    complete.
    """
    parent, child = tmp_path / "parent-images", tmp_path / "images"
    for images in (parent, child):
        dump(target.pid, CriuOpts(images_directory=images, file_locks=True, leave_running=True))
    with pytest.raises(ImagesError, match="no parent"):
        dedup(CriuOpts(images_directory=child))
    (child / "parent").symlink_to("../parent-images")
    before, whole = allocated(parent), allocated(child)
    opts = CriuOpts(images_directory=child)
    other = tmp_path / "pages"  # such as those of a snapshot
    (pages,) = parent.glob("pages-*.img")
    other.hardlink_to(pages)
    with pytest.raises(ImagesError, match="is a hard link"):
        dedup(opts)
    assert allocated(parent) == before
    other.unlink()
    if by == "call":
        result = dedup(opts)
        assert result.images == str(child)
        assert "Deduplicated" not in Path(result.log).read_text()  # it is information: level 3
    else:
        run = criu(opts.to_argv("dedup"))
        assert run.returncode == 0, run.stderr
    assert allocated(parent) < before / 2
    assert allocated(child) == whole
    assert target.runs_on()


def test_a_check_of_features() -> None:
    """``criu check --feature`` by a request: existing features pass, unknown names are refused."""
    check(CriuOpts.from_argv(["check", "--feature", "userns"])[2])
    with pytest.raises(CriuError, match="Unknown feature nonsense"):
        check(CriuOpts(check_feature="nonsense"))


# ---- configuration files ----


def configured(path: Path, opts: CriuOpts) -> Path:
    """A configuration file with these options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(opts.to_config()))
    return path


def test_a_file_in_place_of_fields(target: Target, images: Path, tmp_path: Path) -> None:
    """A request with a file of ``to_config`` has the effect of the fields; without it the dump
    fails.
    """
    with pytest.raises(CriuError) as caught:
        dump(target.pid, CriuOpts(images_directory=images))
    assert "file_locks" in caught.value.options
    opts = CriuOpts(
        file_locks=True, leave_running=True, ghost_limit=2**21, external=["mnt[]"], timeout=20,
        manage_cgroups_mode="soft", skip_mnts=["/no where"], cpu_cap=5,
    )  # fmt: skip
    path = configured(tmp_path / "criu.conf", opts)
    dump(target.pid, CriuOpts(images_directory=images, config_file=path))
    assert "filelocks.img" in image_files(images)
    assert target.runs_on()


def test_the_criu_program_reads_our_file(target: Target, tmp_path: Path) -> None:
    """The file has the same effect as that of a command line."""
    images = tmp_path / "images"
    images.mkdir()
    path = configured(tmp_path / "criu.conf", CriuOpts(file_locks=True, leave_running=True))
    opts = CriuOpts(images_directory=images, config_file=path)
    run = criu(opts.to_argv("dump", target.pid))
    assert run.returncode == 0, run.stderr
    assert target.runs_on()


def setting(opts: CriuOpts, via: Worker, path: Path, option: str) -> Setting:
    """The description of one option of a file by ``explain``."""
    (file,) = [f for f in explain(opts, "dump", 1, via=via).configuration if f.path == str(path)]
    (shown,) = [s for s in file.settings if s.option == option]
    return shown


@pytest.mark.parametrize("name", ["HOME", "CRIU_CONFIG_FILE"])
def test_a_false_does_not_override_a_file(
    target: Target, images: Path, tmp_path: Path, name: str
) -> None:
    """``leave_running=False`` has no effect on CRIU: the file decides, as ``explain`` reports."""
    path = configured(tmp_path / "home/.criu/default.conf", CriuOpts(leave_running=True))
    via = Worker(env={name: str(tmp_path / "home" if name == "HOME" else path)})
    opts = CriuOpts(images_directory=images, file_locks=True, leave_running=False)
    assert setting(opts, via, path, "leave_running").applies
    dump(target.pid, opts, via=via)
    assert target.runs_on()


def test_a_request_wins_over_a_file(target: Target, images: Path, tmp_path: Path) -> None:
    """The request disables ``file-locks`` of a file, which alone would enable the dump."""
    path = configured(tmp_path / "home/.criu/default.conf", CriuOpts(file_locks=True))
    via = Worker(env={"HOME": str(tmp_path / "home")})
    opts = CriuOpts(images_directory=images, leave_running=True)
    denied = CriuOpts(images_directory=images, leave_running=True, file_locks=False)
    assert setting(opts, via, path, "file_locks").applies
    assert not setting(denied, via, path, "file_locks").applies
    with pytest.raises(CriuError):
        dump(target.pid, denied, via=via)
    dump(target.pid, opts, via=via)
    assert target.runs_on()


def test_log_options_of_files(target: Target, images: Path, tmp_path: Path) -> None:
    """The name of a log is read from the file of the request only, and before 4.2 so is
    its level.
    """
    asked = CriuOpts(log_level=4, log_file="theirs.log")
    path = configured(tmp_path / "home/.criu/default.conf", asked)
    via = Worker(env={"HOME": str(tmp_path / "home")})
    opts = CriuOpts(images_directory=images, file_locks=True, leave_running=True)
    for option in ("log_level", "log_file"):
        assert not setting(opts, via, path, option).applies
    dump(target.pid, opts, via=via)
    assert (images / "dump.log").exists()
    assert not (images / "theirs.log").exists()

    own = replace(opts, config_file=path)
    assert setting(own, Worker(), path, "log_file").applies
    dump(target.pid, own)
    message = (images / "theirs.log").stat().st_size
    dump(target.pid, replace(opts, log_level=4))
    applies = message > (images / "dump.log").stat().st_size / 10
    assert applies == setting(own, Worker(), path, "log_level").applies
    assert applies == (not releases.has("4.2"))


def program_of(release: str) -> Path:
    """The ``criu`` of a release in the directory of its libcriu; skips if it does not exist."""
    library = found().get(release)
    prefixes = library.path.parents if library else ()
    for prefix in prefixes:
        if (prefix / "bin/criu").exists():
            return prefix / "bin/criu"
    pytest.skip(f"no criu {release}: tools/install-criu")


@pytest.mark.parametrize("release", ["4.1", "4.2", "4.3"])
def test_a_network_lock_in_a_requests_file(
    target: Target, images: Path, tmp_path: Path, release: str
) -> None:
    """``to_config`` does not write a network lock, which crashes CRIU before 4.2.1."""
    via = Worker(program=program_of(release))
    opts = CriuOpts(images_directory=images, file_locks=True, leave_running=True)
    dump(target.pid, replace(opts, network_lock="skip"), via=via)

    path = tmp_path / "criu.conf"
    path.write_text("network-lock skip\n")
    filed = replace(opts, config_file=path)
    assert any(p.field == "config_file" for p in explain(filed, "dump", 1, via=via).problems)
    if release == "4.1":
        with pytest.raises(WorkerDiedError):
            dump(target.pid, filed, via=via)
    else:
        dump(target.pid, filed, via=via)
    assert target.runs_on()

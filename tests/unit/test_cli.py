"""The command line without CRIU: help, options, JSON, exit codes, errors, completion."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import pycriu_native
from pycriu_native import CriuError, CriuOpts, PageServer
from pycriu_native._failures.log_excerpt import failures
from pycriu_native.cli import app, errors, exit_codes, field_docs, option_parameters
from pycriu_native.cli import text as text_module
from pycriu_native.cli.command import Command
from pycriu_native.cli.commands.diagnose import command_line
from pycriu_native.cli.commands.dump import text as dump_text
from pycriu_native.cli.commands.snapshot import text as snapshot_text
from pycriu_native.cli.exit_codes import Exit
from pycriu_native.cli.image_memory import pattern_of
from pycriu_native.cli.run import run
from pycriu_native.enums import Verb
from pycriu_native.options.flags import NO_WORDS, ROWS
from pycriu_native.options.table import TABLE, VERB_MASK, On
from pycriu_native.results import DumpResult
from pycriu_native.snapshots import Record, Snapshot, host_check
from pycriu_native.snapshots.record import publish
from pycriu_native.testing import Failure, ScriptedCriu, write_images
from tests.unit.support import bystander

ROOT = Path(__file__).parents[2]
PID = str(bystander.PID)


@dataclass
class Completed:
    """The result of one command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def run_cli(*words: str | Path, criu: ScriptedCriu | None = None) -> Completed:
    """Run a command line in this process, with a scripted CRIU."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words], via=criu or ScriptedCriu())
    return Completed(int(code), out.getvalue(), err.getvalue())


def program(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pycriu_native", *words],
        capture_output=True, text=True, check=False, **more,
    )  # fmt: skip


def commands() -> Iterator[tuple[str, Command]]:
    """Every command, with its full name."""
    ctx = click.Context(app.app)
    for name in app.app.list_commands(ctx):
        command = app.app.get_command(ctx, name)
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                assert isinstance(inner, Command)
                yield f"{name} {inner.name}", inner
        else:
            assert isinstance(command, Command)
            yield name, command


COMMANDS = dict(commands())


# ---- help ----


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_exit_codes(name: str) -> None:
    """Each command's help has a description, examples and exit codes."""
    message = run_cli(*name.split(), "--help")
    assert message.code == 0
    assert message.err == ""
    for heading in ("Usage: pycriu-native " + name, "Examples:", "Exit codes:", "--json"):
        assert heading in message.out
    assert max(map(len, message.out.split("Examples:")[0].splitlines())) <= 100


@pytest.mark.parametrize("words", ["", "migrate"])
def test_no_arguments(words: str) -> None:
    """A group of commands shows its help on standard output."""
    message = run_cli(*words.split())
    assert message == run_cli(*words.split(), "--help")
    assert (message.code, message.err) == (0, "")


def test_help_of_many_options() -> None:
    """The help fits two screens, and names the option that shows all options."""
    message = run_cli("dump", "--help").out
    assert len(message.splitlines()) <= 96
    assert message.rstrip().endswith("pycriu-native dump --help-all")
    everything = run_cli("dump", "--help-all").out
    for flag in ("--lsm-profile", "--irmap-scan-path"):
        assert flag not in message
        assert flag in everything


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_read(name: str) -> None:
    """Every option in an example is an option of the command."""
    for line in COMMANDS[name].examples:
        for part in re.findall(r"pycriu-native ([^|#&$]*)", line):
            words = part.replace('"', " ").replace(")", " ").split()
            known = next(c for n, c in COMMANDS.items() if words[: len(n.split())] == n.split())
            flags = {flag for p in known.params for flag in (*p.opts, *p.secondary_opts)}
            for word in words:
                if word.startswith("-") and word not in ("-", "--"):
                    flag = word.partition("=")[0]
                    if flag == "--":
                        break
                    if "--" in words and words.index(word) > words.index("--"):
                        continue
                    assert flag in flags, f"{name}: {word} in {line!r}"


def test_the_list_of_commands() -> None:
    """The list names all commands and loads none of them."""
    message = run_cli("--help")
    assert message.code == 0
    for name in app.COMMANDS:
        assert re.search(rf"^  {name} ", message.out, re.M)


OWN = {"--pidfile", "--action-script"}
"""Options of CRIU's that a command carries out itself."""


@pytest.mark.parametrize("verb", [v for v in VERB_MASK if str(v) in COMMANDS], ids=str)
def test_every_option_of_the_table(verb: Verb) -> None:
    """A verb's command has exactly the options that apply to the verb."""
    expected = {
        row.flag
        for row in TABLE
        if row.field and row.flag in ROWS and row.name not in NO_WORDS and row.on & VERB_MASK[verb]
    }
    params = COMMANDS[str(verb)].params
    options = {p.flag for p in params if isinstance(p, option_parameters.FieldOption)}
    options |= OWN & {word for p in params for word in p.opts} & expected
    assert options == expected


def test_what_help_says_of_an_option() -> None:
    """Help has the first sentence of the option's docstring, its default and its CRIU release."""
    shown = " ".join(run_cli("dump", "--help-all").out.split())
    assert (
        "Maximum size of a deleted but open file that is stored in the images, in bytes; " in shown
    )
    assert "[default: 1048576]" in shown
    assert "Leave the process stopped after the dump or the restore [since CRIU 3.19]" in shown
    for row in TABLE:
        if row.field:
            assert len(field_docs.first_sentence(row.field)) > 10, row.field


# ---- options ----


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["-D", "d", "--tcp-established"], {"tcp_established": True}),
        (["-D", "d", "--no-tcp-established"], {"tcp_established": False}),
        (["-D", "d", "-jl"], {"shell_job": True, "file_locks": True}),
        (["-D", "d", "--ghost-limit", "1M"], {"ghost_limit": 2**20}),
        (["-D", "d", "--manage-cgroups"], {"manage_cgroups": True}),
        (["-D", "d", "--manage-cgroups=full"], {"manage_cgroups_mode": "full"}),
        (["-D", "d", "-v"], {"log_level": 3}),
        (["-D", "d", "-v4"], {"log_level": 4}),
        (["-D", "d", "-vv"], {"log_level": 4}),
        (["-D", "d", "--verbosity=0"], {"log_level": 0}),
        (["-D", "d", "-x"], {"external_unix_connections": True}),
        (["-D", "d", "-jx"], {"shell_job": True, "external_unix_connections": True}),
        (
            ["-D", "d", "--ext-unix-sk=5"],
            {"external_unix_connections": True, "unix_sks": (5,)},
        ),
        (["-D", "d", "--external", "a", "--external", "b"], {"external": ("a", "b")}),
        (["-D", "d", "-M", "auto"], {"auto_ext_mnt": True}),
        (["-D", "d", "-M", "k:v"], {"ext_mounts": "k:v"}),
        (["-D", "d", "--empty-ns", "net"], {"empty_ns": "net"}),
        (
            ["-D", "d", "--page-server", "--address", "h", "--port", "27"],
            {"page_server": "h:27"},
        ),
        (["-D", "d", "--criu-config", "f"], {"config_file": "f"}),
        (["-Dd", "-Ww"], {"work_directory": "w"}),
        (["-Dd", "-qv", "--file-locks"], {"log_level": 3, "file_locks": True}),
        (["-Dd", "-o", "-v"], {"log_file": "-v"}),
        (["-Dd", "-jW", "-vx", "-v"], {"shell_job": True, "work_directory": "-vx", "log_level": 3}),
        (["-Dd", "--criu", "-v", "-v"], {"log_level": 3}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_are_options(words: list[str], fields: dict[str, Any]) -> None:
    """Options in criu's spelling set the fields; a pid after a bare flag stays the pid."""
    expected = CriuOpts.from_dict({"images_directory": "d", **fields})
    message = run_cli("explain", "dump", *words, PID, "--json")
    shown = {s["field"] for s in message.json["result"]["wire"] if s["field"]}
    assert shown == {row.name for row, _ in expected.items()}
    command = app.app.get_command(click.Context(app.app), "dump")
    assert command is not None
    with command.make_context("dump", [*words, PID]) as ctx:
        assert option_parameters.read(ctx, Verb.DUMP, config=None) == expected
        assert ctx.params["pid"] == int(PID)


@pytest.mark.parametrize(
    "fields",
    [
        {"tcp_established": True, "shell_job": False, "external": ["a", "b"]},
        {"config_file": "criu.conf"},
        {"page_server": PageServer("10.0.0.2", 27, clear_text=True)},
        {"images_directory": "d", "log_level": 4, "cpu_cap": 5, "manage_cgroups_mode": "full"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_command_line_that_preflight_suggests(fields: dict[str, Any]) -> None:
    """It has the options of the result; without an images directory, the images are in ckpt."""
    words = command_line(7, CriuOpts(**fields))
    assert words is not None
    assert words[:3] == ["pycriu-native", "dump", "7"]
    command = app.app.get_command(click.Context(app.app), "dump")
    assert command is not None
    with command.make_context("dump", words[2:]) as ctx:
        result = option_parameters.read(ctx, Verb.DUMP, config=None)
    assert result == CriuOpts(**{"images_directory": "ckpt", **fields})
    server = fields.get("page_server")
    assert getattr(result.page_server, "clear_text", None) == getattr(server, "clear_text", None)


@pytest.mark.parametrize("fields", [{"orphan_pts_master": True}, {"images_dir": "d"}])
def test_options_without_a_command_line(fields: dict[str, Any]) -> None:
    """None is suggested if it would lack an option."""
    assert command_line(7, CriuOpts(**fields)) is None


def test_the_command_line_of_to_argv_is_read() -> None:
    """The command line that ``to_argv`` writes for any options is read as the same options."""
    opts = CriuOpts(
        images_directory="i", work_directory="w", leave_running=True, tcp_established=True,
        shell_job=False, manage_cgroups_mode="strict", ghost_limit=5, external=["a", "b"],
        page_server="10.0.0.2:27", log_level=4, log_file="x", network_lock="nftables",
        cpu_cap=3, skip_mnts=["/a"], enable_fs=["all"], timeout=7,
    )  # fmt: skip
    words = opts.to_argv("dump", 4242)[2:]
    command = app.app.get_command(click.Context(app.app), "dump")
    assert command is not None
    with command.make_context("dump", words) as ctx:
        assert option_parameters.read(ctx, Verb.DUMP, config=None) == opts
        assert ctx.params["of_tree"] == 4242


def test_a_file_of_options(tmp_path: Path) -> None:
    """A verb uses the options that apply to it, then its own table, then the command line."""
    write_images(tmp_path)
    config = tmp_path / "job.toml"
    config.write_text(
        f'images_directory = "{tmp_path}"\ntcp_established = true\nghost_limit = 5\n'
        "weak_sysctls = true\nexternal = ['dev[1/3]:a', 'dev[1/5]:b']\n"
        "[dump]\nleave_running = true\n[restore]\nshell_job = true\n"
    )
    criu = ScriptedCriu()
    message = run_cli(
        "dump", PID, "--config", config, "--ghost-limit=6", "--external=dev[1/3]:c", criu=criu
    )
    assert message.code == 0, message.err
    sent = criu.sent[-1].opts
    assert (sent["tcp_established"], sent["leave_running"], sent["ghost_limit"]) == (True, True, 6)
    assert sent["external"] == ["dev[1/3]:c"]
    assert "weak_sysctls" not in sent
    assert run_cli("restore", "--config", config, criu=criu).code == 0
    assert criu.sent[-1].opts["weak_sysctls"] is True
    assert criu.sent[-1].opts["shell_job"] is True
    assert "leave_running" not in criu.sent[-1].opts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tcp-established\n", "a TOML table of options is accepted"),
        ("nonsense = 1\n", "nonsense=1: is no option"),
        ("ghost_limit = 'x'\n", "--ghost-limit=x: a whole number"),
        ("dump = 3\n", "a table of options is accepted"),
        ("[dump]\nweak_sysctls = true\n", "--weak-sysctls: belongs to restore"),
    ],
)
def test_an_invalid_file(text: str, says: str, tmp_path: Path) -> None:
    """An invalid file is refused; the message names what is invalid."""
    (tmp_path / "job.toml").write_text(text)
    message = run_cli("dump", PID, "-D", tmp_path, "--config", tmp_path / "job.toml")
    assert message.code == Exit.REFUSED
    assert says in message.err


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The message names a missing file."""
    message = run_cli("dump", PID, "-D", tmp_path, "--config", tmp_path / "none.toml")
    assert message.code == Exit.REFUSED
    assert "none.toml" in message.err


# ---- results, errors and exit codes ----


def answers(directory: Path) -> dict[str, tuple[list[str], int]]:
    """A command line for each command that has a result, with its exit code."""
    there = str(directory)
    whole = directory / "whole"
    whole.mkdir(exist_ok=True)
    write_images(whole)
    return {
        "doctor": (["--criu", "/none"], Exit.NO),
        "preflight": ([PID], Exit.DONE),
        "check": ([], 0),
        "dump": ([PID, "-D", there], 0),
        "pre-dump": ([PID, "-D", there], 0),
        "restore": (["-D", str(whole)], 0),
        "run": (["--dir", there, "--every", "x", "--", "true"], Exit.REFUSED),
        "job status": ([there], Exit.IMAGES),
        "job list": ([there], Exit.IMAGES),
        "job checkpoint": ([there], Exit.IMAGES),
        "job stop": ([there], Exit.IMAGES),
        "job log": ([there], Exit.IMAGES),
        "snapshot": ([there], Exit.REFUSED),
        "start": ([f"{there}/none"], Exit.IMAGES),
        "snapshots list": ([there], 0),
        "snapshots inspect": ([f"{there}/none"], Exit.IMAGES),
        "snapshots remove": ([f"{there}/none"], Exit.IMAGES),
        "migrate out": (["999999", "--to", "10.0.0.2:1"], Exit.REFUSED),
        "migrate in": (["--listen", "10.0.0.2:1"], Exit.REFUSED),
        "page-server": (["-D", there, "--address", "::1", "--port", "1", "-d"], 0),
        "lazy-pages": (["-D", there, "--criu", "/none"], Exit.NO_CRIU),
        "install-criu": (["--uninstall", "--prefix", f"{there}/none"], 0),
        "keep-cache": ([], Exit.REFUSED),
        "cpuinfo-dump": (["-D", there], 0),
        "cpuinfo-check": (["-D", there], 0),
        "dedup": (["-D", there, "--criu", "/none"], Exit.NO_CRIU),
        "inspect": ([there], Exit.IMAGES),
        "diff": ([there, there], Exit.IMAGES),
        "check-images": ([there], Exit.IMAGES),
        "decode": ([f"{there}/none.img"], Exit.IMAGES),
        "encode": ([f"{there}/none.json", f"{there}/new.img"], Exit.IMAGES),
        "pack": ([f"{there}/none", f"{there}.tar"], Exit.REFUSED),
        "unpack": ([f"{there}/none.tar", f"{there}/new"], Exit.IMAGES),
        "seal": ([f"{there}/none"], Exit.IMAGES),
        "verify": ([there], Exit.IMAGES),
        "plot": (["timeline", there, f"{there}/x.png"], Exit.IMAGES),
        "explain": (["dump", PID, "-D", there], 0),
        "options": ([], 0),
        "completion": (["bash"], 0),
    }


@pytest.mark.parametrize("text", ["age1qqqq\n", "", "\0\xff"])
def test_a_file_without_a_key(tmp_path: Path, text: str) -> None:
    """``--identity`` refuses a file without a private key by name, such as one of a recipient."""
    path = tmp_path / "identity"
    path.write_text(text, encoding="latin-1")
    done = run_cli("unpack", str(path), str(tmp_path / "new"), "-i", str(path))
    assert (done.code, done.out) == (Exit.REFUSED, "")
    assert f"--identity={path}: a file with an age identity" in done.err


def test_every_command_is_in_the_next_test(tmp_path: Path) -> None:
    """Every command has a row in ``answers``."""
    assert set(answers(tmp_path)) == set(COMMANDS)


def documented() -> dict[str, set[str]]:
    """For each command, the keys that docs/cli.md lists for every result."""
    text = (ROOT / "docs/cli.md").read_text()
    rows = text.partition("| `command` | `result` |\n|---|---|\n")[2].partition("\n\n")[0]
    result = {}
    for row in rows.splitlines():
        commands, keys = row.strip("| ").split(" | ")
        always = re.split(r"[;:.(]|, and", keys)[0] if keys.startswith("`") else ""
        for command in re.findall(r"`([^`]+)`", commands):
            result[command] = set(re.findall(r"`(\w+)`", always))
    return result


def test_the_page_has_the_shape_of_every_command() -> None:
    """Every command is listed; all have keys, except lists and values of the library."""
    result = documented()
    assert result.keys() == set(COMMANDS)
    assert {name for name, keys in result.items() if not keys} == {"diff", "inspect", "options"}


@pytest.mark.parametrize("name", COMMANDS)
def test_json(name: str, tmp_path: Path) -> None:
    """Each command prints exactly one object with its schema, name, verdict and exit code."""
    words, code = answers(tmp_path)[name]
    if name == "preflight":
        pytest.importorskip("pycriu_native.diagnostics.preflight")
    if name == "plot":
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    if name.startswith("cpuinfo-") and os.uname().machine == "aarch64":
        pytest.skip("CRIU does not describe aarch64 processors")
    message = run_cli(*name.split(), *words, "--json")
    assert message.err == ""
    assert message.code in (code, Exit.NO), message.out
    [line] = message.out.splitlines()
    result = json.loads(line)
    assert result["schema"] == 1
    assert result["command"] == name
    assert result["exit_code"] == message.code
    assert result["ok"] is (message.code in (Exit.DONE, Exit.NO))
    assert ("result" in result) is result["ok"]
    assert ("error" in result) is not result["ok"]
    if result["ok"] and isinstance(result["result"], dict):
        assert documented()[name] <= result["result"].keys()
    assert run_cli(*name.split(), *words, "--quiet").out == ""


WRITES = {
    "pack": ["{images}", "{file}"],
    "decode": ["{images}/pstree.img", "-o", "{file}"],
    "inspect": ["{images}", "-o", "{file}"],
    "plot": ["timeline", "{images}", "{file}"],
}
"""Commands that write a file of the caller's name, with their arguments."""


@pytest.mark.parametrize("name", WRITES)
def test_an_existing_file_is_kept(name: str, tmp_path: Path) -> None:
    """An existing file is replaced with ``--overwrite`` only."""
    images, file = tmp_path / "images", tmp_path / "file.png"
    images.mkdir()
    write_images(images)
    file.write_text("kept")
    words = [each.format(images=images, file=file) for each in WRITES[name]]
    message = run_cli(name, *words)
    assert message.code == Exit.REFUSED
    assert "--overwrite replaces it" in message.err
    assert file.read_text() == "kept"
    assert "--overwrite" not in run_cli(name, *words, "--overwrite").err


ERRORS = {
    "restore": {
        Failure.PID_IN_USE: Exit.PID_TAKEN,
        Failure(errno=28): Exit.IMAGES,
        Failure(errno=1): Exit.PERMISSION,
        Failure(log="Error (criu/x.c:1): never seen\n"): Exit.FAILED,
    },
    "dump": {Failure.NO_SUCH_PROCESS: Exit.NO_PROCESS, Failure.TCP_CONNECTION: Exit.FAILED},
}


@pytest.mark.parametrize(
    ("verb", "failure", "code"),
    [(verb, failure, code) for verb, codes in ERRORS.items() for failure, code in codes.items()],
    ids=[f"{verb}-{code.name}" for verb, codes in ERRORS.items() for code in codes.values()],
)
def test_exit_codes(verb: str, failure: Failure, code: Exit, tmp_path: Path) -> None:
    """Each failure has an exit code of its own; JSON has the same number."""
    write_images(tmp_path)
    criu = ScriptedCriu(failures={verb: failure})
    pid = [PID] if verb == "dump" else []
    message = run_cli(verb, *pid, "-D", tmp_path, "--json", criu=criu)
    assert message.code == message.json["exit_code"] == code
    assert message.json["error"]["verb"] == verb
    assert code in COMMANDS[verb].exits


def test_the_help_of_a_destination_has_the_code_of_a_pid_in_use() -> None:
    """``migrate in`` restores, so that a pid can be in use."""
    assert Exit.PID_TAKEN in COMMANDS["migrate in"].exits


def test_the_text_of_an_error(tmp_path: Path) -> None:
    """The text has verb, cause, cure with this command line's flags, CRIU's line and the log."""
    criu = ScriptedCriu(failures={"dump": Failure.TCP_CONNECTION})
    message = run_cli("dump", PID, "-D", tmp_path, criu=criu)
    assert message.out == ""
    lines = message.err.splitlines()
    assert lines[0] == f"pycriu-native: dump of pid {PID} failed"
    assert lines[1].startswith("  cause ")
    assert re.match(r"  cure .*--tcp-established.*--tcp-close", lines[2])
    assert "  CRIU    Error (criu/sk-inet.c:1)" in message.err
    assert f"  log     {tmp_path}/dump.log" in message.err
    assert "tcp_established" not in message.err


def test_all_errors_are_printed_at_once(tmp_path: Path) -> None:
    """All errors are listed with flags and accepted values; no request is sent to CRIU."""
    criu = ScriptedCriu()
    message = run_cli("dump", PID, "-D", tmp_path, "--ghost-limit=x", "--empty-ns=pid", criu=criu)
    assert message.code == Exit.REFUSED
    assert "--ghost-limit=x: a number of bytes is accepted" in message.err
    assert "--empty-ns=pid: 'net' is accepted" in message.err
    assert "nothing was touched" in message.err
    assert criu.sent == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dum"], "Did you mean dump?"),
        (["-D", "d", "dump", "1"], "pycriu-native dump -D"),
        (["migrate", "--listen", "h:1", "in"], "pycriu-native migrate in --listen"),
        (["run", "--dir", "d", "true", "--epochs", "5"], "program itself follow '--'"),
        (["restore", "--pid", "5", "-D", "d"], "--libdir"),
        (["start", "d", "--port", "1"], "program itself follow '--'"),
        (["dump", "-D", "d"], "Missing argument 'PID'"),
        (["dump", "-D", "d"], "help    pycriu-native dump --help"),
        (["restore", "4242", "-D", "d"], "Unexpected argument '4242': the pids are in the images"),
        (["dump", "1", "-t", "2", "-D", "d"], "one is accepted"),
        (["dump", "x", "-D", "d"], "is not a pid"),
        (["dump", "0", "-D", "d"], "is not a pid"),
        (["dump", "2147483648", "-D", "d"], "is not a pid"),
        (["preflight", "-t", "9" * 5000], "is not a pid"),
        (["dump", "1", "--weak-sysctls"], "--weak-sysctls"),
        (["restore", "-D", "d", "true"], "--exec-cmd"),
        (["restore", "-D", "d", "--exec-cmd"], "--exec-cmd"),
        (["restore", "-D", "d", "--wait", "--exec-cmd", "--", "true"], "--wait"),
        (["dump", "1", "-D", "d", "--deadline", "0"], "--deadline"),
        (["options", "nothing-like-it"], "nothing-like-it"),
        (["plot", "timeline", ".", "x.gif"], ".png or .svg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(words: list[str], says: str) -> None:
    """The message names the error and the exit code is 2; ``--json`` prints an object."""
    message = run_cli(*words)
    assert message.code == Exit.REFUSED
    assert says in message.err
    assert message.out == ""
    message = run_cli(*words, *([] if "--exec-cmd" in words or "true" in words else ["--json"]))
    if message.out:
        assert message.json["error"]["type"]
        assert message.json["exit_code"] == Exit.REFUSED


def test_every_error_class_has_an_exit_code() -> None:
    """The table's classes exist; only general classes have the exit code of a plain failure."""
    classes = {
        name
        for name in dir(pycriu_native.errors)
        if isinstance(result := getattr(pycriu_native.errors, name), type)
        and issubclass(result, CriuError)
    }
    assert set(exit_codes.BY_ERROR) <= classes
    assert classes - set(exit_codes.BY_ERROR) == {"CriuError", "MigrationError"}


def test_the_deadline_reaches_the_call(tmp_path: Path) -> None:
    """A restore whose action script exceeds the deadline is undone; the exit code is 10."""
    write_images(tmp_path)
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nexec sleep 1\n")
    script.chmod(0o755)
    criu = ScriptedCriu(notify={"restore": ("pre-restore", "post-restore")})
    words: list[str | Path] = [
        "restore",
        "-D",
        tmp_path,
        "--action-script",
        script,
        "--deadline",
        "0.2",
    ]
    assert run_cli(*words, criu=criu).code == Exit.DEADLINE


def test_action_scripts(tmp_path: Path) -> None:
    """Scripts run at each notification with CRIU's variables; a failed script undoes the call."""
    write_images(tmp_path)
    script = tmp_path / "script"
    script.write_text(
        "#!/bin/sh\n"
        f"echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR $CRTOOLS_INIT_PID >> {tmp_path}/told\n"
        "[ $CRTOOLS_SCRIPT_ACTION != post-resume ] || exit 3\n"
    )
    script.chmod(0o755)
    criu = ScriptedCriu(restored_pid=77, notify={"restore": ("pre-restore", "post-restore")})
    assert run_cli("restore", "-D", tmp_path, "--action-script", script, criu=criu).code == 0
    assert (tmp_path / "told").read_text().splitlines() == [
        f"pre-restore {tmp_path}", f"post-restore {tmp_path} 77",
    ]  # fmt: skip
    criu = ScriptedCriu(notify={"restore": ("post-resume",)})
    message = run_cli("restore", "-D", tmp_path, "--action-script", script, criu=criu)
    assert message.code == Exit.FAILED
    assert "ended with 3 at post-resume" in message.err
    message = run_cli("restore", "-D", tmp_path, "--action-script", tmp_path / "none", criu=criu)
    assert message.code == Exit.FAILED
    assert "cannot be run" in message.err


def test_pidfile(tmp_path: Path) -> None:
    """The file holds the pid; one that exists or cannot be created is refused before the call."""
    write_images(tmp_path)
    words: list[str | Path] = ["restore", "-D", tmp_path, "--pidfile"]
    assert run_cli(*words, tmp_path / "pid", criu=ScriptedCriu(restored_pid=77)).code == 0
    assert (tmp_path / "pid").read_text() == "77"
    for place in (tmp_path / "pid", tmp_path / "missing" / "pid"):
        criu = ScriptedCriu(restored_pid=78)
        for name in ("restore", "page-server", "lazy-pages"):
            address = ["--address", "::1", "--port", "0"] if name == "page-server" else []
            command = [name, *address, *words[1:]]
            message = run_cli(*command, place, criu=criu)
            assert message.code == Exit.REFUSED
            assert f"--pidfile={place}: " in message.err
        assert not criu.sent
    assert (tmp_path / "pid").read_text() == "77"


def test_a_pidfile_that_appears_meanwhile(tmp_path: Path) -> None:
    """The error states that the process runs."""
    write_images(tmp_path)
    (script := tmp_path / "script").write_text(f"#!/bin/sh\n: >{tmp_path}/pid\n")
    script.chmod(0o755)
    words = ["restore", "-D", str(tmp_path), "--pidfile", f"{tmp_path}/pid"]
    words += ["--action-script", str(script)]
    criu = ScriptedCriu(restored_pid=78, notify={"restore": ("post-restore",)})
    message = run_cli(*words, criu=criu)
    assert message.code == Exit.FAILED
    assert "pid 78 runs" in message.err


def test_options_by_any_name() -> None:
    """An option is found by its names in libcriu, rpc.proto, runc and criu."""
    for name in ("tcp_established", "--tcp-established", "TcpEstablished"):
        message = run_cli("options", name, "--json")
        [result] = message.json["result"]
        assert result["field"] == "tcp_established"
        assert result["doc"].startswith("Save established TCP connections")
    listed = run_cli("options", "--json").json["result"]
    assert [each["field"] for each in listed] == [row.field for row in TABLE if row.field]
    assert {
        e["field"] for e in run_cli("options", "--verb", "restore", "--json").json["result"]
    } == {row.field for row in TABLE if row.field and row.on & On.RESTORE} | {
        row.field for row in TABLE if row.field and row.on & VERB_MASK[Verb.RESTORE]
    }


def test_a_page_server_elsewhere(tmp_path: Path) -> None:
    """A remote server without encryption is refused without a flag that allows it."""
    words: list[str | Path] = ["dump", PID, "-D", tmp_path]
    words += ["--page-server", "--address", "10.0.0.2", "--port", "27"]
    message = run_cli(*words)
    assert message.code == Exit.REFUSED
    assert "--clear-text" in message.err
    assert "clear_text" not in message.err
    assert run_cli(*words, "--clear-text").code == 0
    message = run_cli("dump", PID, "-D", tmp_path, "--clear-text")
    assert message.code == Exit.REFUSED
    assert "requires --page-server" in message.err


def test_a_set_that_was_changed(tmp_path: Path) -> None:
    """``seal`` prints the digest; ``verify`` names what has changed since."""
    write_images(tmp_path)
    digest = run_cli("seal", tmp_path).out.strip()
    assert run_cli("verify", tmp_path, digest).code == 0
    assert run_cli("verify", tmp_path, "0" * 64).code == Exit.IMAGES
    (tmp_path / "pages-1.img").write_bytes(b"x")
    message = run_cli("verify", tmp_path)
    assert message.code == Exit.IMAGES
    assert "pages-1.img" in message.err
    assert "--images-dir" not in message.err, "verify has no such option"


@pytest.mark.parametrize("words", ["inspect", "check-images", "unpack"])
def test_a_file_that_is_no_archive(words: str, tmp_path: Path) -> None:
    """The message names the file."""
    file = tmp_path / "notes.txt"
    file.write_text("notes")
    message = run_cli(words, file, *([tmp_path / "new"] if words == "unpack" else []))
    assert message.code == Exit.IMAGES
    assert f"{file} is no tar archive" in message.err


@pytest.mark.parametrize(("free", "says"), [(True, "until the parent"), (False, "has not reaped")])
def test_the_wait_for_the_parent(free: bool, says: str) -> None:
    """The result of a dump tells whether the parent has reaped the process."""
    result = DumpResult(
        pid=1, images="", duration=1.0, log=None, statistics=None, pid_free=free, reap_wait=0.5
    )
    assert says in dump_text(result, "", "dumped")


def test_explain_of_a_refused_call(tmp_path: Path) -> None:
    """For a call that would be refused the exit code is 11 and the reasons are printed."""
    message = run_cli("explain", "dump", PID, "-D", tmp_path, "--weak-sysctls", "--json")
    assert message.code == Exit.NO
    assert message.json["result"]["would_be_refused"] is True
    assert message.json["result"]["problems"][0]["field"] == "weak_sysctls"


# ---- the program ----


def test_the_import_does_not_load_it() -> None:
    """``import pycriu_native`` loads neither ``cli`` nor the libraries that only ``cli`` needs."""
    code = (
        "import pycriu_native, sys; print([m for m in sys.modules if m.split('.')[0] in"
        " ('click', 'rich', 'matplotlib') or m.startswith(('pycriu_native.cli',"
        " 'pycriu_native.plots'))])"
    )
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert message.stdout == "[]\n"


@pytest.mark.parametrize("verb", ["dump", "restore"])
def test_a_cache_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """One line after a call offers the command that keeps it, to those who read hints."""
    from pycriu_native._transport import feature_cache as module

    monkeypatch.setattr(module, "filesystem_of", lambda path: "ext4")
    monkeypatch.setattr(module, "RUN", str(tmp_path))
    images = tmp_path / "images"
    images.mkdir()
    if verb == "restore":
        write_images(images)
    target = [PID, "--leave-running"] if verb == "dump" else []
    words: list[str | Path] = [verb, *target, "-D", images]
    lines = [line for line in run_cli(*words, "--verbose").err.splitlines() if "cache" in line]
    assert len(lines) == 1
    assert "pycriu-native keep-cache, or mount a tmpfs" in lines[0]
    assert "cache" not in run_cli(*words).err
    assert "cache" not in run_cli(*words, "--json").err
    (tmp_path / "criu.kdat").write_bytes(module.MAGIC.to_bytes(4, "little"))
    assert "cache" not in run_cli(*words, "--verbose").err


def test_what_a_command_loads() -> None:
    """Help texts, streams, files of options, JSON and scripts are loaded by the runs with them."""
    code = (
        "import sys; before = set(sys.modules); from pycriu_native.cli.run import run; "
        "assert run(['dump', '1', '-q']) == 2; print(*(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "pycriu_native.cli.commands.dump" in loaded
    ours = ("cli.field_docs", "archive", "_calls.progress", "_calls.iterative_dump")
    assert not {f"pycriu_native.{name}" for name in ours} & loaded
    if sys.version_info[:2] == (3, 11):  # what others import by themselves differs
        rare = {"json", "lzma", "rich.console", "shutil", "subprocess", "tarfile", "tomllib"}
        assert not {*rare, "tempfile", "traceback"} & loaded


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra(missing: str) -> None:
    """The message names the extra and the command that installs it; the exit code is 3."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['x', 'dump']\n"
        "from pycriu_native.cli import main; main()"
    )
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert message.returncode == Exit.UNSUPPORTED
    assert missing in message.stderr
    assert "pip install 'pycriu-native[cli]'" in message.stderr
    assert "Traceback" not in message.stderr


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("matplotlib", ["plot", "timeline", ".", "x.png"]),
        ("google.protobuf", ["inspect", "."]),
        ("google.protobuf", ["snapshot", "."]),
    ],
)
def test_another_missing_extra(missing: str, words: Sequence[str]) -> None:
    """A command that needs another extra names it, too."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = {['x', *words]!r}\n"
        "from pycriu_native.cli import main; main()"
    )
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert message.returncode == Exit.UNSUPPORTED, message.stderr
    assert message.stderr.count("pip install 'pycriu-native[") == 1


def shell(command: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run bash; ``"$@"`` in the command is the program with its words."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "pycriu_native", *words],
        capture_output=True, text=True, check=True, cwd=ROOT, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "options",
        "options --json",
        "--help",
        "dump --help",
        "--version",
        "explain dump 1 -D ckpt",
        "completion bash",
    ],
)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ('"$@" >/dev/full', "No space left on device; the command itself worked"),
        ('"$@" >&-', "Bad file descriptor; the command itself worked"),
        ('exec 3> >(:); wait $!; "$@" >&3', ""),
        ('"$@" <&- >&- 2>&-', ""),
    ],
    ids=["full disk", "closed", "closed pipe", "all closed"],
)
def test_output_that_cannot_be_written(words: str, how: str, reason: str) -> None:
    """A command that worked ends with a code of its own and without a traceback."""
    message = shell(f"{how}; echo $?", *words.split())
    assert message.stdout == f"{Exit.OUTPUT:d}\n"
    assert message.stderr == (
        f"pycriu-native: standard output cannot be written: {reason}\n" if reason else ""
    )


@pytest.mark.parametrize("how", [">/dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_error_that_cannot_be_written(more: list[str], how: str, tmp_path: Path) -> None:
    """The exit code of a failure stays; it is another one without the rights to dump."""
    words = ["dump", "999999999", "-D", str(tmp_path), *more]
    expected = shell('"$@" >/dev/null 2>&1; echo $?', *words).stdout
    assert expected in (f"{Exit.NO_PROCESS:d}\n", f"{Exit.PERMISSION:d}\n")
    assert shell(f'"$@" {how}; echo $?', *words).stdout == expected


@pytest.mark.parametrize(("name", "coloured"), [("SOME", True), ("NO_COLOR", False)])
def test_colours_on_a_terminal(name: str, coloured: bool) -> None:
    """A terminal gets colours unless NO_COLOR is set."""
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "pycriu_native", "options", "nothing-like-it"]
    environment = {n: text for n, text in os.environ.items() if n != "NO_COLOR"}
    try:
        message = subprocess.run(
            words, cwd=ROOT, env={**environment, "TERM": "xterm", name: "1"}, stderr=theirs
        )
        assert message.returncode == Exit.REFUSED
        response = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "nothing-like-it" in response
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]", response)) is coloured


def test_a_list_has_one_line_for_each_snapshot(tmp_path: Path) -> None:
    """Directories and commands with newlines and control characters are printed in one line."""
    directory = tmp_path / "one\nmore"
    directory.mkdir()
    record = Record(
        created="2026-01-01T00:00:00+00:00",
        command=("python3", "-c", "import os\nprint('\x1b[2J')"),
        pid=7,
        processes=1,
        guest_key=None,
        guest_fd=None,
        stream_keys=(None, None, None),
        criu="4.2.1",
        host=host_check.this_host(),
        files=(),
    )
    record.write(directory)
    publish(directory)
    (line,) = run_cli("snapshots", "list", tmp_path).out.splitlines()
    assert line.startswith("one\\nmore  ")
    assert line.endswith("python3 -c import os\\nprint('\\x1b[2J')")
    renamed = directory.rename(tmp_path / "one more")
    assert f"pycriu-native start '{renamed}'" in snapshot_text(Snapshot(renamed))


def test_no_colour_without_a_terminal() -> None:
    """A pipe gets plain text, also for an error."""
    message = program("dump", "999999")
    assert message.returncode == Exit.REFUSED
    assert "\x1b" not in message.stdout + message.stderr


def test_a_defect_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unexpected exception has an exit code of its own and is reported as a defect."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("pycriu_native.cli.commands.restore.restore", fails)
    message = run_cli("restore", "-D", tmp_path)
    assert message.code == Exit.BUG
    assert "not foreseen" in message.err
    assert "defect" in message.err


# ---- text ----


@pytest.mark.parametrize("what", ["cause", "cure"])
def test_cures_name_the_options_of_the_command_line(what: str) -> None:
    """Cures are command-line flags, not Python."""
    python = re.compile(
        r"=True|=False|=\[|\w\(|\b(Worker|CriuOpts|Notification|via|subprocess|hook)\b|\b\w+_fds?\b"
    )
    for entry in failures():
        message = errors.in_flags(getattr(entry, what) or "")
        # Only the Python API can pass a terminal's new master.
        if "orphan_pts_master" not in message:
            assert not python.search(message), message
    assert errors.in_flags('external=["tty[rdev:dev]"] or inherit_fds=[(fd, "socket:[7]")]') == (
        "--external tty[rdev:dev] or --inherit-fd fd[fd]:socket:[7]"
    )
    assert errors.in_flags('inherit_fds=[(fd, "pipe:[1]"), (7, "pipe:[2]")]: both') == (
        "--inherit-fd fd[fd]:pipe:[1] --inherit-fd fd[7]:pipe:[2]: both"
    )
    assert errors.in_flags('external=["mnt[]", "mnt[/a]:b"], config_file="x"') == (
        "--external mnt[] --external mnt[/a]:b, --criu-config=x"
    )
    assert errors.in_flags("decrypt_with=[]: its key is needed") == "--identity: its key is needed"
    assert errors.in_flags('join_ns=[(kind, file)], veth_pairs=[("eth0", "NAME")]') == (
        "--join-ns kind:file, --veth-pair eth0=NAME"
    )


def test_fields_are_printed_as_flags() -> None:
    """A field's name in a message becomes its long option."""
    text = "set tcp_established=True, or tcp_close=False; log_level=3; leave_running; a_b; pid=3"
    assert errors.in_flags(text) == (
        "set --tcp-established, or --no-tcp-close; --verbosity=3; --leave-running; a_b; pid=3"
    )
    assert [errors.flag_of(name) for name in ("to", "listen")] == ["--to", "--listen"]
    for path in ("/srv/pre_dump/page_server", "lazy_pages/1", "~/file_locks/log_file: is missing"):
        assert errors.in_flags(f"{path}, tcp_close") == f"{path}, --tcp-close"
    assert errors.in_flags('root="/mnt/lazy_pages"') == "--root=/mnt/lazy_pages"
    assert errors.in_flags("start criu lazy-pages") == "start pycriu-native lazy-pages"
    assert errors.in_flags("or leave via out for a worker of your own") == "or leave --service out"


def test_numbers_with_units() -> None:
    """Numbers have readable units."""
    assert [text_module.size(n) for n in (0, 1023, 1024, 5 * 2**20)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB",
    ]  # fmt: skip
    assert [text_module.time(s) for s in (1e-5, 0.0123, 3.5, 150)] == [
        "10 us", "12.3 ms", "3.50 s", "2 min 30 s",
    ]  # fmt: skip
    assert text_module.pids([4, 2, 3, 9]) == "2-4 9"
    assert text_module.safe("a\x1b[31mb\n") == "a\\x1b[31mb\\n"


# ---- completion ----


def _complete(words: str) -> list[str]:
    """The completions that bash computes for a line with the loaded script."""
    script = run_cli("completion", "bash").out
    code = f"""
        {script}
        COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        [[ '{words}' == *' ' ]] && {{ COMP_WORDS+=(''); COMP_CWORD=$((COMP_CWORD + 1)); }}
        $(complete -p pycriu-native | sed 's/.*-F \\([^ ]*\\).*/\\1/') pycriu-native
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    with _on_path() as path:
        message = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        )  # fmt: skip
    assert message.stderr == ""
    return message.stdout.split()


@contextlib.contextmanager
def _on_path() -> Iterator[str]:
    """A directory with the program, for PATH."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pycriu-native")
        path.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pycriu_native "$@"\n'
        )
        path.chmod(0o755)
        yield directory


def test_completion_in_bash() -> None:
    """In a real bash the script completes commands, options, values and pids."""
    assert {"dump", "restore", "doctor"} <= set(_complete("pycriu-native "))
    assert _complete("pycriu-native pre-") == ["pre-dump"]
    assert {"--tcp-established", "--tcp-close"} <= set(_complete("pycriu-native dump --tcp-"))
    assert _complete("pycriu-native dump --network-lock nft") == ["nftables"]
    assert str(os.getpid()) in _complete(f"pycriu-native preflight {str(os.getpid())[:2]}")
    assert _complete("pycriu-native migrate ") == ["in", "out"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(shell: str) -> None:
    """The shell can parse the script."""
    script = run_cli("completion", shell).out
    assert "pycriu-native" in script
    import shutil

    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run([shell, "-n", "-c", script], check=True)


# ---- the page for users ----

PAGE = (ROOT / "docs" / "cli.md").read_text()


def test_the_page_has_the_exit_codes() -> None:
    """The page lists each exit code with the program's meaning."""
    table = PAGE.partition("<!-- exit codes -->\n")[2].partition("<!-- end -->")[0]
    assert table == "".join(f"| {int(code)} | {code.meaning} |\n" for code in Exit)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_the_command(name: str, tmp_path: Path) -> None:
    """Each command has an example or a row, and the keys of its result if it can run here."""
    assert f"pycriu-native {name}" in PAGE or f"`{name}" in PAGE
    words, _ = answers(tmp_path)[name]
    result = run_cli(*name.split(), *words, "--json").json.get("result") or {}
    shapes = PAGE.partition("| `command` | `result` |\n|---|---|\n")[2].splitlines()
    shape = next(line for line in shapes if f"`{name}`" in line.split("|")[1])
    for key in result[0] if isinstance(result, list) else result:
        assert f"`{key}`" in shape, f"{name}: {key}"


def test_the_page_shows_options_that_exist() -> None:
    """Every option in the page's command lines is an option of that command."""
    for line in re.findall(r"\$ (pycriu-native [^|&\n]*)", PAGE):
        words = line.partition("#")[0].split()[1:]
        known = next(c for n, c in COMMANDS.items() if words[: len(n.split())] == n.split())
        flags = {flag for param in known.params for flag in (*param.opts, *param.secondary_opts)}
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in flags, line


@pytest.mark.parametrize("words", [["status", "--follow", "--json"], ["log", "--follow"]])
def test_following_ends_without_a_reader(words: list[str], tmp_path: Path) -> None:
    """A command that only prints until a job ends, ends when its output has no reader."""
    job = {"command": ["true"], "directory": "/", "path": str(tmp_path)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "status.json").write_text('{"state": "running"}')
    (tmp_path / "stdout").write_bytes(b"line\n" * 100_000)
    with open(tmp_path / "lock", "wb") as lock:  # as of a job that runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["job", words[0], str(tmp_path), *words[1:]]
        line = shell('"$@" | head -1', *command, timeout=60).stdout
    assert line.startswith('{"schema"' if "--json" in words else "line")


@pytest.mark.parametrize(
    "words",
    [
        ["decode", "{}/pstree.img", "--info", "-o", "{}/out"],
        ["inspect", "{}", "--search", "x", "-o", "{}/out"],
        ["inspect", "{}", "--search", "x", "--read", "0+1"],
        ["inspect", "{}", "--regex"],
        ["inspect", "{}", "--context", "5"],
        ["dump", PID, "-D", "{}/new", "--rounds", "2", "--reap-timeout", "3"],
        ["dump", PID, "--to", "{}/out", "--reap-timeout", "3"],
    ],
    ids=" ".join,
)
def test_options_without_effect_are_refused(words: list[str], tmp_path: Path) -> None:
    """An option that the other options make useless is refused, not ignored."""
    write_images(tmp_path)
    before = sorted(os.listdir(tmp_path))
    message = run_cli(*(word.format(tmp_path) for word in words))
    assert message.code == Exit.REFUSED
    assert "accepted" in message.err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("text", ["(", "a{99999999999999999999}", "(" * 5000])
def test_expressions_that_are_none(text: str) -> None:
    """A text that is no regular expression is refused, whatever error ``re`` has for it."""
    with pytest.raises(click.BadParameter, match="is not a regular expression"):
        pattern_of(text, True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (179.7, "3 min 0 s"), (7199.99, "120 min 0 s"), (121, "2 min 1 s"), (119.99, "119.99 s"),
        (0.99999, "1.00 s"), (0.9999, "999.9 ms"), (0.00099999, "1.0 ms"), (0.00041, "410 us"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """A rounded duration has no 60 seconds and no 1000 of a unit."""
    assert text_module.time(seconds) == text


def test_an_error_of_the_system_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ``OSError`` that has only a text is shown with that."""

    def fails(call: object, **own: object) -> int:
        raise OSError("the reason")

    monkeypatch.setattr(COMMANDS["completion"], "function", fails)
    message = run_cli("completion", "bash")
    assert (message.code, message.err) == (Exit.IMAGES, "pycriu-native: completion: the reason\n")


class Interrupting(io.StringIO):
    """A stream on which Ctrl-C arrives during the first write, as while a pipe is full."""

    def write(self, text: str) -> int:
        if not self.tell():
            super().write(" ")
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.parametrize("more", [[], ["--wait"]])
def test_an_interruption_of_the_output(more: list[str], tmp_path: Path) -> None:
    """Ctrl-C while the result is printed is not reported as one that has undone the work."""
    write_images(tmp_path)
    err = io.StringIO()
    criu = ScriptedCriu(restored_pid=78)
    with contextlib.redirect_stdout(Interrupting()), contextlib.redirect_stderr(err):
        assert run(["restore", "-D", str(tmp_path), *more], via=criu) == Exit.INTERRUPTED
    assert "restore: interrupted after the work was complete" in err.getvalue()
    assert "78" in err.getvalue()

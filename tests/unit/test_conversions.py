"""Options in other forms: dict, TOML, runc's JSON, command line, configuration file.

Two guarantees. Converting what a form can express and back is lossless. What a form cannot express
is refused by name, and the other fields convert. The independent references are ``tomllib`` and
the parsers of the installed ``criu`` programs, run with ``-V``: they parse everything, print their
release and exit.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pycriu_native import (
    CgroupMode,
    CriuOpts,
    FileValidation,
    NetworkLock,
    OptionError,
    PageServer,
    VethPair,
)
from pycriu_native.enums import Verb
from pycriu_native.options.command_line import COMMANDS
from pycriu_native.options.config_file import statement
from pycriu_native.options.flag_values import Takes
from pycriu_native.options.flags import NO_WORDS, FlagParser
from pycriu_native.options.table import BY_FIELD, TABLE, Row, release

from .support.libraries import found
from .support.strategies import OptionObjects, any_opts, criu_opts

verbs = st.sampled_from(list(COMMANDS))


def pid_for(verb: Verb) -> int | None:
    """A pid for the verbs that take one."""
    return 1 if verb in (Verb.DUMP, Verb.PRE_DUMP) else None


quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
with_programs = settings(quick, max_examples=40)


def without_empty_lists(opts: CriuOpts) -> CriuOpts:
    """The options without empty lists, which mean the same as unset."""
    empty = {row.name: None for row, value in opts.items() if value == ()}
    return replace(opts, **empty)


def convertible(opts: CriuOpts, convert: Callable[[CriuOpts], Any]) -> tuple[CriuOpts, Any]:
    """The options that a form can express, in that form too; others must be refused by name."""
    try:
        return opts, convert(opts)
    except OptionError as refused:
        named = set(refused.options)
        assert named
        assert named <= {row.name for row, _ in opts.items()}
        rest = replace(opts, **dict.fromkeys(named))
        return rest, convert(rest)


def refused(call: Callable[[], object]) -> dict[str, str]:
    """The fields that a refusal names, each with its rule."""
    with pytest.raises(OptionError) as caught:
        call()
    return {problem.field: problem.rule for problem in caught.value.problems}


# ---- dict and TOML ----


@quick
@given(any_opts())
def test_a_dict_holds_everything(opts: CriuOpts) -> None:
    """``to_dict`` and back is lossless for all options."""
    assert CriuOpts.from_dict(opts.to_dict()) == opts


def toml(value: Any) -> str:
    """A value in TOML, with every special character escaped."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            plain = re.sub(r"[^ !#-\[\]-~]", lambda m: f"\\U{ord(m[0]):08x}", value)
            return f'"{plain}"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{name} = {toml(v)}" for name, v in value.items()) + "}"
    raise AssertionError(f"TOML has no {type(value)}")


def in_unicode(opts: CriuOpts) -> CriuOpts:
    """The options with valid Unicode in all text, as TOML requires."""
    text = json.dumps(opts.to_dict(), ensure_ascii=False)
    return CriuOpts.from_dict(json.loads(re.sub("[\ud800-\udfff]", "x", text)))


@quick
@given(any_opts().map(in_unicode))
def test_a_toml_table_holds_everything(opts: CriuOpts) -> None:
    """``to_dict`` is a TOML table, and ``from_dict`` takes what ``tomllib`` reads of it."""
    lines = [f"{name} = {toml(value)}\n" for name, value in opts.to_dict().items()]
    read = tomllib.loads("[criu]\n" + "".join(lines))
    assert CriuOpts.from_dict(read["criu"]) == opts


def test_a_dict_with_unknown_names() -> None:
    """An unknown field is named."""
    assert (
        "is no option"
        in refused(lambda: CriuOpts.from_dict({"leave_runing": True}))["leave_runing"]
    )


# ---- runc ----

RUNC_DEFAULTS: dict[str, Any] = {
    "ImagesDirectory": "",
    "WorkDirectory": "",
    "ParentImage": "",
    "LeaveRunning": False,
    "TcpEstablished": False,
    "TcpSkipInFlight": False,
    "LinkRemap": False,
    "ExternalUnixConnections": False,
    "ShellJob": False,
    "FileLocks": False,
    "PreDump": False,
    "PageServer": {"Address": "", "Port": 0},
    "VethPairs": [],
    "EmptyNs": 0,
    "AutoDedup": False,
    "LazyPages": False,
    "StatusFd": -1,
    "LsmProfile": "",
    "LsmMountContext": "",
    "ManageCgroupsMode": "",
}
"""runc's struct with nothing set, as ``libcontainer/criu_opts_linux.go`` has it."""


@quick
@given(any_opts())
def test_runc_and_back(opts: CriuOpts) -> None:
    """Lossless through JSON for all that runc's struct can express, and all its fields exist."""
    rest, struct = convertible(opts, CriuOpts.to_runc)
    assert set(struct) == set(RUNC_DEFAULTS)
    assert CriuOpts.from_runc(json.loads(json.dumps(struct))) == without_empty_lists(rest)


def test_runc_with_everything() -> None:
    """Each of runc's fields converts to its own field."""
    opts = CriuOpts(
        images_directory="images",
        work_directory="work",
        parent_image="../before",
        leave_running=True,
        tcp_established=True,
        tcp_skip_in_flight=True,
        link_remap=True,
        external_unix_connections=True,
        shell_job=True,
        file_locks=True,
        pre_dump=True,
        auto_dedup=True,
        lazy_pages=True,
        page_server=("10.0.0.2", 27),
        veth_pairs=[("eth0", "veth7")],
        empty_ns="net",
        status_fd=7,
        lsm_profile="apparmor:x",
        lsm_mount_context="y",
        manage_cgroups_mode="strict",
    )
    struct = opts.to_runc()
    assert [name for name in struct if struct[name] == RUNC_DEFAULTS[name]] == []
    assert struct["PageServer"] == {"Address": "10.0.0.2", "Port": 27}
    assert struct["VethPairs"] == [{"ContainerInterfaceName": "eth0", "HostInterfaceName": "veth7"}]
    assert (struct["EmptyNs"], struct["StatusFd"]) == (0x40000000, 7)
    assert struct["ManageCgroupsMode"] == "strict"
    assert CriuOpts.from_runc(struct) == opts
    assert sum(row.runc is not None for row in TABLE) == len(RUNC_DEFAULTS)


def test_runc_unset() -> None:
    """Unset options convert to runc's zero struct and back."""
    assert CriuOpts().to_runc() == RUNC_DEFAULTS
    assert CriuOpts.from_runc(RUNC_DEFAULTS) == CriuOpts()
    assert CriuOpts.from_runc({}) == CriuOpts()
    assert CriuOpts.from_runc({"VethPairs": None, "StatusFd": 0}) == CriuOpts()  # Go's nil, Go's 0


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("ignore", CgroupMode.IGNORE),
        ("soft", CgroupMode.SOFT),
        (1, CgroupMode.NONE),
        (3, CgroupMode.SOFT),
        (5, CgroupMode.STRICT),
        (6, CgroupMode.DEFAULT),
        (0, None),
        ("", None),
    ],
)
def test_runc_cgroup_modes_of_any_release(written: object, mode: CgroupMode | None) -> None:
    """A name in newer releases, CRIU's number in older ones, where 0 is unset and not ignore."""
    assert CriuOpts.from_runc({"ManageCgroupsMode": written}).manage_cgroups_mode is mode


def test_what_runc_cannot_say() -> None:
    """Fields that runc lacks and values that runc reads as unset are refused."""
    opts = CriuOpts(
        images_directory=3,
        tcp_close=True,
        leave_running=False,
        manage_cgroups_mode="props",
        page_server=PageServer(fd=5),
        status_fd=0,
        empty_ns=0,
    )
    rules = refused(opts.to_runc)
    assert list(rules) == [
        "images_directory", "leave_running", "page_server", "manage_cgroups_mode", "empty_ns",
        "status_fd", "tcp_close",
    ]  # fmt: skip
    assert rules["tcp_close"] == "runc has no such option"
    assert "unset" in rules["leave_running"]


@pytest.mark.parametrize(
    ("struct", "named"),
    [
        ({"Leaverunning": True}, "Leaverunning"),
        ({"LeaveRunning": "yes"}, "LeaveRunning"),
        ({"ManageCgroupsMode": "props"}, "ManageCgroupsMode"),
        ({"ManageCgroupsMode": 7}, "ManageCgroupsMode"),
        ({"PageServer": "10.0.0.2:27"}, "PageServer"),
        ({"PageServer": {"Address": "x", "Port": 65536}}, "PageServer"),
        ({"VethPairs": [{"Inside": "x"}]}, "VethPairs"),
        ({"EmptyNs": 0x20000}, "EmptyNs"),
        ({"ImagesDirectory": 3}, "ImagesDirectory"),
    ],
)
def test_what_is_not_runcs(struct: dict[str, object], named: str) -> None:
    """Unknown fields and values are refused under runc's name."""
    assert list(refused(lambda: CriuOpts.from_runc(struct))) == [named]


# ---- the command line ----


@quick
@given(any_opts(), verbs)
def test_a_command_line_and_back(opts: CriuOpts, verb: Verb) -> None:
    """Lossless for all that a command line can express; ``pre_dump`` follows the command."""
    assume(opts.log_file != "-")  # a file of this name: criu's option means standard error
    pid = pid_for(verb)
    opts = replace(opts, pre_dump=None)
    if verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD):
        opts = replace(opts, page_server=with_address(opts.page_server))
    rest, words = convertible(opts, lambda o: o.to_argv(verb, pid))
    assert words[0] == "criu"
    assert words[1:].index(COMMANDS[verb][0]) == 0
    carried = True if verb is Verb.PRE_DUMP else None
    read = CriuOpts.from_argv(words)
    assert read == (
        verb,
        pid,
        in_current(replace(without_empty_lists(rest), pre_dump=carried), verb),
    )


def in_current(opts: CriuOpts, verb: Verb) -> CriuOpts:
    """The options with the images directory that ``criu`` uses if none is named."""
    if verb is Verb.CHECK or opts.images_directory is not None:
        return opts
    return replace(opts, images_directory=".")


def with_address(server: object) -> PageServer:
    """Where a page server listens, in the form that is read: with an address and a port."""
    assert server is None or isinstance(server, PageServer)
    if server is not None and server.fd is not None:
        return PageServer(fd=server.fd)
    if server is None or server.address is None:
        return PageServer("::1", 27)
    return PageServer(server.address, server.port or 0)


def test_a_command_line_to_read() -> None:
    """The README's example."""
    opts = CriuOpts(images_directory="ckpt", shell_job=True, tcp_established=True, log_level=4)
    assert opts.to_argv("dump", pid=4242) == [
        "criu", "dump", "--tree=4242", "--images-dir=ckpt", "--tcp-established", "--shell-job",
        "--verbosity=4",
    ]  # fmt: skip
    assert opts.to_argv("restore")[-1] == "--restore-detached"
    before = CriuOpts(images_directory="0", pre_dump=True)
    assert before.to_argv("dump", pid=1) == before.to_argv("pre-dump", pid=1)


READ: list[tuple[str, dict[str, Any] | None]] = [
    ("-D d -W w -o l -R -j -l -v4", {"images_directory": "d", "work_directory": "w",
        "log_file": "l", "leave_running": True, "shell_job": True, "file_locks": True,
        "log_level": 4}),
    ("-RjlDd", {"leave_running": True, "shell_job": True, "file_locks": True,
        "images_directory": "d"}),
    ("--leave-stopped --no-tcp-close --no-file-locks",
        {"leave_stopped": True, "tcp_close": False, "file_locks": False}),
    ("-v", {"log_level": 3}),
    ("-vvvv", {"log_level": 4}),
    ("-v0 -v", {"log_level": 1}),
    ("--verbosity=3", {"log_level": 3}),
    ("--manage-cgroups", {"manage_cgroups": True}),
    ("--manage-cgroups=strict", {"manage_cgroups_mode": CgroupMode.STRICT}),
    ("--network-lock none", {"network_lock": NetworkLock.SKIP}),
    ("--ghost-limit 4M", {"ghost_limit": 4 * 2**20}),
    ("-x", {"external_unix_connections": True}),
    ("-x12,13 --ext-unix-sk=14", {"external_unix_connections": True, "unix_sks": (12, 13, 14)}),
    ("-M auto -M /a:b", {"auto_ext_mnt": True, "ext_mounts": ("/a:b",)}),
    ("--cpu-cap", {"cpu_cap": 7}),
    ("--cpu-cap=none,ins", {"cpu_cap": 4}),
    ("--cpu-cap=^ins,cpu", {"cpu_cap": 3}),
    ("--empty-ns net", {"empty_ns": "net"}),
    ("--page-server --address 10.0.0.2 --port=27", {"page_server": "10.0.0.2:27"}),
    ("--page-server --ps-socket 5", {"page_server": PageServer(fd=5)}),
    ("--lazy-pages --port 27", {"lazy_pages": True, "page_server": PageServer(port=27)}),
    ("--inherit-fd fd[5]:pipe:[77]", {"inherit_fds": [(5, "pipe:[77]")]}),
    ("-J user:/proc/7/ns/user,0,0", {"join_ns": [("user", "/proc/7/ns/user", "0,0")]}),
    ("--cgroup-root cpu:/a --cgroup-root /b", {"cg_roots": (("/a", "cpu"), "/b")}),
    ("--external= --external x", None),
    ("-d --no-default-config --close 7", {}),
    ("--action-script /a --action-script /b", {"action_scripts": ("/a", "/b")}),
    ("--pidfile p -L /plugins", {"pidfile": "p", "libdir": "/plugins"}),
    ("--ghost-fiemap --no-allow-uprobes", {"ghost_fiemap": True, "allow_uprobes": False}),
    ("--file-validation filesize", {"file_validation": FileValidation.FILESIZE}),
    ("--log-pid --deprecated", {"log_pid": True, "deprecated": True}),
    ("--all --feature uffd", {"check_extra": True, "check_experimental": True,
        "check_feature": "uffd"}),
    ("--page-server --no-page-server", {}),
    ("--address ::1 --port 27", {}),
    ("--leave-ru --images d --ghost-l 7", {"leave_running": True,
        "images_directory": "d", "ghost_limit": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "fields"), READ, ids=[words for words, _ in READ])
def test_words_that_are_read(words: str, fields: dict[str, Any] | None) -> None:
    """Short and long, joined and separate, before and after the command, as getopt_long does."""
    arguments = words.split()
    if fields is None:
        assert "external" in refused(lambda: CriuOpts.from_argv(["dump", "-t1", *arguments]))
        return
    given = CriuOpts(**fields)
    kept = replace(given.only_for(Verb.DUMP), inherit_fds=given.inherit_fds)
    meant = in_current(kept, Verb.DUMP)  # criu refuses --inherit-fd, and ignores others
    expected = Verb.DUMP, 42, meant
    assert CriuOpts.from_argv(["criu", "dump", "-t", "42", *arguments]) == expected
    assert CriuOpts.from_argv(["/usr/sbin/criu", *arguments, "--tree=42", "dump"]) == expected
    assert CriuOpts.from_argv([*arguments, "dump", "-t42"]) == expected


WRITTEN: list[tuple[dict[str, Any], str]] = [
    ({"external_unix_connections": True, "unix_sks": [7, 8]},
        "--ext-unix-sk --ext-unix-sk=7 --ext-unix-sk=8"),
    ({"page_server": "10.0.0.2:27"}, "--page-server --address=10.0.0.2 --port=27"),
    ({"page_server": "[fd00::2]:27", "lazy_pages": True},
        "--address=fd00::2 --port=27 --lazy-pages"),
    ({"ext_mounts": [("/in", "key")], "auto_ext_mnt": True},
        "--ext-mount-map=/in:key --ext-mount-map=auto"),
    ({"cg_roots": [("/a", "cpu"), ("/b",), ("/c", "")]},
        "--cgroup-root=cpu:/a --cgroup-root=/b --cgroup-root=:/c"),
    ({"empty_ns": "net", "manage_cgroups": True}, "--empty-ns=net --manage-cgroups"),
    ({"manage_cgroups_mode": "none"}, "--manage-cgroups=none"),
    ({"network_lock": "skip"}, "--network-lock=skip"),
    ({"cpu_cap": 1}, "--cpu-cap=none,fpu"),
    ({"cpu_cap": 6}, "--cpu-cap=none,cpu,ins"),
    ({"compress": "block", "compress_block_size": 4096}, "--compress --compress-block=4096"),
    ({"tcp_close": False, "log_level": 0}, "--no-tcp-close --verbosity=0"),
    ({"external": ["mnt[/a]:c"], "skip_mnts": []}, "--external=mnt[/a]:c"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), WRITTEN, ids=[words for _, words in WRITTEN])
def test_words_that_are_written(fields: dict[str, Any], words: str) -> None:
    """Each kind of value has its form, in the table's order."""
    written = CriuOpts(**fields).to_argv("dump", pid=1)
    assert written == ["criu", "dump", "--tree=1", *words.split()]


def test_words_of_a_restore() -> None:
    """The words of a restore, with options that only a restore has."""
    opts = CriuOpts(
        veth_pairs=[("eth0", "veth0@br0")],
        join_ns=[("user", "/proc/7/ns/user", "0,0"), ("net", "/run/netns/blue")],
        inherit_fds=[(7, "pipe:[5]")],
    )
    assert opts.to_argv("restore")[2:] == [
        "--veth-pair=eth0=veth0@br0",
        "--inherit-fd=fd[7]:pipe:[5]",
        "--join-ns=user:/proc/7/ns/user,0,0",
        "--join-ns=net:/run/netns/blue",
        "--restore-detached",
    ]


def test_a_command_to_run() -> None:
    """``--exec-cmd`` takes the remaining words, and nothing is detached."""
    opts = CriuOpts(images_directory=".", exec_cmd=["prog", "-x", "", "--leave-running"])
    words = opts.to_argv(Verb.RESTORE)
    assert words == [
        "criu",
        "restore",
        "--images-dir=.",
        "--exec-cmd",
        "--",
        "prog",
        "-x",
        "",
        "--leave-running",
    ]
    assert CriuOpts.from_argv(words) == (Verb.RESTORE, None, opts)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("dump", "--tree"),
        ("dump -t 0", "--tree"),
        ("dump -t 1 --leave", "--leave"),
        ("dump -t 1 --leave-runningg", "--leave-runningg"),
        ("dump -t 1 -Z", "-Z"),
        ("dump -t 1 --shell-job=yes", "--shell-job"),
        ("dump -t 1 --no-leave-running", "--no-leave-running"),
        ("dump -t 1 --ghost-limit", "--ghost-limit"),
        ("dump -t 1 --ghost-limit 1T", "--ghost-limit"),
        ("dump -t 1 --verbosity=loud", "--verbosity"),
        ("dump -t 1 --manage-cgroups=SOFT", "--manage-cgroups"),
        ("dump -t 1 --cpu-cap=none", "--cpu-cap"),
        ("dump -t 1 --page-server --lazy-pages", "--page-server"),
        ("dump -t 1 --page-server", "--page-server"),
        ("dump -t 1 --exec-cmd -- x", "--exec-cmd"),
        ("check --ms", "--ms"),
        ("dump -t 1 --help", "--help"),
        ("restore -S", "--restore-sibling"),
        ("restore --exec-cmd", "--exec-cmd"),
        ("restore now", "words"),
        ("cpuinfo", "verb"),
        ("cpuinfo show", "verb"),
        ("service", "verb"),
        ("swrk", "verb"),
        ("criu", "verb"),
        ("", "verb"),
    ],
)
def test_words_that_are_refused(words: str, named: str) -> None:
    """Exactly the unknown, incomplete and unsupported options are refused by name."""
    assert list(refused(lambda: CriuOpts.from_argv(words.split()))) == [named]


def test_all_errors_are_listed() -> None:
    """A refusal lists every error."""
    words = ["criu", "dump", "-t1", "--ms", "--nonsense", "--port", "0"]
    assert list(refused(lambda: CriuOpts.from_argv(words))) == [
        "--ms",
        "--nonsense",
        "--port",
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"leave_running": False}, "leave_running"),
        ({"images_directory": 3}, "images_directory"),
        ({"images_dir": "x"}, "images_dir"),
        ({"orphan_pts_master": True}, "orphan_pts_master"),
        ({"manage_cgroups_mode": "default"}, "manage_cgroups_mode"),
        ({"cpu_cap": 8}, "cpu_cap"),
        ({"unix_sks": [5]}, "unix_sks"),
        ({"page_server": PageServer("a", 0)}, "page_server"),
        ({"ext_mounts": [("/a:b", "c")]}, "ext_mounts"),
        ({"cg_roots": [("/a:b",)]}, "cg_roots"),
        ({"root": "/--config=x"}, "root"),
        ({"weak_sysctls": True}, "weak_sysctls"),
    ],
)
def test_values_without_a_form_on_a_command_line(fields: dict[str, Any], named: str) -> None:
    """Values without a form are refused by name; ``weak_sysctls`` does not apply to a dump."""
    assert list(refused(lambda: CriuOpts(**fields).to_argv("dump", pid=1))) == [named]


def test_pids_and_verbs_of_command_lines() -> None:
    """A self-dump has no command line, a restore no pid, and three commands are known."""
    assert "pid" in refused(lambda: CriuOpts().to_argv("dump"))
    assert "pid" in refused(lambda: CriuOpts().to_argv("restore", pid=1))
    assert "pid" in refused(lambda: CriuOpts().to_argv("check", pid=1))
    assert "verb" in refused(lambda: CriuOpts().to_argv("version"))
    program = CriuOpts(exec_cmd=["prog"])
    assert "exec_cmd" in refused(functools.partial(program.to_argv, "restore-child"))
    for word in ("-h", "--help", "--config", "--no-default-config", "a--config=b"):
        opts = CriuOpts(exec_cmd=["prog", word])  # criu parses these first
        assert "exec_cmd" in refused(functools.partial(opts.to_argv, "restore"))


# ---- configuration files ----


@quick
@given(any_opts())
@example(CriuOpts(root="a b"))
@example(CriuOpts(root='a "b c"'))
@example(CriuOpts(root="a\tb"))
@example(CriuOpts(root="a#b"))
def test_a_configuration_file_and_back(opts: CriuOpts) -> None:
    """Lossless for all that a file can express."""
    rest, text = convertible(opts, CriuOpts.to_config)
    assert CriuOpts.from_config(text) == without_empty_lists(rest)


def test_a_configuration_file_to_read() -> None:
    """A file has one option on each line."""
    opts = CriuOpts(
        tcp_established=True, file_locks=False, ghost_limit=2**22, root="/a b", skip_mnts=["/x"]
    )
    assert opts.to_config().splitlines() == [
        "tcp-established",
        "no-file-locks",
        "ghost-limit=4194304",
        'root "/a b"',
        "skip-mnt=/x",
    ]


def test_a_configuration_file_with_comments() -> None:
    """Comments, quotes and blanks are parsed."""
    text = '# all of us\n\n  tcp-close # yes\nroot "/a b"# there\next-unix-sk=7\nverbosity=4\n'
    assert CriuOpts.from_config(text) == CriuOpts(
        tcp_close=True, root="/a b", external_unix_connections=True, unix_sks=[7], log_level=4
    )


@pytest.mark.parametrize(
    ("line", "named", "rule"),
    [
        ("verbosity 4", "--verbosity", "CRIU ignores this word; write verbosity=4"),
        ("tcp-close yes", "--tcp-close", "CRIU ignores this word"),
        ("ghost-limit 4 55", "line 2", "CRIU refuses a value with more words than this"),
        ('root "/a', "line 2", "CRIU refuses a quote that is not closed"),
        ("tcp-close#", "--tcp-close#", "is no known option of criu"),
        ("exec-cmd", "--exec-cmd", "needs a command"),
        ("tree 5", "--tree", "give it to the verb"),
        ("restore-sibling", "--restore-sibling", "use restore_child() instead"),
        ("version", "--version", "use version() instead"),
    ],
)
def test_lines_that_are_refused(line: str, named: str, rule: str) -> None:
    """Lines that CRIU refuses or ignores, or that have no field, are refused."""
    rules = refused(lambda: CriuOpts.from_config(f"tcp-established\n{line}\n"))
    assert list(rules) == [named]
    assert rule in rules[named]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"network_lock": "nftables"}, "network_lock"),
        ({"exec_cmd": ["x"]}, "exec_cmd"),
        ({"config_file": "x"}, "config_file"),
        ({"pre_dump": True}, "pre_dump"),
        ({"root": "a\nb"}, "root"),
        ({"root": "a #b"}, "root"),
        ({"root": "a long path with words"}, "root"),
        ({"cpu_cap": 0}, "cpu_cap"),
    ],
)
def test_values_without_a_form_in_a_file(fields: dict[str, Any], named: str) -> None:
    """Values that CRIU truncates or refuses, and options not allowed in a file, are refused."""
    assert list(refused(CriuOpts(**fields).to_config)) == [named]


# ---- compared with the criu program ----


def _programs() -> dict[str, Path]:
    """The ``criu`` of each installed release."""
    here = {}
    for library in found().values():
        for prefix in library.path.parents:
            program = prefix / "bin/criu"
            if str(prefix) != "/usr" and program.exists():
                here[library.version] = program
    return here


PROGRAMS = _programs()
programs = pytest.mark.parametrize("version", PROGRAMS)
no_program = pytest.mark.skipif(not PROGRAMS, reason="no criu program: tools/install-criu")


def ask(version: str, *words: str, fds: tuple[int, ...] = ()) -> tuple[int, str]:
    """Exit status and output of a ``criu`` that only parses its command line."""
    message = subprocess.run(
        [PROGRAMS[version], *words],
        capture_output=True,
        pass_fds=fds,
        check=False,
        env={"HOME": "/"},
    )
    return message.returncode, os.fsdecode(message.stdout + message.stderr)


def known_to(version: str, opts: CriuOpts) -> CriuOpts:
    """The options of a release."""
    young: dict[str, Any] = {
        row.name: None for row, _ in opts.items() if release(row.since) > release(version)
    }
    if opts.network_lock is NetworkLock.SKIP and release(version) < (3, 19):
        young["network_lock"] = None
    # criu looks up a macvlan's device while it parses the option.
    young["external"] = [key for key in opts.external or () if not key.startswith("macvlan")]
    if opts.config_file is not None:
        young["config_file"] = os.devnull  # the strategy's file is no configuration
    return replace(opts, **young)


@programs
@with_programs
@given(data=st.data(), verb=verbs)
def test_criu_reads_our_command_lines(
    version: str, objects: OptionObjects, data: st.DataObject, verb: Verb
) -> None:
    """Each release's parser accepts all that a verb accepts and a command line can express."""
    opts = known_to(version, data.draw(criu_opts(objects, verb)))
    pid = pid_for(verb)
    _, words = convertible(replace(opts, pre_dump=None), lambda o: o.to_argv(verb, pid))
    end = words.index("--") if "--" in words else len(words)
    words.insert(end, "-V")
    status, message = ask(version, *words[1:], fds=(objects.writable,))
    assert (status, "Version:" in message) == (0, True), (words, message)


@programs
@with_programs
@given(data=st.data(), verb=verbs)
def test_criu_reads_our_configuration_files(
    version: str, objects: OptionObjects, tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject, verb: Verb,
) -> None:  # fmt: skip
    """Each release's parser accepts all that a configuration file can express."""
    opts = known_to(version, data.draw(criu_opts(objects, verb)))
    _, text = convertible(opts, CriuOpts.to_config)
    path = tmp_path_factory.mktemp("config") / "criu.conf"
    path.write_bytes(os.fsencode(text))
    status, message = ask(version, f"--config={path}", "-V", fds=(objects.writable,))
    assert (status, "Version:" in message) == (0, True), (text, message)


def as_criu_reads(version: str, path: Path, line: str) -> list[str] | None:
    """The words into which a real criu splits a line, taken from its error message."""
    path.write_bytes(os.fsencode(line) + b"\n")
    _, message = ask(version, f"--config={path}", "-V")
    if "Unsupported configuration file format" in message:
        return None
    if "requires an argument" in message:
        return ["--network-lock"]
    value = re.search(r"Invalid value for --network-lock: (.*)\n", message, re.S)
    assert value, message
    return ["--network-lock", value[1]]


@programs
@settings(quick, max_examples=100)
@given(rest=st.text(' \t"\\#abä', max_size=14))
@example(' "ääääääääääää b"')
@example(' "a b"')
@example(' "a b" c d')
@example(' "a" #')
@example(" a b")
@example(" a bc")
@example(' "\\"a\\" b"')
@example(' "a b c d e f g h i j"')
def test_a_line_means_what_criu_makes_of_it(
    version: str, tmp_path_factory: pytest.TempPathFactory, rest: str
) -> None:
    """Our parser and CRIU's agree on any line: its values and its refusals."""
    line = "network-lock " + rest
    path = tmp_path_factory.getbasetemp() / "line.conf"
    try:
        ours: list[str] | None = statement(line)
    except ValueError:
        ours = None
    assert as_criu_reads(version, path, line) == ours


flags = [
    pytest.param(version, row, id=f"{row.name}-{version}")
    for row in BY_FIELD.values()
    if row.flag and row.name not in NO_WORDS
    for version in PROGRAMS
    if release(row.since) <= release(version)
]


@pytest.mark.parametrize(("version", "row"), flags)
def test_flags_are_those_of_criu(version: str, row: Row) -> None:
    """Long option, letter and ``--no-`` of each row exist in criu exactly as in the table."""
    assert row.flag is not None
    unknown = "unrecognized option"
    assert unknown not in ask(version, f"{row.flag}=1")[1]
    negation = row.flag.replace("--", "--no-", 1)
    status, message = ask(version, negation, "-V")
    negates = row.negates or row.name == "page_server"  # whose value is not a bool
    assert (status == 0, unknown in message) == (negates, not negates)
    takes = FlagParser().takes(row.flag)
    doubled = "doesn't allow an argument" in ask(version, f"{row.flag}=1")[1]
    assert doubled == (takes is Takes.NOTHING)
    alone = "requires an argument" in ask(version, row.flag)[1]
    assert alone == (takes is Takes.VALUE)
    if row.short:
        assert "invalid option" not in ask(version, f"-{row.short}", "1")[1]


def options_of(version: str) -> set[str]:
    """All long options of a release, hidden ones too, as ``getopt_long`` completes each letter."""
    options = set()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        for line in ask(version, f"--{letter}=1")[1].splitlines():
            if "ambiguous" in line or "argument" in line:
                options |= set(re.findall(r"--[a-z][a-z-]*[a-z]", line))
    return options


REFUSED = {
    "--help": "it belongs to no verb",
    "--ms": "criu refuses it too",
}
"""The options of ``criu`` that have no form here, and why."""

LINES = {
    "--address": "dump -t1 --page-server --address ::1",
    "--page-server": "dump -t1 --page-server --port 27",
    "--port": "dump -t1 --page-server --port 27",
    "--ps-socket": "dump -t1 --page-server --ps-socket 5",
    "--exec-cmd": "restore --exec-cmd -- prog",
    "--restore-sibling": "restore -d --restore-sibling",
    "--close": "restore --close 5",
    "--veth-pair": "restore --veth-pair a=b",
    "--ext-mount-map": "restore --ext-mount-map a:b",
    "--join-ns": "restore --join-ns net:/run/netns/blue",
    "--inherit-fd": "restore --inherit-fd fd[5]:pipe:[7]",
    "--manage-cgroups": "dump -t1 --manage-cgroups=full",
    "--empty-ns": "dump -t1 --empty-ns net",
    "--cpu-cap": "dump -t1 --cpu-cap=fpu",
    "--pre-dump-mode": "pre-dump -t1 --pre-dump-mode read",
    "--file-validation": "dump -t1 --file-validation filesize",
    "--network-lock": "dump -t1 --network-lock nftables",
    "--image-io-mode": "dump -t1 --image-io-mode direct",
    "--compress-block": "dump -t1 --compress --compress-block 4096",
    "--plugin-option": "dump -t1 --plugin-option a.b=c",
    "--no-page-server": "dump -t1 --page-server --no-page-server",
}
"""A line with each option whose value has a form, or that needs another one."""


@programs
def test_every_option_of_criu_is_read(version: str) -> None:
    """Each long option of the program is read, or refused with its reason."""
    options = options_of(version)
    assert len(options) > 95
    for option in sorted(options):
        takes = FlagParser().takes(option)
        value = "=1" if takes is Takes.VALUE else ""
        words = LINES.get(option, f"dump -t1 {option}{value}").split()
        if option in REFUSED:
            assert REFUSED[option] in refused(functools.partial(CriuOpts.from_argv, words))[option]
        else:
            CriuOpts.from_argv(words)


COMMAND_LINES: list[tuple[str, Verb, dict[str, Any]]] = [
    ("page-server -D d --port 27", Verb.PAGE_SERVER_CHILD,
        {"images_directory": "d", "page_server": PageServer("0.0.0.0", 27)}),
    ("page-server -D d --address ::1 -d --pidfile p", Verb.PAGE_SERVER,
        {"images_directory": "d", "page_server": PageServer("::1", 0), "pidfile": "p"}),
    ("page-server -D d --ps-socket 5 --auto-dedup", Verb.PAGE_SERVER_CHILD,
        {"images_directory": "d", "page_server": PageServer(fd=5), "auto_dedup": True}),
    ("page-server -D d --lazy-pages --address ::1 --port 27", Verb.PAGE_SERVER_CHILD,
        {"images_directory": "d", "lazy_pages": True, "page_server": PageServer("::1", 27)}),
    ("restore -D d --page-server --port 27 --lazy-pages", Verb.RESTORE,
        {"images_directory": "d", "lazy_pages": True}),
    ("check --page-server", Verb.CHECK, {}),
    ("lazy-pages -D d", Verb.LAZY_PAGES, {"images_directory": "d"}),
    ("lazy-pages -D d --page-server --address ::1 --port 27 --daemon", Verb.LAZY_PAGES,
        {"images_directory": "d", "page_server": PageServer("::1", 27)}),
    ("dedup -D d", Verb.DEDUP, {"images_directory": "d"}),
    ("check", Verb.CHECK, {}),
    ("check --extra --feature uffd", Verb.CHECK,
        {"check_extra": True, "check_feature": "uffd"}),
    ("cpuinfo dump -D d", Verb.CPUINFO_DUMP, {"images_directory": "d"}),
    ("cpuinfo check -D d --cpu-cap=fpu", Verb.CPUINFO_CHECK,
        {"images_directory": "d", "cpu_cap": 5}),
    ("restore -D d -d -S", Verb.RESTORE_CHILD, {"images_directory": "d"}),
    ("restore -D d -d -S --no-restore-sibling", Verb.RESTORE, {"images_directory": "d"}),
    ("restore -D d --version", Verb.VERSION, {}),
    ("-V", Verb.VERSION, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "verb", "fields"), COMMAND_LINES, ids=[line for line, *_ in COMMAND_LINES]
)
def test_commands_that_are_read(line: str, verb: Verb, fields: dict[str, Any]) -> None:
    """Each command of the program is a verb; its line is written again from what was read."""
    read = CriuOpts.from_argv(["criu", *line.split()])
    assert read == (verb, None, CriuOpts(**fields))
    if verb is not Verb.VERSION:
        rest, words = convertible(read[2].only_for(verb), lambda o: o.to_argv(verb))
        assert CriuOpts.from_argv(words) == (verb, None, rest)


def test_every_field_has_a_form_or_a_reason() -> None:
    """The list of reasons has exactly the rows without a flag."""
    assert {row.name for row in BY_FIELD.values() if row.flag is None} <= set(NO_WORDS)
    assert set(NO_WORDS) <= set(BY_FIELD)


def test_conversions_are_not_loaded_until_used() -> None:
    """``import pycriu_native`` does not load them."""
    names = {f"pycriu_native.{name}" for name in ("_argv", "_config", "_runc", "_explain")}
    code = f"import sys, pycriu_native; print({names} & set(sys.modules))"
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert message.stdout.strip() == "set()"


def test_values_as_text() -> None:
    """``parse`` reads a structured value's text back; ambiguous values are refused."""
    assert VethPair("eth0", "veth0@br0").text() == "eth0=veth0@br0"
    assert PageServer("fd00::2", 27).text() == "[fd00::2]:27"
    with pytest.raises(ValueError, match="mean something else"):
        VethPair("a=b", "c").text()
    with pytest.raises(ValueError, match="mean something else"):
        PageServer(fd=3).text()


# ---- the consent to clear text ----


def test_clear_text_in_other_forms() -> None:
    """Plain values keep the consent; forms for CRIU or runc cannot express it, so it is unset."""
    server = PageServer("10.0.0.2", 27, clear_text=True)
    opts = CriuOpts(images_directory="/x", page_server=server)

    def clear_text_of(found: CriuOpts) -> object:
        assert found == opts
        assert isinstance(found.page_server, PageServer)
        return found.page_server.clear_text

    assert clear_text_of(CriuOpts.from_dict(opts.to_dict())) is True
    assert clear_text_of(CriuOpts.from_dict(json.loads(json.dumps(opts.to_dict())))) is True
    assert clear_text_of(pickle.loads(pickle.dumps(opts))) is True
    assert opts.to_runc()["PageServer"] == {"Address": "10.0.0.2", "Port": 27}
    assert clear_text_of(CriuOpts.from_runc(opts.to_runc())) is None
    assert clear_text_of(CriuOpts.from_argv(opts.to_argv("dump", 1))[2]) is None
    assert clear_text_of(CriuOpts.from_config(opts.to_config())) is None
    assert hash(server) == hash(PageServer("10.0.0.2", 27))
    assert "clear_text=True" in repr(opts)


def test_what_clear_text_can_be() -> None:
    """The consent is True, False or unset."""
    with pytest.raises(OptionError, match="clear_text"):
        CriuOpts(page_server={"address": "h", "port": 1, "clear_text": 1})  # type: ignore[arg-type]
    assert "clear_text" not in CriuOpts(page_server="h:1").to_dict()["page_server"]

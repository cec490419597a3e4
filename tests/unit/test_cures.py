"""Each cure that the project names is followed in a test, or there is a reason why it is not.

A cure is that of a failure of CRIU (``known_failures.json``), of a finding of ``preflight`` that
predicts none of them, or of a finding of ``check_images`` or ``doctor``. A test follows it if it
brings the failure about, does what the cure says, and the same call works then. It is one of the
cases of ``test_failures.py`` and ``test_restore_failures.py``, whose texts name the failure, or has
the mark ``cures`` with its id.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native._failures.log_excerpt import failures

TESTS = Path(__file__).parents[1] / "integration"
PACKAGE = Path(pycriu_native.__file__).parent
PREFLIGHT = PACKAGE / "diagnostics" / "preflight"

REFINED = {
    "process_that_is_traced": "ptrace-refused",
    "pid_of_a_running_process": "pid-in-use",
    "file_on_something_unmounted": "fd-mount",
    "main_thread_that_ended": "zombie-thread",
    "images_of_pages_missing": "pages-unreadable",
}
"""Cases whose error has more precise texts than the entry of the failure."""

ADVICE = "the call cannot work: the cure is to choose another process, or to change the program"
REFUSED = "the library refuses the option, or an incomplete image set, before CRIU is started"
KERNEL = "needs another kernel, or one that is configured in another way"
CRIU = "needs another build or release of CRIU"
MODULE = "needs a security module (AppArmor, SELinux), which the test machine does not run"
PROCESSOR = "needs another processor"
PRECEDED = "another failure, which is followed, comes first on the test machine"
SETTING = "is a setting of the whole machine, on which other programs depend: no test changes it"

NOT_FOLLOWED = {
    "seize-gone": ADVICE,
    "pid-missing": ADVICE,
    "zombie-root": ADVICE,
    "pidns-init": ADVICE,
    "predump-nodirty": REFUSED,
    "uffd": REFUSED,
    "ns-flags": REFUSED,
    "parent-inventory": REFUSED,
    "img-no-file": REFUSED,
    "mnt-slave-einval": CRIU,
    "net-lock-nolib": CRIU,
    "preflight:pointer-authentication": CRIU,
    "lsm-write": MODULE,
    "lazy-pipe-size": SETTING,
    "path-unsupported": PRECEDED,
    "map-files-eperm": PRECEDED,
    "mapfile": PRECEDED,
}
"""Cures that no test follows, and why."""


CHECK_IMAGES = {
    "apt-get install {}": "test_helper_programs.py: test_a_restore",
    "dump again, or copy all of it here": "test_images_check.py: an image is missing",
    "restore the dump that builds on it": ADVICE,
    "copy the images again from their origin": (
        "test_completeness.py: test_images_of_another_process"
    ),
    "look for it where the images come from": (
        "test_completeness.py: test_a_table_that_may_be_missing"
    ),
    "remove it": "test_completeness.py: test_a_fifo_that_criu_would_write_to",
    "install CRIU (pycriu-native install-criu), or name it with Worker(program)": (
        "test_worker.py: ProgramNotFoundError"
    ),
    "a newer CRIU": CRIU,
    "CRIU 4.3 or later": CRIU,
    "CRIU 4.2 or later": PROCESSOR,
    "CRIU {} or later: an older one ignores fields that it does not have": (
        "test_images_check.py: test_images_of_a_newer_criu"
    ),
    "allow_uprobes=True": "test_uprobes.py: test_a_process_that_was_traced",
    "a host with {} processors": PROCESSOR,
    "a host whose kernel has pages of {} bytes (getconf PAGESIZE)": KERNEL,
    "another host": PROCESSOR,
    "another host, if the program uses them (pkeys(7))": PROCESSOR,
    "another host, or a cpu_cap that compares less": (
        "test_simulated_machines.py: test_a_processor_with_other_registers"
    ),
    "sysctl kernel.pid_max={}": "test_images_check.py: test_a_pid_above_the_highest",
    "let its parent wait for it": "test_images_check.py: a pid is a zombie",
    "end that process, or restore in a pid namespace of its own": (
        "test_images_check.py: a pid is taken by the process itself"
    ),
    "end pid {} and others of that {}, or restore in a pid namespace of its own": (
        "test_restorable.py: test_a_number_that_is_a_session"
    ),
    "add {} to the number in {}": "test_huge_pages.py: test_no_page_is_free",
    "shell_job=True, with the terminal as the worker's standard input": (
        "test_images_check.py: a session led from outside"
    ),
    "remove it, unless a restore of these images is running": (
        "test_restore_undo.py: test_a_ghost_in_the_way"
    ),
    "link it to another name of the same file: ln OTHER-NAME {}; on another host copy it there": (
        "test_restore_undo.py: test_a_copy_of_images_whose_link_is_gone"
    ),
    "copy it here, or give another in inherit_fds": "test_images_check.py: a file is gone",
    "put back the file as it was": "test_images_check.py: a file has grown",
    "put back what it was": "test_images_check.py: a directory is in its place",
    "install the same build": "test_images_check.py: another build of a library",
    "chmod {}, or skip_file_rwx_check=True": "test_images_check.py: a file has another mode",
    "inherit_fds=[(fd, {})]": "test_namespaces.py: test_an_external_network_namespace",
    "tcp_close=True": "test_images_check.py: connections, to be dropped",
    "tcp_established=True, or tcp_close=True to drop it": (
        "test_images_check.py: connections, and no option"
    ),
    "ip address add {} dev DEVICE": "test_taken_ports.py: test_an_address_that_is_not_here",
    "end that process": "test_taken_ports.py: test_a_port_that_another_process_has",
    "external_unix_connections=True": "test_unix_sockets.py: external_unix_connections",
    "start the process that has it": "test_restore_failures.py: unix_socket_whose_owner_is_gone",
    "make that directory": "test_images_check.py: the directory of a socket is gone",
    "shell_job=True on a terminal, or orphan_pts_master=True with a hook that takes it": (
        "test_orphan_pts_master.py: test_without_it_the_restore_is_refused"
    ),
    "file_locks=True": "test_images_check.py: test_locks_come_back_only_if_asked_for",
    "lazy_pages=True, and LazyPages connected to that dump": (
        "test_lazy.py: test_memory_comes_after_the_process"
    ),
    "root=PATH of a mounted file system with their files": (
        "test_images_check.py: test_a_container_needs_its_mounts"
    ),
    "auto_ext_mnt=True": "test_external_mounts.py: test_auto_ext_mnt",
    "external=['mnt[{}]:PATH']": "test_images_check.py: test_a_container_needs_its_mounts",
    "modprobe {}": KERNEL,
    "another kernel": KERNEL,
    "mount it, or manage_cgroups_mode='ignore'": (
        "test_rare_failures.py: test_a_controller_that_is_not_here"
    ),
    "manage_cgroups_mode='soft'": "test_images_check.py: test_modes_of_cgroups",
}
"""The cures of ``check_images``: a test that follows it, and a name in it, or why none does."""

DOCTOR = {
    "rm {}": "test_doctor.py: test_a_cache_of_a_criu_with_fewer_rights",
    "apt-get install {}": "test_helper_programs.py: test_a_dump",
    "run as root; or start the program and this library in one user namespace, and set "
    "unprivileged=True: unshare --user --map-root-user --pid --fork --mount-proc; "
    "pycriu-native run makes one itself": "test_jobs_unprivileged.py: test_dump_and_restore",
    "pycriu-native run creates one; for other calls start the program and this library in it, and "
    "set unprivileged=True: unshare --user --map-root-user --pid --fork --mount-proc": (
        "test_jobs_unprivileged.py: test_dump_and_restore"
    ),
    "it needs {}": KERNEL,
    "install both from one release": ("test_doctor.py: test_a_criu_that_does_not_fit_the_kernel"),
    "run as root, or set unprivileged=True": "test_security_unprivileged.py: test_what_it_takes",
    "install CRIU {} or later (pycriu-native install-criu)": (
        "test_doctor.py: test_a_criu_that_does_not_fit_the_kernel"
    ),
    "install CRIU 4.2 or later (pycriu-native install-criu)": PROCESSOR,
    "check whether that is intended; else remove {}": (
        "test_doctor.py: test_a_configuration_file_that_interferes"
    ),
    "run without it (docker run --security-opt seccomp=unconfined), with CAP_SYS_ADMIN": (
        "test_seccomp_filter.py: test_a_filter_that_criu_may_not_suspend"
    ),
    "run from an unconfined domain; for containers, give lsm_profile on restore": MODULE,
    "run unconfined (docker run --security-opt apparmor=unconfined)": MODULE,
    "it cannot be lowered while the system runs: remove the setting and restart": MODULE,
    "start the kernel with lockdown=integrity, or none": MODULE,
    "sysctl -w kernel.yama.ptrace_scope=0": MODULE,
    "sysctl -w fs.pipe-max-size={}": SETTING,
    "sysctl -w kernel.io_uring_disabled=2 (for new programs)": SETTING,
    "mount -t proc proc /proc": "test_doctor.py: test_the_proc_of_another_pid_namespace",
    "mount -t cgroup2 none /sys/fs/cgroup": "test_doctor.py: test_cgroups_that_are_not_mounted",
    "a kernel with CONFIG_CHECKPOINT_RESTORE": KERNEL,
    "mount -o remount,rw /proc/sys": "test_doctor.py: test_sysctls_that_are_read_only",
    "ulimit -Hn {} before, as root with CAP_SYS_RESOURCE": (
        "test_restorable.py: test_descriptors_near_the_limit"
    ),
    "CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and a /proc that is not masked": (
        "test_doctor.py: test_in_a_user_namespace"
    ),
}
"""The cures of ``doctor``, in the same way."""


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The decorators of a module's functions that are calls, with the function's name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call):
                    yield node.name, decorator


def _texts(call: ast.Call) -> list[str]:
    return [str(each.value) for each in call.args if isinstance(each, ast.Constant)]


@cache
def followed() -> frozenset[str]:
    """The ids of the cures that tests follow."""
    result: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for name, call in _calls(path):
            decorator = ast.unparse(call.func)
            if decorator == "pytest.mark.cures":
                result.update(_texts(call))
            elif decorator in ("dump_fails", "restore_fails", "images_fail"):
                cause, cure, *_ = _texts(call)
                result.update(
                    entry.id for entry in failures() if cause in entry.cause and cure in entry.cure
                )
                result.update({REFINED[name]} if name in REFINED else ())
    return frozenset(result)


def named() -> Iterator[str]:
    """The ids of all cures: of failures, and of findings of ``preflight`` without one."""
    for entry in failures():
        if not entry.benign:
            yield entry.id
    for path in PREFLIGHT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = {each.arg for each in node.keywords}
                name = ast.unparse(node.func).removeprefix("context.")
                if name in ("stops", "needs", "no_restore", "lost", "note") and (
                    "failure" not in words and ("cure" in words or name == "needs")
                ):
                    id = node.args[0]
                    if isinstance(id, ast.Constant):
                        yield f"preflight:{id.value!s}"


@pytest.mark.parametrize("id", sorted(set(named())))
def test_a_cure_is_followed(id: str) -> None:
    """A test follows each cure, or the table has the reason why none does."""
    assert (id in followed()) is not (id in NOT_FOLLOWED)


def test_nothing_else_is_in_the_tables() -> None:
    """The tables have no name of a removed cure, and no misspelt case."""
    known = {*named(), "preflight:message-queue"}  # it has a cure besides that of its failure
    assert followed() | set(NOT_FOLLOWED) <= known
    cases = {name for path in TESTS.glob("test_*.py") for name, _ in _calls(path)}
    assert set(REFINED) <= cases


def _text(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    """The text of an expression; ``{}`` for what is filled in, empty for what is no text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each, constants) or "{}" for each in node.values)
    if isinstance(node, ast.Name) and node.id in constants:
        return _text(constants[node.id], {})
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "cure":
        return "apt-get install {}"  # helper_programs.cure
    return ""


def _constants(module: ast.Module) -> dict[str, ast.expr]:
    """The values of a module's names."""
    return {
        ast.unparse(each.targets[0]): each.value
        for each in module.body
        if isinstance(each, ast.Assign)
    }


def _cures(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        module = ast.parse(path.read_text())
        constants = _constants(module)
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("stops", "warning") and len(node.args) > 2:
                    yield _text(node.args[2], constants)
                cures = (each.value for each in node.keywords if each.arg == "cure")
                yield from (_text(cure, constants) for cure in cures)


@pytest.mark.parametrize(
    ("table", "pattern"),
    [(CHECK_IMAGES, "images/check/*.py"), (DOCTOR, "diagnostics/doctor/*.py")],
    ids=["check_images", "doctor"],
)
def test_the_cures_of_a_check(table: dict[str, str], pattern: str) -> None:
    """The table has each cure of the check, with a test or a reason, and no other cure."""
    assert set(_cures(PACKAGE.glob(pattern))) - {""} == set(table)
    for place in table.values():
        file, _, name = place.partition(": ")
        if file.endswith(".py"):
            assert name in (TESTS / file).read_text(), place

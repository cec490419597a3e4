"""Failures of other kernels and machines, made by a filter of system calls or by changed images.

With the cure the call works. A filter refuses system calls of CRIU, as an older kernel does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    Severity,
    Verdict,
    Worker,
    doctor,
    dump,
    feature_check,
    preflight,
    restore,
)
from pycriu_native._failures.log_excerpt import known
from pycriu_native.images import check_images, decode, encode

from .support import cgroups, releases
from .support.cgroups import Make
from .support.containers import container
from .support.failing_calls import Site, wrapped
from .support.mounts import WITHOUT_SHARED_TMPFS, make_read_only, make_writable, tmpfs
from .support.processes import PATIENCE, Target, eventually, kill, reap_all, state

pytestmark = pytest.mark.usefixtures("orphans")
needs_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")


def dump_fails(site: Site, target: Target, id: str) -> str:
    """The cure of a dump that fails with this known failure, after which the process continues."""
    with pytest.raises(CriuError) as caught:
        dump(target.pid, site.opts, via=site.via)
    assert caught.value.cause == known(id).cause, caught.value.lines
    assert target.runs_on()
    return str(caught.value.cure)


def restore_fails(site: Site, id: str, **fields: Any) -> str:
    """The cure of a restore that fails with this known failure, and leaves no process."""
    with pytest.raises(CriuError) as caught:
        restore(replace(site.opts, **fields), via=site.via)
    assert caught.value.cause == known(id).cause, caught.value.lines
    reap_all()
    return str(caught.value.cure)


def refusals(site: Site, **fields: Any) -> set[str]:
    """The messages of the findings of check_images that prevent the restore."""
    findings = check_images(site.images, replace(site.opts, **fields), via=site.via)
    return {each.message for each in findings if each.severity is Severity.STOPS}


def change(image: Path, **fields: Any) -> None:
    """Change fields of the first entry of an image."""
    content = decode(image)
    content["entries"][0] |= fields
    image.write_bytes(encode(content))


# ---- older kernels ----

PTRACE, CLONE3, RSEQ = 101, 435, 334
GET_RSEQ_CONFIGURATION = 0x420F
FILTER = """
import ctypes, os, struct, sys
LOAD, EQUAL, RETURN, NUMBER, FIRST = 0x20, 0x15, 6, 0, 16  # struct seccomp_data
refused, first, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
def rule(code, value, otherwise=0):
    return struct.pack("HBBI", code, 0, otherwise, value)
rules = [rule(LOAD, NUMBER), rule(EQUAL, refused, 3 if first else 1)]
if first:
    rules += [rule(LOAD, FIRST), rule(EQUAL, first, 1)]
rules += [rule(RETURN, 0x50000 | 38), rule(RETURN, 0x7FFF0000)]  # ENOSYS; allowed
body = ctypes.create_string_buffer(b"".join(rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(body)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP
os.execv(words[0], words)
"""


def on_older_kernel(site: Site, refused: int, first: int = 0, setup: str = "true") -> Worker:
    """A CRIU whose system call of a number is refused; only with a first argument, if not 0.

    ``setup`` are commands in the mount namespace of CRIU.
    """
    script = site.directory / "filter.py"
    script.write_text(FILTER)
    words = (sys.executable, str(script), str(refused), str(first))
    return without_cache(site, *words, setup=setup)


def without_cache(site: Site, *words: str, setup: str = "true") -> Worker:
    """A CRIU that neither reads nor writes the cache of features in /run, behind other words."""
    inner = f"'mount -n -t tmpfs none /run && {setup} && exec \"$@\"'"
    own = ("unshare", "--mount", "--propagation=private", "sh", "-c", inner, "sh")
    return wrapped(site, *own, *words)


@needs_x86_64
@pytest.mark.cures("rseq-kernel")
def test_a_kernel_that_does_not_show_restartable_sequences(site: Site) -> None:
    """A program that does not use restartable sequences can be dumped on such a kernel."""
    site.via = on_older_kernel(site, PTRACE, GET_RSEQ_CONFIGURATION)
    cure = dump_fails(site, site.spawn(), "rseq-kernel")
    variable, _, value = cure.split()[-1].partition("=")
    target = site.spawn(env={variable: value})
    target.dump(site.opts, via=site.via)


@needs_x86_64
@pytest.mark.cures("rseq-restore")
def test_a_kernel_without_restartable_sequences(site: Site) -> None:
    """A process that uses restartable sequences is restored only by a kernel that has them."""
    target = site.dumped()
    site.via = on_older_kernel(site, RSEQ)
    assert "CONFIG_RSEQ" in restore_fails(site, "rseq-restore")
    restore(site.opts)
    assert target.runs_on()


LAST_PID = "/proc/sys/kernel/ns_last_pid"


@needs_x86_64
@pytest.mark.cures("last-pid")
def test_last_pid_that_is_read_only(site: Site) -> None:
    """Without clone3, CRIU sets pids by a file, which the restore needs to be writable."""
    target = site.dumped()
    read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    site.via = on_older_kernel(site, CLONE3, setup=read_only)
    assert f"make {LAST_PID} writable" in restore_fails(site, "last-pid")
    writable = f"{read_only} && mount -o remount,rw /proc/sys"
    restore(site.opts, via=on_older_kernel(site, CLONE3, setup=writable))
    kill(target.pid)  # it is under the filter
    reap_all()


@needs_x86_64
@pytest.mark.cures("pid-mismatch")
def test_a_pid_that_another_process_gets(site: Site) -> None:
    """A file without effect replaces ns_last_pid, as if another process always got the pid."""
    target = site.dumped()
    (site.directory / "number").write_text("")
    setup = f"mount --bind {site.directory / 'number'} {LAST_PID}"
    site.via = on_older_kernel(site, CLONE3, setup=setup)
    assert "try again" in restore_fails(site, "pid-mismatch")
    restore(site.opts)
    assert target.runs_on()


@pytest.mark.cures("kerndat")
def test_a_sandbox_without_the_kernel_tests(site: Site) -> None:
    """CRIU fails in a sandbox that forbids its tests of the kernel, and works outside of it."""
    releases.required("4.1", "CAP_CHECKPOINT_RESTORE suffices for the start of CRIU")
    site.via = without_cache(site, "setpriv", "--bounding-set=-sys_admin")
    target = site.spawn()
    assert "run outside of the sandbox" in dump_fails(site, target, "kerndat")
    target.dump(site.opts)


# ---- other machines ----


@pytest.mark.cures("lsm-mismatch")
def test_images_of_a_confined_process(site: Site) -> None:
    """Images of a process under another security module are refused, those of others are not."""
    target = site.dumped()
    inventory, core = site.images / "inventory.img", next(site.images.glob("core-*.img"))
    before = core.read_bytes()
    change(inventory, lsmtype="APPARMOR" if os.path.exists("/sys/fs/selinux") else "SELINUX")
    content = decode(core)
    content["entries"][0]["thread_core"]["creds"]["lsm_profile"] = "confined"
    core.write_bytes(encode(content))
    assert refusals(site) == {known("lsm-mismatch").cause}
    assert "processes that are not confined" in restore_fails(site, "lsm-mismatch")
    core.write_bytes(before)
    assert not refusals(site)
    restore(site.opts)
    assert target.runs_on()


@needs_x86_64
@pytest.mark.cures("cpu-xsave")
@pytest.mark.parametrize("field", ["xfeatures_mask", "xsave_size"])
def test_a_processor_with_other_registers(site: Site, field: str) -> None:
    """The images are restored if the processors are not compared."""
    target = site.dumped(cpu_cap=1)
    image = site.images / "cpuinfo.img"
    [entry] = decode(image)["entries"][0]["x86_entry"]
    change(image, x86_entry=[entry | {field: entry[field] + (1 << 20)}])
    assert len(refusals(site, cpu_cap=1)) == 1
    assert "cpu_cap=0" in restore_fails(site, "cpu-xsave", cpu_cap=1)
    assert not refusals(site, cpu_cap=0)
    restore(replace(site.opts, cpu_cap=0))
    assert target.runs_on()


@pytest.mark.cures("plugin")
def test_images_of_a_plugin(site: Site) -> None:
    """CRIU refuses images that need a plugin, unless it is in the directory of plugins."""
    releases.required("4.1", "the images have the names of plugins")
    target = site.dumped()
    change(site.images / "inventory.img", plugins_entry={"plugins": ["cuda_plugin"]})
    libraries = site.directory / "plugins"
    libraries.mkdir()
    site.via = Worker(env={"CRIU_LIBS_DIR": str(libraries)})
    assert refusals(site) == {known("plugin").cause}
    assert 'Worker(env={"CRIU_LIBS_DIR": directory})' in restore_fails(site, "plugin")
    if not (compiler := shutil.which("gcc")):
        pytest.skip("there is no compiler for a plugin")
    source = site.directory / "plugin.c"
    source.write_text(PLUGIN)
    words = [compiler, "-shared", "-fPIC", "-o", str(libraries / "cuda_plugin.so"), str(source)]
    subprocess.run(words, check=True)
    assert not refusals(site)
    restore(site.opts, via=site.via)
    assert target.runs_on()


PLUGIN = """
#include <stdbool.h>
#include <string.h>
bool check_and_remove_inventory_plugin(const char *name, size_t n);
static int init(int stage) {
    return !check_and_remove_inventory_plugin("cuda_plugin", strlen("cuda_plugin"));
}
static void fini(int stage, int result) {}
struct { const char *name; int (*init)(int); void (*fini)(int, int); unsigned version, hooks; }
    CR_PLUGIN_DESC = {"cuda_plugin", init, fini, 0x200, 0};
"""


@pytest.mark.cures("cg-prop")
def test_a_property_that_the_kernel_refuses(site: Site, make_cgroup: Make) -> None:
    """CRIU cannot restore a cgroup with this property; without its properties the restore works."""
    cgroup = make_cgroup(cgroups.required("pids"))
    (cgroup / "own").mkdir()
    target = site.spawn()
    cgroups.enter(cgroup / "own", target.pid)
    target.dump(replace(site.opts, cg_dump_controllers=["pids"]))
    image = site.images / "cgroup.img"
    eventually(lambda: not (cgroup / "own/cgroup.procs").read_text(), "an empty cgroup")
    (cgroup / "own").rmdir()
    image.write_bytes(_with_value(image, "pids.max", "many"))
    cure = restore_fails(site, "cg-prop")
    assert 'manage_cgroups_mode="none"' in cure
    (cgroup / "own").mkdir(exist_ok=True)
    for mode in ("soft", "none"):
        assert mode in cure
        restore(replace(site.opts, manage_cgroups_mode=mode))
        assert target.runs_on()
        target.end()
        reap_all()


def _with_value(image: Path, name: str, value: str) -> bytes:
    """An image of cgroups in which each property of this name has another value."""
    content = decode(image)
    rest: list[Any] = [content]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            if each.get("name") == name:
                each["value"] = value
            rest += each.values()
        elif isinstance(each, list):
            rest += each
    return encode(content)


@pytest.mark.cures("root-without-tmp")
def test_a_read_only_root_without_tmp(site: Site) -> None:
    """A read-only root file system needs a directory tmp, by which CRIU enters it."""
    box_directory = site.directory / "box"
    place = site.held.enter_context(tmpfs(box_directory / "root"))
    with container(box_directory) as box:
        site.options["external"] = box.given_on_dump
        box.dump(site.opts)
        (box.root / "tmp").rmdir()
        make_read_only(place)
        opts: dict[str, Any] = {"root": box.root, "external": box.given_on_restore}
        assert restore_fails(site, "root-without-tmp", **opts) == known("root-without-tmp").cure
        make_writable(place)
        (box.root / "tmp").mkdir()
        make_read_only(place)
        box.pid = restore(replace(site.opts, **opts)).pid
        assert box.runs_on()
        box.end()
        make_writable(place)


@pytest.mark.cures("preflight:32-bit")
@needs_x86_64
def test_a_32_bit_program(site: Site) -> None:
    """A 32-bit program is restored if doctor finds that CRIU supports it."""
    program = site.directory / "program"
    program.write_bytes(PROGRAM_32)
    program.chmod(0o755)
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [program], stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True
    )
    site.held.callback(process.wait, PATIENCE)
    site.held.callback(kill, process.pid)
    result = preflight(process.pid, site.opts)
    assert result.verdict is Verdict.WORKS
    [finding] = [each for each in result.findings if each.id == "32-bit"]
    assert finding.cure == "look with doctor at feature:compat_cr"
    dump(process.pid, site.opts)
    process.wait(PATIENCE)
    if doctor().of("feature:compat_cr").severity is not Severity.GOOD:
        pytest.skip("this kernel or this CRIU does not restore 32-bit programs")
    restore(site.opts)
    assert os.readlink(f"/proc/{process.pid}/exe") == str(program)
    kill(process.pid)
    reap_all()


PROGRAM_32 = (
    b"\x7fELF\1\1\1".ljust(16, b"\0")
    + bytes.fromhex("02000300 01000000 54800408 34000000 00000000 00000000")
    + bytes.fromhex("3400 2000 0100 0000 0000 0000")
    + bytes.fromhex("01000000 00000000 00800408 00800408 00010000 00010000 05000000 00100000")
    + bytes.fromhex("b81d000000 cd80 ebf7")  # pause() for ever
).ljust(256, b"\0")
"""An ELF file of i386: its header, one segment, and the code."""


# ---- options that only a configuration file can give wrongly ----

WRONG = {
    "track-mem": ("track-mem", ""),
    "lsm-arg": ("lsm-profile nonsense", "lsm-profile none:"),
    "log-subdir": ("log-file a/b", "log-file b"),
    "parent-img": ("prev-images-dir ../nothing", "prev-images-dir ../round-1"),
    "inherit-fd": ("inherit-fd fd[99]:pipe:[1]", "inherit-fd fd[2]:pipe:[1]"),
}


@pytest.mark.cures("track-mem", "lsm-arg", "log-subdir", "parent-img", "inherit-fd")
@pytest.mark.parametrize("id", WRONG)
def test_an_option_of_a_configuration_file(site: Site, id: str) -> None:
    """CRIU refuses an option of its configuration file; it accepts the value of the cure."""
    if id == "track-mem" and feature_check().mem_track:
        pytest.skip("this kernel can track changed memory")
    wrong, right = WRONG[id]
    site.options["config_file"] = site.directory / "criu.conf"
    site.options["config_file"].write_text(f"{wrong}\n")
    (site.images.parent / "round-1").mkdir()
    target = site.spawn()
    dump_fails(site, target, id)
    site.options["config_file"].write_text(f"{right}\n")
    target.dump(site.opts)


@pytest.mark.cures("images-too-large")
def test_a_limit_of_the_size_of_files(site: Site) -> None:
    """The worker has a limit of the size of files; the caller has none, so the dump begins."""
    site.via = wrapped(site, "prlimit", "--fsize=100000:100000")
    target = site.spawn()
    assert "raise the hard limit" in dump_fails(site, target, "images-too-large")
    site.via = wrapped(site, "prlimit", "--fsize=unlimited")
    target.dump(site.opts, via=site.via)


@pytest.mark.cures("img-magic")
def test_images_of_another_version(site: Site) -> None:
    """Images of an unknown version are refused; the unchanged images are restored."""
    target = site.dumped()
    image = site.images / "inventory.img"
    before = image.read_bytes()
    change(image, img_version=9)
    assert refusals(site) == {"no release supports images of version 9"}
    assert "give an unchanged images_directory" in restore_fails(site, "img-magic")
    image.write_bytes(before)
    restore(site.opts)
    assert target.runs_on()


@pytest.mark.cures("images-dir")
def test_a_criu_in_another_pid_namespace(site: Site) -> None:
    """CRIU finds the images by a path, since a descriptor of the caller is not in its /proc."""
    site.dumped()
    init = "'\"$@\"; sleep 0.5'"  # the restored process ends with the namespace
    own = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", init, "sh")
    site.via = replace(wrapped(site, *own), allow_untrusted=True)
    cure = restore_fails(site, "images-dir")
    assert "for a CRIU in another pid namespace images_dir=path" in cure
    del site.options["images_directory"]
    restore(replace(site.opts, images_dir=site.images), via=site.via)
    reap_all()


# ---- fuse ----

FUSE = """
    import ctypes, os
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3): os.dup2(null, number)
    os.close(null)
    (HERE / "fuse").mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
    libc = ctypes.CDLL(None)
    assert libc.mount(b"none", os.fsencode(HERE / "fuse"), b"fuse", 0, options) == 0
    os.close(fuse)
    os.chdir("/")
    serve(unmount=lambda: libc.umount(os.fsencode(HERE / "fuse")))
"""
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


@needs_fuse
@pytest.mark.cures("fuse")
def test_a_fuse_file_system(site: Site) -> None:
    """Preflight names a fuse file system as external; the dump also works after an unmount."""
    target = site.spawn(FUSE, prefix=WITHOUT_SHARED_TMPFS)
    result = preflight(target.pid, site.opts)
    [needed] = [each for each in result.findings if each.severity is Severity.NEEDS_OPTION]
    dump_fails(site, target, str(needed.failure))
    assert 'external="mnt[/mountpoint]:KEY"' in needed.cure
    dump(target.pid, replace(result.opts, leave_running=True))
    assert target.runs_on()
    target.ask("unmount")
    assert preflight(target.pid, site.opts).verdict is Verdict.WORKS
    target.dump(site.opts)


HANGS = """
import ctypes, os, signal, sys, tempfile
libc = ctypes.CDLL(None)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
assert libc.mount(b"none", os.fsencode(sys.argv[1]), b"fuse", 0, options) == 0
child = os.fork()
if child == 0:
    os.close(fuse)
    try:
        os.stat(sys.argv[1] + "/file")
    finally:
        os._exit(0)
print(child, flush=True)
os.waitpid(child, 0)
"""
"""A process that waits for a file system of this program, which does not respond."""


@needs_fuse
@pytest.mark.cures("timeout")
@pytest.mark.parametrize("cure", ["larger timeout", "without freeze_cgroup"])
def test_a_process_that_does_not_freeze(site: Site, make_cgroup: Make, cure: str) -> None:
    """A process in the target's cgroup waits in the kernel for another one: both cures work."""
    cgroup = make_cgroup(cgroups.required(""))
    (site.directory / "fuse").mkdir()
    words = ["unshare", "--mount", sys.executable, "-c", HANGS, str(site.directory / "fuse")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, ExitStack() as ends:
        ends.callback(server.kill)
        assert server.stdout is not None
        hung = int(server.stdout.readline())
        eventually(lambda: state(hung) == "D", "the wait for the file system")
        target = site.spawn()
        for pid in (hung, target.pid):
            cgroups.enter(cgroup, pid)
        site.options |= {"freeze_cgroup": cgroup, "timeout": 1}
        assert cure in dump_fails(site, target, "timeout")
        if cure == "larger timeout":
            site.options["timeout"] = 60
            timer = threading.Timer(1.5, server.kill)
            timer.start()
            ends.callback(timer.join)
        else:
            del site.options["freeze_cgroup"]
        dump(target.pid, site.opts)
    target.reap()


# ---- lazy pages ----


@pytest.mark.cures("lazy-transfer")
def test_a_restore_that_ends_before_it_has_all_pages(site: Site) -> None:
    """A lazy dump fails if its client disconnects early; the process continues."""
    if not feature_check().lazy_pages:
        pytest.skip("the kernel has no userfaultfd for CRIU")
    target = site.spawn("memory = bytes(range(256)) * 4096\nserve()")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    site.options |= {"lazy_pages": True, "page_server": address}
    errors: list[CriuError] = []

    def serve() -> None:
        with pytest.raises(CriuError) as caught:
            dump(target.pid, site.opts)
        errors.append(caught.value)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = eventually(lambda: _connected(address), "the start of the page server")
        with client:
            client.send(bytes(100))
    finally:
        thread.join(PATIENCE)
    [error] = errors
    assert error.cause == known("lazy-transfer").cause
    assert "keep this dump running" in str(error.cure)
    assert target.runs_on()


def _connected(address: tuple[str, int]) -> socket.socket | None:
    try:
        return socket.create_connection(address)
    except ConnectionRefusedError:
        return None

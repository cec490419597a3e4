"""The conditions of the call: the program, the options, the directories."""

from __future__ import annotations

import os
import re
import resource
import socket

from ..._calls import requirements
from ..._calls.verbs import check
from ..._checks import option_rules
from ..._checks.work_directory import from_work_directory
from ..._failures.log_excerpt import known
from ..._system.capabilities import CAP_SYS_ADMIN, has_capability
from ..._system.host import lines, read
from ..._system.inet_sockets import LISTEN, tcp_sockets
from ..._transport.helper_programs import HelperPrograms, cure
from ..._transport.worker import worker_of
from ...enums import CgroupMode, NetworkLock, Verb
from ...errors import CriuError, OptionError, PermissionDeniedError, ProgramError
from ...options.criu_opts import CriuOpts
from ...options.values import PageServer
from ...results import Version
from ..doctor.features import tested
from ..doctor.program import kernel
from ..explanation import Setting
from . import inet_sockets, sockets
from .context import Context, Findings, no_restore, note, stops
from .open_sockets import INTERNET, sockets_of
from .values import in_units

LOCK = "network_lock_nftables"
"""The feature of ``criu check`` that tests the lock by nftables."""


def check_options(opts: CriuOpts, pid: int) -> None:
    """Refuse options that no dump accepts; the images directory may be unset."""
    try:
        option_rules.check(opts, Verb.DUMP, pid)
    except OptionError as refused:
        if problems := [each for each in refused.problems if each != option_rules.NO_DIRECTORY]:
            raise OptionError(problems, verb="dump", pid=pid) from None


def look(context: Context) -> Findings:
    yield from _program(context)
    yield from _freezer(context.opts)
    yield from _server(context.opts)
    yield from _configuration(context)
    yield from _security(context.opts)
    yield from _network_lock(context)
    yield from _cgroup_yard(context)
    yield from _cgroup_properties(context.opts)
    yield from _cgroup_namespace(context)


def _program(context: Context) -> Findings:
    """Whether this CRIU starts, supports the options, and supports this kernel's sockets."""
    if context.via.identity() is None:
        return
    try:
        result = requirements.program_version(context.via)
        _check_program(context)
        problems = [
            *requirements.by_library(context.opts),
            *requirements.by_program(context.opts, context.via),
            *requirements.by_kernel(context.opts, Verb.DUMP, context.via),
        ]
    except CriuError as error:
        yield stops(
            "program", f"CRIU does not work here: {error.cause or error}", cure=error.cure or ""
        )
        return
    for problem in problems:
        yield stops("option", str(problem), cure=f"leave {problem.field} unset")
    if problem_of_processor := requirements.pointer_authentication(result):
        yield no_restore(
            "pointer-authentication",
            problem_of_processor,
            cure="install CRIU 4.2 or later (pycriu-native install-criu)",
        )
    if result < Version(major=4, minor=2) and kernel() >= (6, 16):
        internet = sorted({kind for _, kind in sockets_of(context)} & set(INTERNET))
        if internet:
            message = f"CRIU {result} is too old for sockets ({', '.join(internet)}) on this kernel"
            yield stops("old-program", message, failure="sock-passcred-kernel")


_working: set[tuple[object, ...]] = set()


def _check_program(context: Context) -> None:
    """Run CRIU's check once for each program; raise if CRIU does not start or lacks permissions.

    Other errors of the check are ignored: the dump may not need what is missing.
    """
    identity = context.opts.unprivileged, context.via.identity()
    if identity not in _working:
        try:
            check(CriuOpts(unprivileged=context.opts.unprivileged), via=context.via)
        except (ProgramError, PermissionDeniedError) as error:
            if error.cause == known("tcp-repair").cause and not _has_connections(context):
                return
            raise
        except CriuError:
            return
        _working.add(identity)


def _has_connections(context: Context) -> bool:
    """Whether the dump keeps TCP connections."""
    return any(result.id == "tcp-connection" for result in sockets.look(context))


def _freezer(opts: CriuOpts) -> Findings:
    if opts.freeze_cgroup is None:
        return
    path = os.path.realpath(from_work_directory(opts, opts.freeze_cgroup))
    if not any(os.path.exists(f"{path}/{name}") for name in ("freezer.state", "cgroup.freeze")):
        message = "freeze_cgroup is not a freezer cgroup's directory"
        yield stops("no-freezer", message, path=path, failure="freezer-missing")
    if why := requirements.caller_frozen(opts):
        message, _, cure = why.partition(": ")
        yield stops("caller-frozen", message, path=path, cure=cure)


def _server(opts: CriuOpts) -> Findings:
    """Whether the page server's name resolves. A page server takes any connection for the dump."""
    server = opts.page_server
    if not isinstance(server, PageServer) or server.address is None or opts.lazy_pages:
        return
    about = f"{server.address}:{server.port}"
    try:
        addresses = socket.getaddrinfo(server.address, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: DNS cannot represent the name
        message = f"the page server's name is unknown ({getattr(error, 'strerror', error)})"
        yield stops("page-server", message, path=about, failure="page-server-gone")
        return
    if any(str(item[4][0]).startswith("127.") or item[4][0] == "::1" for item in addresses):
        if not any(each.state == LISTEN and each.local[1] == server.port for each in tcp_sockets()):
            message = "no page server listens there"
            yield stops("page-server", message, path=about, failure="page-server-gone")
        return
    message = "whether the page server answers is seen by the dump only"
    yield note("page-server", message, path=about)


def _configuration(context: Context) -> Findings:
    for file in context.configuration:
        for setting in file.settings:
            if setting.fails or (why := _prevents_dumps(context, setting)):
                reason = setting.effect if setting.fails else why
                message = f"a configuration file has {setting.option}={setting.value!r}: {reason}"
                yield stops("configuration", message, path=file.path, failure="config-option")
            elif setting.applies and file.path != context.opts.config_file:
                yield note("configuration", f"a configuration file sets {setting}", path=file.path)


def _prevents_dumps(context: Context, setting: Setting) -> str:
    """Why a dump fails with a setting that is no option of its request; empty if it does not."""
    opts, option = context.opts, setting.option
    if option == "--page-server":
        return setting.effect
    if not setting.applies:
        return ""
    if option == "mntns_compat_mode":
        return "it is an option of restores"
    if option == "stream" and not opts.stream:
        return "the images are written to a directory, not to a stream"
    if option == "lazy_pages" and context.in_force("page_server") is None:
        return "it needs a page server's address and port"
    if option == "libdir" and not os.path.isdir(from_work_directory(opts, str(setting.value))):
        return "an existing directory is accepted"
    if option == "images_directory" and opts.images_directory is not None:
        own = option_rules.images_path(opts) or ""
        if os.path.realpath(str(setting.value)) != os.path.realpath(own):
            return f"the call writes to {own}"
    if option == "track_mem" and context.via.identity() is not None:
        lacking = requirements.by_kernel(CriuOpts(track_mem=True), Verb.DUMP, context.via)
        return "".join(problem.rule for problem in lacking)
    return ""


def _security(opts: CriuOpts) -> Findings:
    if opts.lsm_profile is None:
        return
    module = opts.lsm_profile.partition(":")[0]
    if module in ("selinux", "apparmor") and module not in read("/sys/kernel/security/lsm"):
        message = f"lsm_profile names {module}, which this kernel does not run"
        yield stops("security-module", message, failure="lsm-unsupported")


def _network_lock(context: Context) -> Findings:
    """Whether CRIU can lock the network (``criu/net.c``, ``criu/netfilter.c``).

    CRIU locks TCP connections that it saves, and a network namespace other than its own. Its
    default is iptables; a distribution can build it with another one, which CRIU does not tell.
    """
    lock, helpers = context.in_force("network_lock"), HelperPrograms(context.via)
    if lock == NetworkLock.SKIP:
        return
    if context.tree.has_own("net"):
        lacking = helpers.missing_for_namespace_lock()
    elif not context.in_force("tcp_close") and (used := inet_sockets.families_to_lock(context)):
        lacking = helpers.missing_for_lock(used)
    else:
        return
    if lock == NetworkLock.NFTABLES:
        if not _locks_with_nftables(context):
            message = "CRIU cannot lock the network with nftables here"
            yield stops("network-lock", message, failure="net-lock-nft")
        return
    if not lacking:
        return
    message = helpers.described(lacking)
    if lock is not None:
        yield stops(
            "network-lock",
            f"CRIU locks the network {message}",
            failure="net-lock-iptables",
            sets=(("network_lock", NetworkLock.NFTABLES),),
        )
    elif _locks_with_nftables(context):
        yield context.needs(
            "network-lock",
            f"CRIU locks the network by default {message}",
            sets={"network_lock": NetworkLock.NFTABLES},
            failure="net-lock-iptables",
        )
    else:
        message = f"CRIU locks the network by default {message}; with nftables it cannot do so here"
        yield stops("network-lock", message, failure="net-lock-iptables", cure=cure(lacking))


def _locks_with_nftables(context: Context) -> bool:
    """CRIU's test of the feature, which needs CAP_SYS_ADMIN; True if it is not known."""
    worker = worker_of(context.via)
    if worker is None or not has_capability(CAP_SYS_ADMIN):
        return True
    unprivileged = bool(context.opts.unprivileged)
    return tested(worker, LOCK, unprivileged=unprivileged, cached=True) is not False


_CGROUP_LINE = re.compile(r'\s*(- )?\s*"[^"]*":(\s*|\s*"[^"]*"\s*|\s*\[\s*("[^"]*"\s*,?\s*)*\]\s*)')


def _cgroup_yard(context: Context) -> Findings:
    """Whether ``cg_yard`` has a directory for each hierarchy (``criu/cgroup.c``).

    CRIU saves no cgroups if all processes are in its own.
    """
    opts = context.opts
    are_ignored = opts.manage_cgroups_mode == CgroupMode.IGNORE or opts.manage_cgroups is False
    if opts.cg_yard is None or are_ignored:
        return
    ours = lines("/proc/self/cgroup")
    theirs = (lines(f"/proc/{process.pid}/cgroup") for process in context.tree.alive)
    for line in next((each for each in theirs if each != ours), ()):
        name = line.split(":", 2)[1].removeprefix("name=") or "unified"
        path = os.path.realpath(os.path.join(from_work_directory(opts, opts.cg_yard), name))
        if not os.path.isdir(path):
            message = "cg_yard lacks a directory with the cgroups of a hierarchy"
            yield stops("cgroup-yard", message, path=path, failure="cg-yard")
            return


def _cgroup_namespace(context: Context) -> Findings:
    """CRIU saves no cgroups if all processes are in its own, and then needs them at the restore."""
    alive, ours = context.tree.alive, lines("/proc/self/cgroup")
    if len(alive) < 2 or not context.tree.has_own("cgroup"):
        return
    if all(line.endswith(":/") for line in ours):
        return  # the roots of both namespaces are the same cgroups
    if all(lines(f"/proc/{process.pid}/cgroup") == ours for process in alive):
        entry = known("cg-namespace")
        yield context.needs(
            "cgroup-namespace",
            "the processes have a cgroup namespace of their own and are in the cgroups of CRIU: a "
            "restore with the option leaves them in the cgroup namespace of CRIU, and fails "
            "without it",
            cure=entry.cure,
            sets={"manage_cgroups_mode": CgroupMode.IGNORE},
            failure=entry.id,
        )


def _cgroup_properties(opts: CriuOpts) -> Findings:
    text = opts.cg_props
    if text is None and opts.cg_props_file is not None:
        text = read(os.fsdecode(opts.cg_props_file))
    stated = [line for line in (text or "").splitlines() if line.strip()]
    if any(not _CGROUP_LINE.fullmatch(line) for line in stated):
        message = "cg_props or cg_props_file is not in the narrow form that CRIU reads"
        yield stops("cgroup-properties", message, failure="cg-props-syntax")


def directories(opts: CriuOpts, largest: int, total: int) -> Findings:
    """Whether the images directory is writable, and has the space for images of these sizes.

    The worker's file size limit is the caller's hard limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if limit != resource.RLIM_INFINITY and largest > limit and opts.compress is None:
        yield stops(
            "images-too-large",
            f"one image is to have about {in_units(largest)}, and files may have {in_units(limit)} "
            "here (RLIMIT_FSIZE)",
            failure="images-too-large",
        )
    path = opts.images_directory
    if not isinstance(path, str):
        return
    while not os.path.exists(path) and path not in ("", "/"):
        path = os.path.dirname(path) or "."
    result = os.statvfs(path)
    if result.f_flag & os.ST_RDONLY or not os.access(path, os.W_OK | os.X_OK):
        message = "the images directory cannot be written"
        yield stops("images-read-only", message, path=path, failure="images-read-only")
        return
    free = result.f_bavail * result.f_frsize
    if free < total and opts.page_server is None:
        message = f"about {in_units(total)} of images are to go where {in_units(free)} are free"
        yield stops("images-full", message, path=path, failure="images-full")

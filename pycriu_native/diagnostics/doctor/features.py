"""Features of the kernel, each tested by CRIU itself.

``criu check --feature NAME`` tests one feature on this kernel (``criu/cr-check.c``). A service
reports only a few of them, by a request.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ..._calls import requirements
from ..._checks.criu_files import KERNEL_CACHE as CACHE
from ..._system.capabilities import capability_name, has_capability, is_root_of_host
from ..._system.new_namespaces import CLONE_NEWNS
from ..._system.processor import can_track_memory
from ..._transport.base import Via
from ..._transport.process import ChildProcess
from ..._transport.worker import Worker, worker_of
from ...errors import CriuError
from ...findings import Finding, Severity
from .subject import Findings, Subject

PATIENCE = 20.0
"""Timeout of one test in seconds."""
AT_ONCE = 4
UNKNOWN = "Unknown feature"

INFO = Severity.NOTE


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature, by CRIU's name."""

    title: str
    costs: str
    """What does not work without the feature."""
    cure: str = "a newer kernel"
    """What provides it: usually a release of Linux or a build option."""
    severity: Severity = Severity.WARNING
    """Severity of a missing feature."""


FEATURES = {
    "mem_dirty_track": Feature(
        "tracking of changed memory (soft-dirty)",
        "pre_dump, dump_iters and track_mem do not work",
        "a kernel with CONFIG_MEM_SOFT_DIRTY"
        if can_track_memory()
        else f"another architecture: Linux has no soft-dirty tracking on {os.uname().machine}",
    ),
    "uffd": Feature(
        "userfaultfd",
        "lazy_pages does not work",
        "a kernel with CONFIG_USERFAULTFD; sysctl -w vm.unprivileged_userfaultfd=1 without "
        "CAP_SYS_PTRACE",
    ),
    "uffd-noncoop": Feature(
        "userfaultfd over fork and remap",
        "lazy_pages does not work with processes that fork meanwhile",
        "Linux 4.11",
    ),
    "pidfd_store": Feature(
        "pidfds that are kept between dumps", "pidfd_store_sk does not work", "Linux 5.6"
    ),
    "network_lock_nftables": Feature(
        "locking the network with nftables",
        'network_lock="nftables" does not work; iptables is needed for tcp_established',
        "the module nf_tables (modprobe nf_tables), the library libnftables (apt-get install "
        "libnftables1), and a CRIU that was built with nftables",
    ),
    "nftables": Feature(
        "nftables rules of containers",
        "the nftables rules of a network namespace are not saved",
        "a CRIU that was built with nftables",
    ),
    "clone3_set_tid": Feature(
        "clone3 with a chosen pid",
        "a restore sets pids with ns_last_pid, where other new processes can take them",
        "Linux 5.5",
    ),
    "seccomp_suspend": Feature(
        "suspending seccomp", "processes under a seccomp filter cannot be dumped", "Linux 4.3"
    ),
    "seccomp_filters": Feature(
        "reading seccomp filters",
        "processes under a seccomp filter cannot be dumped",
        "Linux 4.4 with CONFIG_CHECKPOINT_RESTORE",
    ),
    "fdinfo_lock": Feature("locks in fdinfo", "file locks may be confused", "Linux 4.1"),
    "mnt_id": Feature("mounts in fdinfo", "containers cannot be dumped", "Linux 3.15"),
    "aio_remap": Feature("moving AIO rings", "programs with io_submit fail", "Linux 3.19"),
    "timerfd": Feature("timers of timerfd", "programs with timerfd fail", "Linux 3.17"),
    "tun": Feature("tun devices", "tun and tap devices cannot be saved", "CONFIG_TUN, module tun"),
    "userns": Feature("user namespaces", "containers with a user namespace fail", "CONFIG_USER_NS"),
    "cgroupns": Feature(
        "cgroup namespaces", "containers with a cgroup namespace fail", "Linux 4.6"
    ),
    "timens": Feature(
        "time namespaces",
        "the monotonic clock jumps on another host, after a restart of the system too",
        "Linux 5.6 with CONFIG_TIME_NS",
    ),
    "loginuid": Feature(
        "login uids", "the login uid of processes is not restored", "CONFIG_AUDIT", INFO
    ),
    "autofs": Feature("autofs", "autofs mounts in containers fail", "module autofs4", INFO),
    "compat_cr": Feature(
        "32-bit processes",
        "32-bit processes cannot be restored",
        "CONFIG_IA32_EMULATION, and a CRIU that was built for it",
        INFO,
    ),
    "tcp_half_closed": Feature(
        "half-closed TCP connections", "half-closed connections cannot be saved"
    ),
    "can_map_vdso": Feature(
        "mapping the vdso", "32-bit processes cannot be restored", "Linux 4.8", INFO
    ),
    "sk_ns": Feature("namespaces of sockets", "nested network namespaces fail", "Linux 4.10"),
    "sk_unix_file": Feature("files of unix sockets", "unix sockets on overmounted paths fail"),
    "net_diag_raw": Feature("raw sockets in sock_diag", "raw sockets are lost", "module raw_diag"),
    "nsid": Feature("numbers of namespaces", "nested network namespaces fail"),
    "link_nsid": Feature("namespaces of links", "veth pairs inside fail"),
    "kcmp_epoll": Feature(
        "epoll in kcmp", "epolls with copied descriptors fail", "Linux 4.13 with CONFIG_KCMP"
    ),
    "external_net_ns": Feature(
        "network namespaces from outside", 'external="net[...]" does not work'
    ),
    "newifindex": Feature("numbers of links", "the numbers of links may change"),
    "has_ipt_legacy": Feature(
        "the old iptables", "old iptables rules are not saved", "module ip_tables", INFO
    ),
    "ns_pid": Feature("NSpid in status", "containers cannot be dumped", "Linux 4.1"),
    "apparmor_stacking": Feature(
        "stacked AppArmor profiles",
        "AppArmor namespaces of containers are not saved",
        "AppArmor, where it is used",
        INFO,
    ),
    "sockopt_buf_lock": Feature(
        "fixed buffers of sockets",
        "sizes of buffers that a program has set may grow again",
        severity=INFO,
    ),
    "memfd_hugetlb": Feature("memfds of huge pages", "shared huge pages fail"),
    "move_mount_set_group": Feature(
        "sharing groups of mounts",
        "containers with shared mounts are restored less exactly",
        "Linux 5.15",
    ),
    "openat2": Feature("openat2", "files are opened less safely", "Linux 5.6", INFO),
    "get_rseq_conf": Feature(
        "restartable sequences", "programs with glibc 2.35 or later fail", "Linux 5.13"
    ),
    "ipv6_freebind": Feature("IPV6_FREEBIND", "that option of a socket is lost", severity=INFO),
    "pagemap_scan": Feature("PAGEMAP_SCAN", "memory is scanned more slowly", "Linux 6.7", INFO),
    "timer_cr_ids": Feature("numbers of timers", "a restore of many timers is slow", severity=INFO),
    "overlayfs_maps": Feature("files mapped from overlayfs", "files mapped from overlayfs fail"),
    "breakpoints": Feature(
        "hardware breakpoints", "a restore takes a little longer", "a CPU that provides them", INFO
    ),
    "pagemap_scan_guard_pages": Feature(
        "guard pages in PAGEMAP_SCAN", "guard pages (MADV_GUARD_INSTALL) are lost", severity=INFO
    ),
}
"""The features that CRIU 4.2 can test."""

BY_REQUEST = {"mem_track": "mem_dirty_track", "lazy_pages": "uffd", "pidfd_store": "pidfd_store"}
"""Features in a request: the field of ``Features``, and the name on the command line."""


CONTROL = "mnt_id"
"""A feature of every kernel that CRIU supports: if its test fails, CRIU could not test anything."""

NEEDS_NO_RIGHTS = frozenset({"mem_dirty_track"})
"""Tests that fail for no other reason than the kernel."""
RIGHTS = (1, 12, 19, 21)
"""CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_SYS_ADMIN: without one of them, tests of
features fail that the kernel has."""


def look(via: Via, *, unprivileged: bool = False) -> Findings:
    """One finding for each feature, or one for all if CRIU cannot test them here."""
    worker = worker_of(via)
    if worker is None:
        yield from _by_request(via)
        return
    if not tested(worker, CONTROL, unprivileged=unprivileged, cached=True):
        yield Subject("features", "feature", "all of them").note(
            "unknown: CRIU tests none if its own check fails"
        )
        return
    lacking = lacking_rights()
    denied: list[str] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        here = partial(tested, worker, unprivileged=unprivileged)
        answers = list(pool.map(partial(here, cached=True), FEATURES))
        if os.path.exists(CACHE) and not unprivileged:
            bad = [name for name, each in zip(FEATURES, answers, strict=True) if each is False]
            again = pool.map(partial(here, cached=False), bad)
            denied = [name for name, there in zip(bad, again, strict=True) if there]
    if denied:
        yield _poor_cache(denied)
    for name, answer in zip(FEATURES, answers, strict=True):
        if answer is False and name in denied:
            yield _finding(name, True)
        elif answer is False and lacking and name not in NEEDS_NO_RIGHTS:
            yield _not_known(name, lacking)
        elif answer is not None:
            yield _finding(name, answer)


def lacking_rights() -> str:
    """The rights that the tests need and the caller lacks; empty if it has all."""
    if os.geteuid() == 0 and not is_root_of_host():
        return "the rights of the first user namespace"
    return ", ".join(capability_name(bit) for bit in RIGHTS if not has_capability(bit))


def _by_request(via: Via) -> Findings:
    if via.identity() is None:
        return
    try:
        result = requirements.ask_features(via)
    except CriuError:
        return  # the finding on CRIU reports the error
    for field, name in BY_REQUEST.items():
        yield _finding(name, getattr(result, field))


WITHOUT_CACHE = 'mount --make-rprivate / && mount -n -t tmpfs none /run && exec "$@"'
"""Runs a command in a new mount namespace, in which CRIU finds no cache."""


def tested(via: Worker, name: str, *, unprivileged: bool, cached: bool) -> bool | None:
    """Whether the kernel has a feature; None if this CRIU cannot test it.

    ``cached=False`` keeps CRIU from reading the result of an earlier test in its cache.
    """
    try:
        mode = ["--unprivileged"] if unprivileged else []
        words = [via.name(), "check", *mode, "--feature", name]
        if not cached:
            words = ["/bin/sh", "-c", WITHOUT_CACHE, "sh", *words]
        process = ChildProcess.start(words, via.env, namespaces=0 if cached else CLONE_NEWNS)
    except CriuError:
        return None
    process.wait(PATIENCE)
    if UNKNOWN in process.final_stderr:
        return None
    return process.status == 0


def _poor_cache(names: list[str]) -> Finding:
    """CRIU's cache denies features that the kernel has."""
    return Subject("cache-content", "criu", "content of the cache").warning(
        f"{CACHE} lacks features that the kernel has: {', '.join(names)}",
        costs="a CRIU with fewer rights has written it, and each CRIU works without them",
        cure=f"rm {CACHE}",
    )


def _not_known(name: str, lacking: str) -> Finding:
    """A test that failed: because of the kernel, or because of the caller's rights."""
    feature = FEATURES[name]
    return Subject(f"feature:{name}", "feature", feature.title).note(
        f"not known: CRIU's test fails, and the caller lacks {lacking}",
        costs=f"{feature.costs}, at least with these rights",
    )


def _finding(name: str, there: bool) -> Finding:
    feature = FEATURES[name]
    about = Subject(f"feature:{name}", "feature", feature.title)
    if there:
        return about.good("there")
    return about.finding(
        feature.severity, "lacking", costs=feature.costs, cure=f"it needs {feature.cure}"
    )

"""The kinds of image: magic numbers, messages, and the names of the files.

The numbers and names are CRIU's ``magic.h``, ``image-desc.c`` and ``protobuf-desc.h``.
"""

from __future__ import annotations

from .._support.no_fork import no_fork

COMMON = 0x54564319
"""The first word of an image, since CRIU 1.6; the kind's own magic number is the second."""
SERVICE = 0x55105940
"""The same for images that do not describe processes: statistics, cache of inode paths."""

_KINDS: tuple[tuple[str, str, int, str] | tuple[str, str, int, str, str], ...] = (
    ("inventory", "INVENTORY", 0x58313116, "inventory_entry"),
    ("pstree", "PSTREE", 0x50273030, "pstree_entry"),
    ("fdinfo-", "FDINFO", 0x56213732, "fdinfo_entry"),
    ("pagemap-", "PAGEMAP", 0x56084025, "pagemap_head", "pagemap"),
    ("core-", "CORE", 0x55053847, "core_entry"),
    ("ids-", "IDS", 0x54432030, "task_kobj_ids_entry"),
    ("vmas-", "VMAS", 0x54123737, "vma_entry"),
    ("pipes", "PIPES", 0x56513555, "pipe_entry"),
    ("pipes-data", "PIPES_DATA", 0x56453709, "pipe_data_entry", "bytes"),
    ("fifo", "FIFO", 0x58364939, "fifo_entry"),
    ("fifo-data", "FIFO_DATA", 0x59333054, "pipe_data_entry", "bytes"),
    ("sigacts-", "SIGACT", 0x55344201, "sa_entry"),
    ("unixsk", "UNIXSK", 0x54373943, "unix_sk_entry"),
    ("inetsk", "INETSK", 0x56443851, "inet_sk_entry"),
    ("packetsk", "PACKETSK", 0x60454618, "packet_sock_entry"),
    ("itimers-", "ITIMERS", 0x57464056, "itimer_entry"),
    ("posix-timers-", "POSIX_TIMERS", 0x52603957, "posix_timer_entry"),
    ("sk-queues", "SK_QUEUES", 0x56264026, "sk_packet_entry", "length"),
    ("utsns-", "UTSNS", 0x54473203, "utsns_entry"),
    ("creds-", "CREDS", 0x54023547, "creds_entry"),
    ("ipcns-var-", "IPC_VAR", 0x53115007, "ipc_var_entry"),
    ("ipcns-shm-", "IPCNS_SHM", 0x46283044, "ipc_shm_entry", "segment"),
    ("ipcns-msg-", "IPCNS_MSG", 0x55453737, "ipc_msg_entry", "messages"),
    ("ipcns-sem-", "IPCNS_SEM", 0x59573019, "ipc_sem_entry", "semaphores"),
    ("reg-files", "REG_FILES", 0x50363636, "reg_file_entry"),
    ("ext-files", "EXT_FILES", 0x59255641, "ext_file_entry"),
    ("fs-", "FS", 0x51403912, "fs_entry"),
    ("mm-", "MM", 0x57492820, "mm_entry"),
    ("remap-fpath", "REMAP_FPATH", 0x59133954, "remap_file_path_entry"),
    ("ghost-file-", "GHOST_FILE", 0x52583605, "ghost_file_entry", "ghost"),
    ("tcp-stream-", "TCP_STREAM", 0x51465506, "tcp_stream_entry", "queues"),
    ("eventfd", "EVENTFD_FILE", 0x44523722, "eventfd_file_entry"),
    ("eventpoll", "EVENTPOLL_FILE", 0x45023858, "eventpoll_file_entry"),
    ("eventpoll-tfd", "EVENTPOLL_TFD", 0x44433746, "eventpoll_tfd_entry"),
    ("signalfd", "SIGNALFD", 0x57323820, "signalfd_entry"),
    ("inotify", "INOTIFY_FILE", 0x48424431, "inotify_file_entry"),
    ("inotify-wd", "INOTIFY_WD", 0x54562009, "inotify_wd_entry"),
    ("mountpoints-", "MNTS", 0x55563928, "mnt_entry"),
    ("netdev-", "NETDEV", 0x57373951, "net_device_entry"),
    ("netns-", "NETNS", 0x55933752, "netns_entry"),
    ("tty", "TTY_FILES", 0x59433025, "tty_file_entry"),
    ("tty-info", "TTY_INFO", 0x59453036, "tty_info_entry"),
    ("tty-data", "TTY_DATA", 0x59413026, "tty_data_entry"),
    ("filelocks", "FILE_LOCKS", 0x54323616, "file_lock_entry"),
    ("rlimit-", "RLIMIT", 0x57113925, "rlimit_entry"),
    ("fanotify", "FANOTIFY_FILE", 0x55096122, "fanotify_file_entry"),
    ("fanotify-mark", "FANOTIFY_MARK", 0x56506035, "fanotify_mark_entry"),
    ("signal-s-", "SIGNAL", 0x59255647, "siginfo_entry"),
    ("netlinksk", "NETLINK_SK", 0x58005614, "netlink_sk_entry"),
    ("ns-files", "NS_FILES", 0x61394011, "ns_file_entry"),
    ("tunfile", "TUNFILE", 0x57143751, "tunfile_entry"),
    ("cgroup", "CGROUP", 0x59383330, "cgroup_entry"),
    ("timerfd", "TIMERFD", 0x50493712, "timerfd_entry"),
    ("cpuinfo", "CPUINFO", 0x61404013, "cpuinfo_entry"),
    ("userns-", "USERNS", 0x55474906, "userns_entry"),
    ("seccomp", "SECCOMP", 0x64413049, "seccomp_entry"),
    ("binfmt-misc", "BINFMT_MISC", 0x67343323, "binfmt_misc_entry"),
    ("autofs-", "AUTOFS", 0x49353943, "autofs_entry"),
    ("files", "FILES", 0x56303138, "file_entry"),
    ("memfd", "MEMFD_INODE", 0x48453499, "memfd_inode_entry"),
    ("timens-", "TIMENS", 0x43114433, "timens_entry"),
    ("pidns-", "PIDNS", 0x61157326, "pidns_entry"),
    ("bpfmap-file", "BPFMAP_FILE", 0x57506142, "bpfmap_file_entry"),
    ("bpfmap-data", "BPFMAP_DATA", 0x64324033, "bpfmap_data_entry", "pairs"),
    ("apparmor", "APPARMOR", 0x59423047, "apparmor_entry"),
    ("pidfd", "PIDFD", 0x54435556, "pidfd_entry"),
    ("", "STATS", 0x57093306, "stats_entry"),
    ("", "IRMAP_CACHE", 0x57004059, "irmap_cache_entry"),
)
"""File name without its ending (a dash at the end stands before a number), name as ``crit`` has it,
magic number, message, and what follows a message."""

FORMATS = tuple(row[1:] for row in _KINDS)
"""The rows without file names."""

TRAILERS = {kind: more[0] for kind, _, _, *more in FORMATS if more}
"""What follows a message, by kind."""


def _head(kind: str, magic: int) -> bytes:
    first = SERVICE if kind in ("STATS", "IRMAP_CACHE") else COMMON
    words = (magic,) if kind == "INVENTORY" else (first, magic)
    return b"".join(word.to_bytes(4, "little") for word in words)


HEADS = {kind: _head(kind, magic) for kind, magic, *_ in FORMATS}
"""The first bytes of an image, by kind."""

PATTERNS = {file: kind for file, kind, *_ in _KINDS if file} | {
    "binfmt-misc-": "BINFMT_MISC",
    "pagemap-shmem-": "PAGEMAP",
    "signal-p-": "SIGNAL",
}
"""Kind of image by file name, as in ``_KINDS``."""

_RAW = (
    r"(pages-(shmem-)?\d+|(ifaddr|route6?|rule|ip6?tables|nftables|netns-ct|netns-exp)-\d+"
    r"|tmpfs-(dev-)?\d+\.tar\.gz)\.img"
)


def is_raw(name: str) -> bool:
    """Whether a file of a set has no magic number: it is of another tool, or has memory."""
    with no_fork:
        import re  # few calls need it

    return re.fullmatch(_RAW, name) is not None

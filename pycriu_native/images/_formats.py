"""What kinds of image there are: magic number, message, what follows it, and the file's name.

The numbers and names are CRIU's ``magic.h``, ``image-desc.c`` and ``protobuf-desc.h``.
"""

from __future__ import annotations

import functools
import re

from .._dataclass import dataclass

COMMON = 0x54564319
"""The first word of an image, since CRIU 1.6; the kind's own magic number is the second."""
SERVICE = 0x55105940
"""The same for what is no part of the process: statistics, and the cache of inode paths."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of image."""

    name: str
    """As ``crit`` calls it."""
    magic: int
    message: str
    """Of each entry; of the first one only in a pagemap and a ghost file."""
    trailer: str = ""
    """What follows the message: a name that ``_trailers.py`` knows, or nothing."""

    @property
    def head(self) -> int | None:
        """The word before the magic number; the inventory alone has none."""
        if self.name == "INVENTORY":
            return None
        return SERVICE if self.name in ("STATS", "IRMAP_CACHE") else COMMON


FORMATS = (
    Format("INVENTORY", 0x58313116, "inventory_entry"),
    Format("PSTREE", 0x50273030, "pstree_entry"),
    Format("FDINFO", 0x56213732, "fdinfo_entry"),
    Format("PAGEMAP", 0x56084025, "pagemap_head", "pagemap"),
    Format("CORE", 0x55053847, "core_entry"),
    Format("IDS", 0x54432030, "task_kobj_ids_entry"),
    Format("VMAS", 0x54123737, "vma_entry"),
    Format("PIPES", 0x56513555, "pipe_entry"),
    Format("PIPES_DATA", 0x56453709, "pipe_data_entry", "bytes"),
    Format("FIFO", 0x58364939, "fifo_entry"),
    Format("FIFO_DATA", 0x59333054, "pipe_data_entry", "bytes"),
    Format("SIGACT", 0x55344201, "sa_entry"),
    Format("UNIXSK", 0x54373943, "unix_sk_entry"),
    Format("INETSK", 0x56443851, "inet_sk_entry"),
    Format("PACKETSK", 0x60454618, "packet_sock_entry"),
    Format("ITIMERS", 0x57464056, "itimer_entry"),
    Format("POSIX_TIMERS", 0x52603957, "posix_timer_entry"),
    Format("SK_QUEUES", 0x56264026, "sk_packet_entry", "length"),
    Format("UTSNS", 0x54473203, "utsns_entry"),
    Format("CREDS", 0x54023547, "creds_entry"),
    Format("IPC_VAR", 0x53115007, "ipc_var_entry"),
    Format("IPCNS_SHM", 0x46283044, "ipc_shm_entry", "segment"),
    Format("IPCNS_MSG", 0x55453737, "ipc_msg_entry", "messages"),
    Format("IPCNS_SEM", 0x59573019, "ipc_sem_entry", "semaphores"),
    Format("REG_FILES", 0x50363636, "reg_file_entry"),
    Format("EXT_FILES", 0x59255641, "ext_file_entry"),
    Format("FS", 0x51403912, "fs_entry"),
    Format("MM", 0x57492820, "mm_entry"),
    Format("REMAP_FPATH", 0x59133954, "remap_file_path_entry"),
    Format("GHOST_FILE", 0x52583605, "ghost_file_entry", "ghost"),
    Format("TCP_STREAM", 0x51465506, "tcp_stream_entry", "queues"),
    Format("EVENTFD_FILE", 0x44523722, "eventfd_file_entry"),
    Format("EVENTPOLL_FILE", 0x45023858, "eventpoll_file_entry"),
    Format("EVENTPOLL_TFD", 0x44433746, "eventpoll_tfd_entry"),
    Format("SIGNALFD", 0x57323820, "signalfd_entry"),
    Format("INOTIFY_FILE", 0x48424431, "inotify_file_entry"),
    Format("INOTIFY_WD", 0x54562009, "inotify_wd_entry"),
    Format("MNTS", 0x55563928, "mnt_entry"),
    Format("NETDEV", 0x57373951, "net_device_entry"),
    Format("NETNS", 0x55933752, "netns_entry"),
    Format("TTY_FILES", 0x59433025, "tty_file_entry"),
    Format("TTY_INFO", 0x59453036, "tty_info_entry"),
    Format("TTY_DATA", 0x59413026, "tty_data_entry"),
    Format("FILE_LOCKS", 0x54323616, "file_lock_entry"),
    Format("RLIMIT", 0x57113925, "rlimit_entry"),
    Format("FANOTIFY_FILE", 0x55096122, "fanotify_file_entry"),
    Format("FANOTIFY_MARK", 0x56506035, "fanotify_mark_entry"),
    Format("SIGNAL", 0x59255647, "siginfo_entry"),
    Format("NETLINK_SK", 0x58005614, "netlink_sk_entry"),
    Format("NS_FILES", 0x61394011, "ns_file_entry"),
    Format("TUNFILE", 0x57143751, "tunfile_entry"),
    Format("CGROUP", 0x59383330, "cgroup_entry"),
    Format("TIMERFD", 0x50493712, "timerfd_entry"),
    Format("CPUINFO", 0x61404013, "cpuinfo_entry"),
    Format("USERNS", 0x55474906, "userns_entry"),
    Format("SECCOMP", 0x64413049, "seccomp_entry"),
    Format("BINFMT_MISC", 0x67343323, "binfmt_misc_entry"),
    Format("AUTOFS", 0x49353943, "autofs_entry"),
    Format("FILES", 0x56303138, "file_entry"),
    Format("MEMFD_INODE", 0x48453499, "memfd_inode_entry"),
    Format("TIMENS", 0x43114433, "timens_entry"),
    Format("PIDNS", 0x61157326, "pidns_entry"),
    Format("BPFMAP_FILE", 0x57506142, "bpfmap_file_entry"),
    Format("BPFMAP_DATA", 0x64324033, "bpfmap_data_entry", "pairs"),
    Format("APPARMOR", 0x59423047, "apparmor_entry"),
    Format("PIDFD", 0x54435556, "pidfd_entry"),
    Format("STATS", 0x57093306, "stats_entry"),
    Format("IRMAP_CACHE", 0x57004059, "irmap_cache_entry"),
)
BY_MAGIC = {each.magic: each for each in FORMATS}
BY_NAME = {each.name: each for each in FORMATS}

RAW = re.compile(
    r"(pages-(shmem-)?\d+|(ifaddr|route6?|rule|ip6?tables|nftables|netns-ct|netns-exp)-\d+"
    r"|tmpfs-(dev-)?\d+\.tar\.gz)\.img"
)
"""Names of files that other tools wrote, or that are memory: they have no magic number."""

CATEGORIES = (
    ("memory", r"pages-.*\.img"),
    ("deleted files", r"ghost-file-.*\.img"),
    ("file systems", r"tmpfs-.*\.img"),
    ("queues", r"(?:pipes-data|fifo-data|sk-queues|tcp-stream-.*|tty-data)\.img"),
    ("shared memory", r"ipcns-.*\.img"),
    ("page maps", r"pagemap-.*\.img"),
    ("logs", r".*\.log"),
    ("statistics", r"stats-(?:dump|restore)"),
    ("descriptions", r".*\.img"),
    ("other", r".*"),
)
"""What the bytes of an image set are spent on; the first pattern that fits decides."""

_NO_DIGITS = dict.fromkeys(map(ord, "0123456789"))
_CATEGORY = re.compile("|".join(f"({names})" for _, names in CATEGORIES), re.S)


def category(name: str) -> str:
    """What a file of an image set is, in a word or two."""
    # No pattern asks for a number, and many files differ in theirs only.
    return _category(name.translate(_NO_DIGITS))


@functools.lru_cache(256)
def _category(name: str) -> str:
    found = _CATEGORY.fullmatch(name)
    return CATEGORIES[found.lastindex - 1 if found and found.lastindex else -1][0]

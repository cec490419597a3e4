"""Names of kernel constants in images: capabilities, states, families, limits.

The numbers are those of ``linux/capability.h``, ``net/tcp_states.h``, ``bits/resource.h`` and
CRIU's ``image.h``.
"""

from __future__ import annotations

from .._system.capabilities import CAPABILITIES

# fmt: off
LIMITS = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as",
    "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
)
SOCKET_STATES = dict(enumerate((
    "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
    "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING",
), 1))
# fmt: on
STATES = {1: "alive", 2: "zombie", 3: "stopped", 6: "zombie"}
"""Images have TASK_DEAD for a zombie; CRIU uses TASK_ZOMBIE only during a restore."""
SOCKET_KINDS = {1: "STREAM", 2: "DGRAM", 3: "RAW", 5: "SEQPACKET", 10: "PACKET"}
PROTOCOLS = {0: "IP", 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPV6", 136: "UDPLITE", 255: "RAW"}
LOCKS = {1: "posix", 2: "flock", 4: "ofd", 8: "lease"}
NAMESPACES = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")


def capabilities(words: tuple[int, ...]) -> tuple[str, ...]:
    """The capabilities of a set, which is stored as 32-bit words."""
    bits = sum(word << 32 * index for index, word in enumerate(words[:4]))
    named = [f"cap_{name}" for number, name in enumerate(CAPABILITIES) if bits >> number & 1]
    more = [f"cap_{number}" for number in range(len(CAPABILITIES), 64) if bits >> number & 1]
    return (*named, *more)

"""Tables of nftables of the family inet, by netlink (``linux/netfilter/nf_tables.h``)."""

from __future__ import annotations

import errno
import os
import struct

from .._support.lazy import socket

NETLINK_NETFILTER = 12
NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
GET_TABLE, DELETE_TABLE = NFTABLES << 8 | 1, NFTABLES << 8 | 2
REQUEST, ACK = 1, 4
NLMSG_ERROR = 2
TABLE_NAME = 1  # NFTA_TABLE_NAME
PROTO_INET = 1  # NFPROTO_INET

TIMEOUT = 10.0
"""Seconds to wait for the kernel's response."""


def has_table(name: str) -> bool:
    """Whether the network namespace of this thread has a table."""
    return _request(_message(GET_TABLE, REQUEST, PROTO_INET, 0, _attribute(name)), name)


def delete_table(name: str) -> bool:
    """Remove a table from the network namespace of this thread; False if there is none."""
    batch = (
        _message(BATCH_BEGIN, REQUEST, 0, NFTABLES)
        + _message(DELETE_TABLE, REQUEST | ACK, PROTO_INET, 0, _attribute(name))
        + _message(BATCH_END, REQUEST, 0, NFTABLES)
    )
    return _request(batch, name)


def _message(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    head = struct.pack("=BBH", family, 0, socket.htons(resource))
    return struct.pack("=IHHII", 16 + len(head) + len(body), kind, flags, 1, 0) + head + body


def _attribute(name: str) -> bytes:
    data = name.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), TABLE_NAME) + data + bytes(-len(data) % 4)


def _request(messages: bytes, name: str) -> bool:
    """Send a request about a table; False if the table does not exist."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False  # a kernel without netlink for netfilter
        raise
    with sock:
        sock.settimeout(TIMEOUT)
        sock.send(messages)
        response = sock.recv(65536)
    _, kind, _, _, _, code = struct.unpack_from("=IHHIIi", response)
    if kind != NLMSG_ERROR or code == 0:
        return True
    if -code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
        return False  # EINVAL: no nftables in this kernel
    raise OSError(-code, f"{os.strerror(-code)}: table inet {name}")

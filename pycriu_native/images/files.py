"""The open files of an image set, with the data in their queues."""

from __future__ import annotations

import os
import struct
from typing import Any

from .._support.lazy import socket
from . import kernel_names as names
from .image_directory import ImageDirectory
from .json_messages import to_dict
from .model import File, InetSocket, OtherFile, Pipe, RegularFile, Terminal, UnixSocket
from .schema import enum_name

_MEMBERS = {
    "REG": "reg",
    "PIPE": "pipe",
    "FIFO": "fifo",
    "INETSK": "isk",
    "UNIXSK": "usk",
    "EVENTFD": "efd",
    "EVENTPOLL": "epfd",
    "INOTIFY": "ify",
    "SIGNALFD": "sgfd",
    "PACKETSK": "psk",
    "TTY": "tty",
    "FANOTIFY": "ffy",
    "NETLINKSK": "nlsk",
    "NS": "nsf",
    "TUNF": "tunf",
    "EXT": "ext",
    "TIMERFD": "tfd",
    "MEMFD": "memfd",
    "BPFMAP": "bpf",
    "PIDFD": "pidfd",
}
"""Member of ``file_entry`` by type (CRIU's ``fdinfo.proto``)."""
_USK_EXTERN = 1
_REMAPS = {0: "linked", 1: "ghost", 2: "procfs"}


class Files:
    """Reads ``files.img`` and the images that it refers to."""

    def __init__(self, images: ImageDirectory, sessions: set[int]) -> None:
        """``sessions`` are the pids of session leaders in the images."""
        self._images = images
        self._sessions = sessions
        read = images.entries
        self._remaps = {each.orig_id: each for each in read("remap-fpath.img")}
        self._terminals = {each.id: each for each in read("tty-info.img")}
        self._in_pipe = {each.pipe_id: each for each in read("pipes-data.img")}
        self._in_pipe |= {each.pipe_id: each for each in read("fifo-data.img")}
        self.memfds = {each.inode_id: each for each in read("memfd.img")}
        self._queued: dict[int, int] = {}
        for each in read("sk-queues.img"):
            self._queued[each.id_for] = self._queued.get(each.id_for, 0) + each.length
        self.by_id: dict[int, File] = {}
        entries = [(enum_name("fd_types", each.type), each) for each in read("files.img")]
        # Named pipes and terminals refer to regular files.
        for type_, entry in sorted(entries, key=lambda each: each[0] in ("FIFO", "TTY")):
            member = _MEMBERS.get(type_)
            if member is None or not entry.HasField(member):
                self.by_id[entry.id] = OtherFile(id=entry.id, type=type_, details={})
            else:
                self.by_id[entry.id] = self._one(type_, getattr(entry, member))

    def _one(self, type_: str, entry: Any) -> File:
        match type_:
            case "REG":
                return self._regular(entry)
            case "PIPE" | "FIFO":
                return self._pipe(type_, entry)
            case "INETSK":
                return self._inet(entry)
            case "UNIXSK":
                return self._unix(entry)
            case "TTY":
                return self._terminal(entry)
        details = to_dict(entry)
        if type_ == "MEMFD" and entry.inode_id in self.memfds:
            inode = self.memfds[entry.inode_id]
            details |= {
                "name": os.fsdecode(inode.name),
                "size": inode.size,
                "shmid": inode.shmid,
                "seals": inode.seals,
            }
        return OtherFile(id=entry.id, type=type_, flags=details.get("flags", 0), details=details)

    def _regular(self, entry: Any) -> RegularFile:
        remap = self._remaps.get(entry.id)
        # Without a type it is a ghost: older releases had no other kind, and no field.
        kind = size = None
        if remap is not None:
            kind = _REMAPS.get(remap.remap_type) if remap.HasField("remap_type") else "ghost"
            size = self._images.ghost_size(remap.remap_id) if kind == "ghost" else None
        words = entry.build_id
        return RegularFile(
            id=entry.id,
            type="REG",
            flags=entry.flags,
            path=os.fsdecode(entry.name),
            position=entry.pos,
            mode=entry.mode if entry.HasField("mode") else None,
            size=entry.size if entry.HasField("size") else None,
            mount=entry.mnt_id,
            build_id=struct.pack(f"<{len(words)}I", *words).hex() if words else None,
            external=entry.ext,
            deleted=kind,
            ghost_size=size,
            remap=remap.remap_id if remap else None,
        )

    def _pipe(self, type_: str, entry: Any) -> Pipe:
        inside = self._in_pipe.get(entry.pipe_id)
        named = self.by_id.get(entry.regf_id) if type_ == "FIFO" else None
        return Pipe(
            id=entry.id,
            type=type_,
            flags=entry.flags if type_ == "PIPE" else 0,
            pipe=entry.pipe_id,
            queued=inside.bytes if inside else 0,
            capacity=inside.size if inside and inside.HasField("size") else None,
            path=named.path if isinstance(named, RegularFile) else None,
        )

    def _inet(self, entry: Any) -> InetSocket:
        stream = next(iter(self._images.entries(f"tcp-stream-{entry.ino:x}.img")), None)
        remote = _address(entry.family, entry.dst_addr, entry.dst_port) if entry.dst_port else None
        return InetSocket(
            id=entry.id,
            type="INETSK",
            flags=entry.flags,
            inode=entry.ino,
            family={2: "INET", 10: "INET6"}.get(entry.family, str(entry.family)),
            kind=names.SOCKET_KINDS.get(entry.type, str(entry.type)),
            protocol=names.PROTOCOLS.get(entry.proto, str(entry.proto)),
            state=names.SOCKET_STATES.get(entry.state, str(entry.state)),
            local=_address(entry.family, entry.src_addr, entry.src_port),
            remote=remote,
            backlog=entry.backlog,
            received=stream.inq_len if stream else self._queued.get(entry.id, 0),
            unacknowledged=stream.outq_len if stream else 0,
            device=os.fsdecode(entry.ifname) or None,
            namespace=entry.ns_id if entry.HasField("ns_id") else None,
            shares_port=entry.opts.reuseaddr or entry.opts.so_reuseport,
            only_ipv6=entry.v6only,
        )

    def _unix(self, entry: Any) -> UnixSocket:
        name = os.fsdecode(entry.name.rstrip(b"\0") if entry.name[:1] != b"\0" else entry.name)
        return UnixSocket(
            id=entry.id,
            type="UNIXSK",
            flags=entry.flags,
            inode=entry.ino,
            kind=names.SOCKET_KINDS.get(entry.type, str(entry.type)),
            state=names.SOCKET_STATES.get(entry.state, str(entry.state)),
            name=f"@{name[1:]}" if name.startswith("\0") else name,
            peer=entry.peer,
            backlog=entry.backlog,
            queued=self._queued.get(entry.id, 0),
            external=bool(entry.uflags & _USK_EXTERN),
            deleted=entry.deleted,
            namespace=entry.ns_id if entry.HasField("ns_id") else None,
        )

    def _terminal(self, entry: Any) -> Terminal:
        info = self._terminals.get(entry.tty_info_id)
        file = self.by_id.get(entry.regf_id)
        session = info.sid if info else 0
        return Terminal(
            id=entry.id,
            type="TTY",
            flags=entry.flags,
            kind=enum_name("TtyType", info.type) if info else "UNKNOWN",
            index=info.pty.index if info and info.HasField("pty") else None,
            session=session,
            group=info.pgrp if info else 0,
            path=file.path if isinstance(file, RegularFile) else None,
            # A terminal without attributes was hung up; a restore creates a new master for it.
            inherited=bool(session)
            and session not in self._sessions
            and (info is None or info.HasField("termios")),
        )

    def path_of(self, number: int) -> str | None:
        """The path of a regular file, or the name of a memfd."""
        result = self.by_id.get(number)
        if isinstance(result, RegularFile):
            return result.path
        if isinstance(result, OtherFile):
            name: str | None = result.details.get("name")
            return name
        return None

    def shared_of(self, file: int) -> int | None:
        """The id of the shared memory behind a memfd."""
        result = self.by_id.get(file)
        if isinstance(result, OtherFile):
            shared: int | None = result.details.get("shmid")
            return shared
        return None


def _address(family: int, words: Any, port: int) -> str:
    """An address as text. The words are in network byte order."""
    data = struct.pack(f"={len(words)}I", *words)
    if family == socket.AF_INET6 and len(data) == 16:
        return f"[{socket.inet_ntop(socket.AF_INET6, data)}]:{port}"
    if len(data) >= 4:
        return f"{socket.inet_ntop(socket.AF_INET, data[:4])}:{port}"
    return f"?:{port}"

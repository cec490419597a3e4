"""A TCP connection with data in flight that detects each lost or duplicated byte."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest

from ..conftest import Spawn
from .hosts import Host
from .processes import Target, eventually

MIB = 2**20
TOTAL = 16 * MIB
"""Bytes that each end sends."""

END = f"""
    import fcntl, hashlib, socket, struct, termios, threading

    class End:
        '''One end of a connection: sends {TOTAL} bytes, and receives as many as it is let.'''

        def __init__(self):
            self.limit, self.changed = {MIB}, threading.Condition()
            self.sent = self.received = 0
            self.out, self.into = hashlib.sha256(), hashlib.sha256()
            self.errors = []

        def start(self, connection):
            self.connection = connection
            for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
                connection.setsockopt(socket.SOL_SOCKET, option, {2 * MIB})
            self.threads = [threading.Thread(target=self.run, args=[which], daemon=True)
                            for which in (self.send, self.receive)]
            for thread in self.threads:
                thread.start()

        def run(self, which):
            try:
                which()
            except OSError as error:
                self.errors.append(type(error).__name__)

        def send(self):
            while self.sent < {TOTAL}:
                block = hashlib.shake_256(b"%d" % self.sent).digest(65536)
                self.out.update(block)
                self.connection.sendall(block)
                self.sent += len(block)
            self.connection.shutdown(socket.SHUT_WR)

        def receive(self):
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.received < self.limit)
                block = self.connection.recv(65536)
                if not block:
                    return
                self.into.update(block)
                self.received += len(block)

        def let(self):
            with self.changed:
                self.limit = 2**60
                self.changed.notify_all()

        def queue(self, what):
            return struct.unpack("i", fcntl.ioctl(self.connection, what, bytes(4)))[0]

        def status(self):
            return dict(
                sent=self.sent, received=self.received, errors=self.errors,
                out=self.out.hexdigest(), into=self.into.hexdigest(),
                done=not any(thread.is_alive() for thread in self.threads),
                waiting_out=self.queue(termios.TIOCOUTQ), waiting_in=self.queue(termios.FIONREAD),
            )

    end = End()
"""
SERVER = """
    listener = socket.create_server(({address!r}, 7000))
    def accept():
        end.start(listener.accept()[0])
    def reuse():
        return end.connection.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    serve(accept=accept, status=end.status, let=end.let, reuse=reuse)
"""
CLIENT = """
    end.start(socket.create_connection(({address!r}, 7000)))
    serve(status=end.status, let=end.let)
"""


@dataclass
class Stream:
    """A connection with data in flight: both ends send and have stopped reading."""

    server: Target
    client: Target
    home: Host
    """The host of the server, and of CRIU when it dumps one connection at a time."""

    def goes_on(self) -> None:
        """Both read to the end; each received exactly what the other sent."""
        self.client.ask("let")
        self.server.ask("let")
        ends = self.client, self.server
        eventually(lambda: all(end.ask("status")["done"] for end in ends), "the end of the stream")
        one, other = (end.ask("status") for end in ends)
        assert (one["errors"], other["errors"]) == ([], [])
        assert one["sent"] == other["sent"] == one["received"] == other["received"] == TOTAL
        assert (one["out"], other["out"]) == (other["into"], one["into"])


def queues_are_full(end: Target) -> None:
    """Wait until more than 1 MB is queued for sending, and 0.5 MB for reading."""

    def full() -> bool:
        status = end.ask("status")
        return bool(status["waiting_out"] > MIB and status["waiting_in"] > MIB // 2)

    eventually(full, "full queues")


def start_stream(hosts: tuple[Host, Host, str], spawn: Spawn) -> Stream:
    """A stream between two hosts with more than 1 MB queued in each direction.

    ``hosts``: the server's, the client's, and the server's address.
    """
    home, far, address = hosts
    with home.entered():
        server = spawn(END + SERVER.format(address=address))
    with far.entered():
        client = spawn(END + CLIENT.format(address=address))
    server.ask("accept")
    for end in (server, client):
        queues_are_full(end)
    return Stream(server, client, home)


def locks(home: Host) -> tuple[bool, bool]:
    """Whether CRIU's locks exist on a host, in nftables and in iptables."""
    tables = home.run("nft", "list", "ruleset")
    return "inet CRIU-" in tables, "table ip filter" in tables and "drop" in tables.lower()


each_lock = pytest.mark.parametrize("lock", ["nftables", "iptables"])
needs_both = pytest.mark.skipif(
    not (shutil.which("nft") and shutil.which("iptables-restore")),
    reason="no nft or no iptables-restore program is installed",
)

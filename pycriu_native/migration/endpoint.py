"""Connections between the two sides of a migration: addresses, TLS, and the peers' owners.

Images and pages contain the memory of a process, which the destination runs as root. For network
addresses TLS is therefore required, with certificates on both sides, unless the caller sets
``insecure=True``. On loopback every user can connect: the peer must belong to root or the caller.

gevent and eventlet replace functions of the ``socket`` module, so connections are made with the
original class only. TLS sockets of gevent and eventlet are used unchanged.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from .._calls import logs
from .._support import unpatched
from .._support.lazy import socket
from .._support.sockets import blocking
from ..errors import MigrationError, OptionError, PeerLostError, Problem
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from .control_channel import greet
from .deadline import LOOK, MigrationDeadline
from .loopback_peer import foreign_owner, is_loopback

if TYPE_CHECKING:
    Place = str | tuple[str, int] | socket.socket
else:
    Place = Any
"""``"host:port"``, ``(host, port)``, or a socket that the caller owns."""

EXPOSED = (
    "is a network address, which needs encryption: set tls=True with tls_cacert, tls_cert and "
    "tls_key, or set insecure=True (the memory of the process can then be read on the network, "
    "and anyone who can connect to the destination can run any program there as root)"
)

HANDSHAKE = 10.0
"""Seconds for the greeting of a peer."""

MOST_SILENT = 100
"""Connections without data that are kept; then the oldest is closed."""

TLS_FIELDS = ("tls", "tls_no_cn_verify", "tls_cacert", "tls_cacrl", "tls_cert", "tls_key")


def problems_with(place: Place, name: str, opts: CriuOpts, insecure: bool) -> Iterator[Problem]:
    """Problems of an address and of the certificates."""
    is_safe = bool(opts.tls) or insecure
    rule = _broken_rule(place, name) or (None if is_safe or _is_local(place) else EXPOSED)
    if rule is not None:
        yield Problem(name, place, rule)
    for field in ("tls_cacert", "tls_cert", "tls_key"):
        if opts.tls and getattr(opts, field) is None:
            yield Problem(field, None, "is required with tls: both sides need a certificate")
    for field in TLS_FIELDS[1:]:
        if not opts.tls and getattr(opts, field) is not None:
            yield Problem(field, getattr(opts, field), "needs tls: it has no effect without")
    if opts.tls and None not in (opts.tls_cacert, opts.tls_cert, opts.tls_key):
        try:
            _context(ssl.PROTOCOL_TLS_SERVER, opts)
        except OptionError as error:
            yield from error.problems


def _broken_rule(place: Place, name: str) -> str | None:
    """What is accepted in place of this address; None if it is valid."""
    if _is_socket(place):
        return _broken_socket_rule(place, name)
    try:
        _, port = _host_and_port(place)
    except (ValueError, TypeError):
        return "'host:port', (host, port) or a socket is accepted"
    return None if port or name != "to" else "a port from 1 to 65535 is accepted"


def _broken_socket_rule(sock: socket.socket, name: str) -> str | None:
    with contextlib.suppress(OSError):  # it is closed, or not connected
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and name == "listen"
        if sock.type == socket.SOCK_STREAM and (listens or sock.getpeername() is not None):
            return None
    kinds = "connected or listening" if name == "listen" else "connected"
    return f"a {kinds} stream socket is accepted"


def _host_and_port(place: Place) -> tuple[str, int]:
    server = PageServer.parse(place)
    if server.address is None or server.port is None:
        raise ValueError("host and port are required")
    return server.address, server.port


def _is_local(place: Place) -> bool:
    """Whether a valid address or socket is on this machine: loopback, or a unix socket."""
    if not _is_socket(place):
        host, _ = _host_and_port(place)
        try:
            return all(is_loopback(one[4]) for one in _addresses(host, None))
        except OSError:
            return False
    if place.family not in (socket.AF_INET, socket.AF_INET6):
        return place.family == socket.AF_UNIX
    with contextlib.suppress(OSError):  # it listens
        return is_loopback(place.getpeername())
    return is_loopback(place.getsockname())


def connect(
    place: Place, opts: CriuOpts, until: MigrationDeadline, insecure: bool
) -> socket.socket:
    """Connect to the destination; the connection is ready for a channel."""
    ours = not _is_socket(place)
    if _is_socket(place):
        sock = _duplicate(place)
        name = str(sock.getpeername()[0]) if sock.family != socket.AF_UNIX else ""
    else:
        name, port = _host_and_port(place)
        try:
            sock = _connection(name, port, until.remaining(HANDSHAKE))
        except OSError as error:
            raise PeerLostError(
                f"no connection to the destination {name}:{port}: {error}; the process continues "
                "at the source",
                phase="connect",
                cure="start the destination first",
            ) from None
    check_owner = ours and not opts.tls and not insecure
    return _ready(sock, opts, until, check_owner, server_hostname=name)


def accept(place: Place, opts: CriuOpts, until: MigrationDeadline, insecure: bool) -> socket.socket:
    """Accept a connection from a source, ready for a channel; others are closed."""
    if _is_socket(place) and not place.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return _ready(_duplicate(place), opts, until, check_owner=False, server_side=True)
    check_owner = not opts.tls and not insecure
    with _listener(place) as listener, contextlib.closing(_arrivals(listener, until)) as arrivals:
        for sock, name in arrivals:
            try:
                return _ready(sock, opts, until, check_owner, server_side=True)
            except (MigrationError, OSError) as error:
                logs.warn("migration: refused %s: %s", name, error)
    raise MigrationError("no source connected before the deadline", phase="listen")


def _arrivals(
    listener: socket.socket, until: MigrationDeadline
) -> Generator[tuple[socket.socket, Any], None, None]:
    """Connections on which something was received, as from a source at once, with their names.

    A connection without data, such as that of a port scanner, delays no other, and is closed after
    ``HANDSHAKE`` seconds. Ends at the deadline.
    """
    silent: dict[int, tuple[socket.socket, Any, float]] = {}
    poll = unpatched.poll()
    poll.register(listener.fileno(), select.POLLIN)
    try:
        while not until.is_over():
            until.check()
            ready = [fd for fd, _ in poll.poll((until.remaining(LOOK) or LOOK) * 1000)]
            if listener.fileno() in ready:
                with contextlib.suppress(TimeoutError, ConnectionError):  # it is closed already
                    listener.settimeout(until.remaining(LOOK))
                    sock, name = listener.accept()
                    sock = blocking(sock)
                    silent[sock.fileno()] = sock, name, time.monotonic() + HANDSHAKE
                    poll.register(sock.fileno(), select.POLLIN)
            now = time.monotonic()
            for fd, (sock, name, latest) in list(silent.items()):
                if fd not in ready and now < latest and len(silent) <= MOST_SILENT:
                    continue
                del silent[fd]
                poll.unregister(fd)
                if fd in ready:
                    yield sock, name
                else:
                    sock.close()
                    logs.warn("migration: refused %s: it sent nothing", name)
    finally:
        for sock, _, _ in silent.values():
            sock.close()


def _is_socket(place: Place) -> TypeGuard[socket.socket]:
    return hasattr(place, "getsockopt")  # gevent and eventlet have other classes


def _duplicate(sock: socket.socket) -> socket.socket:
    result = socket.socket(fileno=os.dup(sock.fileno()))
    result.setblocking(True)  # sockets of gevent and eventlet are non-blocking
    return result


def _addresses(host: str, port: int | None) -> list[Any]:
    """The result of ``getaddrinfo``; ``OSError`` also for a name that DNS cannot represent."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"not a host name: {error}") from None


def _connection(host: str, port: int, timeout: float | None) -> socket.socket:
    failure = OSError("the name has no address")
    for family, kind, protocol, _, address in _addresses(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _listener(place: Place) -> socket.socket:
    if _is_socket(place):
        return _duplicate(place)
    host, port = _host_and_port(place)
    try:
        # A name with addresses of both kinds means the one of IPv4.
        family, _, _, _, address = min(_addresses(host, port), key=lambda each: each[0])
        # Not create_server: its socket is of gevent, with an event loop that remains.
        with contextlib.ExitStack() as owned:
            listener = owned.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(4)
            owned.pop_all()
            return listener
    except OSError as error:
        why = f"the destination cannot listen on {host}:{port}: {error}"
        raise MigrationError(why, phase="listen") from None


def _ready(
    sock: socket.socket, opts: CriuOpts, until: MigrationDeadline, check_owner: bool, **tls: Any
) -> socket.socket:
    """Prepare a connection for a channel: TLS, the greeting, and the owner of the other end.

    ``tls`` are the arguments of ``wrap_socket``. After a failure the connection is closed.
    """
    try:
        sock.settimeout(until.remaining(HANDSHAKE))
        if opts.tls:
            sock = _wrap(sock, opts, **tls)
        try:
            greet(sock)
        except PeerLostError as error:
            if not opts.tls:
                error.cure = "if the other side uses TLS, set tls=True here too, with its options"
            raise
        # After the greeting: a connection that is not accepted yet has no owner.
        if check_owner and (owner := foreign_owner(sock)) is not None:
            raise PeerLostError(
                f"the other end of the connection belongs to {owner}, and every user of this "
                "machine can connect to loopback: set tls=True, or insecure=True",
                phase="connect",
            )
    except BaseException:
        sock.close()
        raise
    return sock


def _wrap(sock: socket.socket, opts: CriuOpts, **tls: Any) -> ssl.SSLSocket:
    serves = "server_side" in tls
    context = _context(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT, opts)
    try:
        return context.wrap_socket(sock, **tls)
    except OSError as error:  # ssl.SSLError is one
        raise PeerLostError(
            f"no TLS connection: {error}",
            phase="connect",
            cure="set tls=True on both sides; the tls_cacert of each must have issued the "
            "certificate of the other, and that of the destination must be for its address",
            options=TLS_FIELDS,
        ) from None


def _context(protocol: int, opts: CriuOpts) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    field = "tls_cacert"
    try:
        context.check_hostname = protocol == ssl.PROTOCOL_TLS_CLIENT and not opts.tls_no_cn_verify
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(opts.tls_cacert)
        field = "tls_cert"
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(opts.tls_cert, opts.tls_key, password="")  # type: ignore[arg-type]
        if opts.tls_cacrl is not None:
            field = "tls_cacrl"
            context.load_verify_locations(opts.tls_cacrl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        rule = (
            "PEM files are accepted, of tls_cert and tls_key a matching pair, the key without a "
            f"password: {error}"
        )
        raise OptionError([Problem(field, getattr(opts, field), rule)], verb="migrate") from None
    return context

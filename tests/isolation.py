"""Runs the tests in new namespaces, below a process that reaps orphans.

Process ids, mounts, ports, links, firewall rules and SysV objects then belong to this run.
Concurrent runs on one machine do not affect each other, and the check for leftovers of a test sees
no objects of other programs. ``--in-place`` runs the tests in the namespaces of the caller, as do
users other than root, who can neither create namespaces nor run CRIU.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys

IN_PLACE = "--in-place"

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x8000000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

FORWARDED = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
"""Signals that end a run; they have no default action for a process 1."""

libc = ctypes.CDLL(None, use_errno=True)


def enter() -> None:
    """Continue in new namespaces; this process stays to forward signals and the exit status.

    If they cannot be created, a process 1 still continues in a child, and reaps orphans.
    """
    if IN_PLACE not in sys.argv and possible():
        _call("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
        _continue_in_child()
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        _call("mount", b"proc", b"/proc", b"proc", 0, None)
        _loopback_up()
    if os.getpid() == 1:
        _continue_in_child()


def possible() -> bool:
    """Whether this process may make the namespaces, tried with a short program."""
    new = ["unshare", "--mount", "--ipc", "--net", "--pid", "--fork", "--mount-proc", "true"]
    try:
        tried = subprocess.run(new, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


def _continue_in_child() -> None:
    """Return in a child; the parent reaps orphans until the child ends, with the same status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    expected = {signal.SIGCHLD, *FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, expected)
    child = os.fork()
    if not child:
        os.setsid()  # the session of the parent has no number in the new pid namespace
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwaitinfo(expected).si_signo
        if number == signal.SIGCHLD:
            _reap(child)
        else:
            os.kill(child, number)


def _reap(child: int) -> None:
    """Reap all processes that have ended; exit with the child."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if not pid:
            return


def reset() -> None:
    """Reset the signal state and umask inherited from a shell, nohup or service manager."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            if number == signal.SIGHUP:
                # A handler, which programs do not inherit: nohup applies to the run only.
                signal.signal(number, lambda *_: None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)


def _loopback_up() -> None:
    """Bring up the loopback link of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _call(name: str, *arguments: bytes | int | None) -> None:
    if getattr(libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")

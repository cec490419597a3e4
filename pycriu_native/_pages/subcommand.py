"""Starts commands of the ``criu`` program that are no requests, and explains their failures."""

from __future__ import annotations

import os

from .._calls.prepare import Directories
from .._calls.request import Request, log_name
from .._failures.log_excerpt import diagnose, error_lines, stderr_lines
from .._support.frozen_dataclass import replace
from .._support.unpatched import close
from .._system.descriptors import above_stdio
from .._system.regular_file import LogMark
from .._transport.process import ChildProcess
from .._transport.program import find_program
from .._transport.spawn import spawn
from .._transport.worker import Worker
from ..errors import CriuError
from ..options.values import PageServer


def start(
    request: Request, directories: Directories, *, status_fd: int | None = None
) -> ChildProcess:
    """Start ``criu`` with the verb as its command; ``status_fd`` gets CRIU's zero byte."""
    from ..options.flags import to_flags  # loaded at the first call

    via = request.via
    assert isinstance(via, Worker)
    keep = [fd for fd in (status_fd, directories.images, directories.work) if fd is not None]
    server = request.opts.page_server
    if isinstance(server, PageServer) and server.fd is not None:
        keep.append(server.fd)
    named = replace(
        request.opts,
        images_directory=_by_descriptor(directories.images),
        work_directory=_by_descriptor(directories.work),
        log_file=log_name(request),
        status_fd=status_fd,
    )
    words = [
        word.flag if word.value is None else f"{word.flag}={word.value}"
        for word in to_flags(named)[0]
    ]
    program = find_program(via.program, allow_untrusted=via.allow_untrusted)
    stderr_text = above_stdio(os.memfd_create("criu-stderr", os.MFD_CLOEXEC))
    try:
        pid, pidfd = spawn(
            [program, str(request.verb), *words],
            env=via.env,
            stdin=-1,
            output=stderr_text,
            keep=keep,
        )
    except BaseException:
        close(stderr_text)
        raise
    return ChildProcess(pid, pidfd, stderr_text)


def _by_descriptor(fd: int | None) -> str | None:
    """The path of an open directory that the process inherits."""
    return None if fd is None else f"/proc/self/fd/{fd}"


def failure(request: Request, process: ChildProcess, mark: LogMark, when: str) -> CriuError:
    """The exception for a process that has failed; ``when`` is the point of time, as text."""
    lines = error_lines(mark.text()) or stderr_lines(process.final_stderr)
    result = diagnose(lines, request.verb)
    cause = result.cause or (
        lines[0] if lines else process.final_stderr.strip() or "it printed no reason"
    )
    message = f"criu {request.verb} ended {when}: {cause}"
    return result.kind(
        message + (f"; {result.cure}" if result.cure else ""),
        verb=str(request.verb),
        lines=lines,
        cause=result.cause,
        cure=result.cure,
        options=result.options,
    )

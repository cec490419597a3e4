"""Commands of the ``criu`` program that are no requests: started, and their failures explained."""

from __future__ import annotations

import contextlib
import os

from .._calls.prepare import Directories
from .._calls.request import log_name
from .._calls.verbs import checked_request
from .._failures.log_excerpt import diagnose, error_lines, stderr_lines
from .._support.frozen_dataclass import replace
from .._system.descriptors import where
from .._system.regular_file import LogMark
from .._transport.process import ChildProcess
from .._transport.program import find_program
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import CriuError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer


class Subcommand:
    """One command, whose options are checked, and whose directories are open."""

    def __init__(
        self,
        verb: Verb,
        opts: CriuOpts,
        via: Worker | None,
        deadline: float | None,
        owned: contextlib.ExitStack,
    ) -> None:
        """``deadline`` is only checked; ``owned`` closes the directories."""
        self._via = via or Worker()
        self._request = checked_request(verb, opts, self._via, deadline=deadline)
        directories = Directories(self._request, owned)
        assert directories.log is not None
        self.images, self._work = directories.images, directories.work
        self._log_name = log_name(opts, verb)
        self.log = os.path.join(where(directories.log), self._log_name)
        self._mark = LogMark(directories.log, self._log_name)

    def start(self, *, status_fd: int | None = None) -> ChildProcess:
        """Start ``criu`` with the verb as its command; ``status_fd`` gets CRIU's zero byte."""
        from ..options.flags import to_flags  # loaded at the first call

        opts = self._request.opts
        keep = [fd for fd in (status_fd, self.images, self._work) if fd is not None]
        server = opts.page_server
        if isinstance(server, PageServer) and server.fd is not None:
            keep.append(server.fd)
        named = replace(
            opts,
            images_directory=_by_descriptor(self.images),
            work_directory=_by_descriptor(self._work),
            log_file=self._log_name,
            status_fd=status_fd,
        )
        words = [
            word.flag if word.value is None else f"{word.flag}={word.value}"
            for word in to_flags(named)[0]
        ]
        program = find_program(self._via.program, allow_untrusted=self._via.allow_untrusted)
        command = [program, str(self._request.verb), *words]
        return ChildProcess.start(command, self._via.env, keep=keep)

    def failure(self, process: ChildProcess, when: str) -> CriuError:
        """The exception for a process that has failed; ``when`` is the point of time, as text."""
        verb = self._request.verb
        lines = error_lines(self._mark.text()) or stderr_lines(process.final_stderr)
        result = diagnose(lines, verb)
        cause = result.cause or (
            lines[0] if lines else process.final_stderr.strip() or "it printed no reason"
        )
        message = f"criu {verb} ended {when}: {cause}"
        return result.kind(
            message + (f"; {result.cure}" if result.cure else ""),
            verb=str(verb),
            lines=lines,
            cause=result.cause,
            cure=result.cure,
            options=result.options,
        )


def _by_descriptor(fd: int | None) -> str | None:
    """The path of an open directory that the process inherits."""
    return None if fd is None else f"/proc/self/fd/{fd}"

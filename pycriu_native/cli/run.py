"""Runs one command line, and returns its exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from .._support import held_signals
from .._transport.base import Via
from ..errors import UnsupportedError
from .app import COMMANDS, app
from .command import Interrupted
from .exit_codes import Exit
from .output import Output

PROGRAM = "pycriu-native"


def run(words: Sequence[str], *, via: Via | None = None) -> int:
    """Run the words after the program's name; ``via`` is the default worker or service."""
    try:
        with _signals():
            done = app.main(list(words), prog_name=PROGRAM, standalone_mode=False, obj=via)
            return int(done or 0)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "info_name", None) or PROGRAM
        return Output(command, as_json="--json" in words).failed(error, Exit.REFUSED)
    except UnsupportedError as error:  # the module of a command needs an extra
        command = next(word for word in words if word in COMMANDS)
        return Output(command, as_json="--json" in words).failed(error, Exit.UNSUPPORTED)
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except Exception as error:
        if "--json" in words:
            Output(PROGRAM, as_json=True).failed(error, Exit.BUG)
        import traceback

        traceback.print_exc()
        sys.stderr.write(f"{PROGRAM}: this is a defect of {PROGRAM}; please report it\n")
        return Exit.BUG


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Interrupted`, so that the call undoes its work."""
    is_main = threading.current_thread() is threading.main_thread()
    if held_signals.are_held() or not is_main:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    # A command started with nohup ignores SIGHUP.
    handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The time to make, check and apply options, without system calls about files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from pycriu_native import CriuOpts, PageServer, Verb, Worker
from pycriu_native._calls.prepare import Directories, fill
from pycriu_native._checks import option_rules
from pycriu_native._wire.messages import Handle

from .common import Row, in_turns, main, row

ROUNDS = 500


def each(body: Callable[[], object]) -> float:
    """The mean duration of one of many calls, in microseconds."""
    started = time.perf_counter()
    for _ in range(ROUNDS):
        body()
    return (time.perf_counter() - started) / ROUNDS * 1e6


def measure(quick: bool) -> list[Row]:
    """All of runc's sixteen fields except ``veth_pairs``, which is not for dumps."""
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(os.path.join(directory, "parent"))
        images = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        status = os.open(os.devnull, os.O_WRONLY)
        try:
            return _measure(images, status, 9 if quick else 41)
        finally:
            os.close(images)
            os.close(status)


def _measure(images: int, status: int, times: int) -> list[Row]:
    def made() -> CriuOpts:
        return CriuOpts(
            images_directory=images,
            work_directory=images,
            parent_image="parent",
            leave_running=True,
            tcp_established=True,
            external_unix_connections=True,
            shell_job=True,
            file_locks=True,
            pre_dump=False,
            page_server=PageServer("10.0.0.1", 27, clear_text=True),
            manage_cgroups_mode="soft",
            empty_ns="net",
            auto_dedup=True,
            lazy_pages=False,
            status_fd=None,
        )

    # No system call: the rules that look at files and descriptors are timed apart.
    touching = option_rules._TOUCHING
    others = [rule for rule in option_rules._RULES if rule not in touching]

    def checked(opts: CriuOpts) -> None:
        if Verb.DUMP not in opts._remembered.sound_for:
            if problems := option_rules.problems_of(others, opts, Verb.DUMP):
                raise AssertionError(problems)
            opts._remembered.sound_for.add(Verb.DUMP)

    def touched(opts: CriuOpts) -> None:
        option_rules.problems_of(touching, opts, Verb.DUMP)

    def applied(opts: CriuOpts) -> None:
        request: Any = SimpleNamespace(
            opts=opts,
            verb=Verb.DUMP,
            pid=4242,
            sibling=False,
            via=via,
            inside=False,
        )
        with ExitStack() as owned, Handle() as handle:
            fill(handle, request, Directories(request, owned), owned)

    def scratch() -> None:
        opts = made()
        checked(opts)
        applied(opts)

    def again() -> None:
        checked(used)
        applied(used)

    via = Worker()
    used = made()
    checked(used)
    applied(used)
    goals = {
        "make, check, apply: from scratch": "goal: at most 60",
        "check, apply: once more": "goal: at most 20",
    }
    bodies = {
        "make": lambda: each(made),
        "check": lambda: each(lambda: checked(made())),
        "make, check, apply: from scratch": lambda: each(scratch),
        "check, apply: once more": lambda: each(again),
        "the rules that make system calls": lambda: each(lambda: touched(used)),
    }
    taken = in_turns(bodies, times)
    taken["check"] = [
        both - alone for both, alone in zip(taken["check"], taken["make"], strict=True)
    ]
    return [row(name, "µs", samples, goals.get(name, "")) for name, samples in taken.items()]


if __name__ == "__main__":
    main("options", __doc__ or "", measure)

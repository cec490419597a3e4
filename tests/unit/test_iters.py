"""Dump in rounds: the chain of directories, and the policy that ends it.

With a scripted CRIU, since the rounds need soft-dirty tracking, which not every kernel has.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    DumpResult,
    DumpStatistics,
    ImagesError,
    OptionError,
    Progress,
    dump,
)
from pycriu_native._calls import progress
from pycriu_native._calls.iterative_dump import Round, ShrinkingRounds, dump_iters
from pycriu_native.testing import ScriptedCriu
from tests.unit.support import bystander


def _round(number: int, pages: int) -> Round:
    statistics = DumpStatistics(pages_written=pages)
    result = DumpResult(
        pid=1, images="", duration=0.0, log=None, statistics=statistics, pid_free=False
    )
    return Round(number=number, result=result)


def test_the_chain(tmp_path: Path) -> None:
    """Each round has its own directory, tracks memory, and has the previous one as its parent."""
    peer = ScriptedCriu()
    message: list[int] = []

    def should_continue(round: Round) -> bool:
        message.append(round.number)
        Path(round.result.images, "inventory.img").touch()  # which CRIU would have written
        return round.number < 3

    opts = CriuOpts(images_directory=tmp_path / "chain", leave_running=True)
    result = dump_iters(bystander.PID, opts, should_continue, via=peer)
    assert message == [1, 2, 3]
    assert [r.result.images for r in result.rounds] == [
        str(tmp_path / "chain" / str(n)) for n in (1, 2, 3)
    ]
    assert result.final.images == str(tmp_path / "chain" / "4")
    sent = [request for request in peer.sent if "track_mem" in request.opts]
    assert [request.verb for request in sent] == ["pre-dump", "pre-dump", "pre-dump", "dump"]
    assert [request.opts.get("parent_img") for request in sent] == [None, "../1", "../2", "../3"]


@pytest.mark.parametrize("verb", [dump, dump_iters])
@pytest.mark.parametrize("lack", ["none does not exist", "file is no directory"])
def test_a_missing_directory(tmp_path: Path, verb: Callable[..., object], lack: str) -> None:
    """The error names the part that is missing, the verb and the process."""
    (tmp_path / "file").touch()
    opts = CriuOpts(images_directory=tmp_path / lack[:4] / "images")
    lack = f"{tmp_path}/{lack}"
    with pytest.raises(ImagesError, match=f"cannot be used: {re.escape(lack)}$") as caught:
        verb(bystander.PID, opts, via=ScriptedCriu())
    assert (caught.value.verb, caught.value.pid) == (verb.__name__, bystander.PID)


def test_its_progress(tmp_path: Path) -> None:
    """Each round is a phase with its own bytes, and only the last one is the end."""
    message: list[Progress] = []

    def should_continue(round: Round) -> bool:
        directory = Path(round.result.images)
        (directory / "inventory.img").touch()
        (directory / "pages-1.img").write_bytes(bytes(100 * round.number))
        seen = len(message)
        while len(message) == seen:
            time.sleep(0.01)  # the observer looks four times a second
        return round.number < 2

    opts = CriuOpts(images_directory=tmp_path / "chain", leave_running=True)
    dump_iters(bystander.PID, opts, should_continue, via=ScriptedCriu(), on_progress=message.append)
    assert list(dict.fromkeys(one.phase for one in message)) == ["round 1", "round 2", "dump"]
    first = [one for one in message if one.phase == "round 1"]
    assert first[0].total
    assert all(one.total is None for one in message if one.phase == "round 2")
    assert [one.left for one in message].count(0) == 1
    assert message[-1].left == 0


def test_an_interruption_at_the_start_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is not reported any more after Ctrl-C in ``Thread.start``, which waits."""
    threads = []

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            threads.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "Thread", Interrupted)

    def on_progress(now: Progress) -> None:
        """Reports nothing."""

    with (
        pytest.raises(KeyboardInterrupt),
        progress.reporting(on_progress, lambda: ("dump", 0, None)),
    ):
        raise AssertionError("the work begins")
    [thread] = threads
    assert not thread.is_alive()


def test_what_belongs_to_the_rounds(tmp_path: Path) -> None:
    """parent_image and a descriptor as images_directory are refused."""
    peer = ScriptedCriu()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OptionError, match=r"images_directory.*parent_image"):
            dump_iters(1, CriuOpts(images_directory=fd, parent_image="x"), via=peer)
    finally:
        os.close(fd)
    assert not peer.sent


def test_each_option_goes_where_it_belongs(tmp_path: Path) -> None:
    """Options of pre-dumps, of the final dump, and of both are used where they apply."""
    peer = ScriptedCriu()

    def should_continue(round: Round) -> bool:
        Path(round.result.images, "inventory.img").touch()
        return False

    opts = CriuOpts(images_directory=tmp_path / "chain", log_level=3)
    opts = replace(opts, pre_dump_mode="read", leave_running=True)
    dump_iters(bystander.PID, opts, should_continue, via=peer)
    first, last = (sent.opts for sent in peer.sent if "track_mem" in sent.opts)
    assert first["log_level"] == last["log_level"] == 3
    assert "pre_dump_mode" in first
    assert "pre_dump_mode" not in last
    assert "leave_running" not in first
    assert last["leave_running"]


def test_errors_of_the_last_dump_come_first(tmp_path: Path) -> None:
    """Invalid options of the final dump are refused before the first round."""
    peer = ScriptedCriu()
    opts = CriuOpts(images_directory=tmp_path / "chain", tcp_close=True, tcp_established=True)
    with pytest.raises(OptionError, match="tcp_established"):
        dump_iters(bystander.PID, opts, via=peer)
    assert not peer.sent
    assert not (tmp_path / "chain").exists()


def test_shrinking_rounds() -> None:
    """Rounds continue while they shrink, and end at the limit, at few bytes, or if they do not."""
    policy = ShrinkingRounds(most=4, shrink=0.8, enough=100 * 4096)
    assert [policy(_round(n, pages)) for n, pages in ((1, 10000), (2, 5000), (3, 4500))] == [
        True,
        True,
        False,
    ]
    assert not ShrinkingRounds(enough=100 * 4096)(_round(1, 100))
    bounded = ShrinkingRounds(most=2, enough=0)
    assert bounded(_round(1, 1000))
    assert not bounded(_round(2, 10))

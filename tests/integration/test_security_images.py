"""An incomplete dump is never accepted as complete, and a complete one is never refused.

CRIU is killed at every notification and at random times, with and without this process. Then a
restore either reports the missing parts before it starts CRIU, or restores the process with its
memory. Images of an earlier dump in the same directory are kept.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    Notification,
    Notify,
    RestoreResult,
    WorkerDiedError,
    dump,
    restore,
    seal,
    verify,
)
from pycriu_native._integrity.dump_marker import EARLIER, UNFINISHED
from pycriu_native._transport.program import find_program

from .conftest import Spawn
from .support import releases
from .support.processes import Target, children, eventually, is_alive, kill
from .test_interruption import DUMP

ROOT = Path(__file__).parents[2]

WITH_MEMORY = """
    import hashlib, os
    memory = bytearray(os.urandom(2**20) * 4)
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest(), damage=lambda:
    memory.reverse())
"""


def _workers() -> list[int]:
    result = []
    for pid in children():
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if program == os.path.realpath(find_program()):
            result.append(pid)
    return result


def _restored(images: Path) -> RestoreResult | ImagesError:
    """The result of a restore; any exception but the refusal fails the test."""
    try:
        return restore(CriuOpts(images_directory=images))
    except ImagesError as refused:
        if refused.code is not None:
            raise  # CRIU was started
        return refused


def _gone(target: Target) -> None:
    """Free its pid, in any state of the process."""
    kill(target.pid)
    target.reap()


@pytest.mark.parametrize("moment", DUMP)
def test_criu_is_killed_at_a_notification(
    orphans: None, spawn: Spawn, images: Path, moment: Notify
) -> None:
    """Before ``post-dump`` the set is refused; from then on it is complete and can be restored."""
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")

    def hook(notification: Notification) -> None:
        if notification.action is moment:
            for pid in _workers():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerDiedError):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=hook)
    _gone(target)
    result = _restored(images)
    if moment is Notify.POST_DUMP:
        assert isinstance(result, RestoreResult)
        assert target.ask("checksum") == checksum
    else:
        assert isinstance(result, ImagesError)
        assert "no inventory.img" in str(result) or "did not finish" in str(result)


def test_criu_is_killed_at_any_instant(orphans: None, spawn: Spawn, tmp_path: Path) -> None:
    """The set is refused, or restored with its memory."""
    chance = random.Random(11)
    target = spawn(WITH_MEMORY)
    started = time.monotonic()
    dump(target.pid, CriuOpts(images_directory=tmp_path / "first", leave_running=True))
    longest = time.monotonic() - started
    target.end()
    for number in range(12):
        target = spawn(WITH_MEMORY)
        checksum = target.ask("checksum")
        images = tmp_path / f"images-{number}"
        over = threading.Event()

        def killer(over: threading.Event, delay: float) -> None:
            if not over.wait(delay):
                for pid in _workers():
                    os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=killer, args=(over, chance.uniform(0, longest)))
        thread.start()
        whole = False
        try:
            dump(target.pid, CriuOpts(images_directory=images))
            whole = True
        except CriuError:
            pass
        finally:
            over.set()
            thread.join()
        _gone(target)
        result = _restored(images) if images.exists() else None
        assert isinstance(result, RestoreResult) or not whole
        if isinstance(result, RestoreResult):
            assert target.ask("checksum") == checksum
            kill(target.pid)


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from pycriu_native import CriuOpts, Notify, dump

    def hook(notification):
        if notification.action is Notify.QUERY_EXT_FILES:
            for task in Path("/proc/self/task").iterdir():
                for pid in (task / "children").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    dump(int(sys.argv[1]), CriuOpts(images_directory=sys.argv[2]), on_notify=hook)
""")


def test_the_caller_is_killed_too(orphans: None, spawn: Spawn, images: Path) -> None:
    """The marker of a dump whose caller was killed makes the next dump remove its files."""
    releases.required("3.19", "query-ext-files")
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(target.pid), str(images)],
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert (images / UNFINISHED).exists()
    (images / "ids-1.img").write_bytes(b"of the first dump")
    with pytest.raises(ImagesError, match="did not finish"):
        restore(CriuOpts(images_directory=images))
    eventually(lambda: is_alive(target.pid), "the process")
    target.dump(CriuOpts(images_directory=images))
    assert not {UNFINISHED, EARLIER, "ids-1.img"} & set(os.listdir(images))
    restore(CriuOpts(images_directory=images))
    assert target.ask("checksum") == checksum


def test_the_images_of_an_earlier_dump(orphans: None, spawn: Spawn, images: Path) -> None:
    """After a failed second dump into the same directory, the first one is unchanged."""
    releases.required("3.19", "query-ext-files")
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    digest = seal(images)
    target.ask("damage")

    def refuse(notification: Notification) -> None:
        if notification.action is Notify.QUERY_EXT_FILES:
            raise ValueError

    with pytest.raises(ValueError):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=refuse)
    assert target.ask("checksum") != checksum
    verify(images, digest)
    target.end()
    restore(CriuOpts(images_directory=images))
    assert target.ask("checksum") == checksum


def test_a_hook_finds_complete_images(spawn: Spawn, images: Path) -> None:
    """At ``post-dump`` a hook can send or seal the images; if it then refuses, they are removed."""
    target = spawn(WITH_MEMORY)
    sealed: list[str] = []

    def ship(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            sealed.append(seal(images))
            verify(images, sealed[0])
            raise ValueError("the process is to run on")

    with pytest.raises(ValueError):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=ship)
    assert target.runs_on()
    assert sealed
    assert not list(images.glob("*.img"))


def test_two_dumps_to_one_directory(spawn: Spawn, images: Path) -> None:
    """The second one is refused during the first one, and its process continues."""
    first, second = spawn(), spawn()
    refused: list[str] = []

    def hook(notification: Notification) -> None:
        if notification.action is Notify.PRE_DUMP:
            with pytest.raises(ImagesError, match="is under way") as caught:
                dump(second.pid, CriuOpts(images_directory=images))
            refused.append(str(caught.value))
            with pytest.raises(ImagesError, match="is under way"):
                restore(CriuOpts(images_directory=images))

    dump(first.pid, CriuOpts(images_directory=images), on_notify=hook)
    assert refused
    assert second.runs_on()


def test_images_that_criu_has_made_by_itself(orphans: None, spawn: Spawn, images: Path) -> None:
    """Images without a marker or statistics can be restored."""
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    images.mkdir()
    work = images / "work"
    work.mkdir()
    words = [find_program(), "dump", "-t", str(target.pid), "-D", str(images), "-W", str(work)]
    subprocess.run([*words, "-o", "dump.log"], check=True, stdin=subprocess.DEVNULL)
    target.reap()
    assert not (images / "stats-dump").exists()
    restore(CriuOpts(images_directory=images))
    assert target.ask("checksum") == checksum


def test_sealed_images(orphans: None, spawn: Spawn, images: Path) -> None:
    """CRIU restores a page that was changed on disk without an error; ``verify`` detects it."""
    target = spawn(WITH_MEMORY)
    target.dump(CriuOpts(images_directory=images))
    digest = seal(images)
    pages = images / "pages-1.img"
    whole = pages.read_bytes()
    pages.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ImagesError, match=r"pages-1\.img was changed"):
        verify(images, digest)
    pages.write_bytes(whole)
    verify(images, digest)
    restore(CriuOpts(images_directory=images))
    verify(images, digest)
    assert target.runs_on()

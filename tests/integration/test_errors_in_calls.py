"""Exceptions in the library's own code while CRIU works: the call is undone, as for a hook's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycriu_native import CriuOpts, dump, restore
from pycriu_native._calls import exchange, safeguards
from pycriu_native._calls.safeguards import Safeguards
from pycriu_native._recovery.recovery import Recovery

from .conftest import Spawn
from .faults.faults import code_in
from .support.processes import is_alive, reap_all
from .support.workers import workers

PLACES = {
    "after the request": (Safeguards, "requested"),
    "at a notification": (Recovery, "look"),
    "when all is written": (Safeguards, "written"),
    "when the tree is frozen": (exchange.Exchange, "_call_when_frozen"),
    "at a message": (exchange, "decode_response"),
}


def fail(*_: object, **__: object) -> object:
    """Raise what a change of root makes of an import."""
    raise ImportError("no module")


@pytest.mark.parametrize("place", PLACES)
def test_in_a_dump(spawn: Spawn, images: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The process runs, without CRIU's code; nothing is left; it can be dumped and restored."""
    target = spawn()
    owner, name = PLACES[place]
    with monkeypatch.context() as patched:
        if place == "at a message":
            patched.setattr(exchange, "GRACE", 1.0)  # CRIU waits for a reply to a lost message
        patched.setattr(owner, name, fail)
        with pytest.raises(ImportError, match="no module"):
            dump(target.pid, CriuOpts(images_directory=images))
    assert not workers()
    assert target.runs_on()
    assert not code_in(target.pid)
    assert not list(images.glob("*.img"))
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


def test_in_a_restore(
    spawn: Spawn, images: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process is left, and the images restore."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images))
    reap_all()
    with monkeypatch.context() as patched:
        patched.setattr(exchange, "process_tree", fail)
        with pytest.raises(ImportError, match="no module"):
            restore(CriuOpts(images_directory=images), on_notify=lambda _: None)
    assert not workers()
    assert not is_alive(target.pid)
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


def test_in_the_undo(spawn: Spawn, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error during the undo does not hide the failure, which has a note about it."""
    target = spawn()

    def refuse(notification: object) -> None:
        raise ValueError("refused")

    with monkeypatch.context() as patched:
        patched.setattr(safeguards.Safeguards, "failed", fail)
        with pytest.raises(ValueError, match="refused") as caught:
            dump(target.pid, CriuOpts(images_directory=images), on_notify=refuse)
    assert any("not everything was undone: ImportError" in note for note in caught.value.__notes__)
    assert target.runs_on()

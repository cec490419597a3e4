"""An interrupted start of a page server, without CRIU."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from pycriu_native import CriuOpts, page_server
from pycriu_native._calls import requirements
from pycriu_native._pages import page_server as module
from pycriu_native._system import inet_sockets


@pytest.mark.parametrize(("listener", "killed"), [(4242, [(4242, signal.SIGTERM)]), (None, [])])
def test_an_interrupted_start(
    monkeypatch: pytest.MonkeyPatch, listener: int | None, killed: list[tuple[int, int]]
) -> None:
    """The server is ended. If it is not found, nothing is: pid 0 is the caller's process group."""
    outcome = SimpleNamespace(
        interrupted_by=KeyboardInterrupt(),
        answer={"ps": {"pid": 0, "port": 1}},
        images="/images",
        log=None,
        duration=0.0,
        connection=SimpleNamespace(wait=lambda: None),
    )
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(requirements, "check", lambda request: None)
    monkeypatch.setattr(module, "Call", lambda request: SimpleNamespace(wait=lambda: outcome))
    monkeypatch.setattr(inet_sockets, "listener_on", lambda port, seconds: listener)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    with pytest.raises(KeyboardInterrupt):
        page_server(CriuOpts(images_directory="/images"))
    assert sent == killed

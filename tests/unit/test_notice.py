"""Notices of a coming interruption: which text is one, and the time that it leaves."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from pycriu_native.jobs.notice import attempt, seconds_left


def _text(seconds: float, key: str) -> str:
    when = datetime.fromtimestamp(time.time() + seconds, UTC)
    if key == "time":
        return json.dumps({"action": "terminate", "time": when.isoformat()})
    return json.dumps({"Events": [{"NotBefore": format_datetime(when, usegmt=True)}]})


@pytest.mark.parametrize("key", ["time", "NotBefore"])
def test_the_time_of_a_notice(key: str) -> None:
    """A notice with a past time has none: the clock of this host is an hour ahead, for example."""
    left = seconds_left(_text(3000, key))
    assert left is not None
    assert 2000 < left <= 3000
    assert seconds_left(_text(-3600, key)) is None


@pytest.mark.parametrize("text", ["TRUE", "soon", "[]", '{"time": 5}', '{"time": "soon"}'])
def test_notices_without_a_time(text: str) -> None:
    """A notice without a time is a notice too."""
    assert attempt(f"echo '{text}'") is not None
    assert seconds_left(text) is None


@pytest.mark.parametrize("text", ["FALSE", "none", '{"DocumentIncarnation": 1, "Events": []}'])
def test_what_is_no_notice(text: str) -> None:
    """The responses of services without a notice, and the failure of a command, are no notice."""
    assert attempt(f"echo '{text}'") is None
    assert attempt(f"echo '{text}'; exit 1") is None

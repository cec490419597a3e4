"""Names of signals."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """The name of a signal, such as SIGTERM; a real-time signal that has none is ``signal 40``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""The exit status of a reaped process."""

from __future__ import annotations

import os


def exit_status(ended: os.waitid_result) -> int:
    """The exit code; negative: the signal that ended the process."""
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

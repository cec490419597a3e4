"""Features of this kernel and CRIU, and marks of tests that need them."""

from __future__ import annotations

import os

import pytest

import pycriu_native
from pycriu_native import CriuError, Features

from . import large_pipes


def _found() -> Features:
    """The features, or none where CRIU does not work."""
    if os.geteuid() == 0:
        try:
            return pycriu_native.feature_check()
        except CriuError:
            pass
    return Features(mem_track=False, lazy_pages=False, pidfd_store=False, mem_compression=False)


FEATURES = _found()

needs_soft_dirty = pytest.mark.skipif(
    not FEATURES.mem_track,
    reason="this kernel tracks no changed memory (feature_check().mem_track)",
)
_why_no_lazy_pages = large_pipes.why_not()
if not FEATURES.lazy_pages:
    _why_no_lazy_pages = "this kernel has no userfaultfd for CRIU"
needs_lazy_pages = pytest.mark.skipif(bool(_why_no_lazy_pages), reason=_why_no_lazy_pages)
"""The test also gets pipes of the size that CRIU needs (``conftest.py``)."""

needs_cpuinfo = pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "s390x", "ppc64le"),
    reason=f"CRIU does not describe {os.uname().machine} processors",
)

"""The only importer of the extension: ``ffi``, ``native``, and what this libcriu lacks."""

from __future__ import annotations

import functools
import os
import sys

from .._support.light_typing import Any

_HINT = """\
pycriu_native's extension module does not load: {reason}
Install libcriu: apt-get install libcriu2 (Debian 12: criu), dnf install criu-libs; or install \
pycriu-native from its wheel, which contains libcriu."""

_ISOLATED = """\
pycriu_native does not work in an isolated subinterpreter: {reason}
It works in the main interpreter, and in subinterpreters that share its lock."""

if sys.byteorder != "little":
    # CRIU writes its images in the byte order of the host, and they are read as little-endian.
    raise ImportError(
        f"pycriu_native works on little-endian machines only, and this one ({os.uname().machine}) "
        "is big-endian"
    )
if sys.implementation.name != "cpython" or "t" in sys.abiflags:
    # Both lack the stable ABI of the extension.
    raise ImportError(
        "pycriu_native needs a CPython with the global interpreter lock, and this is "
        + (
            "a free-threaded build"
            if sys.implementation.name == "cpython"
            else sys.implementation.name
        )
    )

try:
    from .extension import ffi as ffi
    from .extension import lib
except ImportError as error:
    hint = _ISOLATED if "subinterpreter" in str(error) else _HINT
    raise ImportError(hint.format(reason=error)) from None

native: Any = lib
"""cffi's own library object: every function, missing ones as NULL. Use ``pycriu_native.lib``
from outside, which refuses those."""

memory: Any = ffi.new_allocator(should_clear_after_alloc=False)
"""``ffi.new`` for buffers that are written to before they are read: with what was there before."""

LIBCRIU_VERSION: str = ffi.string(native.pn_libcriu_version()).decode()
"""The release of the libcriu that is loaded, such as ``"4.2.1"``."""

BUILT_PROGRAM: str = ffi.string(native.pn_built_program()).decode()
"""The ``criu`` recorded at build, or an empty string."""


def checked(status: int, what: str = "") -> int:
    """The result of a function of the extension; ``OSError`` if it is a negative error number.

    ``what`` names the operation in the text of the error.
    """
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}" if what else os.strerror(-status))
    return status


@functools.cache
def functions() -> dict[str, bool]:
    """Every function of libcriu 3.17 to 4.3, and whether the loaded library has it."""
    result: dict[str, bool] = {}
    entry = native.pn_function_at(0)
    while entry:
        result[ffi.string(entry.name).decode()] = bool(entry.address)
        entry = native.pn_function_at(len(result))
    return result

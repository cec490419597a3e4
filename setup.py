"""Build of the compiled modules; everything else is in pyproject.toml."""

import platform
import sys
import sysconfig

from setuptools import Extension, setup

# Neither has the stable ABI that the extension uses, and pip's metadata cannot name them: a wheel
# does not match them, so pip builds from source, and here is where that ends.
if platform.python_implementation() != "CPython":
    sys.exit(
        f"pycriu_native needs CPython 3.11 or later, and this is {platform.python_implementation()}"
    )
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(
        "pycriu_native needs a CPython with the global interpreter lock, and this is a "
        "free-threaded build: use python3 instead of python3t"
    )

SEED = Extension(
    "pycriu_native._native.forkserver",
    ["native/forkserver.c"],
    depends=["native/forkserver.h"],
    # Not a module of Python's: CRIU's loader gets it, together with CRIU's C library.
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-fno-stack-protector"],
    extra_link_args=["-nostdlib"],
    py_limited_api=True,
)

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    ext_modules=[SEED],
    # The extension uses the stable ABI: one wheel for Python 3.11 and later.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

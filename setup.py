"""Build of the compiled modules; everything else is in pyproject.toml."""

from setuptools import Extension, setup

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

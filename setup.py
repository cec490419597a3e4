"""Build of the compiled modules and programs; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from pathlib import Path

# Neither has the stable ABI that the extension uses, and pip's metadata cannot exclude them: no
# wheel matches them, so pip builds from source, which is refused here.
if platform.python_implementation() != "CPython":
    sys.exit(
        f"pycriu_native needs CPython 3.11 or later, and this is {platform.python_implementation()}"
    )
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(
        "pycriu_native needs a CPython with the global interpreter lock, and this is a "
        "free-threaded build: use python3 instead of python3t"
    )

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class Program(Extension):
    """A program that the package runs; it is named like a module."""


class BuildExtensions(build_ext):
    """Also builds programs, whose files have no suffix."""

    def get_ext_filename(self, fullname: str) -> str:
        """The file of a module or program."""
        if isinstance(self.ext_map.get(fullname), Program):
            return os.path.join(*fullname.split("."))
        return str(super().get_ext_filename(fullname))  # type: ignore[no-untyped-call]

    def build_extension(self, ext: Extension) -> None:
        """Build a module or program."""
        if not isinstance(ext, Program):
            super().build_extension(ext)
            return
        objects = self.compiler.compile(
            ext.sources, output_dir=self.build_temp, extra_postargs=ext.extra_compile_args
        )
        program = Path(self.get_ext_fullpath(ext.name))
        self.compiler.link_executable(objects, program.name, output_dir=str(program.parent))


FORK_SERVER = Extension(
    "pycriu_native._native.forkserver",
    ["native/forkserver.c", "native/feature_cache.c"],
    depends=["native/forkserver.h", "native/feature_cache.h"],
    # Not a Python module: it is preloaded into criu, and uses criu's C library.
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-fno-stack-protector"],
    extra_link_args=["-nostdlib"],
    py_limited_api=True,
)
NAMESPACE_INIT = Program(
    "pycriu_native._native.namespace_init",
    ["native/namespace_init.c"],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
    py_limited_api=True,
)

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    ext_modules=[FORK_SERVER, NAMESPACE_INIT],
    cmdclass={"build_ext": BuildExtensions},
    # The extension uses the stable ABI: one wheel for Python 3.11 and later.
    options={
        "bdist_wheel": {"py_limited_api": "cp311"},
        # A path entry instead of an import hook, which type checkers do not support.
        "editable_wheel": {"mode": "compat"},
    },
)

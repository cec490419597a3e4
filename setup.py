"""Build of the extension module; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    # The extension uses the stable ABI: one wheel for Python 3.11 and later.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

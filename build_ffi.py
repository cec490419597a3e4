"""The build of the extension module with CFFI (API mode), from the headers in include/.

Importing this module needs no compiler; setup.py passes its ``ffibuilder`` to cffi. Three
environment variables select the CRIU of the build; ``tools/install-criu --record`` writes them, and
the default is the system's:

* ``CRIU_PROGRAM``: the default ``criu`` of workers,
* ``CRIU_LIBDIR``: the directory of ``libcriu.so.2`` (becomes the run path),
* ``CRIU_INCLUDEDIR``: the directory of ``criu/criu.h`` and ``protobuf-c/protobuf-c.h``.

``PYCRIU_NATIVE_SANITIZE=address,undefined`` builds with those sanitizers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
INCLUDE = ROOT / "include"
NATIVE = Path("native")
SOURCES = (
    "messages.c",
    "spawn.c",
    "worker.c",
    "kernel.c",
    "run_verb.c",
    "receive.c",
    "inherited_state.c",
    "trusted_path.c",
    "fields.c",
    "image_scan.c",
    "pagemap.c",
    "abi_check.c",
)
MODULE = "pycriu_native._native.extension"
LIBRARIES = [":libcriu.so.2", ":libprotobuf-c.so.1"]

INSTALL_HINT = """\
libcriu and its build files are needed to build pycriu_native, and {missing} was not found.
  Debian 13, Ubuntu:  apt-get install libcriu-dev libprotobuf-c-dev gcc python3-dev
  Debian 12:          apt-get install criu libprotobuf-c-dev gcc python3-dev
  Fedora:             dnf install criu-devel protobuf-c-devel gcc python3-devel
  from a checkout:    tools/install-criu --record .criu   (then: make build)
A libcriu outside the system's directories is named by CRIU_LIBDIR and CRIU_INCLUDEDIR."""


def declaration(name: str) -> str:
    """A header of include/ for cffi, which has no preprocessor."""
    lines = (INCLUDE / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def function_names() -> list[str]:
    """Every function of libcriu that include/libcriu.h declares."""
    return re.findall(r"^\w[\w ]*[ *](criu_\w+)\(", declaration("libcriu.h"), flags=re.M)


def preamble() -> str:
    """The C code before cffi's generated code.

    Weak references: the address of a function that the library lacks is NULL; with a strong
    reference the loader would fail.
    """
    names = function_names()
    weak = "\n".join(f"#pragma weak {name}" for name in names)
    table = "\n".join(f'\t{{ "{name}", (const void *){name} }},' for name in names)
    return f"""\
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "libcriu_types.h"
#include "libcriu.h"
#include "pycriu_native.h"

{weak}

static const struct pn_function pn_functions[] = {{
{table}
}};

const struct pn_function *pn_function_at(size_t index)
{{
	return index < sizeof(pn_functions) / sizeof(*pn_functions) ? &pn_functions[index] : NULL;
}}

extern const char *criu_lib_version; /* the one strong reference, so that libcriu stays linked */

const char *pn_libcriu_version(void)
{{
	return criu_lib_version;
}}

const char *pn_built_program(void)
{{
	return PN_BUILT_PROGRAM;
}}
"""


def compiles(code: str, include_dirs: list[str]) -> bool:
    """Whether the C compiler accepts this code; for optional headers."""
    return _compiler_accepts(code, ["-fsyntax-only", *(f"-I{path}" for path in include_dirs)])


def links(libraries: list[str], library_dir: str) -> bool:
    """Whether the linker finds these libraries."""
    flags = ["-shared", "-o", "/dev/null", *([f"-L{library_dir}"] if library_dir else [])]
    return _compiler_accepts("", [*flags, *(f"-l{name}" for name in libraries)])


def _compiler_accepts(code: str, flags: list[str]) -> bool:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.c"
        source.write_text(code)
        try:
            run = subprocess.run([*compiler, str(source), *flags], capture_output=True, check=False)
        except FileNotFoundError:
            sys.exit(INSTALL_HINT.format(missing=f"a C compiler ({compiler[0]})"))
    return run.returncode == 0


def abi_check_macros(include_dirs: list[str]) -> list[tuple[str, str | None]]:
    """The macros that enable native/abi_check.c if the system has criu.h."""
    if not compiles("#include <criu/criu.h>\n", include_dirs):
        return []
    values = re.findall(r"\b(CRIU_[A-Z_]+) = (\d+)", declaration("libcriu_types.h"))
    asserts = " ".join(
        f'_Static_assert({name} == {value}, "{name}");'
        for name, value in values
        # Older headers lack the newest ones.
        if compiles(f"#include <criu/criu.h>\nint value = {name};\n", include_dirs)
    )
    return [("PN_HAVE_CRIU_H", "1"), ("PN_CHECK_VALUES", asserts)]


def ffibuilder() -> FFI:
    """The configured builder; nothing is compiled yet. cffi's setuptools hook calls it."""
    library_dir = os.environ.get("CRIU_LIBDIR", "")
    include_dir = os.environ.get("CRIU_INCLUDEDIR", "")
    sanitizers = os.environ.get("PYCRIU_NATIVE_SANITIZE", "")

    criu_includes = [include_dir] if include_dir else []
    if not compiles("#include <protobuf-c/protobuf-c.h>\n", criu_includes):
        sys.exit(INSTALL_HINT.format(missing="protobuf-c/protobuf-c.h"))
    for library in LIBRARIES:
        if not links([library], library_dir):
            sys.exit(INSTALL_HINT.format(missing=library.removeprefix(":")))

    program = os.environ.get("CRIU_PROGRAM", "")
    macros: list[tuple[str, str | None]] = [("PN_BUILT_PROGRAM", f'"{program}"')]
    macros += abi_check_macros(criu_includes)
    compile_args = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    link_args = ["-Wl,--no-as-needed"]
    if library_dir:
        link_args.append(f"-Wl,-rpath,{library_dir}")
    if sanitizers:
        compile_args += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1"]
        link_args.append(f"-fsanitize={sanitizers}")

    ffi = FFI()
    ffi.cdef(declaration("libcriu_types.h"))
    ffi.cdef(declaration("libcriu.h"))
    ffi.cdef(declaration("pycriu_native.h"))
    # For ports of C programs: libcriu's callbacks, to be defined with @ffi.def_extern().
    ffi.cdef(
        """
        extern "Python" int on_notify(char *action, criu_notify_arg_t argument);
        extern "Python" int on_more(criu_predump_info info);
        """
    )
    ffi.set_source(
        MODULE,
        preamble(),
        sources=[str(NATIVE / name) for name in SOURCES],
        depends=[str(NATIVE / name) for name in ("fields.h", "descriptors.h", "forkserver.h")],
        include_dirs=[str(INCLUDE), *criu_includes],
        library_dirs=[library_dir] if library_dir else [],
        libraries=LIBRARIES,
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        py_limited_api=True,
    )
    return ffi

"""``pycriu_native.lib``: the functions of any loaded libcriu, and the errors for missing ones.

The reference for the functions of a library is its symbol table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import build_ffi
import pycriu_native
from pycriu_native import Finding, Severity, UnsupportedError
from pycriu_native.cli.exit_codes import Exit
from pycriu_native.cli.json_form import SCHEMA
from pycriu_native.options.table import release

from .support import elf
from .support import peer as asked
from .support.libraries import ROOT, Library, environment, found
from .support.peer import Peer

COUNTS = {"3.17": 133, "4.1": 139, "4.2": 141, "4.3": 179}
"""How many functions the interface of a release has."""


def test_the_same_build_loads_each_release(peer: Peer) -> None:
    """One extension works with four releases: the calls of a C program succeed with each."""
    status, message = peer.ask(asked.ported_c)
    assert status == 0
    assert message == {
        # 3.18 and earlier leave it at 0, which is standard input; the verbs of the package do not.
        "images_dir_fd": 0 if peer.library.release == "3.17" else -1,
        "leave_running": True,
        "log_level": 4,
        "external": ["mnt[/a]:b"],
        "manage_cgroups_mode": 4,
    }


def test_every_function_is_there(peer: Peer) -> None:
    """``lib`` has exactly the functions that the loaded library exports, by its symbol table."""
    exported = elf.interface(peer.library.path)
    has, missing, names = peer.ask(asked.interface)
    assert {name for name, present in has.items() if present} == exported
    assert set(missing) == set(has) - exported
    assert set(has) <= set(names)
    if peer.library.release in COUNTS:
        assert len(exported) == COUNTS[peer.library.release]


def test_each_can_be_looked_up(peer: Peer) -> None:
    """A present function is a cffi function; a missing one names the release that brought it."""
    has, _, _ = peer.ask(asked.interface)
    for name, present in has.items():
        if present:
            assert peer.ask(asked.function, name)
            assert release(peer.ask(asked.since, name)) <= release(peer.library.version)
        else:
            since = peer.ask(asked.since, name)
            assert release(since) > release(peer.library.version)
            needs = f"needs libcriu {since}; {peer.library.version} is loaded"
            with pytest.raises(UnsupportedError, match=needs.replace(".", r"\.")) as caught:
                peer.ask(asked.function, name)
            assert caught.value.problems[0].value == name


def test_the_release_that_brought_a_function_is_the_first_that_has_it() -> None:
    """``lib.since`` against the symbol tables of all releases that are here."""
    from pycriu_native import lib

    tables = {release(one.version): elf.interface(one.path) for one in found().values()}
    for name in set().union(*tables.values()):
        first = min(version for version, names in tables.items() if name in names)
        before = max((version for version in tables if version < first), default=(0,))
        assert before < release(lib.since(name)) <= first, name


def test_a_name_of_no_release() -> None:
    """A name that libcriu never had is an AttributeError of ``lib`` and ``has``."""
    from pycriu_native import lib

    with pytest.raises(AttributeError, match="criu_make_coffee"):
        lib.has("criu_make_coffee")
    with pytest.raises(AttributeError, match="criu_make_coffee"):
        _ = lib.criu_make_coffee
    with pytest.raises(AttributeError):
        _ = lib.pn_new


# ---- the build ----

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler"
)


def _abi_check(library: Library, include: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiler's output for our declarations together with this release's ``criu.h``."""
    if not (library.include / "criu/criu.h").exists():
        pytest.skip("libcriu is that of a wheel, which has no headers")
    monkeypatch.setattr(build_ffi, "INCLUDE", include)
    macros = build_ffi.abi_check_macros([str(library.include)])
    assert macros, "criu.h was not found"
    command = [
        os.environ.get("CC", "cc"),
        "-fsyntax-only",
        *(f"-D{name}={value}" for name, value in macros),
        f"-I{include}",
        f"-I{library.include}",
        str(ROOT / "native/abi_check.c"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@needs_compiler
def test_our_declarations_are_those_of_criu_h(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build compiles both in one unit, and each release's header agrees."""
    assert _abi_check(library, ROOT / "include", monkeypatch) == ""


@needs_compiler
@pytest.mark.parametrize(
    ("header", "right", "wrong", "complaint"),
    [
        (
            "libcriu.h",
            "int criu_local_set_root(criu_opts *opts, const char *root);",
            "void criu_local_set_root(criu_opts *opts, const char *root);",
            "criu_local_set_root",
        ),
        (
            "libcriu.h",
            "void criu_set_ghost_limit(unsigned int limit);",
            "void criu_set_ghost_limit(unsigned long limit);",
            "criu_set_ghost_limit",
        ),
        ("libcriu_types.h", "CRIU_CG_MODE_SOFT = 3", "CRIU_CG_MODE_SOFT = 2", "CRIU_CG_MODE_SOFT"),
        (
            "libcriu_types.h",
            "CRIU_NETWORK_LOCK_NFTABLES = 2",
            "CRIU_NETWORK_LOCK_NFTABLES = 1",
            "CRIU_NETWORK_LOCK_NFTABLES",
        ),
    ],
)
def test_a_wrong_declaration_cannot_build(
    library: Library,
    header: str,
    right: str,
    wrong: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A function or constant of ours that differs from ``criu.h`` is a compile error."""
    shutil.copytree(ROOT / "include", tmp_path / "include")
    changed = tmp_path / "include" / header
    text = changed.read_text()
    assert right in text
    changed.write_text(text.replace(right, wrong))
    response = _abi_check(library, tmp_path / "include", monkeypatch)
    assert "error" in response
    assert complaint in response


def _build(**changed: str) -> subprocess.CompletedProcess[str]:
    """Start a build that must end before it compiles."""
    command = [sys.executable, "-c", "import build_ffi; build_ffi.ffibuilder()"]
    named = {**environment(), **changed}
    return subprocess.run(command, env=named, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_compiler
def test_the_error_of_a_build_without_libcriu(tmp_path: Path) -> None:
    """A missing header, library or compiler is named, with the commands that install it."""
    library = any_library()
    compiler = tmp_path / "cc"

    def lacks(pattern: str) -> str:
        """A compiler that lacks something, whatever this machine has."""
        compiler.write_text(
            f"#!/bin/sh\nfor a; do case $a in {pattern}) exit 1;; "
            f'*.c) grep -q {pattern} $a && exit 1;; esac; done\nexec cc "$@"\n'
        )
        compiler.chmod(0o755)
        return str(compiler)

    present = {"CRIU_LIBDIR": str(library.path.parent), "CRIU_INCLUDEDIR": str(library.include)}
    assert _build(**present).returncode == 0
    for missing in ("protobuf-c/protobuf-c.h", "libcriu.so.2", "libprotobuf-c.so.1"):
        pattern = missing if missing.endswith(".h") else f"-l:{missing}"
        run = _build(**present, CC=lacks(pattern))
        assert run.returncode == 1
        assert f"{missing} was not found" in run.stderr
        assert "apt-get install libcriu-dev" in run.stderr
        assert "tools/install-criu" in run.stderr
    run = _build(**present, CC="/nonexistent/cc")
    assert run.returncode == 1
    assert "a C compiler (/nonexistent/cc) was not found" in run.stderr
    assert "apt-get install" in run.stderr


def any_library() -> Library:
    """A library with its headers."""
    for library in found().values():
        if (library.include / "criu/criu.h").exists():
            return library
    pytest.skip("no libcriu with its headers is installed")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("platform.python_implementation = lambda: 'PyPy'", "this is PyPy"),
        ("sysconfig.get_config_var = {'Py_GIL_DISABLED': 1}.get", "free-threaded build"),
    ],
)
def test_a_python_without_the_stable_abi(change: str, name: str) -> None:
    """The build ends at once and names the interpreter; pip has no wheel for it."""
    code = (
        "import platform, runpy, sys, sysconfig, unittest.mock\n"
        "sys.modules['setuptools'] = unittest.mock.Mock()  # which Python 3.12 does not bring\n"
        f"{change}\nrunpy.run_path('setup.py')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert name in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def without_libcriu(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with an extension whose libcriu does not exist."""
    package = Path(pycriu_native.__file__).parent
    shutil.copytree(package, tmp_path / "pycriu_native")
    shutil.copy(package.with_name("pycriu_native_main.py"), tmp_path)
    for extension in tmp_path.glob("pycriu_native/_native/extension*.so"):
        # A wheel has its own, with a digest in the name.
        other, count = re.subn(rb"(libcriu[-\w]*\.so)\.2\0", rb"\1.9\0", extension.read_bytes())
        assert count
        extension.write_bytes(other)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_error_of_an_import_without_libcriu(
    without_libcriu: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The extension without its library: one ImportError with the commands that install it."""
    run = without_libcriu("-c", "from pycriu_native import dump")
    assert run.returncode == 1
    assert "ImportError: pycriu_native's extension module does not load: libcriu" in run.stderr
    assert "apt-get install libcriu2" in run.stderr
    assert run.stderr.count("Traceback") == 1
    assert len(run.stderr.splitlines()) <= 9


@pytest.mark.parametrize("module", ["pycriu_native_main", "pycriu_native"])
def test_the_command_line_without_libcriu(
    without_libcriu: Callable[..., subprocess.CompletedProcess[str]], module: str
) -> None:
    """A command ends with the cure and without a traceback; doctor reports it in its usual form."""
    run = without_libcriu("-m", module, "dump", "1")
    assert run.returncode == Exit.NO_CRIU
    assert "module does not load: libcriu" in run.stderr
    assert "cure    Install libcriu: apt-get install libcriu2" in run.stderr
    assert "Traceback" not in run.stderr

    run = without_libcriu("-m", module, "doctor")
    assert run.returncode == Exit.NO
    assert "stops    libcriu: " in run.stdout
    assert "this machine cannot checkpoint" in run.stdout

    run = without_libcriu("-m", module, "doctor", "--json")
    result = json.loads(run.stdout)
    (finding,) = result["result"]["findings"]
    assert result["exit_code"] == run.returncode == Exit.NO
    assert result["schema"] == SCHEMA
    assert finding["severity"] == Severity.STOPS
    assert set(finding) == set(Finding(id="", severity=Severity.STOPS, message="").to_dict())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("sys.implementation.name = 'pypy'", "this is pypy"),
        ("sys.abiflags = 'td'", "this is a free-threaded build"),
    ],
)
def test_an_import_without_the_stable_abi(change: str, name: str) -> None:
    """An interpreter without the stable ABI is named in the error, and libcriu is not."""
    code = f"import sys; {change}\nfrom pycriu_native import dump"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert name in run.stderr
    assert "Install libcriu" not in run.stderr


def test_a_big_endian_machine_is_refused() -> None:
    """A big-endian machine is refused by name before the extension is loaded."""
    code = "import sys; sys.byteorder = 'big'\nfrom pycriu_native import dump"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"({os.uname().machine}) is big-endian" in run.stderr

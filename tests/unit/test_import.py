"""The modules that ``import pycriu_native`` loads, and the package's own dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import pprint
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pycriu_native
from pycriu_native import (
    CriuOpts,
    Features,
    Notification,
    PageServer,
    Version,
    VethPair,
    Worker,
    images,
    snapshots,
)
from pycriu_native._support.frozen_dataclass import dataclass, field

from .support import bystander
from .support.image_sets import image_set

REPO = Path(__file__).parents[2]

SLOW = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "dataclasses",
    "glob",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "pathlib",
    "random",
    "re",
    "shutil",
    "socket",
    "struct",
    "subprocess",
    "tempfile",
    "tomllib",
    "traceback",
    "typing",
}
"""Modules whose import takes long, and which a call that succeeds does without."""

LATER = {
    "diagnostics.explain",
    "_failures.explain",
    "options.flag_values",
    "options.flags",
    "_calls.batch",
    "_transport.feature_cache",
    "_calls.iterative_dump",
    "_pages.lazy_pages",
    "lib",
    "oci.bundle",
    "_pages.page_server",
    "_transport.pool",
}
"""Our own that few programs use."""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this, without those of its start."""
    show = "import sys; before = set(sys.modules)\n{}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", show.format(code)],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    return set(done.stdout.split())


def test_what_the_import_loads() -> None:
    """The import loads no slow module, and none of this package that few programs use."""
    result = loaded_by("from pycriu_native import CriuOpts, dump, restore; CriuOpts(timeout=1)")
    if sys.version_info[:2] == (3, 11):  # what others import by themselves differs
        assert not result & SLOW
    assert not {f"pycriu_native.{name}" for name in LATER} & result


def test_what_a_star_import_loads() -> None:
    """Every public name resolves; modules that only its use needs are not loaded."""
    result = loaded_by(
        "from pycriu_native import *\n"
        "import pycriu_native; names = pycriu_native.__all__\n"
        "assert all(globals()[name] is getattr(pycriu_native, name) for name in names)\n"
        "assert issubclass(DumpJob, object) and isinstance(MigrationMode.PRE_COPY, MigrationMode)"
    )
    ours = {name.partition(".")[2] for name in result if name.startswith("pycriu_native.")}
    assert {"_calls.verbs", "diagnostics.preflight", "migration.migrate"} <= ours
    assert (
        not {
            "_calls.batch_threads",
            "_calls.progress",
            "_integrity.restore_claim",
            "diagnostics.call_effects",
            "diagnostics.doctor.features",
            "diagnostics.preflight.looks",
            "migration.sides",
            "options.flags",
        }
        & ours
    )
    assert not {name for name in ours if name.startswith(("archive", "cli", "images", "jobs"))}
    assert len(ours) <= 115, sorted(ours)
    if sys.version_info[:2] == (3, 11):
        assert not result & (SLOW | {"hashlib", "queue", "signal", "ssl", "uuid"})


UNTIL_CRIU_STARTS = """
import os, sys
from pycriu_native import CriuOpts, Worker, dump

class Recording(Worker):
    def connect(self, keep=(), spawn_options=None):
        print(*(set(sys.modules) - before), flush=True)
        os._exit(0)

dump({pid}, CriuOpts(images_directory={images!r}), via=Recording(program="/bin/true"))
"""


def test_what_a_first_dump_loads_before_criu_starts(tmp_path: Path) -> None:
    """No slow module, and none that only recovery, restores or failures need.

    The caller waits for these imports; those after the start run while CRIU begins.
    """
    result = loaded_by(UNTIL_CRIU_STARTS.format(pid=bystander.PID, images=str(tmp_path)))
    ours = {name.partition(".")[2] for name in result if name.startswith("pycriu_native.")}
    assert "_calls.run" in ours
    assert not {name for name in ours if name.startswith(("_recovery.recovery", "diagnostics"))}
    assert not {"_calls.conversation", "_integrity.completeness", "_failures.explain"} & ours
    assert len(ours) <= 70, sorted(ours)
    if sys.version_info[:2] == (3, 11):
        assert not result & (SLOW | {"signal"})


def test_what_recovery_loads() -> None:
    """Recovery is loaded in each first dump, while CRIU works."""
    result = loaded_by("import pycriu_native._recovery.recovery")
    if sys.version_info[:2] == (3, 11):
        assert not result & (SLOW - {"socket", "struct"})


def test_what_an_inspection_loads(tmp_path: Path) -> None:
    """No slow module, and none that compares or checks images."""
    image_set(tmp_path)
    result = loaded_by(f"from pycriu_native.images import inspect; inspect({str(tmp_path)!r})")
    needed = {"re", "struct", "typing"}
    if sys.version_info[:2] == (3, 11):
        assert not result & (SLOW - needed)
    rest = ("check", "difference", "render")
    assert not {f"pycriu_native.images.{name}" for name in rest} & result


@pytest.mark.parametrize("module", [pycriu_native, images, snapshots])
def test_every_name_is_there(module: ModuleType) -> None:
    """Lazy names are loaded, and an unknown name is an AttributeError."""
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    assert not {"Any", "annotations", "fetch"} & set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


PROGRAMS = {"cli", "diagnostics"}
"""Packages without a name for other programs."""


@pytest.mark.parametrize(
    "name",
    [
        name
        for _, name, _ in pkgutil.iter_modules(pycriu_native.__path__)
        if not name.startswith("_") and name not in PROGRAMS
    ],
)
def test_each_public_module_is_an_attribute(name: str) -> None:
    """Without an import of its own, as type checkers accept it."""
    loaded_by(f"import pycriu_native; pycriu_native.{name}.__name__")
    assert name in dir(pycriu_native)


def test_no_two_public_classes_share_a_name() -> None:
    """A class can be searched for by its name."""
    classes: dict[str, set[type]] = {}
    for package in pkgutil.iter_modules(pycriu_native.__path__, "pycriu_native."):
        if package.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(package.name)
        for name in getattr(module, "__all__", ()):
            if isinstance(value := getattr(module, name), type):
                classes.setdefault(name, set()).add(value)
    assert {name for name, found in classes.items() if len(found) > 1} == set()


def test_a_module_is_there_too() -> None:
    """A submodule of a private package can be reached by attributes, too."""
    assert pycriu_native._pages.page_server.page_server is pycriu_native.page_server


def test_they_are_dataclasses() -> None:
    """Functions of the standard library accept them."""
    features = Features(mem_track=True, lazy_pages=False, pidfd_store=True)
    assert dataclasses.is_dataclass(features)
    assert [f.name for f in dataclasses.fields(Features)][:2] == ["mem_track", "lazy_pages"]
    assert dataclasses.asdict(features)["mem_compression"] is False
    assert dataclasses.replace(features, lazy_pages=True).lazy_pages
    assert dataclasses.replace(CriuOpts(timeout=3), log_level=4) == CriuOpts(timeout=3, log_level=4)
    assert "mem_track=True" in pprint.pformat(features)
    parameters = inspect.signature(CriuOpts).parameters
    assert next(iter(parameters)) == "images_directory"
    assert parameters["timeout"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(VethPair).parameters) == ["inside", "outside"]
    match PageServer("10.0.0.1", 27):
        case PageServer(address, port):
            assert (address, port) == ("10.0.0.1", 27)


def test_their_values() -> None:
    """Values compare, hash, print, copy and pickle by their fields, and are immutable."""
    one, same, other = VethPair("a", "b"), VethPair(inside="a", outside="b"), VethPair("a", "c")
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2
    assert repr(one) == "VethPair(inside='a', outside='b')"
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert Version(major=1, minor=2, name="x") == Version(major=1, minor=2)
    assert Worker().env == {}
    assert Worker().env is not Worker().env
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.inside = "x"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.inside


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: VethPair("a"), "needs a value for outside"),  # type: ignore[call-arg]
        (lambda: VethPair("a", "b", "c"), "takes 2 arguments"),  # type: ignore[call-arg]
        (lambda: VethPair("a", inside="b"), "two values for 'inside'"),  # type: ignore[call-arg,misc]
        (lambda: VethPair("a", "b", more=1), "unexpected keyword argument 'more'"),  # type: ignore[call-arg]
        (lambda: CriuOpts("images"), "takes 0 arguments"),  # type: ignore[call-arg]
        (lambda: dataclass(frozen=False), "frozen"),
        (lambda: Notification(), "needs a value for action, verb"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments(make: object, what: str) -> None:
    """Invalid arguments are refused as by any function."""
    with pytest.raises(TypeError, match=what):
        make()  # type: ignore[operator]


def test_what_is_worked_out_is_no_part_of_a_value() -> None:
    """Cached results on options are neither compared, copied nor pickled."""
    used, fresh = CriuOpts(timeout=3), CriuOpts(timeout=3)
    list(used.items())
    used._remembered.packed = b"something"
    assert used == fresh
    assert pickle.dumps(used) == pickle.dumps(fresh)
    assert copy.copy(used)._remembered.packed is None
    assert dataclasses.replace(used, timeout=4)._remembered.packed is None


def test_a_field_that_is_left_out() -> None:
    """Fields can be excluded from text, comparisons, or both, also for ``dataclasses``."""

    @dataclass(frozen=True, kw_only=True)
    class Value:
        seen: int
        unseen: int = field(default=0, repr=False, compare=False)

    assert repr(Value(seen=1, unseen=2)).endswith("Value(seen=1)")
    assert Value(seen=1, unseen=2) == Value(seen=1)
    assert [(f.repr, f.compare) for f in dataclasses.fields(Value)] == [
        (True, True),
        (False, False),
    ]


def test_a_field_that_is_computed() -> None:
    """A computed field is no argument but part of the value; a variant computes it again."""

    @dataclass(frozen=True, kw_only=True)
    class Value:
        given: int
        double: int = field(init=False, repr=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "double", 2 * self.given)

    assert Value(given=2).double == 4
    assert Value(given=2) == Value(given=2)
    assert copy.copy(Value(given=2)).double == 4
    assert dataclasses.replace(Value(given=2), given=3).double == 6
    assert list(inspect.signature(Value).parameters) == ["given"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'double'"):
        Value(given=2, double=5)  # type: ignore[call-arg]


def test_a_class_above_a_class() -> None:
    """Fields of base class and class are in the standard library's order."""

    @dataclass(frozen=True)
    class Base:
        first: int
        second: int = 2

    @dataclass(frozen=True)
    class Above(Base):
        third: int = 3

    assert [f.name for f in dataclasses.fields(Above)] == ["first", "second", "third"]
    assert repr(Above(1)).endswith("Above(first=1, second=2, third=3)")
    assert Above(1) != Base(1)


WITHOUT_IMPORTS = """
import sys
import pycriu_native
from pycriu_native import CriuOpts, NoSuchProcessError, PidInUseError, check, dump, restore
from pycriu_native.testing import Failure, ScriptedCriu, write_images

pycriu_native.preload()
sys.meta_path.clear()
write_images(sys.argv[1])
opts = CriuOpts(images_directory=sys.argv[1])
good = ScriptedCriu()
bad = ScriptedCriu(failures={"dump": Failure.NO_SUCH_PROCESS, "restore": Failure.PID_IN_USE})
check(via=good)
dump(int(sys.argv[2]), opts, via=good, on_progress=lambda progress: None)
assert restore(opts, via=good).pid
for call in (lambda: dump(int(sys.argv[2]), opts, via=bad), lambda: restore(opts, via=bad)):
    try:
        call()
    except (NoSuchProcessError, PidInUseError) as error:
        print(error)
"""


def test_nothing_is_imported_after_preload(tmp_path: Path) -> None:
    """After preload, successful and failed calls need no further module."""
    words = [sys.executable, "-c", WITHOUT_IMPORTS, str(tmp_path), str(bystander.PID)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2, done.stdout
    assert "see pycriu_native.preload" not in done.stdout


WITHOUT_EXTRAS = """
import sys

class Refuse:
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in (*sys.stdlib_module_names, "_cffi_backend", "pycriu_native"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import pycriu_native
pycriu_native.preload()
"""


def test_preload_needs_no_extra() -> None:
    """``preload`` imports nothing that an installation without extras lacks."""
    words = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr


def test_modules_are_attributes() -> None:
    """Submodules are attributes without an import; ``dir`` lists the public names, which exist."""
    code = (
        "import pycriu_native\n"
        "pycriu_native.oci.Bundle, pycriu_native.lib.has, pycriu_native.testing.ScriptedCriu\n"
        "names = [name for name in dir(pycriu_native) if name != '__version__']\n"
        "print([name for name in names if name.startswith('_') or name in ('Any', 'fetch')])\n"
        "print([name for name in names if not hasattr(pycriu_native, name)])\n"
        "assert len(names) == len(set(names))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n[]\n"


def test_a_module_whose_extra_is_missing() -> None:
    """Such a module is a missing attribute, and the AttributeError names the extra."""
    code = (
        "import sys; sys.modules['google.protobuf'] = None\n"
        "import pycriu_native\n"
        "assert not hasattr(pycriu_native, 'images')\n"
        "try: pycriu_native.images\n"
        "except AttributeError as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pycriu-native[images]" in ended.stdout

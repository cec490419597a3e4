"""Cgroups: how they are saved and restored.

A dump saves the cgroups of the processes, with the properties of these cgroups and of all below
them. ``manage_cgroups_mode`` in the restore determines how they are used. For a process that was
dumped in a cgroup with the property value *old*, if the value was then changed to *new* or the
cgroup was removed:

====================  ============================  ============================
mode of the restore   the cgroup exists (*new*)     the cgroup was removed
====================  ============================  ============================
``ignore``            in CRIU's own cgroup          in CRIU's own cgroup
``none``              *new*                         refused
``props``             *old*                         refused
``soft``, default     *new*                         created, with *old*
``full``              *old*                         created, with *old*
``strict``            refused                       created, with *old*
====================  ============================  ============================

``cg_roots`` restores the cgroups below another path. ``cg_dump_controllers`` selects the
hierarchies that are saved (the empty name is cgroup v2), and ``cg_props`` the properties. For a
process in the root of a hierarchy the whole hierarchy is saved, so most tests here save one
hierarchy only. ``freeze_cgroup`` is for a tree in a frozen cgroup, such as that of a paused
container: without it the dump cannot stop processes that are frozen already.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CgroupMode,
    CgroupRoot,
    CriuError,
    CriuOpts,
    dump,
    preflight,
    restore,
)

from .conftest import Spawn
from .support import cgroups
from .support.cgroups import FREEZERS, Hierarchy, Make, enter, read, remove
from .support.processes import Target, eventually, is_alive

PROPERTIES = [
    pytest.param("pids", "pids.max", id="v1"),
    pytest.param("", "cgroup.max.depth", id="v2"),
]
"""A property of each cgroup version that is saved by default and accepts any value."""

OLD, NEW = "50", "70"
REFUSED, OUTSIDE = "refused", "in CRIU's own cgroup"

MODES: list[tuple[str | None, str, str]] = [
    # mode, what there is when the cgroup exists, what when it was removed
    ("ignore", OUTSIDE, OUTSIDE),
    ("none", NEW, REFUSED),
    ("props", OLD, REFUSED),
    ("soft", NEW, OLD),
    ("full", OLD, OLD),
    ("strict", REFUSED, OLD),
    ("default", NEW, OLD),
    (None, NEW, OLD),
]


def _dump(target: Target, images: Path, hierarchy: Hierarchy, **fields: Any) -> None:
    fields.setdefault("cg_dump_controllers", [hierarchy.controller])
    target.dump(CriuOpts(images_directory=images, **fields))


def _outcome(
    target: Target, opts: CriuOpts, hierarchy: Hierarchy, cgroup: Path, name: str
) -> tuple[str, str]:
    """Restore; returns the state of the process and its cgroup, and the text of an exception."""
    there = cgroup.exists()
    failed = None
    try:
        restore(opts)
    except CriuError as error:
        failed = error
    if failed is not None:
        assert not is_alive(target.pid)
        assert cgroup.exists() == there
        assert failed.options[:1] == ("manage_cgroups_mode",), failed
        target.end()  # reaps processes of the failed restore, if this process is their subreaper
        return REFUSED, str(failed)
    assert target.runs_on()
    if hierarchy.path_of(target.pid) == hierarchy.name_of(cgroup):
        return read(cgroup, name), ""
    assert hierarchy.path_of(target.pid) == hierarchy.path_of(os.getpid())
    return OUTSIDE, ""


@pytest.mark.cures("cg-exists", "cg-missing")
@pytest.mark.parametrize(("controller", "name"), PROPERTIES)
@pytest.mark.parametrize(
    ("mode", "existing", "missing"), MODES, ids=[str(mode) for mode, _, _ in MODES]
)
def test_mode(
    orphans: None,
    make_cgroup: Make,
    spawn: Spawn,
    images: Path,
    controller: str,
    name: str,
    mode: str | None,
    existing: str,
    missing: str,
) -> None:
    """Each mode has the effect of the table, with the cgroup and without it."""
    hierarchy = cgroups.required(controller, properties=OLD in (existing, missing))
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    opts = CriuOpts(images_directory=images, manage_cgroups_mode=mode)
    (cgroup / name).write_text(OLD)
    enter(cgroup, target.pid)
    _dump(target, images, hierarchy)

    (cgroup / name).write_text(NEW)
    result, text = _outcome(target, opts, hierarchy, cgroup, name)
    assert result == existing, text
    if result == REFUSED:
        assert "the cgroup exists" in text
    target.end()

    remove(cgroup)
    result, text = _outcome(target, opts, hierarchy, cgroup, name)
    assert result == missing, text
    if result == REFUSED:
        assert "does not exist" in text


def test_modes_are_all_shown() -> None:
    """The table above contains every mode."""
    assert {mode for mode, _, _ in MODES} == {None, *(m.name.lower() for m in CgroupMode)}


@pytest.mark.parametrize(("managed", "expected"), [(True, OLD), (False, OUTSIDE)])
def test_manage_cgroups_as_a_flag(
    orphans: None,
    make_cgroup: Make,
    spawn: Spawn,
    images: Path,
    managed: bool,
    expected: str,
) -> None:
    """``manage_cgroups`` is the old form: True is mode soft, False is mode ignore."""
    controller, name = ("pids", "pids.max") if cgroups.find("pids") else ("", "cgroup.max.depth")
    hierarchy = cgroups.required(controller, properties=managed)
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    (cgroup / name).write_text(OLD)
    enter(cgroup, target.pid)
    _dump(target, images, hierarchy)
    remove(cgroup)
    opts = CriuOpts(images_directory=images, manage_cgroups=managed)
    assert _outcome(target, opts, hierarchy, cgroup, name) == (expected, "")


@pytest.mark.parametrize(("controller", "name"), PROPERTIES)
@pytest.mark.parametrize(
    "without",
    [{"unprivileged": True, "cg_dump_controllers": None}, {"cg_dump_controllers": ["another"]}],
    ids=["unprivileged", "another controller"],
)
def test_what_is_not_saved_does_not_come_back(
    make_cgroup: Make,
    spawn: Spawn,
    images: Path,
    controller: str,
    name: str,
    without: dict[str, Any],
) -> None:
    """With ``unprivileged``, or with other ``cg_dump_controllers``, cgroups are not restored."""
    hierarchy = cgroups.required(controller)
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    (cgroup / name).write_text(OLD)
    enter(cgroup, target.pid)
    _dump(target, images, hierarchy, **without)
    remove(cgroup)
    opts = CriuOpts(images_directory=images, manage_cgroups_mode="full")
    assert _outcome(target, opts, hierarchy, cgroup, name) == (OUTSIDE, "")


@pytest.mark.parametrize(("controller", "name"), PROPERTIES)
def test_ignore_on_dump(
    orphans: None, make_cgroup: Make, spawn: Spawn, images: Path, controller: str, name: str
) -> None:
    """With mode ignore a dump saves the cgroup's path but not the cgroup, which must then exist at
    the restore. A restore has to use mode ignore, too.
    """
    hierarchy = cgroups.required(controller)
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    (cgroup / name).write_text(OLD)
    enter(cgroup, target.pid)
    _dump(target, images, hierarchy, manage_cgroups_mode="ignore")
    (cgroup / name).write_text(NEW)
    opts = CriuOpts(images_directory=images, manage_cgroups_mode="full")
    assert _outcome(target, opts, hierarchy, cgroup, name) == (NEW, "")
    target.end()

    remove(cgroup)
    assert _outcome(target, opts, hierarchy, cgroup, name)[0] == REFUSED
    ignore = replace(opts, manage_cgroups_mode="ignore")
    assert _outcome(target, ignore, hierarchy, cgroup, name) == (OUTSIDE, "")


@pytest.mark.parametrize(("controller", "name"), PROPERTIES)
@pytest.mark.parametrize("one", [False, True], ids=["for all", "for one controller"])
def test_cg_roots(
    orphans: None,
    make_cgroup: Make,
    spawn: Spawn,
    images: Path,
    controller: str,
    name: str,
    one: bool,
) -> None:
    """With ``cg_roots`` the cgroup is restored below another path, with its properties."""
    hierarchy = cgroups.required(controller, properties=True)
    cgroup, other = make_cgroup(hierarchy), make_cgroup(hierarchy)
    remove(other)
    target = spawn()
    (cgroup / name).write_text(OLD)
    enter(cgroup, target.pid)
    _dump(target, images, hierarchy)
    remove(cgroup)

    path = hierarchy.name_of(other)
    root = CgroupRoot(path, controller) if one else CgroupRoot(path)
    restore(CriuOpts(images_directory=images, cg_roots=[root]))
    assert hierarchy.path_of(target.pid) == path
    assert read(other, name) == OLD
    assert not cgroup.exists()
    target.end()

    foreign = CgroupRoot(path, "no such controller")
    restore(CriuOpts(images_directory=images, cg_roots=[foreign]))
    assert hierarchy.path_of(target.pid) == hierarchy.name_of(cgroup)


NO_PROPERTIES = '"pids":\n - "strategy": "replace"\n - "properties": []'


@pytest.mark.parametrize("form", ["default", "cg_props", "cg_props_file"])
def test_cg_props(make_cgroup: Make, spawn: Spawn, images: Path, tmp_path: Path, form: str) -> None:
    """``cg_props`` selects the properties that are saved: here none of the controller."""
    hierarchy = cgroups.required("pids")
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    (cgroup / "pids.max").write_text(OLD)
    enter(cgroup, target.pid)
    (tmp_path / "props").write_text(NO_PROPERTIES)
    forms: dict[str, dict[str, Any]] = {
        "default": {},
        "cg_props": {"cg_props": NO_PROPERTIES},
        "cg_props_file": {"cg_props_file": tmp_path / "props"},
    }
    _dump(target, images, hierarchy, **forms[form])
    remove(cgroup)
    restore(CriuOpts(images_directory=images))
    assert hierarchy.path_of(target.pid) == hierarchy.name_of(cgroup)
    assert read(cgroup, "pids.max") == (OLD if form == "default" else "max")
    assert target.runs_on()


def test_cg_props_that_cannot_be_read(spawn: Spawn, images: Path) -> None:
    """CRIU accepts only a subset of YAML; other text fails the dump, and the process continues."""
    target = spawn()
    with pytest.raises(CriuError, match="cg_props") as caught:
        dump(target.pid, CriuOpts(images_directory=images, cg_props="pids: [pids.max]"))
    assert caught.value.options == ("cg_props", "cg_props_file")
    assert target.runs_on()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Path]:
    """The directory of ``cg_yard``; what is mounted in it is unmounted."""
    place = tmp_path / "yard"
    place.mkdir()
    yield place
    for each in place.iterdir():
        subprocess.run(["umount", each], check=False)


@pytest.mark.cures("cg-yard")
@pytest.mark.parametrize("is_relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.usefixtures("orphans")
def test_cg_yard(
    make_cgroup: Make, spawn: Spawn, images: Path, yard: Path, is_relative: bool
) -> None:
    """A yard without the hierarchies fails; with each of them at its name CRIU works in it.

    A relative path starts at the directory of the log.
    """
    hierarchy = cgroups.required("pids")
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    enter(cgroup, target.pid)
    given = os.path.relpath(yard, images) if is_relative else yard
    opts = CriuOpts(images_directory=images, cg_yard=given)
    (finding,) = preflight(target.pid, opts).stops
    with pytest.raises(CriuError, match="cg_yard lacks a directory") as caught:
        dump(target.pid, opts)
    assert caught.value.cure == finding.cure
    assert "/proc/PID/cgroup" in finding.cure
    for line in Path(f"/proc/{target.pid}/cgroup").read_text().splitlines():
        _, name, _ = line.split(":", 2)
        place = yard / (name.removeprefix("name=") or "unified")
        place.mkdir()
        options = ["-o", f"none,{name}" if name.startswith("name=") else name] if name else []
        kind = "cgroup" if name else "cgroup2"
        subprocess.run(["mount", "-t", kind, *options, "none", place], check=True)
    assert not preflight(target.pid, opts).stops
    target.dump(opts)
    remove(cgroup)
    restore(opts)
    assert hierarchy.path_of(target.pid) == hierarchy.name_of(cgroup)
    assert target.runs_on()


@contextmanager
def _frozen(cgroup: Path, controller: str) -> Iterator[None]:
    """Freeze the cgroup in this context."""
    name, frozen, thawed = FREEZERS[controller]
    (cgroup / name).write_text(frozen)
    try:
        if controller:
            eventually(lambda: read(cgroup, name) == frozen, "the freezing")
        else:
            eventually(lambda: "frozen 1" in read(cgroup, "cgroup.events"), "the freezing")
        yield
    finally:
        (cgroup / name).write_text(thawed)


@pytest.mark.cures("preflight:frozen")
@pytest.mark.parametrize("controller", FREEZERS, ids=["v1", "v2"])
def test_freeze_cgroup(make_cgroup: Make, spawn: Spawn, images: Path, controller: str) -> None:
    """A frozen process is dumped with ``freeze_cgroup``, and remains frozen with
    ``leave_running``.
    """
    hierarchy = cgroups.required(controller)
    name, frozen, _ = FREEZERS[controller]
    cgroup = make_cgroup(hierarchy)
    target = spawn()
    enter(cgroup, target.pid)
    with _frozen(cgroup, controller):
        opts = CriuOpts(images_directory=images, freeze_cgroup=cgroup, leave_running=True)
        dump(target.pid, opts, deadline=30)
        assert read(cgroup, name) == frozen
    assert target.runs_on()
    target.end()
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


CALLER_INSIDE = """
import os, sys
from pycriu_native import CriuOpts, OptionError, dump, preflight
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
opts = CriuOpts(images_directory=sys.argv[3], freeze_cgroup=sys.argv[2], leave_running=True)
for pid in int(sys.argv[4]), None:
    try:
        dump(pid, opts)
    except OptionError as error:
        assert error.options == ("freeze_cgroup",)
(result,) = [each for each in preflight(int(sys.argv[4]), opts).stops if each.path == sys.argv[2]]
print(result.id)
"""


@pytest.mark.cures("preflight:caller-frozen")
@pytest.mark.parametrize("nested", [False, True], ids=["in it", "below it"])
@pytest.mark.parametrize("controller", FREEZERS, ids=["v1", "v2"])
def test_freeze_cgroup_of_the_caller(
    make_cgroup: Make, spawn: Spawn, images: Path, controller: str, nested: bool
) -> None:
    """The cgroup of the caller is refused: CRIU would be frozen for ever. A call from outside
    of the cgroup works.
    """
    hierarchy = cgroups.required(controller)
    cgroup = make_cgroup(hierarchy)
    own = cgroup / "below" if nested else cgroup
    own.mkdir(exist_ok=True)
    target = spawn()
    enter(cgroup, target.pid)
    places = (str(place) for place in (own, cgroup, images))
    words = [sys.executable, "-c", CALLER_INSIDE, *places, str(target.pid)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as caller:
        try:
            output, _ = caller.communicate(timeout=30)
        finally:
            _end_all_but(cgroup, target.pid, controller)
    if nested:
        remove(own)
    assert (caller.returncode, output) == (0, "caller-frozen\n")
    assert target.runs_on()
    assert not images.exists()
    dump(target.pid, CriuOpts(images_directory=images, freeze_cgroup=cgroup, leave_running=True))
    assert target.runs_on()


def _end_all_but(cgroup: Path, pid: int, controller: str) -> None:
    """End the processes of the cgroup; a working CRIU would freeze it again."""
    name, _, thawed = FREEZERS[controller]

    def is_over() -> bool:
        (cgroup / name).write_text(thawed)
        files = cgroup.rglob("cgroup.procs")
        members = {int(each) for file in files for each in file.read_text().split()}
        for member in members - {pid}:
            os.kill(member, signal.SIGKILL)
        return members <= {pid}

    eventually(is_over, "the end of the caller")


@pytest.mark.parametrize("controller", FREEZERS, ids=["v1", "v2"])
def test_without_freeze_cgroup(
    make_cgroup: Make, spawn: Spawn, images: Path, controller: str
) -> None:
    """Without it, a process in a frozen cgroup cannot be dumped, and the exception names the
    option. (With cgroup v2 CRIU would wait for ever, since it cannot run its parasite in a frozen
    process, and its ``timeout`` does not apply; the library refuses this before.)
    """
    cgroup = make_cgroup(cgroups.required(controller))
    target = spawn()
    enter(cgroup, target.pid)
    with _frozen(cgroup, controller), pytest.raises(CriuError, match="freeze_cgroup") as caught:
        dump(target.pid, CriuOpts(images_directory=images, timeout=1))
    assert "freeze_cgroup" in caught.value.options
    assert target.runs_on()


def test_freeze_cgroup_that_is_no_freezer(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A directory that is not a freezer cgroup is refused by name, and the process continues."""
    target = spawn()
    with pytest.raises(CriuError, match="freeze_cgroup is not a freezer") as caught:
        dump(target.pid, CriuOpts(images_directory=images, freeze_cgroup=tmp_path))
    assert caught.value.options == ("freeze_cgroup",)
    assert target.runs_on()

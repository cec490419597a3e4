"""All images of many processes, decoded to the output of ``crit`` and encoded to the original
bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, ProgramError, Worker, dump
from pycriu_native._wire.image_kinds import is_raw
from pycriu_native.images import decode, diff, encode, inspect

from .conftest import Spawn
from .support import crit
from .support.sample_images import SampleImages, contained
from .test_dump_restore import RICH

OTHERS = {"4.1": "/opt/pycriu-native-4.1/bin/criu", "4.3": "/opt/pycriu-native-4.3/bin/criu"}

NEW_NAME, OLD_NAME = "compat_nr_pages", "nr_pages"
"""A field of page maps, and what a crit before 4.1 calls it."""


def _images(directory: Path) -> list[Path]:
    """The images of a directory that consist of messages."""
    return sorted(
        path
        for path in directory.iterdir()
        if (path.suffix == ".img" or path.name == "stats-dump") and not is_raw(path.name)
    )


def _is_decoded(theirs: Any, path: Path) -> bool:
    """Whether crit decoded an image: with the protobuf of Debian forky it fails for a name that is
    not UTF-8.
    """
    failed = isinstance(theirs, str)
    assert not failed or (path.name == "files.img" and "UnicodeDecodeError" in theirs), theirs
    return not failed


def _same(ours: Any, theirs: Any, where: str) -> None:
    """Compare by field; crit prints a name that is not UTF-8 as a Python literal."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        if OLD_NAME in theirs and NEW_NAME not in theirs and NEW_NAME in ours:
            theirs = {**theirs, NEW_NAME: theirs[OLD_NAME]}
            del theirs[OLD_NAME]
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            _same(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for index, value in enumerate(ours):
            _same(value, theirs[index], f"{where}[{index}]")
    elif isinstance(ours, str) and not ours.isascii():
        assert theirs in (ours, str(os.fsencode(ours))), where
    else:
        assert ours == theirs, where


def _pretty_against(place: Path, directories: list[Path]) -> set[str]:
    """Compare the pretty forms with those of crit; returns the kinds of formatting that
    occurred.
    """
    paths = [path for directory in directories for path in _images(directory)]
    theirs = crit.load(place, paths, pretty=True)
    for path in paths:
        ours, as_written = decode(path, pretty=True), path.read_bytes()
        if _is_decoded(theirs[str(path)], path):
            _same(ours, theirs[str(path)], path.name)
        assert encode(ours) == as_written, path.name
        if path.name != "files.img":  # whose names are not all UTF-8
            assert encode(theirs[str(path)]) == as_written, path.name
    return {path.name.partition("-")[0].partition(".")[0] for path in paths}


def _held_against(place: Path, directories: list[Path]) -> set[str]:
    """Compare all images; returns the kinds that were compared."""
    paths = [path for directory in directories for path in _images(directory)]
    theirs = crit.load(place, paths)
    kinds = set()
    for path in paths:
        ours = decode(path)
        if _is_decoded(theirs[str(path)], path):
            _same(ours, theirs[str(path)], path.name)
        assert encode(ours) == path.read_bytes(), path.name
        kinds.add(ours["magic"])
    return kinds


def test_the_pretty_form_is_that_of_crit(sample: SampleImages, tmp_path: Path) -> None:
    """The output is equal by field, and either form is encoded to the original bytes."""
    place = crit.required()
    with contained(tmp_path / "container") as (images, _):
        kinds = _pretty_against(place, [sample.images, sample.changed, images])
    assert kinds >= {"core", "mm", "pagemap", "files", "fdinfo", "mountpoints", "ghost"}
    for name in ("core", "mm", "pagemap"):
        (path, *_) = sample.images.glob(f"{name}-*.img")
        words = [sys.executable, "-m", "pycriu_native", "decode", str(path), "--pretty"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout == crit.printed(place, path)


def test_every_image_of_the_sample(sample: SampleImages, tmp_path: Path) -> None:
    """A process with many kinds of state, a restored one, and a container."""
    place = crit.required()
    with contained(tmp_path / "container") as (images, _):
        kinds = _held_against(place, [sample.images, sample.changed, images])
    assert kinds >= {
        *("INVENTORY", "PSTREE", "CORE", "MM", "PAGEMAP", "FILES", "FDINFO", "FS", "IDS", "STATS"),
        *("PIPES_DATA", "FIFO_DATA", "SK_QUEUES", "TCP_STREAM", "TTY_INFO", "TTY_DATA"),
        *("GHOST_FILE", "REMAP_FPATH", "MEMFD_INODE", "FILE_LOCKS", "TIMENS", "UTSNS", "SECCOMP"),
        *("IPC_VAR", "IPCNS_SHM", "IPCNS_SEM", "IPCNS_MSG", "MNTS", "NETDEV", "NETNS"),
    }


@pytest.mark.parametrize("release", OTHERS)
def test_images_of_other_releases(release: str, spawn: Spawn, images: Path) -> None:
    """Images of other releases of CRIU; 4.1 cannot dump sockets or guard pages on newer systems."""
    program = OTHERS[release]
    if not os.access(program, os.X_OK):
        pytest.skip(f"no CRIU {release} in {program}")
    place = crit.required()
    target = spawn(RICH)
    opts = CriuOpts(images_directory=images, leave_running=True)
    try:
        dump(target.pid, opts, via=Worker(program=program))
    except ProgramError as error:  # such as guard pages, which glibc has from 2.42 on
        pytest.skip(str(error))
    assert {"CORE", "PAGEMAP"} <= _held_against(place, [images])
    result = inspect(images)
    assert result.complete
    assert result.process(target.pid).command is not None


def test_compressed_memory(spawn: Spawn, images: Path) -> None:
    """Compressed images of CRIU 4.3 and crit are decompressed to the original blocks."""
    place = crit.required()
    target = spawn(RICH)
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    packed = images.with_name("packed")
    shutil.copytree(images, packed)
    if not crit.compress(place, packed):
        pytest.skip(f"the crit in {place} cannot compress: it is older than 4.3")
    result = inspect(packed)
    assert (result.compressed, result.version, result.complete) == (True, 3, True)
    assert not diff(images, result)
    assert diff(images, result).pages_same > 1000
    assert "PAGEMAP" in _held_against(place, [packed])

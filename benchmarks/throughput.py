"""Dumps and restores of large processes, against the ``criu`` program and a copy of the bytes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycriu_native import (
    CriuError,
    CriuOpts,
    UnsupportedError,
    WarmWorkers,
    Worker,
    dump,
    page_server_child,
    restore,
)

from .common import Row, Target, adopt, criu, main, note, row, scratch

NEWEST = "/opt/pycriu-native-4.3/bin/criu"
"""A CRIU with image I/O modes and compression, where it is installed and CRIU_NEWEST is unset."""


def gigabytes(mib: int, seconds: float) -> float:
    """As a rate: GB/s."""
    return mib * 2**20 / seconds / 1e9


def measure(quick: bool) -> list[Row]:
    """Each way in turn: dump, restore, look whether all is there, and again."""
    adopt()
    rows: list[Row] = []
    times = 3 if quick else 5
    for where, base in (("tmpfs", "/dev/shm"), ("disk", os.environ.get("TMPDIR", "/var/tmp"))):
        for mib in (1024,) if quick else (1024, 4096):
            free = os.statvfs(base)
            if free.f_bavail * free.f_frsize < 3 * mib * 2**20:
                rows.append(note("throughput", "no room for it", on=where, MiB=mib))
                continue
            with scratch(base) as directory:
                rows += _measure(directory, where, mib, times if mib < 4096 else 3)
    return rows


def _measure(directory: Path, where: str, mib: int, times: int) -> list[Row]:
    target = Target(directory, mib)
    images = directory / "images"
    opts = CriuOpts(images_directory=images)
    taken: dict[tuple[str, str], list[float]] = {}
    refused: dict[str, str] = {}

    def clear() -> None:
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir()

    def command_dump() -> None:
        criu("dump", "-t", target.pid, "-D", images, "-o", "dump.log")

    def command_restore() -> None:
        criu("restore", "-D", images, "-o", "restore.log", "-d")

    def to_page_server() -> None:
        serving = CriuOpts(images_directory=images, page_server="127.0.0.1:0")
        with page_server_child(serving) as server:
            dump(
                target.pid,
                CriuOpts(images_directory=images, page_server=("127.0.0.1", server.result.port)),
            )
            server.wait(60)

    def ways(
        via: Worker | WarmWorkers,
    ) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "pycriu_native": (
                lambda: dump(target.pid, opts, via=via),
                lambda: restore(opts, via=via),
            ),
            "the criu program": (command_dump, command_restore),
            "page server on loopback": (to_page_server, lambda: restore(opts)),
        }
        newest = os.environ.get("CRIU_NEWEST", NEWEST)
        if os.path.exists(newest):
            other = Worker(program=newest)
            kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
                "4.3, writeback": ({}, {}),
                "4.3, direct": ({"image_io_mode": "direct"}, {"image_io_mode": "direct"}),
                "4.3, compressed": ({"compress": "block"}, {"decompress_threads": 0}),
            }
            for name, (saving, restoring) in kinds.items():
                saved = CriuOpts.from_dict({"images_directory": str(images), **saving})
                back = CriuOpts.from_dict({"images_directory": str(images), **restoring})
                found[name] = (
                    lambda saved=saved: dump(target.pid, saved, via=other),  # type: ignore[misc]
                    lambda back=back: restore(back, via=other),  # type: ignore[misc]
                )
        return found

    try:
        with WarmWorkers(1) as warm:
            for _ in range(times):
                for name, (save, bring_back) in ways(warm).items():
                    if name in refused:
                        continue
                    clear()
                    started = time.perf_counter()
                    try:
                        save()
                    except (CriuError, UnsupportedError) as error:
                        refused[name] = str(error).partition("; ")[0][:160]
                        continue
                    middle = time.perf_counter()
                    _collect(target)
                    again = time.perf_counter()
                    bring_back()
                    ended = time.perf_counter()
                    if not target.is_intact():
                        raise AssertionError(f"{name}: the memory has changed")
                    taken.setdefault((name, "dump"), []).append(gigabytes(mib, middle - started))
                    taken.setdefault((name, "restore"), []).append(gigabytes(mib, ended - again))
                    if name == "pycriu_native":
                        _limits(directory, images, mib, taken)
    finally:
        target.end()
    case: dict[str, Any] = {"on": where, "MiB": mib}
    rows = [row(what, "GB/s", found, by=name, **case) for (name, what), found in taken.items()]
    return rows + [note("dump", why, by=name, **case) for name, why in refused.items()]


def _collect(target: Target) -> None:
    """Reap what was dumped: the first time it is our child by birth, later by adoption."""
    if target.process.returncode is None:
        target.reap()
        return
    try:
        os.waitpid(target.pid, 0)
    except ChildProcessError:
        while os.path.exists(f"/proc/{target.pid}"):
            time.sleep(0.0005)


def _limits(
    directory: Path, images: Path, mib: int, taken: dict[tuple[str, str], list[float]]
) -> None:
    """The same bytes: written from memory, and read back into memory, by one system call a MiB."""
    source = max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    piece = bytearray(2**20)
    started = time.perf_counter()
    with open(source, "rb", buffering=0) as file:
        while file.readinto(piece):
            pass
    middle = time.perf_counter()
    copy = directory / "copy"
    with open(copy, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(piece)
    ended = time.perf_counter()
    copy.unlink()
    taken.setdefault(("a copy of the bytes", "dump"), []).append(gigabytes(mib, ended - middle))
    taken.setdefault(("a copy of the bytes", "restore"), []).append(
        gigabytes(mib, middle - started)
    )


if __name__ == "__main__":
    main("throughput", __doc__ or "", measure)

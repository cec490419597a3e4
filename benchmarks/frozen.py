"""How long a process stands still that has much memory and keeps writing to it."""

from __future__ import annotations

from pycriu_native import CriuOpts, DumpStatistics, WarmWorkers, dump, feature_check

from .common import Row, Target, main, note, row, scratch

PARTS = ("freezing_time", "frozen_time", "memdump_time", "memwrite_time")


def measure(quick: bool) -> list[Row]:
    """A plain dump that leaves it running: what CRIU says, and what the process has felt."""
    times, sizes = (3, (256,)) if quick else (7, (256, 1024))
    rows: list[Row] = []
    with scratch("/dev/shm") as directory, WarmWorkers(1) as warm:
        for mib in sizes:
            target = Target(directory, mib, writes=True, name=f"writer-{mib}")
            taken: dict[str, list[float]] = {}
            try:
                for number in range(times):
                    images = directory / f"images-{number}"
                    target.ask()
                    opts = CriuOpts(images_directory=images, leave_running=True)
                    done = dump(target.pid, opts, via=warm)
                    felt = float(target.ask()[2])
                    assert isinstance(done.statistics, DumpStatistics)
                    for part in PARTS:
                        taken.setdefault(part, []).append(getattr(done.statistics, part) / 1e3)
                    taken.setdefault("felt by the process", []).append(felt * 1e3)
                    taken.setdefault("whole call", []).append(done.duration * 1e3)
                    for image in images.iterdir():
                        image.unlink()
            finally:
                target.end()
            rows += [
                row(what, "ms", samples, by="plain dump", MiB=mib)
                for what, samples in taken.items()
            ]
    if not feature_check().mem_track:
        why = "this kernel does not track changed memory (soft-dirty): no pre-dump rounds"
        rows.append(note("pre-dump rounds", why))
    return rows


if __name__ == "__main__":
    main("frozen", __doc__ or "", measure)

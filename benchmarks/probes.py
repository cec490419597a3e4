"""A dump with and without CRIU's kernel-feature cache."""

from __future__ import annotations

import json

from .common import Row, Target, main, row, scratch, timed, with_run_on


def inside(times: int) -> None:
    """Print the samples of this mount namespace as JSON."""
    from pycriu_native import CriuOpts, WorkerPool, dump, feature_cache

    with scratch("/dev/shm") as directory, WorkerPool(1) as warm:
        target = Target(directory)
        opts = CriuOpts(images_directory=directory / "images", leave_running=True)
        try:
            dump(target.pid, opts)
            taken = []
            for _ in range(times):
                warm.wait_until_ready(10)
                taken.append(timed(lambda: dump(target.pid, opts, via=warm)))
            print(json.dumps([str(feature_cache().state), taken]))
        finally:
            target.end()


def measure(quick: bool) -> list[Row]:
    """Take samples in turns, each in a new mount namespace with another file system on /run."""
    taken: dict[str, list[float]] = {}
    for _ in range(2 if quick else 5):
        for kind in ("tmpfs", "ramfs"):
            state, samples = with_run_on(kind, "probes", 8)
            taken.setdefault(state, []).extend(samples)
    return [row("dump, left running", "ms", result, cache=state) for state, result in taken.items()]


if __name__ == "__main__":
    main("probes", __doc__ or "", measure)

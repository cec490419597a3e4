"""Coverage-guided fuzzing of all parsers of external bytes, by libFuzzer through atheris.

``python -m tests.fuzz.fuzz TARGET REAL [libFuzzer's options]``; ``make fuzz`` runs each target of
``targets.py`` for a while. ``REAL`` is a directory with a real dump (``real.py``); it need not
exist. No corpus of bytes is stored.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pycriu_native", "tests.unit.support.pagemaps"]):
    from . import targets


def main() -> None:
    """One target, with the seeds as its corpus."""
    name, real, *options = sys.argv[1:]
    target = targets.TARGETS[name]
    made, result = target.seeds(), target.real(Path(real))
    print(f"seeds: {len(made)} made, {len(result)} of a real dump", flush=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate([*made, *result]):
            (Path(corpus) / str(number)).write_bytes(seed)
            target.run(seed)
        # libFuzzer ends the process: the directory would stay.
        options.append(f"-max_len={target.largest}")
        atheris.Setup([sys.argv[0], *options, corpus], target.run)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()


if __name__ == "__main__":
    main()

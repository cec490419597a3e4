"""What this kernel cannot do, measured in a guest that is emulated: how long a process that keeps
writing stands still with pre-dump rounds, with a plain dump there beside it.

Times of a guest compare with each other only. Its root is made by ``make demo-vm``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from pycriu_native import feature_check

from .common import HERE, Row, build, main, note

GUEST = "trixie"
LIMIT = 600.0
"""The time limit of the guest in seconds."""
MEMORY = 3072
"""The memory of the guest in MiB, half of which is available for images."""


def measure(quick: bool) -> list[Row]:
    """Run ``benchmarks.frozen --quick`` in the guest; ``quick`` has no effect."""
    if feature_check().mem_track:
        return [note("pre-dump rounds", "this kernel can do that itself: no guest is needed")]
    sys.path.insert(0, str(HERE.parent))
    from tools.vm import machine, root
    from tools.vm.guests import GUESTS

    key = root.CACHE / GUEST / "key"
    if not key.exists() or key.read_text() != root._key(GUESTS[GUEST]):
        return [note("pre-dump rounds", "no guest has been built, or it is old: make demo-vm")]
    build("target")  # there is no compiler in the guest
    command = ["python3", "-m", "benchmarks.frozen", "--quick", "--json", "/results/frozen.json"]
    with tempfile.TemporaryDirectory(prefix="pycriu-native-bench-") as results:
        built = root.build(GUESTS[GUEST])
        guest = GUESTS[GUEST]
        ended = machine.run(
            guest, built, command, results=Path(results), limit=LIMIT, memory=MEMORY
        )
        message = Path(results, "frozen.json")
        if ended.status != 0 or not message.exists():
            why = ended.why or f"it ended with status {ended.status}"
            return [note("pre-dump rounds", f"the guest did not come to an end: {why}")]
        rows: list[Row] = json.loads(message.read_text())["rows"]
    return rows


if __name__ == "__main__":
    main("guest", __doc__ or "", measure)

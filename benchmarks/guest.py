"""The stop of a process that writes to its memory, with and without pre-dump rounds, in a guest.

For kernels that do not track changed memory. The guest is emulated, so its times can be compared
only with each other. ``make demo-vm`` builds the guest.
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
        return [note("pre-dump rounds", "this kernel supports them: no guest is needed")]
    sys.path.insert(0, str(HERE.parent))
    from tools.vm import machine, root
    from tools.vm.guests import GUESTS

    guest = GUESTS[GUEST]
    if not root.is_current(guest):
        return [
            note("pre-dump rounds", "the guest is not built, or its sources changed: make demo-vm")
        ]
    build("target")  # it is copied into the guest
    command = ["python3", "-m", "benchmarks.frozen", "--quick", "--json", "/results/frozen.json"]
    with tempfile.TemporaryDirectory(prefix="pycriu-native-bench-") as results:
        built = root.build(guest)
        ended = machine.run(
            guest, built, command, results=Path(results), limit=LIMIT, memory=MEMORY
        )
        output = Path(results, "frozen.json")
        if ended.status != 0 or not output.exists():
            why = ended.why or f"it ended with status {ended.status}"
            return [note("pre-dump rounds", f"the benchmark failed in the guest: {why}")]
        rows: list[Row] = json.loads(output.read_text())["rows"]
    return rows


if __name__ == "__main__":
    main("guest", __doc__ or "", measure)

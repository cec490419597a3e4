"""A thousand calls for valgrind: options, requests, responses, and calls that fail.

The peer is on a thread of this process (``pycriu_native/testing.py``), so that valgrind checks
libcriu and the extension; a real CRIU would be a separate process.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile

from pycriu_native import CriuError, CriuOpts, version
from pycriu_native._wire.messages import decode_response
from pycriu_native.enums import Verb
from pycriu_native.testing import ScriptedCriu, answer_of
from tests.unit.support.peer import called, filled

CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000

with tempfile.TemporaryDirectory() as directory:
    opts = CriuOpts(
        images_directory=directory,
        log_file="valgrind.log",
        external=["file[1:2]:a", "mnt[/a]:b"],
        skip_mnts=["/x", "/y"],
        root="/",
        cg_roots=[],
        tcp_established=True,
        ghost_limit=2**20,
    )
    whole = CriuOpts(images_directory=directory, tcp_established=True)
    messages = [
        answer_of("restore", restore={"pid": 42}),
        answer_of("notify", notify={"script": "pre-dump", "pid": 7}),
        answer_of("dump", dump={"restored": False}) + b"\xff",
        b"",
    ]
    for number in range(CALLS):
        match number % 5:
            case 0 | 1:
                filled(opts, Verb.DUMP, 42, shuffle=number)
            case 2:
                decode_response(messages[number % len(messages)])
            case 3 if number % 2:
                version(via=ScriptedCriu())
            case 3:
                called(whole, Verb.DUMP, 2**22 + 1)
            case _:
                with contextlib.suppress(CriuError, MemoryError, LookupError):
                    filled(CriuOpts(images_directory=directory + "/no/such"), Verb.DUMP, 42)
print(f"{CALLS} calls")

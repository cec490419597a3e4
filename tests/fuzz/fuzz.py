"""Coverage-guided fuzzing of all that reads bytes from outside, by libFuzzer through atheris.

``fuzz.py TARGET [libFuzzer's options] [corpus]``; ``make fuzz`` runs each target for a while. A
target's claim is in its docstring; whatever else it raises is a finding. Seeds are made here, in
words: no corpus of bytes is kept.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pycriu_native", "tests.images.runs"]):
    from pycriu_native import CriuError, CriuOpts, OptionError, _config, _exchange, _log, _stats
    from pycriu_native._message import REQUEST_TYPES, decode_response, encode
    from pycriu_native.enums import Verb
    from pycriu_native.images._schema import message
    from tests.images import runs

Target = Callable[[bytes], None]


def answers(data: bytes) -> None:
    """Any bytes are an answer, or none; one that libcriu may see has what it promises."""
    verbs = list(Verb)
    verb = verbs[data[0] % len(verbs)] if data else Verb.DUMP
    answer = decode_response(data[1:])
    if (
        answer is None
        or answer["type"] == REQUEST_TYPES["notify"]
        or str(verb) not in REQUEST_TYPES
    ):
        return
    flaw = _exchange._flaw(verb, answer)
    if flaw is None and answer["success"] and verb is Verb.RESTORE:
        body = answer["restore"]
        assert isinstance(body, dict)
        assert isinstance(body["pid"], int)
        assert body["pid"] > 0


def logs(data: bytes) -> None:
    """Any log has error lines that stand in it, and a diagnosis."""
    text = data.decode(errors="replace")
    lines = _log.error_lines(text, 42) or _log.chatter_lines(text)
    assert all(line.strip() in text or line in text for line in lines)
    for verb in (Verb.DUMP, Verb.RESTORE):
        found = _log.diagnose(lines, verb)
        assert found.line is None or found.line in lines
        assert issubclass(found.kind, CriuError)


def statistics(data: bytes) -> None:
    """Any file has statistics or none; numbers are numbers."""
    for number in (1, 2):
        found = _stats.parse(data, number)
        assert found is None or all(0 <= value < 2**70 for value in found.values())


def configuration(data: bytes) -> None:
    """Any text is options, which written out are read back as the same, or it is refused."""
    text = data.decode(errors="surrogateescape")
    for lazy in (False, True):
        _config.read_config(text, lazy=lazy)
    with contextlib.suppress(OptionError):
        opts = CriuOpts.from_config(text)
        written = opts.to_config()
        assert CriuOpts.from_config(written) == opts


def runc(data: bytes) -> None:
    """Any JSON is options, which written out are read back as the same, or it is refused."""
    try:
        struct = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(struct, dict):
        with contextlib.suppress(OptionError):
            opts = CriuOpts.from_runc(struct)
            written = opts.to_runc()
            assert CriuOpts.from_runc(json.loads(json.dumps(written))) == opts


def pagemaps(data: bytes) -> None:
    """Any bytes are runs of pages or none: what protobuf reads out of them."""
    runs.check(runs.frame(data))  # one whole entry, which mutations rarely keep
    found = runs.check(data)
    assert found.total == runs.counted(found, 0, 2**64 - 1)
    assert found.count([0, 4096], [2**64 - 1, 8192]) == [
        found.total,
        runs.counted(found, 4096, 8192),
    ]


def _pagemap_seeds() -> list[bytes]:
    kind = message("pagemap_entry")
    old = kind(vaddr=4096, compat_nr_pages=3, in_parent=True)
    new = kind(vaddr=2**40, compat_nr_pages=0, nr_pages=7, flags=runs.PRESENT | runs.ALIGNED)
    packed = kind(vaddr=2**41, compat_nr_pages=0, nr_pages=3, flags=runs.PRESENT)
    packed.blocks.pages_per_block, packed.blocks.total_payload_size = 2, 300
    packed.blocks.block_sizes.extend([200, 100])
    each = [runs.frame(entry.SerializeToString()) for entry in (old, new, packed)]
    return [*each, *(data[4:] for data in each), b"".join(each)]


def _answer_seeds() -> list[bytes]:
    return [
        b"\0" + encode("response", {"type": 1, "success": True, "dump": {"restored": False}}),
        b"\2" + encode("response", {"type": 2, "success": True, "restore": {"pid": 42}}),
        b"\0" + encode("response", {"type": 6, "success": True, "notify": {"script": "pre-dump"}}),
        b"\0" + encode("response", {"type": 1, "success": False, "cr_errno": 3, "cr_errmsg": "no"}),
    ]


def _statistics_seeds() -> list[bytes]:
    entry = bytes([8, 1, 16, 200, 1, 24, 3])
    message = bytes([10, len(entry)]) + entry
    head = b"".join(word.to_bytes(4, "little") for word in (0x55105940, 0x57093306, len(message)))
    return [head + message, head]


TARGETS: dict[str, tuple[Target, Callable[[], list[bytes]]]] = {
    "answers": (answers, _answer_seeds),
    "logs": (
        logs,
        lambda: [
            b"(00.01) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using "
            b"--tcp-established option.\n(00.02) Error (criu/cr-dump.c:2128): Dumping FAILED.\n",
            b"(00.01) Warn  (criu/x.c:1): zombie 42\nRPC error\n42: Error (criu/files.c:1): no\n",
        ],
    ),
    "pagemaps": (pagemaps, _pagemap_seeds),
    "statistics": (statistics, _statistics_seeds),
    "configuration": (
        configuration,
        lambda: [
            b"tcp-established\nverbosity=4\n# a comment\nghost-limit 1M\n",
            b'external "mnt[/a]:b"\nroot=/x # y\nlog-file \\"a\\"\nnetwork-lock=nftables\n',
        ],
    ),
    "runc": (
        runc,
        lambda: [
            json.dumps(CriuOpts(tcp_established=True, images_directory="a").to_runc()).encode(),
            b'{"ManageCgroupsMode": 2, "VethPairs": [{"HostInterfaceName": "a"}], "StatusFd": -1}',
        ],
    ),
}


def main() -> None:
    """One target, with the seeds as its corpus."""
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
            target(seed)
        # libFuzzer ends the process: the directory would stay.
        atheris.Setup([sys.argv[0], *options, corpus], target)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()


if __name__ == "__main__":
    main()

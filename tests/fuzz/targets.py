"""The fuzzed parsers of external bytes, with their claims in their docstrings.

Any other exception is a finding. The seeds in this file are small and readable; ``real.py`` adds
those of a real dump.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pycriu_native import CriuError, CriuOpts, ImagesError, OptionError
from pycriu_native._calls import exchange
from pycriu_native._failures import log_excerpt
from pycriu_native._integrity import set_check
from pycriu_native._integrity import statistics as statistics_module
from pycriu_native._integrity.manifest import MANIFEST, seal, verify
from pycriu_native._integrity.unchanged import SetState
from pycriu_native._wire.messages import REQUEST_TYPES, decode_response, encode
from pycriu_native.archive import pack, unpack
from pycriu_native.enums import Verb
from pycriu_native.images import decode, inspect
from pycriu_native.images import encode as encode_image
from pycriu_native.images.schema import message
from pycriu_native.migration import image_transfer
from pycriu_native.migration.control_channel import HEADER, Channel, Kind
from pycriu_native.migration.deadline import MigrationDeadline
from pycriu_native.options import config_file

from ..unit.support import pagemaps as pagemaps_module
from ..unit.support.image_sets import PAGE, PRESENT, image_set

LARGE = 2**16
"""Bytes of the largest input of a target that takes files."""


@dataclass(frozen=True)
class Target:
    """A parser and its seeds."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    real: Callable[[Path], list[bytes]] = field(default=lambda _: [])
    """Seeds out of a directory with a real dump: images, log, statistics."""
    largest: int = 4096
    """Bytes of the largest input."""


class Place:
    """A directory in memory, emptied before each use."""

    def __init__(self) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._owner = tempfile.TemporaryDirectory(prefix="pycriu-native-fuzz-", dir=base)
        self.path = Path(self._owner.name)

    def fresh(self) -> Path:
        """The directory, empty."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return self.path


_place: Place | None = None


def fresh() -> Path:
    """An empty directory."""
    global _place
    _place = _place or Place()
    return _place.fresh()


# ---- CRIU's answers ----


def answers(data: bytes) -> None:
    """Any bytes are a response or none; one that libcriu may receive has its required parts."""
    verbs = list(Verb)
    verb = verbs[data[0] % len(verbs)] if data else Verb.DUMP
    answer = decode_response(data[1:])
    if (
        answer is None
        or answer["type"] == REQUEST_TYPES["notify"]
        or str(verb) not in REQUEST_TYPES
    ):
        return
    flaw = exchange._defect(verb, answer)
    if flaw is None and answer["success"] and verb is Verb.RESTORE:
        body = answer["restore"]
        assert isinstance(body, dict)
        assert isinstance(body["pid"], int)
        assert body["pid"] > 0


def _answer_seeds() -> list[bytes]:
    return [
        b"\0" + encode("response", {"type": 1, "success": True, "dump": {"restored": False}}),
        b"\2" + encode("response", {"type": 2, "success": True, "restore": {"pid": 42}}),
        b"\0" + encode("response", {"type": 6, "success": True, "notify": {"script": "pre-dump"}}),
        b"\0" + encode("response", {"type": 1, "success": False, "cr_errno": 3, "cr_errmsg": "no"}),
    ]


# ---- logs ----


def logs(data: bytes) -> None:
    """Any log has error lines that are in it, and a diagnosis."""
    text = data.decode(errors="replace")
    lines = log_excerpt.error_lines(text, 42) or log_excerpt.stderr_lines(text)
    assert all(line.strip() in text or line in text for line in lines)
    for verb in (Verb.DUMP, Verb.RESTORE):
        result = log_excerpt.diagnose(lines, verb)
        assert result.line is None or result.line in lines
        assert issubclass(result.kind, CriuError)


def _log_seeds() -> list[bytes]:
    return [
        b"(00.01) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using "
        b"--tcp-established option.\n(00.02) Error (criu/cr-dump.c:2128): Dumping FAILED.\n",
        b"(00.01) Warn  (criu/x.c:1): zombie 42\nRPC error\n42: Error (criu/files.c:1): no\n",
    ]


def _real_logs(place: Path) -> list[bytes]:
    whole = b"".join(path.read_bytes() for path in sorted(place.glob("*.log")))
    telling = [line for line in whole.splitlines(True) if b"Error" in line or b"Warn" in line]
    return [whole[at : at + 500] for at in range(0, min(len(whole), 20_000), 500)] + telling


# ---- statistics ----


def statistics(data: bytes) -> None:
    """Any file has statistics or none; the values are numbers."""
    for number in (1, 2):
        with contextlib.suppress(ValueError):
            result = statistics_module.parse(data, number)
            assert all(0 <= value < 2**70 for value in result.values())


def _statistics_seeds() -> list[bytes]:
    entry = bytes([8, 1, 16, 200, 1, 24, 3])
    message = bytes([10, len(entry)]) + entry
    head = b"".join(word.to_bytes(4, "little") for word in (0x55105940, 0x57093306, len(message)))
    return [head + message, head]


# ---- images ----


def images(data: bytes) -> None:
    """Any file is an image, whose dict is JSON and is encoded to an image of the same dict, or
    refused.
    """
    path = fresh() / "some.img"
    path.write_bytes(data)
    try:
        result = decode(path)
    except ImagesError:
        return
    assert json.loads(json.dumps(result)) == result
    path.write_bytes(encode_image(result))
    assert decode(path) == result


def _hand_made() -> Path:
    return image_set(fresh() / "set", [(0, 2, PRESENT)], bytes(PAGE) + b"b" * PAGE)


def _image_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_hand_made().glob("[!p]*.img"))]


def _real_images(place: Path) -> list[bytes]:
    result = (
        path.read_bytes() for path in sorted(place.rglob("*.img")) if "pages" not in path.name
    )
    return [data for data in dict.fromkeys(result) if len(data) <= LARGE]


def sets(data: bytes) -> None:
    """A set with any replaced file is complete or refused, by all readers alike."""
    directory = _hand_made()
    names = sorted(os.listdir(directory))
    name = names[data[0] % len(names)] if data else names[0]
    (directory / name).write_bytes(data[1:])
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(ImagesError):
            set_check.check(SetState(fd), CriuOpts(images_directory=directory))
    finally:
        os.close(fd)
    try:
        result = inspect(directory)
    except ImagesError:
        return
    json.dumps(result.to_dict())
    for process in result.processes:
        with contextlib.suppress(ImagesError):
            list(process.memory.find(b"bb"))


def _set_seeds() -> list[bytes]:
    files = sorted(_hand_made().iterdir())
    return [bytes([number]) + path.read_bytes() for number, path in enumerate(files)]


def _real_sets(place: Path) -> list[bytes]:
    """A real image that replaces the one of its kind."""
    result = []
    for number, path in enumerate(sorted(_hand_made().iterdir())):
        kind = path.name.partition(".")[0].partition("-")[0]
        for real in sorted(place.rglob(f"{kind}*.img")):
            if "pages" not in real.name and real.stat().st_size < LARGE:
                result.append(bytes([number]) + real.read_bytes())
    return result


# ---- page maps ----


def pagemaps(data: bytes) -> None:
    """Any bytes are runs of pages or none, with protobuf's result."""
    pagemaps_module.check(
        pagemaps_module.frame(data)
    )  # one whole entry, which mutations rarely keep
    result = pagemaps_module.check(data)
    assert result.total == pagemaps_module.counted(result, 0, 2**64 - 1)
    assert result.count([0, 4096], [2**64 - 1, 8192]) == [
        result.total,
        pagemaps_module.counted(result, 4096, 8192),
    ]


def _pagemap_seeds() -> list[bytes]:
    kind = message("pagemap_entry")
    old = kind(vaddr=4096, compat_nr_pages=3, in_parent=True)
    new = kind(
        vaddr=2**40,
        compat_nr_pages=0,
        nr_pages=7,
        flags=pagemaps_module.PRESENT | pagemaps_module.ALIGNED,
    )
    packed = kind(vaddr=2**41, compat_nr_pages=0, nr_pages=3, flags=pagemaps_module.PRESENT)
    packed.blocks.pages_per_block, packed.blocks.total_payload_size = 2, 300
    packed.blocks.block_sizes.extend([200, 100])
    each = [pagemaps_module.frame(entry.SerializeToString()) for entry in (old, new, packed)]
    return [*each, *(data[4:] for data in each), b"".join(each)]


# ---- archives, manifests ----


def archives(data: bytes) -> None:
    """Any stream is an archive, whose files are all in the directory, or refused."""
    place = fresh()
    try:
        unpack(io.BytesIO(data), place / "set", limit=2**24)
    except (ImagesError, OptionError):  # what seems to be encrypted needs a key
        assert os.listdir(place) == []
        return
    assert os.listdir(place) == ["set"]
    for path in (place / "set").rglob("*"):
        assert path.resolve().is_relative_to(place) or path.is_symlink()
        assert path.is_symlink() or path.is_file() or path.is_dir()


def _archive_seeds() -> list[bytes]:
    chain = fresh() / "chain"
    image_set(chain / "1", [(0, 1, PRESENT)], bytes(PAGE))
    image_set(chain / "2")
    (chain / "2" / "parent").symlink_to("../1")
    packed = [io.BytesIO(), io.BytesIO()]
    pack(chain, packed[0], compress="none")
    pack(chain / "1", packed[1], compress="gzip", inside="checkpoint")
    return [each.getvalue() for each in packed]


def manifests(data: bytes) -> None:
    """Any bytes are a manifest with which the set is compared, or refused."""
    directory = fresh() / "set"
    directory.mkdir()
    (directory / "inventory.img").write_bytes(b"x")
    (directory / MANIFEST).write_bytes(data)
    with contextlib.suppress(ImagesError):
        verify(directory)


def _manifest_seeds() -> list[bytes]:
    directory = fresh() / "set"
    directory.mkdir()
    (directory / "inventory.img").write_bytes(b"x")
    seal(directory)
    whole = (directory / MANIFEST).read_bytes()
    (directory / "link").symlink_to("../1")
    seal(directory)
    return [whole, (directory / MANIFEST).read_bytes()]


# ---- a migration's peer ----


def transfers(data: bytes) -> None:
    """Any stream of a peer: the files are in their directory, or it is refused."""
    place = fresh()
    ours, theirs = socket.socketpair()
    channel = Channel(ours, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None)
    try:
        with theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            announcement: dict[str, object] = {"number": 1, "files": 2, "bytes": 100}
            with contextlib.suppress(CriuError):
                image_transfer.receive(channel, str(place), announcement, 0, lambda size: None)
    finally:
        channel.close()
    assert os.listdir(place) in ([], ["1"])
    for path in place.glob("1/*"):
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_size <= 100


def _frame(kind: Kind, data: bytes) -> bytes:
    return HEADER.pack(kind, len(data)) + data


def _transfer_seeds() -> list[bytes]:
    def announced(name: str, size: int) -> bytes:
        text = json.dumps({"word": "file", "name": name, "size": size})
        return _frame(Kind.MESSAGE, text.encode())

    files = announced("core-1.img", 3) + _frame(Kind.PIECE, b"abc") + announced("b.img", 0)
    refusal = _frame(Kind.MESSAGE, b'{"word": "failed", "why": "no"}')
    return [
        files,
        announced("../x", 1) + _frame(Kind.PIECE, b"x"),
        refusal,
        _frame(Kind.ALIVE, b""),
    ]


# ---- other forms of options ----


def configuration(data: bytes) -> None:
    """Any text is options, which are written and read back unchanged, or refused."""
    text = data.decode(errors="surrogateescape")
    for lazy in (False, True):
        config_file.read_config(text, lazy=lazy)
    with contextlib.suppress(OptionError):
        opts = CriuOpts.from_config(text)
        written = opts.to_config()
        assert CriuOpts.from_config(written) == opts


def _configuration_seeds() -> list[bytes]:
    return [
        b"tcp-established\nverbosity=4\n# a comment\nghost-limit 1M\n",
        b'external "mnt[/a]:b"\nroot=/x # y\nlog-file \\"a\\"\nnetwork-lock=nftables\n',
    ]


def runc(data: bytes) -> None:
    """Any JSON is options, which are written and read back unchanged, or refused."""
    try:
        struct = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(struct, dict):
        with contextlib.suppress(OptionError):
            opts = CriuOpts.from_runc(struct)
            written = opts.to_runc()
            assert CriuOpts.from_runc(json.loads(json.dumps(written))) == opts


def _runc_seeds() -> list[bytes]:
    return [
        json.dumps(CriuOpts(tcp_established=True, images_directory="a").to_runc()).encode(),
        b'{"ManageCgroupsMode": 2, "VethPairs": [{"HostInterfaceName": "a"}], "StatusFd": -1}',
    ]


TARGETS = {
    "answers": Target(answers, _answer_seeds),
    "logs": Target(logs, _log_seeds, _real_logs, 1000),  # all patterns are tried on all lines
    "statistics": Target(
        statistics,
        _statistics_seeds,
        lambda place: [path.read_bytes() for path in sorted(place.glob("stats-*"))],
    ),
    "images": Target(images, _image_seeds, _real_images, LARGE),
    "sets": Target(sets, _set_seeds, _real_sets, LARGE),
    "pagemaps": Target(pagemaps, _pagemap_seeds),
    "archives": Target(archives, _archive_seeds, largest=LARGE),
    "manifests": Target(manifests, _manifest_seeds),
    "transfers": Target(transfers, _transfer_seeds),
    "configuration": Target(configuration, _configuration_seeds),
    "runc": Target(runc, _runc_seeds),
}

"""Reading of streams: invalid and incomplete ones are refused before CRIU is started."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, ImagesError, OptionError, UnsupportedError
from pycriu_native.archive.streaming import FRAME, MAGIC, Images, dump_stream, restore_stream
from pycriu_native.testing import ScriptedCriu


def stream(*frames: tuple[int, bytes]) -> bytes:
    """A stream with its end."""
    return MAGIC + b"".join(FRAME.pack(n, len(data)) + data for n, data in (*frames, (0, b"")))


WHOLE = stream((0, b"a.img"), (0, b"b.img"), (2, b"22"), (1, b"1" * 3000), (2, b"2"), (0, b"c"))


def test_a_whole_one() -> None:
    """The pieces of each file, at any positions."""
    with Images(io.BytesIO(WHOLE)) as images:
        result = {
            name: b"".join(os.pread(images.fd, size, offset) for offset, size in pieces)
            for name, pieces in images.files.items()
        }
    assert result == {"a.img": b"1" * 3000, "b.img": b"222", "c": b""}


class InPieces(io.BytesIO):
    """A source with short reads, as a socket has."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(7 if size is None or size < 0 else min(size, 7))


def test_short_reads() -> None:
    """The pieces of a source can end anywhere, also in its first bytes."""
    with Images(InPieces(WHOLE)) as images:
        assert os.pread(images.fd, 4000, 0) == b"22" + b"1" * 3000 + b"2"
    with pytest.raises(ImagesError, match="not a stream"):
        Images(InPieces(b"short"))


def test_cut_short() -> None:
    """A stream that is truncated at any byte is refused."""
    for size in range(len(WHOLE)):
        with pytest.raises(ImagesError, match=r"cut short|not a stream"):
            Images(io.BytesIO(WHOLE[:size]))


@pytest.mark.parametrize(
    "data",
    [
        b"something else",
        stream((0, b"../a")),
        stream((0, b"a" * 256)),
        stream((0, b"a"), (0, b"a")),
        stream((1, b"a")),
    ],
)
def test_what_criu_does_not_write(data: bytes) -> None:
    """Names with a slash, duplicate files, and data without a file are refused."""
    with pytest.raises(ImagesError, match="stream"):
        Images(io.BytesIO(data))


def test_rules_that_a_restore_would_lose() -> None:
    """A stream with rules of nftables is refused; one with CRIU's network lock is not."""
    lock = b"table inet CRIU-7 {\n\tchain input {\n\t}\n}\n"
    chains = b"".join(
        b"\tchain %s {\n\t\ttype filter hook input priority filter; policy accept;\n"
        b"\t\tcounter packets 0 bytes 0 jump CRIU\n\t}\n" % name
        for name in (b"INPUT", b"OUTPUT")
    )
    by_iptables = (
        b"table ip6 filter {\n\tchain CRIU {\n\t\tcounter packets 0 bytes 0 drop\n\t}\n%s}\n"
        % chains
    )
    for text in (lock, by_iptables, lock + by_iptables):
        with Images(io.BytesIO(stream((0, b"nftables-9.img"), (1, text)))):
            pass
    rules = stream((0, b"nftables-9.img"), (1, lock), (1, b"table inet t {\n}\n"))
    connected = stream((0, b"nftables-9.img"), (1, lock), (0, b"tcp-stream-7.img"))
    dropping = by_iptables.replace(b"policy accept", b"policy drop")
    for data in (rules, connected, stream((0, b"nftables-9.img"), (1, dropping))):
        with pytest.raises(ImagesError, match=r"nftables.*pack\(\)"):
            Images(io.BytesIO(data))


@pytest.mark.parametrize(
    ("opts", "field"),
    [
        ({"images_directory": "/tmp"}, "images_directory"),
        ({"lazy_pages": True}, "lazy_pages"),
        ({"parent_image": "../a"}, "parent_image"),
    ],
)
def test_options_that_have_no_place(opts: dict[str, Any], field: str, tmp_path: Path) -> None:
    """Invalid options are named, and nothing is written or read."""
    to = io.BytesIO()
    with pytest.raises(OptionError, match=field):
        dump_stream(2**22 - 1, CriuOpts(**opts), to)
    with pytest.raises(OptionError, match=field):
        restore_stream(CriuOpts(**opts), io.BytesIO(WHOLE))
    assert to.getvalue() == b""


def test_nothing_is_written_of_a_refused_dump() -> None:
    """A CRIU that cannot write streams is detected before the first byte."""
    to = io.BytesIO()
    with pytest.raises(UnsupportedError, match="stream"):
        dump_stream(2**22 - 1, CriuOpts(), to, via=ScriptedCriu(version="4.2"))
    assert to.getvalue() == b""


def test_a_tree_of_the_caller() -> None:
    """A caller in the tree is frozen, and cannot receive a stream."""
    with pytest.raises(OptionError, match="pid"):
        dump_stream(os.getpid(), CriuOpts(), io.BytesIO())


def test_a_temporary_directory_whose_name_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing remains of a call for whose socket there is no name."""
    place = tmp_path / ("long" * 30)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with pytest.raises(OSError, match="too long"):
        restore_stream(CriuOpts(), io.BytesIO(WHOLE))
    assert not list(place.iterdir())

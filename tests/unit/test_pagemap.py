"""The reader of page maps in C: the same result as protobuf's for any bytes."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycriu_native import ImagesError
from pycriu_native._integrity.page_size import HOST_PAGE as PAGE
from pycriu_native._integrity.pagemap import Runs
from pycriu_native.images import inspect
from pycriu_native.images.pages import load_map
from pycriu_native.images.reader import WINDOW
from pycriu_native.images.schema import message

from .support.image_sets import START, image_set, page, write
from .support.pagemaps import ALIGNED, LAZY, PARENT, PRESENT, check, counted, frame

FLAGS = (0, PARENT, LAZY, PRESENT, PRESENT | LAZY, PRESENT | ALIGNED, LAZY | PARENT, 64)


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """Valid entries, old and new, compressed or not, and some that CRIU does not write."""
    made, at = [], 0
    for _ in range(draw(st.integers(0, 12))):
        pages = draw(st.integers(0, 9))
        at += draw(st.integers(0, 3)) * PAGE
        entry = message("pagemap_entry")(
            vaddr=at, compat_nr_pages=draw(st.sampled_from([0, pages]))
        )
        if not entry.compat_nr_pages:
            entry.nr_pages = pages
        for name, values in (("flags", FLAGS), ("in_parent", (False, True))):
            if draw(st.booleans()):
                setattr(entry, name, draw(st.sampled_from(values)))
        if draw(st.integers(0, 3)) == 0:
            per_block = draw(st.integers(1, 4))
            exact = draw(st.integers(0, 9)) > 0
            count = -(-pages // per_block) if exact else draw(st.integers(0, 4))
            sizes = draw(st.lists(st.integers(0, PAGE), min_size=count, max_size=count))
            entry.blocks.block_sizes.extend(sizes)
            entry.blocks.pages_per_block, entry.blocks.total_payload_size = per_block, sum(sizes)
        data: bytes = entry.SerializePartialToString()
        at += pages * PAGE
        made.append(frame(data + draw(st.sampled_from([b"", b"", b"\x98\x06\x01", data]))))
    return b"".join(made)


@settings(deadline=None, max_examples=150)
@given(
    data=entries(), cut=st.integers(0, 40), flips=st.lists(st.tuples(*[st.integers(0, 255)] * 2))
)
def test_it_reads_what_protobuf_reads(data: bytes, cut: int, flips: list[tuple[int, int]]) -> None:
    """Complete, truncated and damaged entries."""
    check(data)
    damaged = bytearray(data[: len(data) - cut])
    for at, value in flips[:3]:
        if damaged:
            damaged[at % len(damaged)] = value
    check(bytes(damaged))


@settings(deadline=None, max_examples=100)
@given(data=entries(), ranges=st.lists(st.tuples(*[st.integers(0, 200 * PAGE)] * 2), max_size=9))
def test_what_is_in_a_range(data: bytes, ranges: list[tuple[int, int]]) -> None:
    """The counts by differences of sums equal those of one run after the other."""
    runs = check(data)
    result = runs.count([each[0] for each in ranges], [each[1] for each in ranges])
    assert result == [
        counted(runs, start, end) if start < end else (0, 0, 0) for start, end in ranges
    ]
    assert runs.total == counted(runs, 0, 2**64 - 1)


@pytest.mark.parametrize(
    "message_",
    [
        b"",
        b"\x08\x00",  # no number of pages
        b"\x10\x01",  # no address
        b"\x08",  # cut short
        b"\x08\x80",
        b"\x08" + b"\xff" * 9 + b"\x80\x10\x01",  # more than ten bytes
        b"\x08" + b"\x80" * 10 + b"\x01\x10\x01",
        b"\x00\x00",  # field 0
        b"\x08\x00\x10\x01\x0f",  # wire type 7
        b"\x08\x00\x10\x01\x0e\x00",
        b"\x08\x00\x10\x01\x3a\x05ab",  # longer than what is left
        b"\x08\x00\x10\x01\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x00\x10\x01\x39abc",
        b"\x08\x00\x10\x01\x3dabc",
        b"\x08\x00\x10\x01\x32\x02\x08\x80",  # blocks, cut short
        b"\x08\x00\x10\x01\x32\x02\x08\x01",  # blocks without their size
        b"\x08\x01\x10\x01",  # not at a page
        b"\x08\x00\x10\x01\x3b\x3c",  # a group
        b"\x08\x80\xe0" + b"\xff" * 7 + b"\x01\x10\x01",  # the last page of all
        b"\x08\x00\x10\x00\x28" + b"\xff" * 9 + b"\x01",  # more pages than there are
    ],
)
def test_what_is_refused(message_: bytes, tmp_path: Path) -> None:
    """Each invalid entry is refused, by protobuf too; the error names the offset of the message, or
    of the zeros in place of one.
    """
    runs = check(frame(message_))
    assert len(runs) == 0
    good = message("pagemap_entry")(vaddr=0, compat_nr_pages=0, flags=PRESENT).SerializeToString()
    image_set(tmp_path)
    path = tmp_path / "pagemap-10.img"
    begin = len(path.read_bytes()) + len(frame(good)) + (4 if message_ else 0)
    path.write_bytes(path.read_bytes() + frame(good) + frame(message_))
    with pytest.raises(ImagesError, match=f"pagemap-10.img, offset {begin}: "):
        load_map(str(tmp_path), "pagemap-10.img", PAGE)


def _runs_of(count: int) -> bytes:
    kind = message("pagemap_entry")
    return b"".join(
        frame(kind(vaddr=2 * PAGE * n, compat_nr_pages=1, flags=PRESENT).SerializeToString())
        for n in range(count)
    )


def test_entries_across_windows(tmp_path: Path) -> None:
    """A page map is read in windows, and nothing is lost at their ends."""
    image_set(tmp_path)
    path = tmp_path / "pagemap-10.img"
    data = _runs_of(40_000)
    assert len(data) > 2 * WINDOW
    path.write_bytes(path.read_bytes() + data)
    runs = load_map(str(tmp_path), "pagemap-10.img", PAGE).runs
    assert len(runs) == 40_000
    assert [run for _, run in runs.between(0, 2**63)] == [
        (2 * n * PAGE, (2 * n + 1) * PAGE, PRESENT, n * PAGE) for n in range(40_000)
    ]
    assert runs.count([PAGE], [7 * PAGE]) == [(3 * PAGE, 0, 0)]


def test_block_sizes_across_windows() -> None:
    """The sizes of compressed blocks are assigned to their own run."""
    kind = message("pagemap_entry")
    data = b""
    for n in range(5):
        entry: Any = kind(vaddr=n * 4 * PAGE, compat_nr_pages=4, flags=PRESENT)
        entry.blocks.pages_per_block, entry.blocks.total_payload_size = 2, n
        entry.blocks.block_sizes.extend([n, 100 + n])
        data += frame(entry.SerializeToString())
    runs, half = Runs(), len(data) // 2
    taken, why = runs.take(data[:half])
    assert why is None
    assert runs.take(data[taken:]) == (len(data) - taken, None)
    assert [list((runs.blocks(n) or (0, []))[1]) for n in range(5)] == [
        [n, 100 + n] for n in range(5)
    ]
    offsets = [run[3] for _, run in runs.between(0, 2**63)]
    assert offsets == [sum(before + 100 + before for before in range(n)) for n in range(5)]


def test_overlapping_mappings_of_many_runs_take_no_longer(tmp_path: Path) -> None:
    """Untrusted images: many mappings that each cover many runs do not take quadratic time."""
    runs = Runs()
    runs.take(_runs_of(40_000))
    begin = time.process_time()
    result = runs.count([0] * 40_000, [2**63] * 40_000)
    assert set(result) == {(40_000 * PAGE, 0, 0)}
    # One after the other it would be 1.6 thousand million steps: minutes.
    assert time.process_time() - begin < 20


def test_no_more_memory_than_the_file_has(tmp_path: Path) -> None:
    """A sparse page map of a terabyte is refused at its first hole, without being read."""
    image_set(tmp_path)
    path = tmp_path / "pagemap-10.img"
    with open(path, "ab") as file:
        file.truncate(2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImagesError, match="zeros in place"):
        inspect(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_processes_that_share_have_their_own_where_they_differ(tmp_path: Path) -> None:
    """Equal mappings share one object; those with other pages do not."""
    for pid, stored in ((10, 2), (11, 2), (12, 1)):
        image_set(tmp_path, [(0, stored, PRESENT)], page("a") + page("b"), pid=pid)
    tree = [
        {"pid": pid, "ppid": 0, "pgid": pid, "sid": pid, "threads": [pid]} for pid in (10, 11, 12)
    ]
    write(tmp_path, "pstree.img", "PSTREE", *tree)
    one, same, other = (each.mappings[0] for each in inspect(tmp_path).processes)
    assert one == same
    assert (one.start, other.start) == (START, START)
    assert (one.stored, other.stored) == (2 * PAGE, PAGE)

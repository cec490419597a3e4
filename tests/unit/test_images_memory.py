"""Memory across parents: the location of each page, and missing pages."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import ImagesError
from pycriu_native.findings import Severity
from pycriu_native.images import Descriptor, ImageSet, Pipe, check_images, diff, inspect
from pycriu_native.images.pages import Layers

from .support.image_sets import LAZY, PAGE, PARENT, PRESENT, START, image_set, page


@pytest.fixture(params=[False, True], ids=["new", "old"])
def chain(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three sets: pages a, b, c; then B over b; then a new page d only."""
    old = request.param
    image_set(tmp_path / "1", [(0, 3, PRESENT)], page("a") + page("b") + page("c"), old=old)
    image_set(tmp_path / "2", [(0, 1, PARENT), (1, 1, PRESENT), (2, 1, PARENT)], page("B"), old=old)
    image_set(tmp_path / "3", [(0, 3, PARENT), (5, 1, PRESENT)], page("d"), old=old)
    (tmp_path / "2" / "parent").symlink_to("../1")
    (tmp_path / "3" / "parent").symlink_to("../2")
    return tmp_path


def test_pages_come_from_the_nearest_set_that_has_them(chain: Path) -> None:
    """Reads pages through two parents, and zeros where nothing was written."""
    result = inspect(chain / "3")
    assert result.complete, result.problems
    assert [each.directory for each in result.parents] == [str(chain / "2"), str(chain / "1")]
    (mapping,) = result.process(10).mappings
    assert (mapping.stored, mapping.in_parent, mapping.zero) == (PAGE, 3 * PAGE, 12 * PAGE)
    memory = result.process(10).memory
    assert memory.read(START, 4 * PAGE) == page("a") + page("B") + page("c") + bytes(PAGE)
    assert memory.read(START + PAGE - 1, 2) == b"aB"
    assert memory.read(START + 5 * PAGE, 1) == b"d"


def test_searching_sees_adjacent_pages_as_one(chain: Path) -> None:
    """Matches may extend over pages of different sets, but not over a gap."""
    memory = inspect(chain / "3").process(10).memory
    assert list(memory.find(b"aB")) == [START + PAGE - 1]
    assert list(memory.find(re.compile(b"a{4}B+c"))) == [START + PAGE - 4]
    assert list(memory.find(b"cd")) == []
    assert len(list(memory.find(b"dd"))) == PAGE - 1
    assert len(list(memory.find(re.compile(b"d")))) == PAGE
    with pytest.raises(TypeError, match="bytes are needed"):
        memory.search("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one byte"):
        memory.search(b"")


def test_a_long_chain(tmp_path: Path) -> None:
    """A chain of parents can be longer than Python's limit of recursion."""
    count = 1100
    for number in range(count):
        is_last = number == count - 1
        runs = [(0, 1, PRESENT if is_last else PARENT)]
        image_set(tmp_path / str(number), runs, page("a") if is_last else b"")
        if not is_last:
            (tmp_path / str(number) / "parent").symlink_to(f"../{number + 1}")
    assert inspect(tmp_path / "0").process(10).memory.read(START, PAGE) == page("a")
    layers = Layers(
        [str(tmp_path / str(number)) for number in range(count)], "pagemap-10.img", PAGE
    )
    ((start, end, stored_in, offset),) = layers.stored()
    assert (start, end, offset) == (START, START + PAGE, 0)
    assert stored_in.directory == str(tmp_path / str(count - 1))


def test_a_long_chain_with_pages_in_each(tmp_path: Path) -> None:
    """Few files are open at the same time."""
    count = 300
    for number in range(count):
        runs = [(0, count - number - 1, PARENT), (count - number - 1, 1, PRESENT)]
        image_set(tmp_path / str(number), [run for run in runs if run[1]], page("a"))
    layers = Layers(
        [str(tmp_path / str(number)) for number in range(count)], "pagemap-10.img", PAGE
    )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        found = list(layers.pieces(START, START + count * PAGE))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [data for _, data, _ in found] == [page("a")] * count


def test_a_parent_that_lacks_pages(chain: Path) -> None:
    """The locations of pages that no parent has are an error, which names the page map."""
    (chain / "1/pagemap-10.img").unlink()
    layers = Layers([str(chain / name) for name in "321"], "pagemap-10.img", PAGE)
    with pytest.raises(ImagesError, match=r"/2/pagemap-10\.img: the parent lacks \d+ bytes"):
        list(layers.stored())


def test_a_parent_that_is_missing(chain: Path) -> None:
    """A missing parent is a problem; other pages can be read."""
    (chain / "1").rename(chain / "elsewhere")
    result = inspect(chain / "3")
    assert [each.exists for each in result.parents] == [True, False]
    assert result.problems == (
        f"{chain / '2'} builds on the images in '../1': No such file or directory",
    )
    memory = result.process(10).memory
    assert memory.read(START + PAGE, 2) == b"BB"
    with pytest.raises(ImagesError, match="in none of these images"):
        memory.read(START, 2)


def test_parents_in_a_circle(chain: Path) -> None:
    """A cycle of parents is refused."""
    (chain / "1" / "parent").symlink_to("../3")
    with pytest.raises(ImagesError, match="whose parent it is itself"):
        inspect(chain / "3")


def test_lazy_pages_are_in_no_image(tmp_path: Path) -> None:
    """Lazy pages are counted, and reading them is refused."""
    image_set(tmp_path / "1", [(0, 2, LAZY), (2, 1, LAZY | PRESENT)], page("x"))
    result = inspect(tmp_path / "1").process(10)
    assert (result.mappings[0].lazy, result.mappings[0].stored) == (2 * PAGE, PAGE)
    assert result.memory.read(START + 2 * PAGE, 1) == b"x"
    with pytest.raises(ImagesError, match="lazy"):
        result.memory.read(START, 1)


def test_differences_page_by_page(tmp_path: Path) -> None:
    """Pages are changed, added or removed; a page of zeros equals one that was never written to."""
    before = image_set(
        tmp_path / "1", [(0, 4, PRESENT)], page("a") + page("b") + page("c") + bytes(PAGE)
    )
    after = image_set(
        tmp_path / "2", [(0, 2, PRESENT), (8, 2, PRESENT)],
        page("a") + page("X") + page("n") + bytes(PAGE),
    )  # fmt: skip
    result = diff(before, after)
    assert (result.pages_changed, result.pages_added, result.pages_removed) == (1, 1, 1)
    assert result.pages_same == 3
    (change,) = result.processes
    assert (change.pages[0].start, change.pages[0].changed) == (START, 1)


def test_changes_of_a_file_are_in_the_order_of_its_fields(tmp_path: Path) -> None:
    """The order of several changes of one file is the same in each process."""
    sets: list[ImageSet] = []
    names = ["flags", "pipe", "queued", "capacity", "path"]
    files = [
        Pipe(id=2, type="PIPE", flags=n, pipe=n, queued=n, capacity=n, path=str(n)) for n in (1, 2)
    ]
    for file in files:
        images = inspect(image_set(tmp_path / str(file.pipe)))
        process = replace(
            images.processes[0],
            descriptors=(Descriptor(fd=0, file=2, close_on_exec=False),),
        )
        sets.append(replace(images, files=(file,), processes=(process,)))
    ((result,),) = (each.descriptors for each in diff(*sets).processes)
    assert [change.name for change in result.changes] == names


def test_pages_of_another_host(tmp_path: Path) -> None:
    """The page size of images is that of the host of the dump."""
    size = 4 * PAGE
    data = b"a" * size + b"b" * size
    images = image_set(tmp_path, [(0, 1, PRESENT), (2, 1, PRESENT)], data, page_size=size)
    result = inspect(images)
    [process] = result.processes
    assert (process.page_size, result.problems) == (size, ())
    assert process.memory.read(START + size - 1, 2) == b"a\0"
    assert process.memory.read(START + 2 * size - 1, 2) == b"\0b"
    (images / "pages-1.img").write_bytes(data[:-1])
    assert not inspect(images).complete
    [finding] = [each for each in check_images(result) if "pages of" in each.message]
    assert finding.severity is Severity.STOPS
    assert f"have pages of {size} bytes" in finding.message

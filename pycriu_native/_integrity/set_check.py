"""Problems of an image set and its parents: for restores, which refuse it, and for inspections.

Three sources: the marker of a dump that did not finish (``dump_marker.py``), what the images refer
to (``completeness.py``), and the record of the dump (``dump_record.py``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._support.unpatched import close, closing
from .._system.descriptors import where
from .._system.file_lock import lock
from .._system.regular_file import open_regular
from ..enums import Verb
from ..errors import ImagesError
from ..options.criu_opts import CriuOpts
from . import completeness, dump_record
from .completeness import is_pre_dump
from .dump_marker import DEEPEST, EARLIER, UNFINISHED
from .image_files import ImageFiles, Problem
from .unchanged import SetState, Unchanged

_checked = Unchanged[None]()

_PRE_DUMP = Problem(
    "a pre-dump has memory only (there is no pstree.img)", "restore the dump that builds on it"
)


def check(state: SetState, opts: CriuOpts) -> None:
    """Raise ``ImagesError`` if the images of a dump are incomplete. Fast: no page is read."""
    _checked.result(state, bool(opts.lazy_pages), lambda: _check(state.directory, opts))


def _check(directory: int, opts: CriuOpts) -> None:
    files = ImageFiles(directory)
    for result in problems(files):
        if result.served and opts.lazy_pages:
            continue  # the dump has it
        raise _refusal(directory, result)
    if is_pre_dump(files):
        raise _refusal(directory, _PRE_DUMP)


def _refusal(directory: int, problem: Problem) -> ImagesError:
    return ImagesError(
        f"restore from {where(directory)} failed: {problem.cause}; {problem.cure}",
        verb=str(Verb.RESTORE),
        cause=problem.cause,
        cure=problem.cure,
        options=problem.options,
    )


def problems(files: ImageFiles) -> Iterator[Problem]:
    """The problems of an image set and its parents, the worst first."""
    yield from _mark_in(files)
    with contextlib.ExitStack() as opened:
        parents: list[ImageFiles] = []
        broken = list(_parents(files.directory, parents, opened))
        yield from broken
        names = set(files.names)
        yield from completeness.problems(files, parents, broken=bool(broken))
        yield from dump_record.problems(files, names)


def _mark_in(files: ImageFiles) -> Iterator[Problem]:
    if UNFINISHED not in files.names:
        return
    place = where(files.directory)
    with contextlib.suppress(OSError):
        with closing(open_regular(UNFINISHED, dir_fd=files.directory)) as fd:
            under_way = not lock(fd)
        if under_way:
            yield Problem(f"a dump to {place} is under way", "wait for its end")
            return
    cure = "dump again; a set that was copied while its dump went on is to be copied again"
    if EARLIER in files.names:
        cure += f"; the images of the dump before it are whole, in {place}/{EARLIER}"
    yield Problem(f"the dump to {place} did not finish ({UNFINISHED} is there)", cure)


def _parents(
    directory: int, chain: list[ImageFiles], opened: contextlib.ExitStack
) -> Iterator[Problem]:
    """The images of each parent, the nearest first, into ``chain``; a problem ends the chain."""
    at = directory
    for _ in range(DEEPEST):
        link = f"/proc/self/fd/{at}/parent"
        if not os.path.lexists(link):
            return
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            below = os.open("parent", flags, dir_fd=at)
        except OSError as error:
            parent = os.readlink(link) if os.path.islink(link) else "parent"
            yield Problem(
                f"{where(at)} builds on the images in {parent!r}: {error.strerror}",
                "copy the images of the pre-dumps too, to the same places",
                ("parent_image",),
            )
            return
        opened.callback(close, below)
        chain.append(ImageFiles(below))
        yield from _mark_in(chain[-1])
        at = below
    yield Problem(
        f"{where(directory)} has more than {DEEPEST} parents",
        "check the links named 'parent'",
        ("parent_image",),
    )

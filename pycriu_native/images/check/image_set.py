"""The images themselves, and the files that CRIU writes to."""

from __future__ import annotations

import os

from ..._calls.request import output_names
from ..._checks.work_directory import path_of
from ..._integrity.dump_marker import RECORD
from ..._system.descriptors import opened_directory
from ..._system.regular_file import check_writable
from ...enums import Verb
from ..memory_layout import misplaced
from .context import Context, Findings, stops, warning


def complete(context: Context) -> Findings:
    for problem in context.images.problems:
        yield stops(context.images.directory, problem, "dump again, or copy all of it here")
    if context.images.kind == "pre-dump":
        yield stops(
            context.images.directory,
            "a pre-dump has memory only",
            "restore the dump that builds on it",
        )
        return
    if context.images.problems or os.path.lexists(os.path.join(context.images.directory, RECORD)):
        return
    for name, why in misplaced(context.images):
        yield stops(name, why, "copy the images again from their origin")
    for each in context.images.processes:
        if each.state != "zombie" and not each.descriptors:
            yield warning(
                f"fdinfo-{each.files_table}.img",
                f"it does not exist: pid {each.pid} had no open file, or the images lack it, "
                "and a restore would leave all of them closed",
                "look for it where the images come from",
            )


def outputs(context: Context) -> Findings:
    place = context.opts.work_directory
    path = context.images.directory if place is None else path_of(place)
    if not os.path.isdir(path):
        return  # a call reports or makes it
    with opened_directory(path) as directory:
        for name in output_names(context.opts, Verb.RESTORE):
            try:
                check_writable(directory, name)
            except OSError as error:
                why = f"{error.strerror}, and CRIU writes to it"
                yield stops(name, why, "remove it")
